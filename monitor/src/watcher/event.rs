//! What happened, for those who want to know more than that their eventfd was
//! signalled.

use std::fmt;

use monitor_common::{
    grammar::control_file::ControlFile,
    protocol::{crossing::Direction, pressure::Level},
};

/// Why an eventfd was signalled, or what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A threshold was crossed.
    Crossed {
        /// On which quantity.
        on: ControlFile,
        /// In pages.
        threshold: u64,
        /// Which way.
        direction: Direction,
        /// The quantity in pages, after the crossing.
        usage: u64,
    },
    /// Out of memory.
    Oom {
        /// `st_ino` of the group whose limit caused it.
        limit: u64,
    },
    /// The OOM killer chose a process. Follows an OOM, signals nothing by itself.
    OomKill {
        /// As in [`Cause::Oom`].
        limit: u64,
        /// The process id, as the agent's host knows it.
        pid: u64,
        /// Its name, cut by the kernel.
        comm: String,
        /// `st_ino` of its group.
        victim: u64,
    },
    /// The OOM killer kills a whole group (`memory.oom.group`). Signals nothing.
    GroupKill {
        /// As in [`Cause::Oom`].
        limit: u64,
        /// `st_ino` of the group that is killed.
        victim: u64,
    },
    /// Reclaim worked hard for what it got.
    Pressure {
        /// How hard.
        level: Level,
        /// `st_ino` of the group that reclaim was for.
        origin: u64,
    },
    /// The last task of the group and of those below it left.
    Empty,
    /// The group is gone.
    Removed,
}

/// A cause, and the group in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `st_ino` of the directory of the group that was registered on.
    pub cgroup_id: u64,
    /// What happened.
    pub cause: Cause,
    /// How much was added to the eventfd for it.
    pub signals: u64,
}

/// What a following connection gets its events through. Answers `false` when it
/// wants no more.
pub struct EventSink(Box<dyn FnMut(&Event) -> bool + Send>);

impl EventSink {
    /// Calls `tell` with each event.
    pub fn new(tell: impl FnMut(&Event) -> bool + Send + 'static) -> Self {
        Self(Box::new(tell))
    }

    pub(super) fn tell(&mut self, event: &Event) -> bool {
        (self.0)(event)
    }
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Follower")
    }
}
