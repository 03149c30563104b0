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
//! | `"kills"` | an `event` for each of the last kills, then one `status` |
//! | `"changes"` | as many `changes` as are needed, then one `status`: first of all groups, then of what has changed since the last such request on this connection |
//! | `{"listen":"7 8 512M"}`, with two descriptors as `SCM_RIGHTS` | one `listening`, then an `event` for each signal; the connection takes no further request |
//! | `{"watch":{"patterns":["/a/**"],"specs":["80%"]}}`, with an eventfd as `SCM_RIGHTS` | an `event` for what happens in each group that matches, a `missed` for what could not be watched, one `watching` once all groups that there are have been registered on; the connection takes no further request |
//! | `{"record":42}` | one `recorded`, of the group whose directory has this inode number |
//!
//! # Answers
//!
//! One [`Answer`], an object whose `"type"` says which; its other fields are those of the row:
//!
//! ```json
//! {"type":"group","cgroup":"/sys/fs/cgroup/a","id":42,"usage":1048576,"peak":2097152,"registrations":[]}
//! {"type":"status","backend":"fentry","precision":"exact","registrations":1,"signals":3,"failed_signals":0,"kills":0,"resyncs":0,"restarts":0,"skipped":0,"losses":{"ring_full":0},"runs":0,"run_ns":0,"without_aio":false,"slow_users":0}
//! {"type":"listening"}
//! {"type":"event","time":1795328389.25,"cgroup":"/sys/fs/cgroup/a","event":"crossed","signals":1,"on":"memory.usage_in_bytes","threshold":1048576,"direction":"up","usage":1052672}
//! {"type":"changes","named":[[42,"/sys/fs/cgroup/a"]],"usage":[[42,1048576]],"limits":[[42,null]],"registrations":[[42,3]]}
//! {"type":"watching","groups":2}
//! {"type":"note","reason":"above_limit","spec":"1G","cgroup":"/sys/fs/cgroup/a","limit":67108864,"groups":1}
//! {"type":"missed","count":1,"why":"the agent's table of groups is full; start it with a larger --max-groups"}
//! {"type":"recorded","path":"/var/lib/memcg-monitor/black-box/1795984800000-42-a.jsonl"}
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
    /// Requests all groups: an [`Answer::Group`] each, or several where a packet would not
    /// hold all of a group's registrations; then [`Answer::Status`].
    List,
    /// Requests the agent's own state: [`Answer::Status`]. Costs the same however many groups
    /// and registrations there are.
    Status,
    /// Requests the last processes that the OOM killer killed, 1,024 at most, the oldest of them
    /// first: an [`Answer::Event`] each, then [`Answer::Status`].
    Kills,
    /// Requests what has changed since the last such request on this connection, at first all
    /// groups: [`Answer::Changes`] as often as needed, then [`Answer::Status`]. Costs as many
    /// names as there are new groups, and as many numbers as have changed.
    Changes,
    /// Registers one line, as on the registration socket, with its two descriptors:
    /// [`Answer::Listening`], then an [`Answer::Event`] for each signal, from the first on.
    Listen(String),
    /// Writes a file of the black box of the group whose directory has this inode number:
    /// [`Answer::Recorded`].
    Record(u64),
    /// Registers on all groups that match, now and later, with one eventfd for all of them:
    /// [`Answer::Event`] for each event, [`Answer::Missed`], and one [`Answer::Watching`].
    Watch(WatchRequest),
}

/// The groups to watch, and what to tell of each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchRequest {
    /// Patterns of paths below the hierarchy's root: `*` and `?` stay within one name, `**` is any
    /// number of names. The root itself is matched by `/` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<String>,
    /// Patterns of the whole names of units that a group is (`nginx.service`); beside `patterns`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<String>,
    /// Specifications: `80%`, `oom`, `critical`, `memory.anon_bytes 1G`, `empty`, `removed`.
    #[serde(default)]
    pub specs: Vec<String>,
    /// True to be told of thresholds that usage is above already, since an earlier watch has ended with
    /// its agent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

/// An answer of the admin socket; `"type"` in JSON names the variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "each is received, used and dropped by itself")]
pub enum Answer {
    /// One group of a list, or a part of it.
    Group(GroupRow),
    /// The agent's own state; ends a list.
    Status(AgentStatus),
    /// The line is registered; events follow.
    Listening,
    /// One event of the registration, or one of the last kills.
    Event(EventRow),
    /// Groups that came, changed and went.
    Changes(ChangesRow),
    /// All groups of the watch that there are have been registered on.
    Watching {
        /// Number of these groups.
        groups: u64,
    },
    /// Something about the watch itself: a threshold that cannot be crossed as things are, once for each
    /// group, or a time in which nobody watched.
    Note(NoteRow),
    /// Groups or events that the watch does not tell of.
    Missed {
        /// Number of these groups or events.
        count: u64,
        /// Explanation in one line.
        why: String,
    },
    /// The black box's file is written.
    Recorded {
        /// Path of the file, on the agent's host.
        path: String,
    },
    /// The request has failed.
    Error {
        /// Positive errno of the refusal.
        errno: i32,
        /// Explanation in one line.
        why: String,
    },
}

