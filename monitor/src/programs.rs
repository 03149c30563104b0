//! The programs in the kernel: loads, attaches and queries them. This is the one module that uses
//! aya.

pub(crate) mod error;
mod handles;
mod identity;
mod load;
mod pins;
mod predecessor;
mod registers;
mod ring;
mod sizes;
mod start;

pub use error::BpfRefusal;
pub(crate) use identity::Identity;
pub use load::{LoadCheck, ProgramKind, TableSize, try_all};
pub use pins::{PINS_DIRECTORY, Pins};
pub(crate) use ring::Doorbells;
pub use sizes::TableSizes;

use std::{
    fmt,
    ops::Range,
    os::fd::{AsFd as _, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use aya::{
    maps::MapData,
    programs::{RawTracePointRunOptions, TestRun as _},
};
use monitor_common::protocol::{
    oom,
    query::{ANSWERS, Query},
    ring::LossKind,
    word::Word as _,
};
use monitor_sys::{
    program_stats::ProgramStats,
    table::{SharedFileRefs, SharedScratch, SharedSlot, Table},
};
use nix::time::{ClockId, clock_gettime};

use crate::{
    boxes::BoxTables,
    error::{Error, Result},
    kernel::{Features, Hook, error::KernelError},
    programs::{
        error::{BpfStep, QueryError},
        handles::{Handles, is_charge},
        predecessor::Predecessor,
    },
    source::{FileId, GroupId, Misses, Precision, Slots, Source},
};

/// `st_ino` of the root directory, in each hierarchy.
const ROOT_ID: u64 = 1;

/// The attached programs, and the maps that the agent shares with them.
pub struct Programs {
    /// `None` only while they are being pinned.
    handles: Option<Handles>,
    slots: Arc<Table<SharedSlot>>,
    scratch: Arc<Table<SharedScratch>>,
    identity: Identity,
    tallies: Table<AtomicU64>,
    files: Table<SharedFileRefs>,
    /// The way in which the kernel calls them.
    kind: ProgramKind,
    /// Sweeps so far, of kprobes.
    sweeps: AtomicU64,
    band_shift: u32,
    features: Features,
    /// Rounds in which the attached programs did not run; see [`Programs::do_not_run`].
    silent: Silent,
    /// Marks of what threads are in, by thread.
    thread_marks: Table<AtomicU64>,
    /// The boxes of the black box, where it is on.
    boxes: Option<Arc<BoxTables>>,
    /// Descriptors of the attached programs, for the kernel's counts of them.
    attached: Vec<(&'static Hook, RawFd)>,
    pins: Option<Pins>,
    /// Maps to be pinned, once all groups are known.
    unpinned: Vec<(&'static str, MapData)>,
    /// Tables of earlier programs that are to be replaced.
    predecessors: Vec<Predecessor>,
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Programs").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

/// Rounds in which the attached programs did not run.
#[derive(Debug, Default)]
struct Silent {
    is_now: AtomicBool,
    rounds: AtomicU64,
}

impl Programs {
    /// Notes that the attached programs do not run now, or run again, which
    /// [`Identify::is_alive`](crate::source::Identify::is_alive) has found. Each call counts as a
    /// skipped call of every program: so the next sweep reads what it would have seen.
    pub fn do_not_run(&self, is_now: bool) {
        self.silent.is_now.store(is_now, Ordering::SeqCst);
        self.silent.rounds.fetch_add(1, Ordering::SeqCst);
    }

    /// Queries an eventfd of the agent's own: proves that attached programs run and answer, and
    /// that they read the kernel's count of references.
    fn try_eventfd(&self) -> Result<()> {
        use nix::sys::eventfd::{EfdFlags, EventFd};
        let eventfd =
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(|errno| Error::syscall("eventfd2", errno))?;
        let file = self.identity.shown_file(eventfd.as_fd())?;
        match self.file_refs(&[file])?[..] {
            [1] => Ok(()),
            ref refs => Err(KernelError::References(refs.to_vec()).into()),
        }
    }

    /// Whether all that is done at run time can be done: programs run, kernel memory is read.
    #[must_use]
    pub fn answers(&self) -> bool {
        self.end_epoch().is_ok() && self.try_eventfd().is_ok()
    }

    /// The way in which the kernel calls the programs.
    #[must_use]
    pub const fn kind(&self) -> ProgramKind {
        self.kind
    }

    /// The table of slots.
    #[must_use]
    pub fn slots(&self) -> &Table<SharedSlot> {
        &self.slots
    }

    /// The identity of files and descriptors, for the thread that has started the programs.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Runs of all charge programs, and nanoseconds spent in them: counted by the kernel while
    /// `kernel.bpf_stats_enabled` is set.
    #[must_use]
    pub fn runs(&self) -> (u64, u64) {
        let charge = self.attached.iter().filter(|(hook, _)| is_charge(hook));
        let stats = charge.map(|(_, fd)| ProgramStats::of(*fd).unwrap_or_default());
        stats.fold((0, 0), |(runs, time), one| (runs + one.runs, time + one.nanoseconds))
    }

    /// The boxes of the black box, where it is on.
    #[must_use]
    pub(crate) fn boxes(&self) -> Option<Arc<BoxTables>> {
        self.boxes.clone()
    }

    /// Every count of losses, with its name.
    #[must_use]
    pub fn tallies(&self) -> Vec<(String, u64)> {
        let count = |at: usize| self.tallies.get(at).map_or(0, |word| word.load(Ordering::Relaxed));
        LossKind::NAMES.iter().enumerate().map(|(at, name)| ((*name).to_owned(), count(at))).collect()
    }

    /// Calls that the kernel has skipped, as it counts them; see [`Programs::misses`] for those that
    /// it does not count.
    fn counted_misses(&self) -> Misses {
        let mut misses = Misses::default();
        for (hook, fd) in &self.attached {
            // Only attached programs are counted; one that is missing counts nothing.
            *misses.of(hook.program) += ProgramStats::of(*fd).unwrap_or_default().misses;
        }
        for (program, missed) in self.probes_missed().unwrap_or_default() {
            *misses.of(program) += missed;
        }
        misses
    }

    /// Calls that each kprobe has missed; `None` where the kernel does not report that.
    fn probes_missed(&self) -> Option<Vec<(&'static str, u64)>> {
        if self.kind == ProgramKind::Kprobe { self.handles.as_ref()?.probes_missed() } else { None }
    }

    fn handles(&self) -> Result<&Handles> {
        Ok(self.handles.as_ref().ok_or(QueryError::NotAttached)?)
    }

    fn answer_cell(&self) -> Result<&SharedScratch> {
        Ok(self.scratch.get(ANSWERS as usize).ok_or(QueryError::NoAnswerCell)?)
    }

    /// Queries a number of a group; `None` when the group is gone.
    fn query_of(&self, query: u64, group: GroupId) -> Result<Option<u64>> {
        match self.query(query, u64::from(group.slot), group.generation)? {
            Query::OK => Ok(Some(self.answer_cell()?.value.load(Ordering::Acquire))),
            Query::GONE => Ok(None),
            code => Err(QueryError::Counter { slot: group.slot, code }.into()),
        }
    }

    /// Gives a slot back, and those above it that only waited for that.
    fn give_back(&self, query: u64, slot: u32, generation: u64) {
        let mut next = self.query(query, u64::from(slot), generation);
        loop {
            let above = match next {
                Ok(Query::OK) => self.answer_cell().map_or(Query::NOWHERE, |cell| cell.value.get()),
                Ok(_) => Query::NOWHERE,
                Err(error) => {
                    log::error!("slot {slot} is not given back before the next agent starts: {error}");
                    Query::NOWHERE
                }
            };
            if above == Query::NOWHERE {
                return;
            }
            next = self.query(Query::TIDY, above, 0);
        }
    }

    /// Runs one query; returns the program's verdict.
    fn query(&self, query: u64, arg1: u64, arg2: u64) -> Result<u64> {
        /// Newer kernels skip a run while another is under way on the CPU.
        const ATTEMPTS: usize = 64;
        let program = self.handles()?.query_program()?;
        let cell = self.answer_cell()?;
        let before = cell.answers.get();
        for _ in 0..ATTEMPTS {
            let mut options = RawTracePointRunOptions::new();
            options.args[..3].copy_from_slice(&[query, arg1, arg2]);
            program.test_run(options).map_err(|error| BpfStep::Run.failed(&error))?;
            if cell.answers.get() != before {
                return Ok(cell.verdict.get());
            }
        }
        Err(QueryError::DoesNotRun.into())
    }
}

/// Free slots that one query goes over: what it does with them costs what a further query does.
const NEAR: u32 = 100;

impl Slots for Programs {
    fn slot(&self, index: u32) -> Option<&SharedSlot> {
        self.identity.slot(index)
    }

    fn root(&self) -> GroupId {
        self.identity.root()
    }
}

impl Source for Programs {
    fn usage(&self, group: GroupId) -> Result<Option<u64>> {
        self.query_of(Query::USAGE, group)
    }

    fn peak(&self, group: GroupId) -> Result<Option<u64>> {
        self.query_of(Query::PEAK, group)
    }

    fn sum(&self, group: GroupId) -> Result<Option<u64>> {
        self.query_of(Query::SUM, group)
    }

    fn limit(&self, group: GroupId) -> Result<Option<u64>> {
        self.query_of(Query::LIMIT, group)
    }

    fn lowest_limit(&self, group: GroupId) -> Result<Option<u64>> {
        self.query_of(Query::LOWEST_LIMIT, group)
    }

    fn above(&self, group: GroupId) -> Result<Option<u32>> {
        Ok(self.query_of(Query::ABOVE, group)?.and_then(|slot| u32::try_from(slot).ok()))
    }

    fn take_orphans(&self) -> bool {
        self.answer_cell().is_ok_and(|cell| cell.orphans.get() != 0 && cell.orphans.xchg(0) != 0)
    }

    fn read_groups(&self, slots: Range<u32>) -> Result<()> {
        let end = slots.end.min(u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
        let live = self.live_slots(slots.start..end);
        // Near ones by one query, since a call costs more than a few free slots do.
        for some in live.chunk_by(|before, next| next - before < NEAR) {
            let (Some(first), Some(last)) = (some.first(), some.last()) else { continue };
            for from in (*first..last + 1).step_by(Query::AT_ONCE as usize) {
                let count = (last + 1 - from).min(Query::AT_ONCE);
                self.query(Query::READ, from.into(), count.into())?;
            }
        }
        Ok(())
    }

    fn is_under_oom(&self, group: GroupId) -> Result<bool> {
        if self.features.under_oom {
            return Ok(self.query_of(Query::UNDER_OOM, group)?.is_some_and(|count| count > 0));
        }
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
        let now = now.map_err(|errno| Error::syscall("clock_gettime", errno))?;
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        Ok(oom::is_under(|index| self.slot(index), group.slot, now))
    }

    fn end_epoch(&self) -> Result<()> {
        self.query(Query::NEW_EPOCH, 0, 0).map(drop)
    }

    fn want(&self, what: u64) {
        if let Some(cell) = self.scratch.get(0) {
            cell.wanted.xchg(what);
        }
    }

    fn take_over(&mut self, wanted: u64) {
        self.replace(wanted);
    }

    fn features(&self) -> Features {
        self.features
    }

    fn file_refs(&self, files: &[FileId]) -> Result<Vec<u64>> {
        let mut references = Vec::with_capacity(files.len());
        for some in files.chunks(Query::FILES_AT_ONCE) {
            for (at, file) in some.iter().enumerate() {
                let Some(cell) = self.files.get(at) else { break };
                cell.address.set(file.0);
                cell.references.set(0);
            }
            match self.query(Query::FILE_REFS, some.len() as u64, 0)? {
                Query::OK => {}
                code => return Err(QueryError::References { code }.into()),
            }
            let cells = (0..some.len()).filter_map(|at| self.files.get(at));
            references.extend(cells.map(|cell| cell.references.load(Ordering::Acquire)));
        }
        Ok(references)
    }

    fn recycle(&mut self, slot: u32) {
        let generation = self.slot(slot).map_or(0, |slot| slot.state().generation());
        self.give_back(Query::RECYCLE, slot, generation);
    }

    fn depart(&mut self, group: GroupId) -> Result<bool> {
        Ok(self.query_of(Query::DEPART, group)?.is_some())
    }

    fn tidy(&mut self, slot: u32) {
        self.give_back(Query::TIDY, slot, 0);
    }

    fn tally(&self, tally: LossKind) -> u64 {
        self.tallies.tally(tally)
    }

    fn misses(&self) -> Misses {
        let mut misses = self.counted_misses();
        misses.add_round(self.silent.rounds.load(Ordering::SeqCst));
        if self.kind == ProgramKind::Kprobe {
            misses.have_no_twins();
            // Of these calls the program at the return does not know the argument.
            misses.add_round(self.tally(LossKind::ReturnsUnknown));
            if self.probes_missed().is_none() {
                // Before Linux 6.7 nothing says which calls a kprobe has missed (`nmissed`, of
                // kretprobes, and `bpf_prog_active`): each sweep reads as after a loss.
                misses.add_round(self.sweeps.fetch_add(1, Ordering::SeqCst) + 1);
            }
        }
        misses
    }

    fn skipped(&self) -> u64 {
        self.counted_misses().total()
    }

    fn unseen_groups(&self) -> u64 {
        self.counted_misses().creations + self.silent.rounds.load(Ordering::SeqCst)
    }

    fn precision(&self) -> Precision {
        if self.silent.is_now.load(Ordering::SeqCst) { Precision::Sampled } else { Precision::Exact }
    }

    fn count(&self, tally: LossKind, by: u64) {
        if let Some(word) = self.tallies.get(tally as usize) {
            word.add(by);
        }
    }

    fn ooms(&self, group: GroupId) -> Result<Option<u64>> {
        self.query_of(Query::OOMS, group)
    }

    fn is_populated(&self, group: GroupId) -> Result<Option<bool>> {
        Ok(self.query_of(Query::POPULATED, group)?.map(|populated| populated != 0))
    }

    fn limits_were_written(&self) -> bool {
        self.scratch.get(ANSWERS as usize).is_some_and(|cell| cell.limits.get() != 0)
    }

    fn take_limits(&self) {
        if let Some(cell) = self.scratch.get(ANSWERS as usize) {
            cell.limits.xchg(0);
        }
    }

    fn take_victim(&self) {
        if let Some(cell) = self.scratch.get(ANSWERS as usize) {
            cell.victims.add(u64::MAX);
        }
    }

    fn thread_marks(&self) -> Vec<(u32, u64)> {
        let words = (0u32..).map_while(|at| Some((at, self.thread_marks.get(at as usize)?.get())));
        words.filter(|(_, bits)| *bits != 0).collect()
    }

    fn forget_thread_marks(&self, word: u32, bits: u64) {
        if let Some(word) = self.thread_marks.get(word as usize) {
            word.fetch_and(!bits, Ordering::AcqRel);
        }
    }

    fn band_shift(&self) -> u32 {
        self.band_shift
    }
}
