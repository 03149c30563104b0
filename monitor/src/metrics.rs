//! The metrics for Prometheus: the groups shown ([`Selection`]), every metric there is
//! ([`families`]), the numbers at one moment ([`Snapshot`]), and their text ([`text`]). Plain
//! data; the numbers are gathered by [`frontend::metrics_http`].
//!
//! [`frontend::metrics_http`]: crate::frontend::metrics_http

mod encode;
pub mod families;
pub mod files;
mod histogram;
mod selection;
pub mod text;

use std::collections::BTreeMap;

use monitor_client::wire::AgentStatus;
use nix::errno::Errno;

use crate::kills::KillCount;

pub use histogram::Histogram;
pub use selection::{Candidate, Chosen, LeftOut, Pattern, Selection};

/// All numbers of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The agent's own numbers.
    pub agent: AgentNumbers,
    /// Numbers of the groups shown.
    pub groups: Vec<GroupNumbers>,
    /// Counts of the groups not shown.
    pub left_out: LeftOut,
}

/// The agent's own numbers.
#[derive(Clone, Debug, Default)]
pub struct AgentNumbers {
    /// Version of the agent.
    pub version: &'static str,
    /// Version of the tables shared with the programs.
    pub schema: u32,
    /// Time of its start, in seconds since 1970.
    pub start: f64,
    /// Number of groups watched now.
    pub groups: u64,
    /// Places taken in the table of groups, and all places.
    pub slots: (u64, u64),
    /// Eventfds registered now, and the most at once.
    pub eventfds: (u64, u64),
    /// Numbers of registrations, by control file.
    pub registrations: Vec<(&'static str, u64)>,
    /// Most registrations that there may be in all.
    pub max_registrations: u64,
    /// Numbers of signals given, by cause.
    pub signals: Vec<(&'static str, u64)>,
    /// Numbers of registrations refused, by errno.
    pub refusals: BTreeMap<i32, u64>,
    /// Seconds from the record in the kernel to the signal.
    pub latency: Histogram,
    /// Kills by the OOM killer, by the victims' groups; paths as those of the groups shown.
    pub kills: Vec<KillCount>,
    /// The agent's state, as `status` shows it, too.
    pub status: AgentStatus,
}

/// One group's numbers. `None`: this kernel does not count that, or not for this group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupNumbers {
    /// Path below the hierarchy's root, which is `/`.
    pub id: String,
    /// `st_ino` of the group's directory.
    pub cgroup_id: u64,
    /// Bytes that are charged now.
    pub usage: u64,
    /// Most bytes charged at once.
    pub peak: Option<u64>,
    /// The group's own limit in bytes; 0: none.
    pub limit: Option<u64>,
    /// Number of registrations on the group.
    pub registrations: u64,
    /// The kernel's counts of events, in the order of [`files::EVENTS`].
    pub events: [Option<u64>; files::EVENTS.len()],
    /// Seconds in which some, and in which all of its tasks waited for memory.
    pub stalls: [Option<f64>; 2],
}

/// An errno's name, as a label.
fn errno_name(errno: i32) -> String {
    format!("{:?}", Errno::from_raw(errno))
}
