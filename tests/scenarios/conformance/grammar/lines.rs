//! Lines that are nearly right, since those that are all wrong stop at the first byte.

use std::collections::HashMap;

use monitor_common::grammar::control_file::ControlFile;
use monitor_common::grammar::line::MAX_LINE;
use monitor_common::grammar::pressure;
use monitor_common::grammar::threshold::{ACCEPTED, EXTENDED, EXTENDED_REFUSED, REFUSED};

use super::Kind;
use crate::harness::random::Random;

/// Bytes that the grammar has words for, and some beside them.
const BYTES: &[u8] = b"0123456789 \t\n\x0b\x0c\r\xa0\0-+,.%xXkKmMgGtTpPeEaAfFlowmediu\x01\x7f\x80\x85\xff";
const SPACE: &[u8] = b" \t\n\x0b\x0c\r\xa0";

pub(super) struct Lines {
    random: Random,
    eventfd: u32,
    control: Vec<(u32, ControlFile)>,
    /// Wrong in one way or another, but open.
    others: Vec<u32>,
}

impl Lines {
    pub(super) fn new(seed: u64, kinds: &HashMap<u32, Kind>) -> Self {
        let mut lines =
            Self { random: Random(seed | 1), eventfd: 0, control: Vec::new(), others: Vec::new() };
        for (fd, kind) in kinds {
            match kind {
                Kind::Eventfd => lines.eventfd = *fd,
                Kind::Control(file) => lines.control.push((*fd, *file)),
                Kind::PathOnly | Kind::Other => lines.others.push(*fd),
            }
        }
        // A map has an order of its own each time.
        lines.control.sort_unstable();
        lines.others.sort_unstable();
        lines
    }

    pub(super) fn next(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        self.around(&mut line);
        let eventfd = if self.one_in(12) { self.wrong() } else { self.eventfd };
        self.number(&mut line, eventfd);
        self.between(&mut line);
        let (control, file) = self.control[self.random.below(self.control.len())];
        let control = if self.one_in(12) { self.wrong() } else { control };
        self.number(&mut line, control);
        if !self.one_in(16) {
            self.between(&mut line);
            self.arguments(&mut line, file);
        }
        self.around(&mut line);
        if self.one_in(16) {
            line.push(0);
            self.junk(&mut line);
        }
        if self.one_in(3) {
            for _ in 0..=self.random.below(3) {
                self.mutate(&mut line);
            }
        }
        if self.one_in(200) {
            let length = MAX_LINE - 2 + self.random.below(5);
            let filler = self.pick(SPACE);
            line.resize(length, filler);
        }
        line
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.random.below(many) == 0
    }

    fn pick(&mut self, bytes: &[u8]) -> u8 {
        bytes[self.random.below(bytes.len())]
    }

    /// A number of no eventfd, or no control file.
    fn wrong(&mut self) -> u32 {
        match self.random.below(4) {
            0 => 500 + self.random.below(1000) as u32,
            1 => u32::MAX - self.random.below(3) as u32,
            _ => self.others[self.random.below(self.others.len())],
        }
    }

    /// White space, as it may be before and after.
    fn around(&mut self, line: &mut Vec<u8>) {
        if self.one_in(6) {
            for _ in 0..=self.random.below(3) {
                let byte = self.pick(SPACE);
                line.push(byte);
            }
        }
    }

    fn between(&mut self, line: &mut Vec<u8>) {
        match self.random.below(24) {
            0 => line.extend(b"  "),
            1 => {
                let byte = self.pick(BYTES);
                line.push(byte);
            }
            _ => line.push(b' '),
        }
    }

    /// A descriptor's number, in a spelling that means it, mostly.
    fn number(&mut self, line: &mut Vec<u8>, fd: u32) {
        let fd = u128::from(fd);
        let text = match self.random.below(24) {
            0 => format!("{fd:05}"),
            1 => (fd + (1 << 32)).to_string(),
            2 => (fd + (1 << 64)).to_string(),
            3 => (fd + (self.random.below(1000) as u128) * (1 << 32)).to_string(),
            4 => (fd + ((1 + self.random.below(1000)) as u128) * (1 << 64)).to_string(),
            5 => match self.random.below(6) {
                0 => String::new(),
                1 => format!("-{fd}"),
                2 => format!("+{fd}"),
                3 => format!("{fd:#x}"),
                4 => format!("{fd}."),
                _ => format!("{}{fd}", "0".repeat(self.random.below(60))),
            },
            _ => fd.to_string(),
        };
        line.extend(text.bytes());
    }

    /// Arguments that this file takes, and now and then another's.
    fn arguments(&mut self, line: &mut Vec<u8>, file: ControlFile) {
        let kind = if self.one_in(12) { self.random.below(4) } else { 4 };
        match (kind, file) {
            (0, _) | (4, ControlFile::Pressure) => self.pressure(line),
            (1, _) => self.junk(line),
            (2, _) => {
                let tables = [REFUSED, EXTENDED_REFUSED];
                let table = tables[self.random.below(tables.len())];
                line.extend(table[self.random.below(table.len())].bytes());
            }
            (3, _) => line.extend(EXTENDED[self.random.below(EXTENDED.len())].0.bytes()),
            _ if self.one_in(4) => line.extend(ACCEPTED[self.random.below(ACCEPTED.len())].0.bytes()),
            _ => self.size(line),
        }
    }

    fn size(&mut self, line: &mut Vec<u8>) {
        let bits = self.random.below(72);
        let value = (self.random.below(1 << 20) as u128) << bits >> 8;
        let text = match self.random.below(12) {
            0 => format!("{value:#x}"),
            1 => format!("{value:#X}").replace("0X", "0x"),
            2 => format!("0{value:o}"),
            3 => format!("0{value}"),
            4 => "-1".to_owned(),
            5 => format!("0X{value:x}"),
            _ => value.to_string(),
        };
        line.extend(text.bytes());
        if self.one_in(2) {
            let suffix = self.pick(b"kKmMgGtTpPeE");
            line.push(suffix);
        }
    }

    fn pressure(&mut self, line: &mut Vec<u8>) {
        const WORDS: [&str; 8] = ["low", "medium", "critical", "default", "hierarchy", "local", "", "high"];
        if self.one_in(3) {
            let refused = pressure::REFUSED;
            line.extend(refused[self.random.below(refused.len())].bytes());
            return;
        }
        line.extend(WORDS[self.random.below(3)].bytes());
        if self.one_in(2) {
            line.push(b',');
            line.extend(WORDS[3 + self.random.below(WORDS.len() - 3)].bytes());
        }
        if self.one_in(6) {
            line.push(b',');
            self.junk(line);
        }
    }

    fn junk(&mut self, line: &mut Vec<u8>) {
        for _ in 0..self.random.below(24) {
            let byte = if self.one_in(8) { self.random.below(256) as u8 } else { self.pick(BYTES) };
            line.push(byte);
        }
    }

    /// Changes, adds or removes a byte, or repeats a part.
    fn mutate(&mut self, line: &mut Vec<u8>) {
        let at = self.random.below(line.len() + 1);
        let byte = if self.one_in(4) { self.random.below(256) as u8 } else { self.pick(BYTES) };
        match self.random.below(5) {
            0 if at < line.len() => line[at] = byte,
            1 if at < line.len() => {
                line.remove(at);
            }
            2 if at < line.len() => line[at] ^= 1 << self.random.below(8),
            3 => {
                let part = line[at..].iter().take(self.random.below(8)).copied().collect::<Vec<_>>();
                line.splice(at..at, part);
            }
            _ => line.insert(at, byte),
        }
    }
}
