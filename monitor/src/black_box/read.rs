//! Reads a file of the black box, whoever wrote it: each line is bounded, and so is the file.

use std::io::{BufRead, Read as _};

use serde::{Deserialize, Serialize};

use crate::black_box::{
    BlackBoxEntry, BlackBoxError, BlackBoxHeader, FORMAT, KillEntry, LimitEntry, MAJOR, MAX_ENTRIES,
    MAX_FILE, MAX_LINE, OomEntry, PressureEntry, RegistrationEntry, SignalEntry, UsagePoint,
};

/// A whole file, its entries by kind, each kind in the order of time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recording {
    pub header: BlackBoxHeader,
    pub usage: Vec<UsagePoint>,
    /// Points that are lost.
    pub lost: u64,
    pub limits: Vec<LimitEntry>,
    pub registrations: Vec<RegistrationEntry>,
    pub signals: Vec<SignalEntry>,
    pub pressure: Vec<PressureEntry>,
    pub ooms: Vec<OomEntry>,
    pub kills: Vec<KillEntry>,
    pub notes: Vec<String>,
    /// Entries of a later minor version, which are left out.
    pub unknown: u64,
    /// Whether the file's last line is there.
    pub is_complete: bool,
}

/// The part of a header that each version has.
#[derive(Deserialize)]
struct HeaderVersion {
    format: String,
    major: u32,
}

impl Recording {
    /// A recording without entries.
    #[must_use]
    pub const fn new(header: BlackBoxHeader) -> Self {
        Self {
            header,
            usage: Vec::new(),
            lost: 0,
            limits: Vec::new(),
            registrations: Vec::new(),
            signals: Vec::new(),
            pressure: Vec::new(),
            ooms: Vec::new(),
            kills: Vec::new(),
            notes: Vec::new(),
            unknown: 0,
            is_complete: false,
        }
    }

    /// Reads the header alone.
    ///
    /// # Errors
    /// There is none, or one of a newer version.
    pub fn read_header(input: impl BufRead) -> Result<BlackBoxHeader, BlackBoxError> {
        Lines { input, line: 0, bytes: 0 }.header()
    }

    /// Reads a file to its end. One that is cut off behind a whole line is read, and is not
    /// [complete](Self::is_complete).
    ///
    /// # Errors
    /// The error names the line.
    pub fn read(input: impl BufRead) -> Result<Self, BlackBoxError> {
        let mut lines = Lines { input, line: 0, bytes: 0 };
        let mut recording = Self::new(lines.header()?);
        let (mut found, mut end) = (0, None);
        while let Some(text) = lines.next_line()? {
            let line = lines.line;
            if let Some(end) = end {
                return Err(BlackBoxError::BehindEnd { line, end });
            }
            match serde_json::from_slice(&text).map_err(|error| BlackBoxError::of_line(line, &error))? {
                BlackBoxEntry::End { entries } if entries != found => {
                    return Err(BlackBoxError::Count { line, said: entries, found });
                }
                BlackBoxEntry::End { .. } => end = Some(line),
                entry => recording.add(entry),
            }
            if recording.longest() > MAX_ENTRIES {
                return Err(BlackBoxError::ManyEntries { line });
            }
            found += 1;
        }
        recording.is_complete = end.is_some();
        recording.sort();
        Ok(recording)
    }

    fn add(&mut self, entry: BlackBoxEntry) {
        match entry {
            BlackBoxEntry::Usage(point) => self.usage.push(point),
            BlackBoxEntry::Lost { points, .. } => self.lost = self.lost.saturating_add(points),
            BlackBoxEntry::Limit(limit) => self.limits.push(limit),
            BlackBoxEntry::Registration(registration) => self.registrations.push(registration),
            BlackBoxEntry::Signal(signal) => self.signals.push(signal),
            BlackBoxEntry::Pressure(window) => self.pressure.push(window),
            BlackBoxEntry::Oom(oom) => self.ooms.push(oom),
            BlackBoxEntry::Kill(kill) => self.kills.push(*kill),
            BlackBoxEntry::Note { text } => self.notes.push(text),
            BlackBoxEntry::End { .. } | BlackBoxEntry::Unknown => self.unknown += 1,
        }
    }

    /// The length of the longest list but that of points.
    fn longest(&self) -> usize {
        let Self { limits, registrations, signals, pressure, ooms, kills, notes, .. } = self;
        let lengths =
            [limits.len(), registrations.len(), signals.len(), pressure.len(), ooms.len(), kills.len()];
        lengths.into_iter().max().unwrap_or(0).max(notes.len())
    }

    /// Drops the older half of the longest of the lists of limits, signals, windows, OOMs and kills, of kills
    /// where no other is as long; false where all are empty.
    pub fn drop_older_half(&mut self) -> bool {
        fn halve<T>(all: &mut Vec<T>) {
            let dropped = all.len().div_ceil(2);
            all.drain(..dropped);
        }
        let Self { limits, signals, pressure, ooms, kills, .. } = self;
        let lengths = [pressure.len(), signals.len(), limits.len(), ooms.len(), kills.len()];
        let longest = lengths.into_iter().max().unwrap_or(0);
        match lengths.iter().position(|length| *length == longest) {
            Some(0) => halve(pressure),
            Some(1) => halve(signals),
            Some(2) => halve(limits),
            Some(3) => halve(ooms),
            _ => halve(kills),
        }
        longest > 0
    }

    /// Puts each kind into the order of time: points of several processors are not written in it.
    pub fn sort(&mut self) {
        self.usage.sort_by_key(|point| point.at);
        self.limits.sort_by_key(|limit| limit.at);
        self.signals.sort_by_key(|signal| signal.at);
        self.pressure.sort_by_key(|window| window.at);
        self.ooms.sort_by_key(|oom| oom.at);
        self.kills.sort_by_key(|kill| kill.at);
    }
}

/// The lines of a file, numbered and bounded.
struct Lines<R> {
    input: R,
    line: u64,
    bytes: u64,
}

impl<R: BufRead> Lines<R> {
    /// The header, which is the first line.
    fn header(&mut self) -> Result<BlackBoxHeader, BlackBoxError> {
        let header = self.next_line()?.ok_or(BlackBoxError::NoHeader)?;
        let version: HeaderVersion = serde_json::from_slice(&header).map_err(|_| BlackBoxError::NoHeader)?;
        if version.format != FORMAT {
            return Err(BlackBoxError::NoHeader);
        }
        if version.major > MAJOR {
            return Err(BlackBoxError::Newer { major: version.major });
        }
        serde_json::from_slice(&header).map_err(|error| BlackBoxError::of_line(1, &error))
    }

    /// The next line, without its end. One at the end of the file that has none is cut off, but
    /// for the first: it is no line.
    fn next_line(&mut self) -> Result<Option<Vec<u8>>, BlackBoxError> {
        self.line += 1;
        let (line, mut text) = (self.line, Vec::new());
        let read = (&mut self.input)
            .take(MAX_LINE as u64 + 1)
            .read_until(b'\n', &mut text)
            .map_err(|source| BlackBoxError::Read { line, source })?;
        self.bytes += read as u64;
        if self.bytes > MAX_FILE {
            return Err(BlackBoxError::LongFile { line });
        }
        if text.last() == Some(&b'\n') {
            text.pop();
        } else if text.len() > MAX_LINE {
            return Err(if line == 1 { BlackBoxError::NoHeader } else { BlackBoxError::LongLine { line } });
        } else if line > 1 {
            return Ok(None);
        }
        Ok(if read == 0 { None } else { Some(text) })
    }
}
