//! A kernel and a host for tests: a top-level group in slot 0, one below it in slot 1, the root
//! in slot 2.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    fs, io,
    ops::Range,
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use monitor_common::protocol::{
    band::{Seen, give_back, observe},
    ring::LossKind,
    slot::{PARENT_ROOT, Slot, SlotState},
    usage::UNKNOWN,
    word::Word as _,
};
use monitor_sys::table::SharedSlot;

use crate::{
    Error,
    cgroup::host::Host,
    error::Result,
    kernel::Features,
    source::{FileId, GroupId, Identify, Located, Misses, Slots, Source},
};

/// A kernel with slots and counters that tests move.
#[derive(Debug)]
pub(crate) struct FakeKernel {
    pub(super) slots: Vec<SharedSlot>,
    pub(super) counters: Vec<Cell<Option<u64>>>,
    pub(super) references: RefCell<HashMap<FileId, u64>>,
    /// The count for files that `references` lacks.
    pub(super) usual_references: u64,
    pub(super) recycled: Vec<u32>,
    /// Files whose references were counted.
    pub(super) counted_files: Cell<usize>,
    pub(super) broken: Cell<bool>,
    pub(super) restless: Cell<bool>,
    pub(super) swap: Cell<u64>,
    pub(super) limits: RefCell<Vec<u64>>,
    pub(super) wanted: Cell<u64>,
    pub(super) features: Features,
    pub(super) under_oom: Cell<bool>,
    /// The kernel's own pointers, in the words of a slot's `parent`.
    pub(super) parents: Vec<u64>,
    /// Slots whose groups found none.
    pub(super) slotless: RefCell<Vec<u32>>,
    /// Whether there may be groups with a parent that has no slot.
    pub(super) orphans: Cell<bool>,
    pub(super) tidied: Vec<u32>,
    pub(super) deep: Cell<u64>,
    /// Readings of earlier programs for the group in slot 0.
    pub(super) before: RefCell<Option<Seen>>,
    pub(super) epochs: Cell<u32>,
    /// Queries of counters to the programs.
    pub(crate) reads: Cell<usize>,
    pub(super) tallies: RefCell<HashMap<u32, u64>>,
    pub(super) misses: Cell<Misses>,
    /// The number of queries for a lowest limit.
    pub(super) limit_reads: Cell<usize>,
    /// The time that each of them takes.
    pub(super) limit_takes: Cell<Duration>,
    pub(super) limits_rung: Cell<bool>,
    /// The kernel's own counts of OOMs.
    pub(super) ooms: RefCell<Vec<u64>>,
    pub(super) populated: Cell<bool>,
    pub(super) thread_marks: RefCell<BTreeMap<u32, u64>>,
}

/// The slot of a group that is online.
fn online() -> SharedSlot {
    let slot: SharedSlot = Slot::new(Into::into);
    slot.recycle();
    slot.mark(SlotState::ONLINE);
    slot
}

impl FakeKernel {
    pub(super) fn new() -> Self {
        let slots: Vec<SharedSlot> = (0..3).map(|_| online()).collect();
        for (index, parent) in [PARENT_ROOT, 0, PARENT_ROOT].into_iter().enumerate() {
            slots[index].parent.set(parent);
            slots[index].cgroup_id.set(100 + index as u64);
        }
        Self {
            slots,
            counters: vec![Cell::new(Some(0)), Cell::new(Some(0))],
            references: RefCell::default(),
            usual_references: 2,
            recycled: Vec::new(),
            counted_files: Cell::new(0),
            broken: Cell::new(false),
            restless: Cell::new(false),
            before: RefCell::default(),
            epochs: Cell::new(0),
            reads: Cell::new(0),
            swap: Cell::new(0),
            limits: RefCell::new(vec![u64::MAX; 2]),
            wanted: Cell::new(0),
            features: Features { oom: true, under_oom: false, pressure: true, empty: true },
            under_oom: Cell::new(false),
            parents: vec![PARENT_ROOT, 0, PARENT_ROOT],
            slotless: RefCell::default(),
            orphans: Cell::new(false),
            tidied: Vec::new(),
            deep: Cell::new(0),
            tallies: RefCell::default(),
            misses: Cell::default(),
            limit_reads: Cell::new(0),
            limit_takes: Cell::default(),
            limits_rung: Cell::new(false),
            ooms: RefCell::new(vec![0; 2]),
            populated: Cell::new(true),
            thread_marks: RefCell::default(),
        }
    }

    /// A kernel with so many groups beside the root.
    pub(crate) fn with_groups(count: usize) -> Self {
        let mut kernel = Self::new();
        for _ in kernel.slots.len()..=count {
            let slot = online();
            slot.parent.set(PARENT_ROOT);
            kernel.slots.push(slot);
            kernel.parents.push(PARENT_ROOT);
        }
        kernel.counters = vec![Cell::new(Some(0)); kernel.slots.len()];
        kernel
    }

