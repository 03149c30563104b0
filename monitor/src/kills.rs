//! Kills by the OOM killer: who was killed and why, as the programs saw it at the kill, and what
//! `/proc` has of the process while it is there. The last of them are kept, also after their groups
//! are gone.
//!
//! A record comes from the thread that signals, or where no program sees kills from one that follows the
//! kernel's log. Paths are looked up by a thread of their own, and `/proc`
//! by a further one, which may have to wait for a process that dies, and is given up then; whoever tells of the kill waits for that for a
//! moment ([`Kill::looked_up`]).

mod counts;
mod kept;
mod kernel_log;
mod lookup;

use std::{
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use monitor_common::protocol::ring::{KillReason, Victim, VictimMemory};
use tokio::{sync::Notify, time::timeout};

pub use self::{
    kept::{KillCount, KillLog},
    kernel_log::{KernelLog, LogFollower},
    lookup::KillTeller,
};

/// Longest time for which whoever tells of a kill waits for what `/proc` has.
const PATIENCE: Duration = Duration::from_secs(1);

/// A process that the OOM killer has killed.
#[derive(Debug)]
pub struct Kill {
    /// When the agent received it, in seconds since 1970, UTC.
    pub time: f64,
    /// The reason of the kill.
    pub reason: KillReason,
    /// `st_ino` of the group whose limit caused it; `None` where it was the host, or a group without a
    /// place in the table.
    pub limit: Option<u64>,
    /// The process, as the programs saw it.
    pub victim: Victim,
    details: OnceLock<KillDetails>,
    told: Notify,
    groups: LoggedGroups,
}

/// Paths of groups below the hierarchy's root, as the kernel logged them: the groups may be gone by the time
/// they are looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggedGroups {
    /// Path of the victim's group.
    pub cgroup: Option<String>,
    /// Path of the group whose limit caused it.
    pub limit: Option<String>,
}

/// Details of a kill that are looked up. What has gone before that is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KillDetails {
    /// Directory of the victim's group.
    pub cgroup: Option<String>,
    /// Directory of the group whose limit caused it.
    pub limit: Option<String>,
    /// The victim's command line.
    pub command: Option<CommandLine>,
    /// Path of the program that the victim ran.
    pub exe: Option<String>,
}

/// A command line, or its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// The arguments with a NUL between them: as strings, a thousand empty ones would take 24 times as much.
    bytes: Box<[u8]>,
    /// Whether there is more of it.
    pub is_cut: bool,
}

impl CommandLine {
    /// The longest part that is kept, in bytes.
    pub const MOST: usize = 1024;

    /// A command line from its bytes, with a NUL after each argument; `None` where it has none.
    fn from_bytes(bytes: &[u8], is_cut: bool) -> Option<Self> {
        let text = bytes.strip_suffix(b"\0").unwrap_or(bytes);
        if text.iter().all(|byte| *byte == 0) {
            return None;
        }
        Some(Self { bytes: text.into(), is_cut })
    }

    /// The program's arguments, from its name on. What is not UTF-8 is replaced.
    #[must_use]
    pub fn args(&self) -> Vec<String> {
        let args = self.bytes.split(|byte| *byte == 0);
        args.map(|arg| String::from_utf8_lossy(arg).into_owned()).collect()
    }
}

impl Kill {
    /// Makes one of a record that has just come.
    #[must_use]
    pub fn new(victim: Victim, reason: KillReason, limit: Option<u64>) -> Self {
        let time = since_1970();
        let groups = LoggedGroups::default();
        Self { time, reason, limit, victim, details: OnceLock::new(), told: Notify::new(), groups }
    }

    /// Adds the groups as they were logged.
    #[must_use]
    pub fn with_groups(self, groups: LoggedGroups) -> Self {
        Self { groups, ..self }
    }

    /// The groups as they were logged.
    #[must_use]
    pub const fn groups(&self) -> &LoggedGroups {
        &self.groups
    }

    /// The process's name, cut by the kernel.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.victim.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    }