/// A note of a watch. Fields without a value are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteRow {
    /// `above_limit` of the group or of one above it, `above_host` for more than the host's memory, `no_limit`
    /// for a percentage where there is none, `never` for 0; `again` for the time since an earlier agent ended:
    /// OOMs, pressure, emptying and removals in that time are not told.
    pub reason: String,
    /// The specification that cannot be crossed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<String>,
    /// Directory of the group, or of the first of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Bytes that its usage cannot exceed now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Groups that this is noted of.
    pub groups: u64,
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
    /// Lowest limit in bytes from the group up, which percents are of; only of a group with
    /// thresholds, and where there is a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Registrations on this group, those for the same taken together.
    pub registrations: Vec<RegistrationRow>,
}

/// Changes of the groups, by the inode numbers (`st_ino`) of their directories. A group is
/// named before its first numbers; numbers that are not there are as they were. To be applied in the
/// order of the fields, in which the answers come, too: groups go before others come, which may have
/// their directories' names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesRow {
    /// Groups that are removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<u64>,
    /// New groups, with their directories, or `#` and the id, as in [`GroupRow::cgroup`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub named: Vec<(u64, String)>,
    /// Bytes that are charged now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub usage: Vec<(u64, u64)>,
    /// Own limits in bytes; null where there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<(u64, Option<u64>)>,
    /// Numbers of registrations; of a new group where there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub registrations: Vec<(u64, u64)>,
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RegistrationRow {
    /// Name of the control file.
    pub on: String,
    /// Threshold in bytes, if it is one and has a place: one in percent of no limit has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<u64>,
    /// Threshold as it was given, where that was in percent: `80%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<String>,
    /// The one direction of a threshold that is signalled, `up` or `down`; absent for both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// Bytes by which usage must fall below the threshold to count as below; absent for 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hysteresis: Option<u64>,
    /// True while a threshold that flaps is held off.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held_off: bool,
    /// Why a threshold cannot be crossed as things are: `above_limit` of the group or of one above
    /// it, `no_limit` for a percentage where there is none, `never` for 0 and -1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<String>,
    /// Level and mode, if it is reclaim pressure: `low,hierarchy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<String>,
    /// How it is watched now: `exact` or `sampled`. Empty from older agents.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub precision: String,
    /// Number of such registrations.
    pub count: u64,
}

/// The agent's own state, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Backend of the agent: `fentry` or `sampled`. Empty from older agents.
    #[serde(default)]
    pub backend: String,
    /// How thresholds are watched now: `exact` or `sampled`. Empty from older agents.
    #[serde(default)]
    pub precision: String,
    /// Registrations in all, now.
    pub registrations: u64,
    /// Signals given so far.
    pub signals: u64,
    /// Signals that could not be given.
    pub failed_signals: u64,
    /// Processes that the OOM killer killed since the agent started; none is seen by the backend
    /// `sampled`.
    #[serde(default)]
    pub kills: u64,
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
    /// `crossed`, `oom`, `oom_kill`, `oom_group_kill`, `host_oom_kill`, `pressure`, `empty` or
    /// `removed`.
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
    /// Reason of a kill: `limit`, `lowered_limit` where a limit was written below usage, `unknown`, or `host`
    /// where the host had no memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Level of pressure: `low`, `medium` or `critical`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Process or group that the OOM killer chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub victim: Option<VictimRow>,
    /// Inode number (`st_ino`) of the group's directory; of a watch.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub id: u64,
    /// The specification that it is told for; of a watch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<String>,
    /// Lowest limit in bytes from the group up, where there is one; of a watch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Bytes per second by which usage has grown (below 0: fallen) in the last second or two, where that
    /// is known; of a watch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth: Option<i64>,
    /// Most bytes that were charged at once; of what is told late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak: Option<u64>,
    /// True where it happened before the group could be registered on, or while there was no agent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
    /// Events that this follower was too slow for, just before this one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
}

/// A victim of the OOM killer: a process, or a whole group. What this kernel does not show is left
/// out, and so is what was gone before it could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VictimRow {
    /// Group of the victim: the whole of it with `oom_group_kill`.
    pub cgroup: String,
    /// Process id on the agent's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u64>,
    /// Process id in the process's own pid namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_pid: Option<u64>,
    /// Name of the process (`comm`), 15 bytes at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Command line, its first 1,024 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Whether there is more of the command line.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub command_cut: bool,
    /// Path of the program (`/proc/PID/exe`), as in its own mount namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// Real user id on the agent's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// `oom_score_adj` of the process, from -1000 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Bytes mapped, whether they are in memory or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_vm: Option<u64>,
    /// Bytes of anonymous memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anon_rss: Option<u64>,
    /// Bytes of files in memory that were mapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_rss: Option<u64>,
    /// Bytes of shared memory and tmpfs that were mapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shmem_rss: Option<u64>,
    /// Bytes that are in swap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<u64>,
    /// Bytes of page tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_tables: Option<u64>,
    /// Innermost unit of systemd in the group's path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Unique id of the pod in the group's path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Id of the container in the group's path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
const fn is_zero(lost: &u64) -> bool {
    *lost == 0
}

#[cfg(test)]
mod tests;
