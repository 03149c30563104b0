//! What the agent tells Prometheus: which groups ([`Selection`]), every metric there
//! is ([`families`]), the numbers at one moment ([`Snapshot`]), and their text
//! ([`text`]). Plain data; the numbers are gathered by [`frontend::metrics_http`].
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

pub use histogram::Histogram;
pub use selection::{Candidate, Chosen, LeftOut, Pattern, Selection};

/// All numbers of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The agent's own.
    pub agent: AgentNumbers,
    /// Those of the groups shown.
    pub groups: Vec<GroupNumbers>,
    /// Groups that are not shown.
    pub left_out: LeftOut,
}

/// The agent's own numbers.
#[derive(Clone, Debug, Default)]
pub struct AgentNumbers {
    /// Its version.
    pub version: &'static str,
    /// Version of the tables shared with the programs.
    pub schema: u32,
    /// When it started, in seconds since 1970.
    pub start: f64,
    /// Groups watched now.
    pub groups: u64,
    /// Places taken in the table of groups, and how many there are.
    pub places: (u64, u64),
    /// Eventfds registered now, and most at once.
    pub eventfds: (u64, u64),
    /// Registrations by control file.
    pub registrations: Vec<(&'static str, u64)>,
    /// Registrations that there may be in all.
    pub max_registrations: u64,
    /// Signals given, by cause.
    pub signals: Vec<(&'static str, u64)>,
    /// Registrations refused, by errno.
    pub refusals: BTreeMap<i32, u64>,
    /// From the doorbell in the kernel to the signal.
    pub latency: Histogram,
    /// What the operator is shown, too.
    pub status: AgentStatus,
}

/// One group's numbers. `None`: this kernel does not count that, or not for this group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupNumbers {
    /// Its path below the hierarchy's root, which is `/`.
    pub id: String,
    /// `st_ino` of its directory.
    pub cgroup_id: u64,
    /// Bytes charged now.
    pub usage: u64,
    /// Most bytes charged at once.
    pub peak: Option<u64>,
    /// Its own limit in bytes; 0: none.
    pub limit: Option<u64>,
    /// Registrations on it.
    pub registrations: u64,
    /// By the kernel's counts, in the order of [`files::EVENTS`].
    pub events: [Option<u64>; files::EVENTS.len()],
    /// Seconds in which some, and in which all of its tasks waited for memory.
    pub stalls: [Option<f64>; 2],
}

/// An errno's name, as a label.
fn errno_name(errno: i32) -> String {
    format!("{:?}", Errno::from_raw(errno))
}
