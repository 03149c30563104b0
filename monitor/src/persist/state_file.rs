//! The state file: a memory file with a [`Record`] for each registration, which the descriptor
//! store holds while no agent runs. Written by plain stores, so that an agent may be killed
//! between any two instructions.

use std::{
    ffi::CStr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use monitor_common::protocol::band::{Excursion, Seen};
use monitor_sys::table::Table;
use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        stat::fstat,
    },
    unistd::ftruncate,
};

use crate::{
    error::{Error, Result},
    persist::{
        error::StateFileError,
        record::{AT_OWED, BELOW, COUNTS, FREE, RANGES, Record, WORDS, made_sure, with_side},
    },
};

/// Place of a registration's record in the file, which also identifies the registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(pub u32);

/// A cache line of the state file, which begins at a page's start.
pub type StateLine = [AtomicU64; WORDS];

/// The bytes `memcgmon` at the file's start.
const MAGIC: u64 = u64::from_le_bytes(*b"memcgmon");
/// Number of the format, to be raised on any change of layout or meaning.
const FORMAT: u64 = 2;
/// The format before, whose records are valid in this one: only users paid for them, no signal
/// was owed, and nothing but the journal was unfinished, with 0 in all of these places.
const BEFORE: u64 = 1;

/// Lines before the first record: the head, and the journal.
const HEAD: usize = 0;
const JOURNAL: usize = 1;
const RECORDS: usize = 8;

/// Indices of the head's words.
const AT_MAGIC: usize = 0;
const AT_FORMAT: usize = 1;
const AT_INSTANCE: usize = 2;
const AT_RESTARTS: usize = 3;

/// Records by which the file grows at least.
const GROW: usize = 64;

/// The state file, mapped into memory.
#[derive(Debug)]
pub struct StateFile {
    file: OwnedFd,
    lines: Table<StateLine>,
    free: Vec<u32>,
    /// Records that were ever used: all further ones are free.
    used: u32,
    /// Lines with work that an earlier agent had not finished.
    unfinished: Vec<RecordId>,
}

/// Events that were taken out of a slot, and have not been signalled in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// `st_ino` of the group's directory.
    pub cgroup_id: u64,
    /// Events that charges had left in the slot.
    pub seen: Seen,
}

/// The file, its records, and the number of corrupt ones.
type Adopted = (StateFile, Vec<(RecordId, Record)>, u64);

impl StateFile {
    /// Makes an empty file.
    ///
    /// # Errors
    /// `memfd_create`, `ftruncate` or `mmap` failed.
    pub fn new() -> Result<Self> {
        const NAME: &CStr = c"memcg-monitor-state";
        let file = memfd_create(NAME, MFdFlags::MFD_CLOEXEC)
            .map_err(|errno| Error::syscall("memfd_create", errno))?;
        let lines = map(&file, RECORDS + GROW)?;
        let state = Self { file, lines, free: Vec::new(), used: 0, unfinished: Vec::new() };
        state.word(HEAD, AT_FORMAT).store(FORMAT, Ordering::Relaxed);
        state.word(HEAD, AT_MAGIC).store(MAGIC, Ordering::Release);
        Ok(state)
    }

    /// Maps the file of an earlier agent, and returns it with its records and the number of corrupt
    /// ones, which are logged and left out.
    ///
    /// # Errors
    /// The descriptor is no state file, or one of another version.
    pub fn adopt(file: OwnedFd) -> Result<Adopted> {
        let bytes = fstat(&file).map_err(|errno| Error::syscall("fstat of the state file", errno))?.st_size;
        let lines = usize::try_from(bytes).unwrap_or(0) / size_of::<StateLine>();
        if !(RECORDS..=RECORDS + u32::MAX as usize).contains(&lines) {
            return Err(StateFileError::Length { bytes }.into());
        }
        let lines = map_lines(&file, lines)?;
        let mut state = Self { file, lines, free: Vec::new(), used: 0, unfinished: Vec::new() };
        let head = |at| state.word(HEAD, at).load(Ordering::Acquire);
        let (magic, format) = (head(AT_MAGIC), head(AT_FORMAT));
        if magic != MAGIC || ![FORMAT, BEFORE].contains(&format) {
            return Err(StateFileError::Format { format, magic, own: FORMAT }.into());
        }
        state.word(HEAD, AT_FORMAT).store(FORMAT, Ordering::Relaxed);
        let (mut records, mut unfinished, mut flaws) = (Vec::new(), Vec::new(), 0);
        for at in 0..state.room() {
            let words = state.words(RECORDS + at as usize);
            if [RANGES, COUNTS, BELOW].contains(&words[0]) {
                unfinished.push(RecordId(at));
                state.used = at + 1;
                continue;
            }
            match Record::from_words(words) {
                Ok(Some(record)) => {
                    state.used = at + 1;
                    records.push((RecordId(at), record));
                }
                Ok(None) => {}
                Err(flaw) => {
                    log::error!("record {at} of the state file is corrupt: {flaw}; its registration is lost");
                    flaws += 1;
                    state.used = at + 1;
                    state.word(RECORDS + at as usize, 0).store(FREE, Ordering::Release);
                }
            }
        }
        let held = records.iter().map(|(record_id, _)| *record_id).chain(unfinished.iter().copied());
        let held: std::collections::HashSet<u32> = held.map(|record_id| record_id.0).collect();
        state.unfinished = unfinished;
        state.free = (0..state.used).rev().filter(|at| !held.contains(at)).collect();
        state.word(HEAD, AT_RESTARTS).fetch_add(1, Ordering::Relaxed);
        Ok((state, records, flaws))
    }

