//! The trial of the whole path: an agent on sockets of its own, a throw-away group, and
//! registrations on it that have to be signalled.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    os::{
        fd::AsFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Component, Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use memcg_monitor::{
    Error, Precision,
    backend::BackendKind,
    cgroup::{Hierarchy, Version},
    kernel::page_size,
};
use monitor_client::{AdminConnection, Builder, Registration};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{charges, held_signals::HeldSignals};

/// Pages that are charged; half of them reach the threshold. The kernel keeps up to 64 of them
/// charged for the CPU that gave some back (`MEMCG_CHARGE_BATCH`), and up to 31 that wait to be
/// listed (`lru_add`); with what this process charges besides, that is far less than the half.
const PAGES: u64 = 512;
/// Name of the agent's registration socket in the trial's directory.
const SOCKET: &str = "event_control.sock";
/// Name of the agent's admin socket in the trial's directory.
const CONTROL_SOCKET: &str = "control.sock";
/// Longest time to the agent's readiness.
const START: Duration = Duration::from_secs(60);
/// Longest time to a signal.
const SIGNAL: u16 = 10_000;
/// Longest time until the agent's usage is the kernel's; a sampled one is read once a second at least.
const AGREEMENT: Duration = Duration::from_secs(5);
/// Time between two looks at an agent that starts or ends.
const LOOK: Duration = Duration::from_millis(10);

/// The outcome of a trial that was not a success.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is no place for the trial; the backend may work.
    NotMade(String),
    /// The backend does not do what it has to.
    Failed(String),
}

impl Failure {
    fn not_made(call: &'static str, path: impl Into<PathBuf>, error: io::Error) -> Self {
        Self::NotMade(Error::file(call, path, error).to_string())
    }

    fn interrupted() -> Self {
        Self::NotMade("a signal ends the command".into())
    }
}

/// Starts an agent with this backend, and proves with a group of its own that it signals, and that its
/// usage is the kernel's. Returns what was proven.
pub(super) fn run(hierarchy: &Hierarchy, backend: BackendKind) -> Result<String, Failure> {
    // Dropped last: a signal ends the process when nothing of the trial is left.
    let held = HeldSignals::hold().map_err(|errno| Failure::NotMade(format!("signalfd: {errno}")))?;
    let group = TrialGroup::make(hierarchy)?;
    let mut agent = TrialAgent::start(hierarchy, backend, &held)?;
    let outcome = {
        let _one = OneProcessor::stay();
        signals(backend, &group, &agent, &held)
    };
    let own = outcome.is_err().then(|| agent.last_words()).flatten();
    match (outcome, own) {
        (Ok(is_empty_seen), _) => {
            let (count, empty) = if is_empty_seen { (4, "an empty group, ") } else { (3, "") };
            Ok(format!(
                "an agent signalled {count} of {count} on {}: a threshold reached by a charge, the same by giving \
                 back, {empty}removal; its usage was the kernel's after anonymous memory, page cache and kernel \
                 memory were charged and given back ({}, {}); not tried: {}, which no process brings about by itself",
                group.name(),
                charges::CHARGE,
                charges::UNCHARGE,
                charges::BY_FORCE
            ))
        }
        (Err(Failure::Failed(why)), Some(own)) => {
            Err(Failure::Failed(format!("{why}; the agent's log: {own}")))
        }
        (Err(failure), _) => Err(failure),
    }
}