    /// Memory by kind; [`Victim::UNKNOWN`] in place of what this kernel does not show.
    #[must_use]
    pub const fn memory(&self) -> &VictimMemory {
        &self.victim.memory
    }

    /// The command line as the program read it, where that was possible.
    fn recorded_command(&self) -> Option<CommandLine> {
        let bytes = usize::try_from(self.victim.command_bytes).unwrap_or(usize::MAX);
        let part = self.victim.command.get(..bytes.min(Victim::COMMAND))?;
        CommandLine::from_bytes(part, bytes > Victim::COMMAND)
    }

    /// Sets what was looked up; once.
    pub fn set_details(&self, details: KillDetails) {
        if self.details.set(details).is_ok() {
            self.told.notify_waiters();
        }
    }

    /// Returns what was looked up, if that has ended.
    #[must_use]
    pub fn details(&self) -> Option<&KillDetails> {
        self.details.get()
    }

    /// Waits until everything was looked up, or for a second.
    pub async fn looked_up(&self) {
        let told = async {
            // Made before the look, so that nothing comes between.
            let told = self.told.notified();
            if self.details.get().is_none() {
                told.await;
            }
        };
        if timeout(PATIENCE, told).await.is_err() {
            log::debug!("a kill is told without its command line: the look-up takes too long");
        }
    }
}

/// The time of day in seconds since 1970, UTC.
fn since_1970() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Two are the same where they are one: a process is killed once.
impl PartialEq for Kill {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Kill {}

#[cfg(test)]
mod tests {
    use monitor_common::protocol::ring::{Doorbell, KillReason, Victim, VictimMemory};

    use super::{CommandLine, Kill};

    /// A kill of the group with this id.
    pub(super) fn kill(pid: u64, group: u64, command: &[u8]) -> Kill {
        let mut victim = Victim {
            bell: Doorbell { kind: Doorbell::VICTIM, slot: 0, value: group },
            pid,
            comm: *b"a name\0\0\0\0\0\0\0\0\0\0",
            start: 0,
            uid: Victim::NO_USER,
            own_pid: 0,
            score_adj: Victim::NO_SCORE,
            slot: 0,
            memory: VictimMemory::UNKNOWN,
            command_bytes: command.len() as u64,
            command: [0; Victim::COMMAND],
        };
        let part = command.len().min(Victim::COMMAND);
        victim.command[..part].copy_from_slice(&command[..part]);
        Kill::new(victim, KillReason::Limit, Some(1))
    }

    #[test]
    fn a_command_line_is_split_at_its_ends_and_cut_is_said() {
        let of = |bytes: &[u8]| CommandLine::from_bytes(bytes, false).map(|line| line.args());
        assert_eq!(of(b"sh\0-c\0\0x y\0"), Some(vec!["sh".into(), "-c".into(), String::new(), "x y".into()]));
        assert_eq!(of(b"a title without an end"), Some(vec!["a title without an end".into()]));
        assert_eq!((of(b""), of(b"\0\0")), (None, None));
        let whole = kill(1, 2, b"sh\0").recorded_command().expect("a command line");
        assert_eq!((whole.args(), whole.is_cut), (vec!["sh".to_owned()], false));
        let long = kill(1, 2, &[b'x'; 300]).recorded_command().expect("a part");
        assert_eq!((long.args()[0].len(), long.is_cut), (256, true));
        assert_eq!(kill(1, 2, b"").recorded_command(), None);
        assert_eq!(kill(1, 2, b"").name(), "a name");
    }

    #[test]
    fn a_command_line_of_empty_arguments_takes_no_more_than_its_bytes() {
        let mut bytes = [0; CommandLine::MOST];
        bytes[CommandLine::MOST - 1] = b'x';
        let line = CommandLine::from_bytes(&bytes, false).expect("a command line");
        assert_eq!(line.bytes.len(), CommandLine::MOST);
        let args = line.args();
        assert_eq!((args.len(), args.last().map(String::as_str)), (CommandLine::MOST, Some("x")));
    }
}
