//! Tells the recorder of the black box of the watcher's work: never more than there is room
//! for, and nothing waits for it.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::Thread,
};

use monitor_common::protocol::pressure::Level;
use nix::time::{ClockId, clock_gettime};

use crate::watcher::event::{Cause, Event};

/// Something that happened, by the moment at which the agent heard of it.
#[derive(Clone, Debug)]
pub enum Tapped {
    /// A group was made, and has this slot.
    Made(u32),
    /// A registration on a recorded group was signalled, or the OOM killer killed.
    Event { at: u64, event: Event },
}

/// One way to the recorder, and the number of messages for which there was no room.
#[derive(Clone, Debug)]
struct Lane {
    sender: SyncSender<Tapped>,
    lost: Arc<AtomicU64>,
}

impl Lane {
    fn send(&self, what: Tapped) {
        // Without a receiver the agent is ending.
        if let Err(TrySendError::Full(_)) = self.sender.try_send(what) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The watcher's end: kills have a way of their own, which no number of registrations fills.
#[derive(Clone, Debug)]
pub struct RecorderTap {
    events: Lane,
    kills: Lane,
    /// Directories' ids of the groups that are recorded.
    groups: HashSet<u64>,
    thread: Thread,
    is_idle: Arc<AtomicBool>,
}

/// The recorder's end, where messages arrive.
#[derive(Debug)]
pub struct TapReceiver {
    events: Receiver<Tapped>,
    kills: Receiver<Tapped>,
    /// Messages at most of each kind.
    most: usize,
    lost_events: Arc<AtomicU64>,
    lost_kills: Arc<AtomicU64>,
    is_idle: Arc<AtomicBool>,
}

impl TapReceiver {
    /// Takes what was told: events first, so that an OOM is known before what it killed.
    pub fn take(&self) -> impl Iterator<Item = Tapped> {
        let Self { events, kills, most, .. } = self;
        events.try_iter().take(*most).chain(kills.try_iter().take(*most))
    }

    /// Sets whether the thread that takes is idle: then the next message unparks it, once. What was told
    /// before is to be taken after this, and before it parks.
    pub fn set_idle(&self, is_idle: bool) {
        self.is_idle.swap(is_idle, Ordering::AcqRel);
    }

    /// New groups and signals that were lost so far, and kills.
    pub fn lost(&self) -> (u64, u64) {
        (self.lost_events.load(Ordering::Relaxed), self.lost_kills.load(Ordering::Relaxed))
    }
}

impl RecorderTap {
    /// A tap with its other end, which `thread` takes from; `most` events wait in it at most, and as many
    /// kills.
    pub fn new(most: usize, thread: Thread) -> (Self, TapReceiver) {
        let ((event_sender, events), (kill_sender, kills)) = (sync_channel(most), sync_channel(most));
        let (lost_events, lost_kills) = <(Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let is_idle = Arc::<AtomicBool>::default();
        let tap = Self {
            events: Lane { sender: event_sender, lost: Arc::clone(&lost_events) },
            kills: Lane { sender: kill_sender, lost: Arc::clone(&lost_kills) },
            groups: HashSet::new(),
            thread,
            is_idle: Arc::clone(&is_idle),
        };
        (tap, TapReceiver { events, kills, most, lost_events, lost_kills, is_idle })
    }

    fn wake(&self) {
        // A thread that is not idle looks by itself soon: a storm does not wake it each time.
        if self.is_idle.swap(false, Ordering::AcqRel) {
            self.thread.unpark();
        }
    }

    /// Notes that a group is recorded, or no longer.
    pub(super) fn set_recorded(&mut self, cgroup_id: u64, is_recorded: bool) {
        if is_recorded {
            self.groups.insert(cgroup_id);
        } else {
            self.groups.remove(&cgroup_id);
        }
    }

    pub(super) fn made(&self, slot: u32) {
        self.events.send(Tapped::Made(slot));
        self.wake();
    }

    /// Passes on what a registration was signalled for.
    pub(super) fn signalled(&self, event: &Event) {
        // Of kills the recorder hears once, and not from each follower.
        let is_kill = matches!(event.cause, Cause::OomKill { .. } | Cause::GroupKill { .. });
        if !is_kill && self.groups.contains(&event.cgroup_id) {
            self.events.send(Tapped::Event { at: monotonic(), event: event.clone() });
            self.wake();
        }
    }

    /// Passes on that a window of reclaim has ended in a group, whoever is signalled for it: an event of no
    /// signals.
    pub(super) fn window(&self, cgroup_id: u64, level: Level) {
        if self.groups.contains(&cgroup_id) {
            let cause = Cause::Pressure { level, origin: cgroup_id };
            self.events
                .send(Tapped::Event { at: monotonic(), event: Event { cgroup_id, cause, signals: 0 } });
        }
    }

    /// Passes on that the OOM killer kills.
    pub(super) fn killed(&self, cause: Cause, victim: u64) {
        let event = Event { cgroup_id: victim, cause, signals: 0 };
        self.kills.send(Tapped::Event { at: monotonic(), event });
        self.wake();
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, as the programs read it.
pub fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