    pub(super) fn group(&self, slot: u32) -> GroupId {
        GroupId { slot, generation: self.slots[slot as usize].state().generation() }
    }

    /// Makes a chain of the slots from `first` on, each below the one before.
    pub(super) fn chain(&self, first: usize) {
        for (above, slot) in (first as u64..).zip(&self.slots[first + 1..]) {
            slot.parent.set(above);
        }
    }

    /// Sets a group's counter.
    pub(crate) fn set_usage(&self, slot: usize, pages: u64) {
        self.counters[slot].set(Some(pages));
    }

    /// Gives a slot to another group, with this id.
    pub(crate) fn replace(&self, slot: usize, id: u64) {
        self.slots[slot].recycle();
        self.slots[slot].mark(SlotState::ONLINE);
        self.slots[slot].cgroup_id.set(id);
    }

    /// Charges a group: the counter moves, then the hook looks.
    pub(super) fn charge(&self, slot: usize, usage: u64) {
        self.counters[slot].set(Some(usage));
        observe(&self.slots[slot], || usage, 0);
        self.look_at_sum(slot);
    }
}

impl FakeKernel {
    /// Moves pages to swap or back: the hook looks at the sum.
    pub(super) fn swap_out(&self, slot: usize, pages: u64) {
        self.swap.set(pages);
        self.look_at_sum(slot);
    }

    fn look_at_sum(&self, slot: usize) {
        let sum = self.counters[slot].get().unwrap_or(0) + self.swap.get();
        self.slots[slot].sum().observe(|| sum, 0);
    }
}

impl Slots for FakeKernel {
    fn slot(&self, index: u32) -> Option<&SharedSlot> {
        self.slots.get(index as usize)
    }

    fn root(&self) -> GroupId {
        self.group(2)
    }
}

impl Identify for FakeKernel {
    fn locate(&self, _: BorrowedFd<'_>, _: BorrowedFd<'_>, _: u64) -> Result<Located> {
        Ok(Located::Group(self.group(0)))
    }

    fn file_of(&self, fd: BorrowedFd<'_>) -> Result<FileId> {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap_or_default();
        let id = text.lines().find_map(|line| line.strip_prefix("eventfd-id:")?.trim().parse().ok());
        id.map(FileId).ok_or_else(|| broken("eventfd-id"))
    }
}

impl Source for FakeKernel {
    fn usage(&self, group: GroupId) -> Result<Option<u64>> {
        if self.broken.get() {
            return Err(broken("usage"));
        }
        self.reads.set(self.reads.get() + 1);
        let counter = &self.counters[group.slot as usize];
        let usage = counter.get();
        if self.restless.get() {
            counter.set(usage.map(|usage| if usage < 10 { 12 } else { 3 }));
        }
        Ok(usage)
    }

    fn peak(&self, group: GroupId) -> Result<Option<u64>> {
        self.usage(group)
    }

    fn sum(&self, group: GroupId) -> Result<Option<u64>> {
        Ok(self.counters[group.slot as usize].get().map(|memory| memory + self.swap.get()))
    }

    fn limit(&self, group: GroupId) -> Result<Option<u64>> {
        Ok(self.limits.borrow().get(group.slot as usize).copied())
    }

    fn lowest_limit(&self, group: GroupId) -> Result<Option<u64>> {
        self.limit_reads.set(self.limit_reads.get() + 1);
        let start = Instant::now();
        while start.elapsed() < self.limit_takes.get() {}
        let limits = self.limits.borrow();
        let line = std::iter::successors(Some(u64::from(group.slot)), |at| {
            self.parents.get(*at as usize).copied().filter(|parent| *parent != PARENT_ROOT)
        });
        Ok(line.filter_map(|at| limits.get(at as usize).copied()).min())
    }

    fn above(&self, group: GroupId) -> Result<Option<u32>> {
        let mut parent = self.parents[group.slot as usize];
        while let Ok(slot) = u32::try_from(parent) {
            if !self.slotless.borrow().contains(&slot) {
                let at = &self.slots[group.slot as usize].parent;
                if self.parents[group.slot as usize] == parent {
                    at.set(parent);
                }
                return Ok(Some(slot));
            }
            self.orphans.set(true);
            parent = self.parents[slot as usize];
        }
        Ok(Some(2))
    }

    fn take_orphans(&self) -> bool {
        self.orphans.replace(false)
    }

    fn read_groups(&self, slots: Range<u32>) -> Result<()> {
        self.reads.set(self.reads.get() + 1);
        for index in slots {
            let Some(slot) = self.slots.get(index as usize).filter(|slot| slot.state().is_live()) else {
                continue;
            };
            let usage = self.counters.get(index as usize).and_then(Cell::get).unwrap_or(UNKNOWN);
            slot.usage.set(usage);
            slot.peak.set(usage);
            slot.limit.set(self.limits.borrow().get(index as usize).copied().unwrap_or(u64::MAX));
            slot.read_of.set(slot.state().generation() + 1);
        }
        Ok(())
    }

