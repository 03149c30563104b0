//! Turns of the thread that signals: bounded pieces of work, in the order in which
//! [`FairQueue`] has their payers.
//!
//! A slot is one task however often it rings, and its work is done one after another: what was
//! begun is brought to its end before anything else there begins. What is to be done to a slot is
//! noted here, and charged to its payer; a turn does it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use monitor_common::{grammar::control_file::ControlFile, protocol::ring::LossKind};
use tokio::sync::Notify;

use crate::{
    registry::Account,
    source::{FileId, Source},
    watcher::{
        event::Cause,
        fair_queue::{FairQueue, Payer},
        payers::SlotPayers,
    },
};

/// The duration of a turn, unless a single step takes longer.
pub(super) const TURN: Duration = Duration::from_micros(200);
/// Thresholds, listeners or eventfds that a turn may touch.
pub(super) const ROOM: usize = 256;
/// Victims of a group's OOMs that wait for delivery to followers.
const CAUSES: usize = 64;

/// Work that waits for a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// The pending work of a slot.
    Slot(u32),
    /// The undelivered signals of an eventfd.
    File(FileId),
    /// One more piece of a sweep.
    Sweep,
    /// One more piece of the search for closed eventfds.
    Search,
    /// The remaining registrations on an eventfd that its client has closed.
    Forget(FileId),
    /// Limits that were written, to be read.
    Limits,
}

/// The next of the things to be done to a slot.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A first look at thresholds that were taken over.
    Settle,
    /// A look, for doorbells of which the first rang at `rung`.
    Look { rung: Option<u64> },
    /// The step to a sampled quantity, in pages.
    Sampled(ControlFile, u64),
    /// Thresholds in percent follow their limit, which has moved.
    Follow,
    /// The hold-offs that are over end, or all of them.
    EndHoldoffs { all: bool },
    /// An explanation is delivered to followers.
    Explain(Cause),
}

/// The pending work of a slot.
#[derive(Debug, Default)]
struct Work {
    look: bool,
    /// The time of the first doorbell among those not yet answered.
    rung: Option<u64>,
    /// Whether the limit has moved, and thresholds have to follow.
    follow: bool,
    settle: bool,
    /// Whether hold-offs are to end, and if so whether all.
    end_holdoffs: Option<bool>,
    /// Sampled quantities, in pages, by control file.
    sampled: Vec<(ControlFile, u64)>,
    /// Explanations to be delivered to followers.
    causes: VecDeque<Cause>,
}

impl Work {
    fn is_nothing(&self) -> bool {
        let Self { look, follow, settle, end_holdoffs, sampled, causes, .. } = self;
        !(*look || *follow || *settle) && end_holdoffs.is_none() && sampled.is_empty() && causes.is_empty()
    }

    fn next_step(&mut self) -> Option<Step> {
        if std::mem::take(&mut self.settle) {
            Some(Step::Settle)
        } else if std::mem::take(&mut self.look) {
            Some(Step::Look { rung: self.rung.take() })
        } else if let Some((file, now)) = self.sampled.pop() {
            Some(Step::Sampled(file, now))
        } else if std::mem::take(&mut self.follow) {
            Some(Step::Follow)
        } else if let Some(all) = self.end_holdoffs.take() {
            Some(Step::EndHoldoffs { all })
        } else {
            self.causes.pop_front().map(Step::Explain)
        }
    }
}

/// The queue of turns, the work that each slot waits for, and who pays for it.
#[derive(Debug)]
pub(super) struct Turns {
    queue: FairQueue<Task>,
    /// Work by slot, pending or begun; the work of one slot is one task.
    works: HashMap<u32, Work>,
    payers: SlotPayers,
    /// The time at which the present turn is to end.
    ends: Instant,
    /// Notifies the agent's loop that there is work without a doorbell.
    notify: Arc<Notify>,
}

impl Turns {
    pub(super) fn new(notify: Arc<Notify>) -> Self {
        Self {
            queue: FairQueue::default(),
            works: HashMap::new(),
            payers: SlotPayers::default(),
            ends: Instant::now(),
            notify,
        }
    }

    /// Notified when work has become due without a doorbell.
    pub(super) fn notification(&self) -> Arc<Notify> {
        Arc::clone(&self.notify)
    }

    /// Notifies the agent's loop, which then looks at what is due.
    pub(super) fn notify(&self) {
        self.notify.notify_one();
    }

    /// Whether no task waits for a turn.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes the next task, and returns its payer with it.
    pub(super) fn next(&mut self) -> Option<(Payer, Task)> {
        self.queue.next()
    }

    /// Takes one more task of the same payer.
    pub(super) fn next_of(&mut self, payer: Payer) -> Option<Task> {
        self.queue.pop(payer)
    }

    /// Begins a turn, from which on its time counts.
    pub(super) fn begin(&mut self) -> Instant {
        let start = Instant::now();
        self.ends = start + TURN;
        start
    }

    /// Whether the present work is better continued in another turn.
    pub(super) fn is_time_over(&self) -> bool {
        Instant::now() >= self.ends
    }

