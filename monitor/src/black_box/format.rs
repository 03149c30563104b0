//! The lines of a file of the black box. A reader ignores fields and kinds of entries that it does
//! not know, so a new one raises [`MINOR`]; another meaning of one that there is raises [`MAJOR`].

use serde::{Deserialize, Serialize};

/// The word `format` of each header.
pub const FORMAT: &str = "memcg-monitor black box";
/// The version of the format; files of a newer one are refused.
pub const MAJOR: u32 = 1;
/// The version of what was added to it, for people.
pub const MINOR: u32 = 0;

/// The reason why a file was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordReason {
    /// A process of the group was OOM-killed.
    Oom,
    /// Somebody requested the file.
    Request,
    /// A reason of a later minor version.
    #[serde(other)]
    Other,
}

/// The first line: of which group the file is, and when it was written. All times of the file are
/// nanoseconds of `CLOCK_MONOTONIC`, as the kernel's programs read it; `at` and `unix_ms` are one
/// moment, by which they are dates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlackBoxHeader {
    /// The constant [`FORMAT`], in each file.
    pub format: String,
    /// The [`MAJOR`] of the program that wrote it.
    pub major: u32,
    /// The [`MINOR`] of the program that wrote it.
    #[serde(default)]
    pub minor: u32,
    /// The group's path below the hierarchy's root.
    pub group: String,
    /// `st_ino` of the group's directory.
    #[serde(default)]
    pub cgroup_id: u64,
    /// The reason why the file was written.
    pub reason: RecordReason,
    /// The moment at which it was written.
    pub at: u64,
    /// That moment in milliseconds since 1970, UTC.
    pub unix_ms: u64,
    /// Bytes by which usage has to move for another point; `None`: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// Whether the points are `exact` (each charge was seen) or `sampled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// The version of the program that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The release of the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// The name of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

impl BlackBoxHeader {
    /// A header of this version for a group, whose `st_ino` is `cgroup_id`: at the moment 0, and with
    /// nothing in the fields that a file may lack.
    #[must_use]
    pub fn new(group: String, cgroup_id: u64, reason: RecordReason) -> Self {
        Self {
            format: FORMAT.to_owned(),
            major: MAJOR,
            minor: MINOR,
            group,
            cgroup_id,
            reason,
            at: 0,
            unix_ms: 0,
            step: None,
            precision: None,
            agent: None,
            kernel: None,
            host: None,
        }
    }
}

/// One line behind the header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum BlackBoxEntry {
    /// A point of the curve.
    Usage(UsagePoint),
    /// Points before this moment are lost.
    Lost { at: u64, points: u64 },
    /// A limit, as it is from then on.
    Limit(LimitEntry),
    /// A registration on the group.
    Registration(RegistrationEntry),
    /// An eventfd was signalled.
    Signal(SignalEntry),
    /// A window of reclaim.
    Pressure(PressureEntry),
    /// A limit was reached, and nothing could be reclaimed.
    Oom(OomEntry),
    /// The OOM killer killed.
    Kill(Box<KillEntry>),
    /// A remark for people, such as of what is not known.
    Note { text: String },
    /// The last line, with the number of entries before it.
    End { entries: u64 },
    /// An entry of a later minor version.
    #[serde(other)]
    Unknown,
}

/// A point of the curve: usage at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsagePoint {
    pub at: u64,
    pub bytes: u64,
}

/// A limit, of the group or of one above it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitEntry {
    pub at: u64,
    /// The group whose limit it is; `None`: the lowest from this group up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// Bytes of it; `None`: no limit.
    #[serde(default)]
    pub bytes: Option<u64>,
}

/// A registration on the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrationEntry {
    /// The number by which signals name it.
    pub registration: u64,
    /// The text of the trigger, such as `memory.usage_in_bytes 52428800 up`.
    pub trigger: String,
    /// The threshold's level, where it is one on usage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The user that it counts against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// A signal of an eventfd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalEntry {
    pub at: u64,
    /// The registration; `None`: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration: Option<u64>,
    /// The cause, in words.
    pub cause: String,
    /// The usage that the agent saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// A window of reclaim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PressureEntry {
    pub at: u64,
    /// `low`, `medium` or `critical`.
    pub level: String,
}

/// An OOM by a group's limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomEntry {
    pub at: u64,
    /// The group whose limit it was; `None`: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_of: Option<String>,
}

/// One process that the OOM killer killed, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KillEntry {
    pub at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The number of it in its own pid namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ns_pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anon_rss: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_rss: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shmem_rss: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The group that the victim was in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub victim_group: Option<String>,
    /// The group whose limit it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_of: Option<String>,
    /// Whether a group was killed as a whole (`memory.oom.group`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whole_group: Option<bool>,
}

impl KillEntry {
    /// The victim as a mark names it: `postgres (1234)`.
    #[must_use]
    pub fn name(&self) -> String {
        match (&self.comm, self.pid) {
            (None, None) if self.whole_group == Some(true) => {
                format!("the group {}", self.victim_group.as_deref().unwrap_or("of the victims"))
            }
            (Some(comm), Some(pid)) => format!("{comm} ({pid})"),
            (Some(comm), None) => comm.clone(),
            (None, Some(pid)) => format!("process {pid}"),
            (None, None) => "a process".to_owned(),
        }
    }
}