    fn is_under_oom(&self, group: GroupId) -> Result<bool> {
        if group.slot == 2 {
            return Err(broken("under_oom of the root"));
        }
        Ok(self.under_oom.get())
    }

    fn end_epoch(&self) -> Result<()> {
        self.epochs.set(self.epochs.get() + 1);
        Ok(())
    }

    fn want(&self, what: u64) {
        self.wanted.set(what);
    }

    fn take_over(&mut self, wanted: u64) {
        if let Some(seen) = self.before.take() {
            // A charge that both see, and that is over.
            let now = self.counters[0].get().unwrap_or(0);
            self.charge(0, seen.memory.max);
            self.charge(0, now);
            give_back(&self.slots[0], &seen);
        }
        self.want(wanted);
    }

    fn features(&self) -> Features {
        self.features
    }

    fn file_refs(&self, files: &[FileId]) -> Result<Vec<u64>> {
        self.counted_files.set(self.counted_files.get() + files.len());
        let references = self.references.borrow();
        Ok(files.iter().map(|file| references.get(file).copied().unwrap_or(self.usual_references)).collect())
    }

    fn recycle(&mut self, slot: u32) {
        self.recycled.push(slot);
        self.slots[slot as usize].recycle();
    }

    fn depart(&mut self, group: GroupId) -> Result<bool> {
        let slot = &self.slots[group.slot as usize];
        if slot.state().is_live() {
            slot.window.set(Slot::<u64>::PEAK_UNKNOWN);
        }
        Ok(slot.state().is_live() && slot.leave(slot.last.get(), slot.sum_last.get()))
    }

    fn tidy(&mut self, slot: u32) {
        self.tidied.push(slot);
    }

    fn tally(&self, tally: LossKind) -> u64 {
        if tally == LossKind::TooDeep {
            return self.deep.get();
        }
        self.tallies.borrow().get(&(tally as u32)).copied().unwrap_or(0)
    }

    fn misses(&self) -> Misses {
        self.misses.get()
    }

    fn count(&self, tally: LossKind, by: u64) {
        *self.tallies.borrow_mut().entry(tally as u32).or_default() += by;
    }

    fn ooms(&self, group: GroupId) -> Result<Option<u64>> {
        Ok(self.ooms.borrow().get(group.slot as usize).copied())
    }

    fn is_populated(&self, _: GroupId) -> Result<Option<bool>> {
        Ok(Some(self.populated.get()))
    }

    fn limits_were_written(&self) -> bool {
        self.limits_rung.get()
    }

    fn take_limits(&self) {
        self.limits_rung.set(false);
    }

    fn take_victim(&self) {}

    fn thread_marks(&self) -> Vec<(u32, u64)> {
        self.thread_marks.borrow().iter().map(|(word, bits)| (*word, *bits)).collect()
    }

    fn forget_thread_marks(&self, word: u32, bits: u64) {
        let mut writers = self.thread_marks.borrow_mut();
        *writers.entry(word).or_default() &= !bits;
        writers.retain(|_, bits| *bits != 0);
    }

    fn band_shift(&self) -> u32 {
        0
    }
}

/// A host with numbers that tests move.
#[derive(Debug, Default)]
pub(super) struct FakeHost {
    pub(super) usage: AtomicU64,
    pub(super) inactive: AtomicU64,
    pub(super) unreclaimable: AtomicU64,
    pub(super) clock: AtomicU64,
    pub(super) gone: AtomicBool,
    /// The id of the one group that is gone, if not 0.
    pub(super) gone_one: AtomicU64,
}

impl FakeHost {
    /// A host for as long as the test runs.
    pub(super) fn forever() -> &'static Self {
        Box::leak(Box::default())
    }
}

impl Host for &'static FakeHost {
    fn clock(&self) -> u64 {
        self.clock.get()
    }

    fn usage(&self) -> Result<u64> {
        Ok(self.usage.get())
    }

    fn sum(&self) -> Result<u64> {
        Ok(self.usage.get())
    }

    fn ram(&self) -> Result<u64> {
        Ok(1000)
    }

    fn unreclaimable(&self, _: u64) -> Result<Option<u64>> {
        Ok(Some(self.unreclaimable.get()))
    }

    fn inactive_file(&self, _: u64) -> Result<Option<u64>> {
        Ok(Some(self.inactive.get()))
    }

    fn is_gone(&self, cgroup_id: u64) -> bool {
        let one = self.gone_one.load(Ordering::Relaxed);
        self.gone.load(Ordering::Relaxed) || one != 0 && one == cgroup_id
    }
}

/// The error of a read that fails.
fn broken(what: &'static str) -> Error {
    Error::file("read", what, io::ErrorKind::InvalidData.into())
}