/// Charges, gives back, and removes the group; whether that it became empty was signalled, which not
/// every backend and kernel reports.
fn signals(
    backend: BackendKind,
    group: &TrialGroup,
    agent: &TrialAgent,
    held: &HeldSignals,
) -> Result<bool, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::Failed(error.to_string());
    let bytes = PAGES * page_size();
    let register = |file: &str, args: &str| {
        let builder = Builder::new(group.path.join(file)).args(args);
        builder.socket(agent.socket()).control_socket(agent.control_socket()).register()
    };
    let usage = group.version.usage_file();
    let registration = register(usage, &(bytes / 2).to_string()).map_err(|error| failed(&error))?;
    let empty = match register("cgroup.procs", "") {
        Ok(empty) => Some(empty),
        Err(error) if error.errno() == Some(Errno::EOPNOTSUPP as i32) => None,
        Err(error) => return Err(failed(&error)),
    };
    group.enter()?;
    let made = |what: &str, error: io::Error| Failure::NotMade(format!("{what} of {bytes} bytes: {error}"));
    let precision = backend.precision();
    let agrees = |what, function| agent.agrees(group, what, function, held);
    let is_signalled = |registration: &Registration, reason: &str| {
        is_signalled(registration, precision, reason, held).map_err(|failure| match failure {
            Failure::Failed(why) => Failure::Failed(format!("{why}; {}", agent.figures(group, bytes / 2))),
            other => other,
        })
    };
    // A host that is short of memory, or migrates it, may do otherwise than it is told.
    let is_charged = |is_above: bool| match group.usage()? {
        (usage, _) if (usage >= bytes / 2) == is_above => Ok(()),
        (usage, _) => Err(Failure::NotMade(format!(
            "the group's usage is {usage} bytes by the kernel's file, {} the threshold of {}",
            if is_above { "still below" } else { "not below" },
            bytes / 2
        ))),
    };

    let pages = charges::anonymous(bytes).map_err(|error| made("mmap", error))?;
    is_charged(true)?;
    is_signalled(&registration, "a charge that reached the threshold (page_counter_try_charge)")?;
    agrees("a charge of anonymous memory", charges::CHARGE)?;
    let cache = charges::page_cache(bytes).map_err(|error| made("write to a memfd", error))?;
    agrees("a charge of page cache", charges::CHARGE)?;
    let pipes = charges::kernel(bytes).map_err(|error| made("write to pipes", error))?;
    agrees("a charge of kernel memory", charges::CHARGE)?;
    drop((cache, pipes));
    agrees("giving back page cache and kernel memory", charges::UNCHARGE)?;
    drop(pages);
    is_charged(false)?;
    is_signalled(&registration, "memory given back below the threshold (page_counter_uncharge)")?;
    agrees("giving back anonymous memory", charges::UNCHARGE)?;
    group.leave()?;
    if let Some(empty) = &empty {
        is_signalled(empty, "a group that became empty (cgroup_notify_populated)")?;
    }
    fs::remove_dir(&group.path).map_err(|error| Failure::not_made("rmdir", &group.path, error))?;
    is_signalled(&registration, "the group's removal (mem_cgroup_css_offline)")?;
    Ok(empty.is_some())
}

fn is_signalled(
    registration: &Registration,
    precision: Precision,
    reason: &str,
    held: &HeldSignals,
) -> Result<(), Failure> {
    let mut fds = [PollFd::new(registration.as_fd(), PollFlags::POLLIN), held.poll_fd()];
    let readable = poll(&mut fds, PollTimeout::from(SIGNAL))
        .map_err(|errno| Failure::NotMade(format!("poll of the eventfd: {errno}")))?;
    if held.is_pending() {
        return Err(Failure::interrupted());
    }
    if readable == 0 {
        return Err(Failure::Failed(format!("{reason} was not signalled within {} s", SIGNAL / 1000)));
    }
    let mut count = [0; 8];
    let read = nix::unistd::read(registration.as_fd(), &mut count);
    match (read, u64::from_ne_bytes(count)) {
        (Ok(8), 1) => Ok(()),
        // A peak between two readings may be taken for a crossing of its own.
        (Ok(8), _) if precision == Precision::Sampled => Ok(()),
        (Ok(_), signals) => Err(Failure::Failed(format!("{reason} was signalled {signals} times"))),
        (Err(errno), _) => Err(Failure::NotMade(format!("read of the eventfd: {errno}"))),
    }
}

/// This thread's stay on one processor, until it is dropped: the kernel keeps memory charged for each
/// that has given some back, which would add up on a host with many.
struct OneProcessor(Option<CpuSet>);

impl OneProcessor {
    /// Stays on the present one, where that is allowed.
    fn stay() -> Self {
        let this = Pid::from_raw(0);
        let before = sched_getaffinity(this).ok().filter(|_| {
            let mut here = CpuSet::new();
            sched_getcpu().and_then(|cpu| here.set(cpu)).and_then(|()| sched_setaffinity(this, &here)).is_ok()
        });
        Self(before)
    }
}