    /// Ends a turn that began at `start`, and charges its payer. Tests count turns: the time of
    /// one includes what other processes had of the processor meanwhile.
    pub(super) fn charge(&mut self, payer: Payer, start: Instant) {
        self.queue.charge(payer, if cfg!(test) { TURN } else { start.elapsed() });
    }

    /// Queues a task after the others of its payer.
    pub(super) fn push(&mut self, payer: Payer, task: Task) {
        self.queue.push(payer, task);
    }

    /// Charges a payer with time that it has had.
    #[cfg(test)]
    pub(super) fn charge_time(&mut self, payer: Payer, time: Duration) {
        self.queue.charge(payer, time);
    }

    /// Notes that an account has a registration on a slot from now on.
    pub(super) fn add_payer(&mut self, source: &impl Source, slot: u32, account: Account) {
        self.payers.add(source, slot, account);
    }

    /// Forgets who paid for a slot, which has no registrations any more.
    pub(super) fn forget_payers(&mut self, slot: u32) {
        self.payers.remove(slot);
    }

    /// The payer of a slot's work ([`SlotPayers::of_slot`]).
    pub(super) fn payer_of_slot(&self, source: &impl Source, slot: u32) -> Payer {
        self.payers.of_slot(source, slot, |payer| self.queue.had(payer))
    }

    /// The payer of a slot's sampling ([`SlotPayers::of_samples`]).
    pub(super) fn payer_of_samples(&self, slot: u32) -> Payer {
        self.payers.of_samples(slot)
    }

    /// Notes that a slot is to be looked at, since a doorbell rang at `rung` (`bpf_ktime_get_ns`;
    /// 0: not known), or a sweep found it. The cost does not grow with the number of calls.
    pub(super) fn ring(&mut self, source: &impl Source, slot: u32, rung: u64) {
        self.plan(source, slot, |work| {
            work.look = true;
            work.rung = work.rung.or((rung != 0).then_some(rung));
        });
    }

    /// Plans to move the thresholds on a slot with their limit.
    pub(super) fn plan_follow(&mut self, source: &impl Source, slot: u32) {
        self.plan(source, slot, |work| work.follow = true);
    }

    /// Plans a first look at thresholds that were taken over.
    pub(super) fn plan_settle(&mut self, source: &impl Source, slot: u32) {
        self.plan(source, slot, |work| work.settle = true);
    }

    /// Plans to end the hold-offs on a slot that are over, or all of them.
    pub(super) fn plan_end_of_holdoffs(&mut self, source: &impl Source, slot: u32, all: bool) {
        self.plan(source, slot, |work| work.end_holdoffs = Some(all || work.end_holdoffs.unwrap_or(false)));
    }

    /// Plans the step to a sampled quantity of the group in a slot.
    pub(super) fn plan_sample(&mut self, source: &impl Source, slot: u32, file: ControlFile, now: u64) {
        self.plan(source, slot, |work| {
            work.sampled.retain(|(of, _)| *of != file);
            work.sampled.push((file, now));
        });
    }

    /// Plans to deliver an explanation to the followers of OOMs.
    pub(super) fn plan_explanation(&mut self, source: &impl Source, slot: u32, cause: Cause) {
        let mut has_room = true;
        self.plan(source, slot, |work| {
            // The OOM itself first: its doorbell rang before.
            work.look = true;
            has_room = work.causes.len() < CAUSES;
            if has_room {
                work.causes.push_back(cause);
            }
        });
        if !has_room {
            source.count(LossKind::VictimsDropped, 1);
        }
    }

    fn plan(&mut self, source: &impl Source, slot: u32, change: impl FnOnce(&mut Work)) {
        match self.works.get_mut(&slot) {
            Some(work) => change(work),
            None => {
                let mut work = Work::default();
                change(&mut work);
                self.works.insert(slot, work);
                self.queue_slot(source, slot);
            }
        }
    }

    fn queue_slot(&mut self, source: &impl Source, slot: u32) {
        let payer = self.payer_of_slot(source, slot);
        self.push(payer, Task::Slot(slot));
        self.notify();
    }

    /// Whether no slot has work, pending or begun.
    pub(super) fn has_no_work(&self) -> bool {
        self.works.is_empty()
    }

    /// Whether a slot has work, pending or begun.
    pub(super) fn has_work(&self, slot: u32) -> bool {
        self.works.contains_key(&slot)
    }

    /// Whether a slot is to be looked at.
    pub(super) fn awaits_look(&self, slot: u32) -> bool {
        self.works.get(&slot).is_some_and(|work| work.look)
    }

    /// Takes the next of the things to be done to a slot.
    pub(super) fn next_step(&mut self, slot: u32) -> Option<Step> {
        self.works.get_mut(&slot)?.next_step()
    }

    /// Takes the next of a slot's explanations, before anything else is done there.
    pub(super) fn next_explanation(&mut self, slot: u32) -> Option<Cause> {
        self.works.get_mut(&slot)?.causes.pop_front()
    }

    /// Queues what is left of a slot's work, `has_begun` or pending.
    pub(super) fn queue_rest(&mut self, source: &impl Source, slot: u32, has_begun: bool) {
        let Some(work) = self.works.get(&slot) else { return };
        if !has_begun && work.is_nothing() {
            self.works.remove(&slot);
        } else {
            self.queue_slot(source, slot);
        }
    }
}
