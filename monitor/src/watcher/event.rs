//! Events, for followers that want to know more than that their eventfd was signalled.

use std::{fmt, sync::Arc};

use monitor_common::{
    grammar::control_file::{ControlFile, Trigger},
    protocol::{crossing::Direction, pressure::Level, ring::KillReason},
};

use crate::kills::Kill;

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
    /// The OOM killer killed a process. Signals nothing by itself.
    OomKill(Arc<Kill>),
    /// The OOM killer kills a whole group (`memory.oom.group`). Signals nothing.
    GroupKill {
        /// The reason of the kill.
        reason: KillReason,
        /// `st_ino` of the group whose limit caused it, if that has a place in the table.
        limit: Option<u64>,
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

/// Causes of signals, as labels.
pub const CAUSES: [&str; 5] = ["crossed", "oom", "pressure", "empty", "removed"];

impl Cause {
    /// The index of [`Cause::Crossed`] in [`CAUSES`].
    pub(super) const CROSSED: usize = 0;
    /// The index of [`Cause::Removed`] in [`CAUSES`].
    pub(super) const REMOVED: usize = 4;

    /// The index of the cause for which a registration with `trigger` is signalled.
    pub(super) const fn of(trigger: &Trigger) -> usize {
        match trigger {
            Trigger::Threshold(_) => Self::CROSSED,
            Trigger::Oom => 1,
            Trigger::Pressure(_) => 2,
            Trigger::Empty => 3,
        }
    }

    /// The index in [`CAUSES`] of this cause.
    pub(super) const fn label(&self) -> usize {
        match self {
            Self::Crossed { .. } => Self::CROSSED,
            Self::Oom { .. } | Self::OomKill(_) | Self::GroupKill { .. } => 1,
            Self::Pressure { .. } => 2,
            Self::Empty => 3,
            Self::Removed => Self::REMOVED,
        }
    }
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

    /// Delivers an event; false when no more are wanted.
    pub(crate) fn deliver(&mut self, event: &Event) -> bool {
        (self.0)(event)
    }
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Follower")
    }
}