    /// The memory file's descriptor.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Instance of the maps with the records' slots; 0: none yet.
    #[must_use]
    pub fn instance(&self) -> u64 {
        self.word(HEAD, AT_INSTANCE).load(Ordering::Relaxed)
    }

    /// Sets the instance of the maps with the records' slots.
    pub fn set_instance(&self, instance: u64) {
        self.word(HEAD, AT_INSTANCE).store(instance, Ordering::Relaxed);
    }

    /// The number of agents that took the file over.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.word(HEAD, AT_RESTARTS).load(Ordering::Relaxed)
    }

    /// Enters a registration's record.
    ///
    /// # Errors
    /// The file cannot grow.
    pub fn enter(&mut self, record: &Record) -> Result<RecordId> {
        let record_id = self.place()?;
        self.write(record_id, record);
        Ok(record_id)
    }

    /// Finds a free line.
    fn place(&mut self) -> Result<RecordId> {
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                if self.used == self.room() {
                    let more = (self.room() as usize / 2).max(GROW);
                    self.lines = map(&self.file, self.lines.len() + more)?;
                }
                self.used += 1;
                self.used - 1
            }
        };
        Ok(RecordId(at))
    }

    /// Writes a registration anew.
    pub fn write(&self, record_id: RecordId, record: &Record) {
        self.fill(record_id, record.words());
    }

    fn fill(&self, record_id: RecordId, words: [u64; WORDS]) {
        let Some(line) = self.lines.get(RECORDS + record_id.0 as usize) else { return };
        for (word, value) in line.iter().zip(words).skip(1) {
            word.store(value, Ordering::Relaxed);
        }
        // Stored last: an agent killed before that has entered nothing.
        line[0].store(words[0], Ordering::Release);
    }

    /// Removes a registration's record.
    pub fn leave(&mut self, record_id: RecordId) {
        if record_id.0 >= self.used {
            return;
        }
        self.word(RECORDS + record_id.0 as usize, 0).store(FREE, Ordering::Release);
        self.free.push(record_id.0);
        if self.free.len() == self.used as usize && self.room() as usize > 4 * GROW {
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        match map(&self.file, RECORDS + GROW) {
            Ok(lines) => (self.lines, self.used, self.free) = (lines, 0, Vec::new()),
            Err(error) => log::warn!("{error}"),
        }
    }

    /// Adds to the signals owed to a registration.
    pub fn owe(&self, record_id: RecordId, signals: u64) {
        if let Some(word) = self.owed(record_id) {
            word.fetch_add(signals, Ordering::Release);
        }
    }

    /// Takes the signals that were given from those owed.
    pub fn pay(&self, record_id: RecordId, signals: u64) {
        if let Some(word) = self.owed(record_id) {
            let owed = word.load(Ordering::Relaxed);
            word.store(owed.saturating_sub(signals), Ordering::Release);
        }
    }

    fn owed(&self, record_id: RecordId) -> Option<&AtomicU64> {
        self.lines.get(RECORDS + record_id.0 as usize).map(|line| &line[AT_OWED])
    }

    /// Sets the side of a threshold that was signalled, or is owed.
    pub fn set_above(&self, record_id: RecordId, above: bool) {
        self.change(record_id, |first| with_side(first, above));
    }

    /// Notes that the client has its answer.
    pub fn confirm(&self, record_id: RecordId) {
        self.change(record_id, made_sure);
    }

    fn change(&self, record_id: RecordId, change: impl FnOnce(u64) -> u64) {
        if let Some(line) = self.lines.get(RECORDS + record_id.0 as usize) {
            let first = line[0].load(Ordering::Relaxed);
            line[0].store(change(first), Ordering::Release);
        }
    }

    /// Notes events taken out of a slot, before they are signalled.
    pub fn begin(&self, taken: &Unfinished) {
        let Unfinished { cgroup_id, seen } = taken;
        let words = [
            seen.memory.min,
            seen.memory.max,
            seen.sum.min,
            seen.sum.max,
            seen.ooms,
            seen.windows[0],
            seen.windows[1],
            seen.windows[2],
            seen.emptied,
            seen.windows_below[0],
            seen.windows_below[1],
            seen.windows_below[2],
        ];
        for (at, value) in words.into_iter().enumerate() {
            self.word(JOURNAL, at + 1).store(value, Ordering::Relaxed);
        }
        self.word(JOURNAL, 0).store(*cgroup_id, Ordering::Release);
    }

    /// Notes that all of them are owed, or are in [`StateFile::keep_on`]'s lines.
    pub fn end(&self) {
        self.word(JOURNAL, 0).store(0, Ordering::Release);
    }

    /// Keeps events taken out of a slot that need more than one turn, before [`StateFile::end`]:
    /// until these lines are removed, the next agent handles them all once more.
    ///
    /// # Errors
    /// The file cannot grow.
    pub fn keep_on(&mut self, taken: &Unfinished) -> Result<Vec<RecordId>> {
        let Unfinished { cgroup_id, seen } = *taken;
        let Seen { memory, sum, ooms, windows, windows_below: below, emptied, .. } = seen.merged();
        let mut lines = Vec::new();
        if (memory, sum) != (Excursion::NONE, Excursion::NONE) {
            lines.push([RANGES, cgroup_id, memory.min, memory.max, sum.min, sum.max, 0, 0]);
        }
        if (ooms, windows, emptied) != (0, [0; 3], 0) {
            lines.push([COUNTS, cgroup_id, ooms, windows[0], windows[1], windows[2], emptied, 0]);
        }
        if below != [0; 3] {
            lines.push([BELOW, cgroup_id, below[0], below[1], below[2], 0, 0, 0]);
        }
        let keep = |words| {
            let record_id = self.place()?;
            self.fill(record_id, words);
            Ok(record_id)
        };
        lines.into_iter().map(keep).collect()
    }

    /// The events that a killed agent had begun to signal.
    #[must_use]
    pub fn unfinished(&self) -> Vec<Unfinished> {
        let mut all: Vec<Unfinished> =
            self.unfinished.iter().map(|record_id| self.kept_on(*record_id)).collect();
        // Killed between the two, it left the same line twice.
        all.extend(self.journal().filter(|journal| {
            let again = |kept: &Unfinished| {
                let of = |seen: &Seen| (seen.memory, seen.sum);
                let counts = |seen: &Seen| (seen.ooms, seen.windows, seen.emptied);
                let (kept_on, begun) = (&kept.seen, &journal.seen);
                kept.cgroup_id == journal.cgroup_id
                    && (of(kept_on) == of(begun)
                        || counts(kept_on) == counts(begun)
                        || kept_on.windows_below == begun.windows_below)
            };
            !all.iter().any(again)
        }));
        all
    }

    /// Notes that all unfinished events are in the slots again.
    pub fn end_all(&mut self) {
        for record_id in std::mem::take(&mut self.unfinished) {
            self.leave(record_id);
        }
        self.end();
    }

    fn kept_on(&self, record_id: RecordId) -> Unfinished {
        let [kind, cgroup_id, rest @ ..] = self.words(RECORDS + record_id.0 as usize);
        let seen = match kind {
            RANGES => {
                let [memory_min, memory_max, sum_min, sum_max, ..] = rest;
                let memory = Excursion { min: memory_min, max: memory_max };
                Seen { memory, sum: Excursion { min: sum_min, max: sum_max }, ..Seen::NOTHING }
            }
            COUNTS => {
                let [ooms, low, medium, critical, emptied, ..] = rest;
                Seen { ooms, windows: [low, medium, critical], emptied, ..Seen::NOTHING }
            }
            _ => {
                let [low, medium, critical, ..] = rest;
                Seen { windows_below: [low, medium, critical], ..Seen::NOTHING }
            }
        };
        Unfinished { cgroup_id, seen }
    }

    fn journal(&self) -> Option<Unfinished> {
        let word = |at| self.word(JOURNAL, at).load(Ordering::Acquire);
        let cgroup_id = word(0);
        (cgroup_id != 0).then(|| Unfinished {
            cgroup_id,
            seen: Seen {
                memory: Excursion { min: word(1), max: word(2) },
                sum: Excursion { min: word(3), max: word(4) },
                late: [Excursion::NONE; 2],
                ooms: word(5),
                windows: [word(6), word(7), word(8)],
                emptied: word(9),
                windows_below: [word(10), word(11), word(12)],
            },
        })
    }

    fn room(&self) -> u32 {
        u32::try_from(self.lines.len().saturating_sub(RECORDS)).unwrap_or(u32::MAX - 1)
    }

    fn words(&self, line: usize) -> [u64; WORDS] {
        std::array::from_fn(|at| self.word(line, at).load(Ordering::Acquire))
    }

    /// A word, counted from the start of `line`, which lies within the file.
    fn word(&self, line: usize, at: usize) -> &AtomicU64 {
        static NOWHERE: AtomicU64 = AtomicU64::new(0);
        self.lines.get(line + at / WORDS).map_or(&NOWHERE, |words| &words[at % WORDS])
    }
}

/// Makes the file `lines` long, and maps it.
fn map(file: &OwnedFd, lines: usize) -> Result<Table<StateLine>> {
    let bytes = i64::try_from(lines * size_of::<StateLine>()).unwrap_or(i64::MAX);
    ftruncate(file, bytes).map_err(|errno| Error::syscall("ftruncate of the state file", errno))?;
    map_lines(file, lines)
}

fn map_lines(file: &OwnedFd, lines: usize) -> Result<Table<StateLine>> {
    Table::map(file, lines).map_err(|errno| Error::syscall("mmap of the state file", errno))
}

#[cfg(test)]
mod tests;
