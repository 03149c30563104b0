//! The record of one registration, which outlives the agent: eight words of shared memory.
//!
//! The record is written by one agent and read by the next, perhaps of another version: so
//! every word is checked like input that is not trusted.

use monitor_common::{
    grammar::{
        control_file::{ControlFile, Trigger},
        pressure::{Pressure, PressureMode},
        threshold::{At, HUNDRED_PERCENT, Pages, Threshold},
    },
    protocol::pressure::Level,
};

use crate::{
    registry::Account,
    source::{FileId, GroupId},
};

/// Number of words in a record.
pub const WORDS: usize = 8;

/// A registration, with its present state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The control file that it is on.
    pub on: ControlFile,
    /// Event that it waits for.
    pub trigger: Trigger,
    /// Identity of its eventfd, the address of the `struct file`, which the stash keeps alive.
    pub file: FileId,
    /// Account that it counts against.
    pub account: Account,
    /// Slot of its group, in the maps that were in use.
    pub group: GroupId,
    /// `st_ino` of the group's directory.
    pub cgroup_id: u64,
    /// Side of the threshold that was signalled last.
    pub above: bool,
    /// Whether the client has received the answer.
    pub sure: bool,
    /// Signals that are due, and not given yet.
    pub owed: u64,
}

/// The reason why eight words are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {value:#x}")]
pub struct CorruptRecord {
    /// Part of the record that is wrong.
    pub what: &'static str,
    /// Value of that part.
    pub value: u64,
}

/// First byte of a free record.
pub const FREE: u64 = 0;
const UNSURE: u64 = 1;
const SURE: u64 = 2;
/// First byte of a line with excursions that were taken out of a slot, in place of a
/// registration.
pub const RANGES: u64 = 3;
/// First byte of a line with counts that were taken out of a slot.
pub const COUNTS: u64 = 4;
/// First byte of a line with windows of reclaim in removed groups below.
pub const BELOW: u64 = 5;

/// Index of the word with the owed signals.
pub const AT_OWED: usize = 7;

/// Bit positions of the parts of the first word.
const ON: u32 = 8;
const KIND: u32 = 16;
const LEVEL: u32 = 24;
const MODE: u32 = 32;
const WAYS: u32 = 40;
const ABOVE: u32 = 48;
/// Position of three bits: the kind of account that pays.
const PAYER: u32 = 49;
/// Position of twelve bits: the middle of a group's id.
const PAYER_MIDDLE: u32 = 52;
/// Position above the group's generation: the highest eight bits of a group's id.
const PAYER_HIGH: u32 = 56;

const UP: u64 = 1;
const DOWN: u64 = 2;

const PAGES: u64 = 0;
const PERCENT: u64 = 1;
const OOM: u64 = 2;
const PRESSURE: u64 = 3;
const EMPTY: u64 = 4;

const USER: u64 = 0;
const GROUP: u64 = 1;
const PRIVILEGED: u64 = 2;
const UNIDENTIFIED: u64 = 3;

/// Kind and number of an account. The agent's own registrations are not recorded.
const fn packed(account: Account) -> (u64, u64) {
    match account {
        Account::User(uid) => (USER, uid as u64),
        Account::Group(id) => (GROUP, id),
        Account::Privileged => (PRIVILEGED, 0),
        Account::Unidentified | Account::Agent => (UNIDENTIFIED, 0),
    }
}

