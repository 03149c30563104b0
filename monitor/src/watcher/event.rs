//! Events, for followers that want to know more than that their eventfd was signalled.

use std::fmt;

use monitor_common::{
    grammar::control_file::ControlFile,
    protocol::{crossing::Direction, pressure::Level},
};

/// The reason why an eventfd was signalled, or what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A threshold was crossed.
    Crossed {
        /// The control file whose quantity crossed it.
        on: ControlFile,
        /// The threshold in pages.
        threshold: u64,
        /// The direction of the crossing.
        direction: Direction,
        /// The quantity in pages, after the crossing.
        usage: u64,
    },
    /// The group ran out of memory.
    Oom {
        /// `st_ino` of the group whose limit caused it.
        limit: u64,
    },
    /// The OOM killer chose a process. Follows an OOM, signals nothing by itself.
    OomKill {
        /// `st_ino` of the group whose limit caused it.
        limit: u64,
        /// The process id, as the agent's host knows it.
        pid: u64,
        /// The process's name, cut by the kernel.
        comm: String,
        /// `st_ino` of the process's group.
        victim: u64,
    },
    /// The OOM killer kills a whole group (`memory.oom.group`). Signals nothing.
    GroupKill {
        /// `st_ino` of the group whose limit caused it.
        limit: u64,
        /// `st_ino` of the group that is killed.
        victim: u64,
    },
    /// Reclaim worked hard for what it got.
    Pressure {
        /// The level of the pressure.
        level: Level,
        /// `st_ino` of the group that reclaim was for.
        origin: u64,
    },
    /// The last task of the group and of those below it left.
    Empty,
    /// The group is gone.
    Removed,
}

/// An event: a cause, and the group in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `st_ino` of the directory of the group that was registered on.
    pub cgroup_id: u64,
    /// The cause of the event.
    pub cause: Cause,
    /// The number that was added to the eventfd for it.
    pub signals: u64,
}

/// The callback that delivers events to a follower's connection. It returns `false` when the
/// connection wants no more.
pub struct EventSink(Box<dyn FnMut(&Event) -> bool + Send>);

impl EventSink {
    /// Wraps the callback that is called with each event.
    pub fn new(deliver: impl FnMut(&Event) -> bool + Send + 'static) -> Self {
        Self(Box::new(deliver))
    }

    pub(super) fn deliver(&mut self, event: &Event) -> bool {
        (self.0)(event)
    }
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Follower")
    }
}
