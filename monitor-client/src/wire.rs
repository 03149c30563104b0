//! The types that the admin socket speaks: JSON, one value for each packet.
//!
//! The socket is a unix `SOCK_SEQPACKET` socket, by default at
//! [`CONTROL_SOCKET`](crate::CONTROL_SOCKET), and root's alone unless the agent's options admit
//! others. [`AdminConnection`](crate::AdminConnection) speaks all of it; these types are public
//! for those who keep, show or forward what it gives.
//!
//! # Requests
//!
//! One [`AdminRequest`] of at most [`MAX_REQUEST`] bytes:
//!
//! | packet | answers |
//! |---|---|
//! | `"list"` | a `group` for each group (several in a row where a group has many registrations), then one `status` |
//! | `"status"` | one `status` |
//! | `{"listen":"7 8 512M"}`, with two descriptors as `SCM_RIGHTS` | one `listening`, then an `event` for each signal; the connection takes no further request |
//!
//! # Answers
//!
//! One [`Answer`], an object whose `"type"` says which; its other fields are those of the row:
//!
//! ```json
//! {"type":"group","cgroup":"/sys/fs/cgroup/a","id":42,"usage":1048576,"peak":2097152,"registrations":[]}
//! {"type":"status","registrations":1,"signals":3,"failed_signals":0,"resyncs":0,"restarts":0,"skipped":0,"losses":{"ring_full":0},"runs":0,"run_ns":0,"without_aio":false,"slow_users":0}
//! {"type":"listening"}
//! {"type":"event","time":1795328389.25,"cgroup":"/sys/fs/cgroup/a","event":"crossed","signals":1,"on":"memory.usage_in_bytes","threshold":1048576,"direction":"up","usage":1052672}
//! {"type":"error","errno":22,"why":"EINVAL: not a threshold"}
//! ```
//!
//! `memcg-monitor list -o json` prints the `group` and `status` objects as they are here, one on
//! a line. `status -o json` prints an [`AgentStatus`] and `listen -o json` prints [`EventRow`]s,
//! both without a `"type"`.
//!
//! # Versions
//!
//! Fields that are absent have no value, or the value 0 or `false`, so that a client reads
//! answers of older agents. Fields that a client does not know are ignored. A later version may
//! add fields, and names to [`AgentStatus::losses`] and [`EventRow::event`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Longest request that the admin socket accepts, in bytes; a longer one is refused with `E2BIG`.
pub const MAX_REQUEST: usize = 4096;

/// A request at the admin socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminRequest {
    /// Asks for all groups: an [`Answer::Group`] each, or several where a packet would not
    /// hold all of a group's registrations; then [`Answer::Status`].
    List,
    /// Asks for the agent's own state: [`Answer::Status`]. Costs the same however many groups
    /// and registrations there are.
    Status,
    /// Registers one line, as on the registration socket, with its two descriptors:
    /// [`Answer::Listening`], then an [`Answer::Event`] for each signal, from the first on.
    Listen(String),
}

/// An answer of the admin socket; `"type"` in JSON names the variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Answer {
    /// One group of a list, or a part of it.
    Group(GroupRow),
    /// The agent's own state; ends a list.
    Status(AgentStatus),
    /// The line is registered; events follow.
    Listening,
    /// One event of the registration.
    Event(EventRow),
    /// The request has failed.
    Error {
        /// Positive errno of the refusal.
        errno: i32,
        /// Explanation in one line.
        why: String,
    },
}

/// One group of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRow {
    /// Directory, or `#` and the id when it has none any more, or one longer than 1,024 bytes.
    pub cgroup: String,
    /// Inode number (`st_ino`) of the directory.
    pub id: u64,
    /// Bytes that are charged now.
    pub usage: u64,
    /// Most bytes that were charged at once.
    pub peak: u64,
    /// OOMs by its limit, processes and groups killed, by the kernel's counts; for groups
    /// with a registration for OOM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom: Option<OomRow>,
    /// Registrations on this group, those for the same taken together.
    pub registrations: Vec<RegistrationRow>,
}

/// A group's counts of OOMs and kills. Counts that this kernel does not keep are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomRow {
    /// Charges that found no memory within the group's own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom: Option<u64>,
    /// Processes killed, in the group and below (v1: in the group).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kill: Option<u64>,
    /// Groups killed as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_group_kill: Option<u64>,
}

/// Registrations for the same on one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrationRow {
    /// Name of the control file.
    pub on: String,
    /// Threshold in bytes, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<u64>,
    /// Level and mode, if it is reclaim pressure: `low,hierarchy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<String>,
    /// Number of such registrations.
    pub count: u64,
}

/// The agent's own state, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Registrations in all, now.
    pub registrations: u64,
    /// Signals given so far.
    pub signals: u64,
    /// Signals that could not be given.
    pub failed_signals: u64,
    /// Times that everything watched was read again after a loss.
    pub resyncs: u64,
    /// Times that an agent has taken over from another, without loss.
    #[serde(default)]
    pub restarts: u64,
    /// Calls that the kernel kept from a program (`recursion_misses`).
    pub skipped: u64,
    /// Losses by name, counted at the place of the loss.
    pub losses: BTreeMap<String, u64>,
    /// Runs of the charge programs (while `kernel.bpf_stats_enabled` is set).
    pub runs: u64,
    /// Nanoseconds spent in those runs.
    pub run_ns: u64,
    /// True if the kernel has no asynchronous reads for the agent (`fs.aio-max-nr`), so
    /// that threads signal by `write`.
    #[serde(default)]
    pub without_aio: bool,
    /// Users whose eventfds take so long to signal that a thread apart does.
    #[serde(default)]
    pub slow_users: u64,
}

/// One event of a followed eventfd. Fields without a value are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EventRow {
    /// Seconds since 1970, UTC.
    pub time: f64,
    /// Directory of the group that was registered on, or `#` and the id.
    pub cgroup: String,
    /// `crossed`, `oom`, `oom_kill`, `oom_group_kill`, `pressure`, `empty` or `removed`.
    pub event: String,
    /// Amount added to the eventfd: 0 for an event that only adds detail to an OOM.
    pub signals: u64,
    /// Control file whose quantity crossed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    /// Threshold in bytes, of `crossed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<u64>,
    /// Direction of the crossing: `up` or `down`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// Bytes at the time that the agent worked out the crossing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<u64>,
    /// Group whose limit caused the OOM, or whose reclaim made the pressure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Level of pressure: `low`, `medium` or `critical`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Process or group that the OOM killer chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub victim: Option<VictimRow>,
    /// Events that this follower was too slow for, just before this one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
}

/// A victim of the OOM killer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VictimRow {
    /// Group of the victim: the whole of it with `oom_group_kill`.
    pub cgroup: String,
    /// Process id on the agent's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u64>,
    /// Name of the process (`comm`), 15 bytes at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
const fn is_zero(lost: &u64) -> bool {
    *lost == 0
}

#[cfg(test)]
mod tests;