impl Drop for OneProcessor {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = sched_setaffinity(Pid::from_raw(0), before);
        }
    }
}

/// A group that is made for the trial, and removed on drop.
struct TrialGroup {
    version: Version,
    path: PathBuf,
    /// File that this process's id is written to when it leaves the group.
    home: PathBuf,
}

impl TrialGroup {
    fn make(hierarchy: &Hierarchy) -> Result<Self, Failure> {
        let version = hierarchy.version;
        let own = fs::read("/proc/self/cgroup")
            .map_err(|error| Failure::not_made("read", "/proc/self/cgroup", error))?;
        let home = hierarchy.directory_of(&own);
        // A group outside of this cgroup namespace begins with `..`.
        let home = home.filter(|path| !path.components().any(|part| part == Component::ParentDir));
        let home = home.ok_or_else(|| {
            Failure::NotMade("this process's group is not in the hierarchy that is mounted here".into())
        })?;
        let path = hierarchy.root.join(format!("memcg-monitor-check.{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| Failure::not_made("mkdir", &path, error))?;
        let group = Self { version, path, home: home.join("cgroup.procs") };
        let usage = group.path.join(version.usage_file());
        if !usage.exists() {
            let remedy = hierarchy.root.join("cgroup.subtree_control");
            return Err(Failure::NotMade(format!(
                "a new group has no {}: echo +memory > {}",
                version.usage_file(),
                remedy.display()
            )));
        }
        Ok(group)
    }

    /// Bytes charged, by the kernel's file, and the id of the directory.
    fn usage(&self) -> Result<(u64, u64), Failure> {
        let path = self.path.join(self.version.usage_file());
        let text = fs::read_to_string(&path).map_err(|error| Failure::not_made("read", &path, error))?;
        let usage =
            text.trim().parse().map_err(|_| Failure::NotMade(format!("{}: {text:?}", path.display())))?;
        let found = fs::metadata(&self.path).map_err(|error| Failure::not_made("stat", &self.path, error))?;
        Ok((usage, found.ino()))
    }

    fn name(&self) -> std::borrow::Cow<'_, str> {
        self.path.file_name().unwrap_or_default().to_string_lossy()
    }

    fn enter(&self) -> Result<(), Failure> {
        let procs = self.path.join("cgroup.procs");
        move_to(&procs).map_err(|error| Failure::not_made("write", &procs, error))
    }

    fn leave(&self) -> Result<(), Failure> {
        move_to(&self.home).map_err(|error| Failure::not_made("write", &self.home, error))
    }
}

impl Drop for TrialGroup {
    fn drop(&mut self) {
        // Of a group that is gone, or was never entered, both fail, and nothing is left.
        if self.path.exists() {
            let _ = move_to(&self.home);
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Moves this process to a group; `0` is the writer.
fn move_to(procs: &Path) -> io::Result<()> {
    fs::write(procs, "0")
}

/// An agent for the trial alone, ended on drop.
struct TrialAgent {
    child: Child,
    directory: PathBuf,
    log: File,
}

impl TrialAgent {
    fn start(hierarchy: &Hierarchy, backend: BackendKind, held: &HeldSignals) -> Result<Self, Failure> {
        let directory = std::env::temp_dir().join(format!("memcg-monitor-check.{}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(|error| Failure::not_made("mkdir", &directory, error))?;
        let started = Self::spawn(hierarchy, backend, &directory);
        let (child, log) = match started {
            Ok(started) => started,
            Err(error) => {
                let _ = fs::remove_dir_all(&directory);
                return Err(Failure::not_made("start an agent in", directory, error));
            }
        };
        let mut agent = Self { child, directory, log };
        agent.wait_until_ready(held)?;
        Ok(agent)
    }

    fn spawn(hierarchy: &Hierarchy, backend: BackendKind, directory: &Path) -> io::Result<(Child, File)> {
        let path = directory.join("log");
        let log = File::create(&path)?;
        let child = Command::new(std::env::current_exe()?)
            .args(["agent", "--no-mount", "--backend", backend.as_str()])
            // A sweep would read what no program has seen.
            .args(["--sweep-ms", "3600000"])
            .arg("--cgroup-root")
            .arg(&hierarchy.root)
            .arg("--socket")
            .arg(directory.join(SOCKET))
            .arg("--control-socket")
            .arg(directory.join(CONTROL_SOCKET))
            // A service manager that started the check expects nothing of this agent.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("LISTEN_FDS")
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok((child, File::open(path)?))
    }

    fn socket(&self) -> PathBuf {
        self.directory.join(SOCKET)
    }

    fn control_socket(&self) -> PathBuf {
        self.directory.join(CONTROL_SOCKET)
    }

    /// Waits until the agent's usage of the group is what the kernel's file says, after `what`, which
    /// changes it by this function.
    fn agrees(
        &self,
        group: &TrialGroup,
        what: &str,
        function: &str,
        held: &HeldSignals,
    ) -> Result<(), Failure> {
        let begin = Instant::now();
        let failed = |error: &dyn std::fmt::Display| Failure::Failed(format!("list, after {what}: {error}"));
        loop {
            let (kernel, id) = group.usage()?;
            let listed = self.usage(id).map_err(|error| failed(&error))?;
            let agent = listed.ok_or_else(|| failed(&"the group is not in it"))?;
            let Some(why) = charges::disagreement(what, function, kernel, agent) else { return Ok(()) };
            if held.is_pending() {
                return Err(Failure::interrupted());
            }
            if begin.elapsed() > AGREEMENT {
                return Err(Failure::Failed(why));
            }
            thread::sleep(LOOK);
        }
    }

    /// Usage of the group with this id by the agent; `None` where it is not listed.
    fn usage(&self, id: u64) -> Result<Option<u64>, monitor_client::Error> {
        let (rows, _) = AdminConnection::connect(&self.control_socket())?.list()?;
        Ok(rows.iter().find(|row| row.id == id).map(|row| row.usage))
    }

    /// Usage by the kernel's file and by the agent, and what the agent has counted, for the report of a
    /// signal that did not come.
    fn figures(&self, group: &TrialGroup, threshold: u64) -> String {
        let bytes =
            |usage: Option<u64>| usage.map_or_else(|| "nothing".into(), |usage| format!("{usage} bytes"));
        let read = group.usage().ok();
        let kernel = bytes(read.map(|(usage, _)| usage));
        let agent = bytes(read.and_then(|(_, id)| self.usage(id).ok()?));
        let losses = AdminConnection::connect(&self.control_socket())
            .and_then(|admin| admin.status())
            .map_or_else(|error| error.to_string(), |status| format!("{:?}", status.losses));
        format!(
            "the threshold is {threshold} bytes, the kernel's file says {kernel}, the agent {agent}; losses: {losses}"
        )
    }

    fn wait_until_ready(&mut self, held: &HeldSignals) -> Result<(), Failure> {
        let begin = Instant::now();
        loop {
            let answer = AdminConnection::connect(&self.control_socket()).and_then(|admin| admin.status());
            let Err(error) = answer else { return Ok(()) };
            if held.is_pending() {
                return Err(Failure::interrupted());
            }
            if !matches!(self.child.try_wait(), Ok(None)) {
                let why = self.last_words().unwrap_or_else(|| "without a word".into());
                return Err(Failure::Failed(format!("the agent ended at its start: {why}")));
            }
            if begin.elapsed() > START {
                return Err(Failure::Failed(format!(
                    "the agent was not ready after {} s: {error}",
                    START.as_secs()
                )));
            }
            thread::sleep(LOOK);
        }
    }

    /// Last line of the agent's log.
    fn last_words(&mut self) -> Option<String> {
        let mut text = String::new();
        self.log.rewind().ok()?;
        self.log.read_to_string(&mut text).ok()?;
        text.lines().rev().find(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
    }
}

impl Drop for TrialAgent {
    fn drop(&mut self) {
        // The child is ours and not waited for yet, so the number is its own.
        if let Ok(number) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(number), Signal::SIGTERM);
        }
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}