impl Record {
    /// Encodes the record as words. The first one is stored last.
    #[must_use]
    pub fn words(&self) -> [u64; WORDS] {
        let (kind, level, mode, ways, at, hysteresis) = match self.trigger {
            Trigger::Threshold(Threshold { at, up, down, hysteresis }) => {
                let (kind, at) = match at {
                    At::Pages(pages) => (PAGES, pages.0),
                    At::Percent(percent) => (PERCENT, u64::from(percent)),
                };
                let ways = if up { UP } else { 0 } | if down { DOWN } else { 0 };
                (kind, 0, 0, ways, at, hysteresis.0)
            }
            Trigger::Oom => (OOM, 0, 0, 0, 0, 0),
            Trigger::Pressure(Pressure { level, mode }) => {
                (PRESSURE, index(&Level::ALL, &level), index(&PressureMode::ALL, &mode), 0, 0, 0)
            }
            Trigger::Empty => (EMPTY, 0, 0, 0, 0, 0),
        };
        let first = if self.sure { SURE } else { UNSURE }
            | index(&ControlFile::ALL, &self.on) << ON
            | kind << KIND
            | level << LEVEL
            | mode << MODE
            | ways << WAYS
            | u64::from(self.above) << ABOVE;
        let (payer, number) = packed(self.account);
        let first = first | payer << PAYER | (number >> 32) << PAYER_MIDDLE;
        let slot = u64::from(self.group.slot) | number << 32;
        let generation = self.group.generation | (number >> 44) << PAYER_HIGH;
        [first, self.file.0, self.cgroup_id, generation, slot, at, hysteresis, self.owed]
    }

    /// Decodes a record from its words; `None` where it is free.
    ///
    /// # Errors
    /// The first part with a value that it may not have.
    pub fn from_words(words: [u64; WORDS]) -> Result<Option<Self>, CorruptRecord> {
        let [first, file, cgroup_id, generation, slot, at, hysteresis, owed] = words;
        let part = |from: u32| first >> from & 0xff;
        let sure = match part(0) {
            FREE => return Ok(None),
            UNSURE => false,
            SURE => true,
            value => return Err(CorruptRecord { what: "its state", value }),
        };
        let on = one(&ControlFile::ALL, part(ON), "the control file")?;
        let threshold = |at| {
            let (up, down) = (part(WAYS) & UP != 0, part(WAYS) & DOWN != 0);
            if part(WAYS) & !(UP | DOWN) != 0 || !(up || down) {
                return Err(CorruptRecord { what: "the directions", value: part(WAYS) });
            }
            Ok(Trigger::Threshold(Threshold { at, up, down, hysteresis: Pages(hysteresis) }))
        };
        let trigger = match part(KIND) {
            PAGES => threshold(At::Pages(Pages(at)))?,
            PERCENT => match u32::try_from(at) {
                Ok(percent) if percent <= HUNDRED_PERCENT => threshold(At::Percent(percent))?,
                _ => return Err(CorruptRecord { what: "the percentage", value: at }),
            },
            OOM => Trigger::Oom,
            PRESSURE => Trigger::Pressure(Pressure {
                level: one(&Level::ALL, part(LEVEL), "the level")?,
                mode: one(&PressureMode::ALL, part(MODE), "the mode")?,
            }),
            EMPTY => Trigger::Empty,
            value => return Err(CorruptRecord { what: "the kind", value }),
        };
        let fits = match trigger {
            Trigger::Threshold(_) => ControlFile::QUANTITIES.contains(&on),
            Trigger::Oom => on == ControlFile::Oom,
            Trigger::Pressure(_) => on == ControlFile::Pressure,
            Trigger::Empty => on == ControlFile::Procs,
        };
        if !fits {
            return Err(CorruptRecord { what: "the control file for this kind", value: part(ON) });
        }
        let number = slot >> 32 | first >> PAYER_MIDDLE << 32 | generation >> PAYER_HIGH << 44;
        let account = match first >> PAYER & 7 {
            USER => Account::User(number as u32),
            GROUP => Account::Group(number),
            PRIVILEGED => Account::Privileged,
            UNIDENTIFIED => Account::Unidentified,
            value => return Err(CorruptRecord { what: "who pays", value }),
        };
        let generation = generation & ((1 << PAYER_HIGH) - 1);
        Ok(Some(Self {
            on,
            trigger,
            file: FileId(file),
            account,
            group: GroupId { slot: slot as u32, generation },
            cgroup_id,
            above: part(ABOVE) & 1 != 0,
            sure,
            owed,
        }))
    }

    /// Whether a client that requests this once more, after an answer that may have been lost,
    /// means `other`: then it is the same client. (Near its quota, a privileged one has another
    /// account than before.)
    #[must_use]
    pub fn is_same_request(&self, other: &Self) -> bool {
        let key = |record: &Self| (record.on, record.trigger, record.file, record.group);
        let same = self.account == other.account || other.account == Account::Privileged;
        key(self) == key(other) && same
    }
}

/// The first word of a record, with this side of the threshold.
#[must_use]
pub const fn with_side(first: u64, above: bool) -> u64 {
    first & !(1 << ABOVE) | (above as u64) << ABOVE
}

/// The first word of a record, with the mark that the client has its answer.
#[must_use]
pub const fn made_sure(first: u64) -> u64 {
    if first & 0xff == UNSURE { first & !0xff | SURE } else { first }
}

fn index<T: PartialEq>(all: &[T], one: &T) -> u64 {
    all.iter().position(|other| other == one).unwrap_or(0xff) as u64
}

fn one<T: Copy>(all: &[T], at: u64, what: &'static str) -> Result<T, CorruptRecord> {
    usize::try_from(at).ok().and_then(|at| all.get(at)).copied().ok_or(CorruptRecord { what, value: at })
}

#[cfg(test)]
mod tests {
    use monitor_common::grammar::control_file::{self, ControlFile};
    use proptest::prelude::*;

    use super::{FREE, Record, made_sure, with_side};
    use crate::{
        registry::Account,
        source::{FileId, GroupId},
    };

    fn record(on: ControlFile, args: &str) -> Record {
        let trigger = control_file::parse(on, args.as_bytes(), 4096).expect("the arguments are right");
        let group = GroupId { slot: 7, generation: 0xff_ffff_ffff_ffff };
        Record {
            on,
            trigger,
            file: FileId(u64::MAX - 1),
            account: Account::User(1000),
            group,
            cgroup_id: 99,
            above: false,
            sure: false,
            owed: 0,
        }
    }

    const EACH_KIND: &[(ControlFile, &str)] = &[
        (ControlFile::Usage, "4M"),
        (ControlFile::Memsw, "12.5%,up"),
        (ControlFile::WorkingSet, "8M,down,hysteresis=1M"),
        (ControlFile::Oom, ""),
        (ControlFile::Pressure, "critical,local"),
        (ControlFile::Procs, ""),
    ];

    #[test]
    fn what_is_written_is_read() {
        for (on, args) in EACH_KIND {
            for (above, sure) in [(false, false), (true, false), (false, true), (true, true)] {
                let written = Record { above, sure, owed: 3, ..record(*on, args) };
                assert_eq!(Record::from_words(written.words()), Ok(Some(written)));
                let mut words = written.words();
                words[0] = made_sure(with_side(words[0], !above));
                assert_eq!(
                    Record::from_words(words),
                    Ok(Some(Record { above: !above, sure: true, ..written }))
                );
            }
        }
    }

    #[test]
    fn every_payer_is_read() {
        let accounts = [
            Account::User(0),
            Account::User(u32::MAX - 1),
            Account::Group(1),
            Account::Group((1 << 52) - 1),
            Account::Group(0x0a_5000_0000_0001),
            Account::Privileged,
            Account::Unidentified,
        ];
        for account in accounts {
            let written = Record { account, above: true, ..record(ControlFile::Oom, "") };
            assert_eq!(Record::from_words(written.words()), Ok(Some(written)));
        }
        // By the format before, the upper half of that word was the user, and no more.
        let mut words = record(ControlFile::Oom, "").words();
        words[4] = 7 | 77 << 32;
        let read = Record::from_words(words).expect("a record").expect("one");
        assert_eq!(read.account, Account::User(77));
    }

    #[test]
    fn a_free_record_is_no_registration() {
        assert_eq!(Record::from_words([0; 8]), Ok(None));
        assert_eq!(made_sure(FREE), FREE);
    }

    proptest! {
        #[test]
        fn any_words_are_a_record_or_not(words: [u64; 8], first: u64) {
            for words in [words, [first, words[1], words[2], words[3], words[4], words[5], words[6], words[7]]] {
                if let Ok(Some(record)) = Record::from_words(words) {
                    prop_assert_eq!(Record::from_words(record.words()), Ok(Some(record)));
                }
            }
        }
    }
}
