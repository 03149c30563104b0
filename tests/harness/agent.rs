//! The agent under test: started as a host would start it, waited for as a
//! service manager would, ended and checked for what it leaves behind.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use memcg_monitor::kernel::ABSENT;
use monitor_client::AdminConnection;
use monitor_client::wire::{AgentStatus, GroupRow};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, listen, recv, socket,
};
use nix::unistd::Pid;

use crate::harness::process;
use crate::harness::standing;
use crate::harness::stopwatch;
pub(crate) use crate::harness::until::{PATIENCE, until};

/// The program under test.
pub(crate) const BINARY: &str = "/bin/memcg-monitor";

/// The backend of all agents that name none; `fentry` where the boot names none either.
pub(crate) static BACKEND: OnceLock<String> = OnceLock::new();

/// The file that it logs to.
const LOG: &str = "/run/agent.log";

/// A running agent under test.
#[derive(Debug)]
pub(crate) struct Agent {
    process: AgentProcess,
    socket: PathBuf,
    control: PathBuf,
    manager: Option<ServiceManager>,
}

#[derive(Debug)]
enum AgentProcess {
    /// The test's own, which ends with it.
    Own(Child),
    /// One that the tests after this one use, too.
    Standing(Pid),
}

impl Agent {
    /// Starts it with the usual sockets, and waits until it says that it is ready.
    pub(crate) fn start(options: &[&str]) -> Result<Self> {
        Self::start_with(options, |_| Ok(()))
    }

    /// Takes up the agent that the test before has left, or starts one and leaves it: with the usual
    /// options and without registrations. Its log, its counts and its descriptors are of earlier
    /// tests, too, and it cannot be ended or signalled.
    pub(crate) fn standing() -> Result<Self> {
        let (socket, control) = (monitor_client::SOCKET.into(), monitor_client::CONTROL_SOCKET.into());
        if let Some(pid) = standing::left() {
            let process = AgentProcess::Standing(pid);
            let agent = Self { process, socket, control, manager: None };
            until("no registration is left", || Ok(agent.status()?.registrations == 0))?;
            return Ok(agent);
        }
        let mut agent = Self::start_logging(Path::new(LOG), &[], |_| Ok(()))?;
        let pid = agent.pid();
        standing::leave(pid)?;
        // Neither killed nor waited for by this process.
        agent.process = AgentProcess::Standing(pid);
        Ok(agent)
    }

    /// Starts it as [`Agent::start`], with a watchdog that waits so many seconds (`WatchdogSec=`).
    pub(crate) fn start_watched(options: &[&str], seconds: u64) -> Result<Self> {
        Self::start_with(options, |command| {
            command.env("WATCHDOG_USEC", (seconds * 1_000_000).to_string());
            Ok(())
        })
    }

    /// Waits until it has fed its watchdog twice from now on: once it may have been about to.
    pub(crate) fn feeds_its_watchdog(&self) -> Result<()> {
        let manager = self.manager.as_ref().context("an agent with a service manager of its own")?;
        while manager.received("WATCHDOG=1")? {}
        for _ in 0..2 {
            until("the watchdog is fed", || manager.received("WATCHDOG=1"))?;
        }
        Ok(())
    }

    /// Starts it as [`Agent::start`], with a registration socket that listens already, as a
    /// socket unit's would (`LISTEN_FDS`).
    pub(crate) fn start_with_socket(options: &[&str]) -> Result<Self> {
        let path = Path::new(monitor_client::SOCKET);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let _ = fs::remove_file(path);
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        listen(&listener, Backlog::MAXCONN)?;
        Self::start_with(options, |command| process::hand_over(command, &listener, "register"))
    }

    /// Starts one beside others with more `options`, and with sockets and a log of this `name`; it
    /// takes these functions of the kernel for absent.
    pub(crate) fn start_beside(name: &str, absent: &[&str], options: &[&str]) -> Result<Self> {
        let place = |what: &str| PathBuf::from(format!("/run/{name}.{what}"));
        let (socket, control) = (place("socket"), place("control"));
        let (at, control_at) = (socket.to_string_lossy(), control.to_string_lossy());
        let own = ["--no-mount", "--socket", &*at, "--control-socket", &*control_at];
        let options = [&own, options].concat();
        let mut agent = Self::start_logging(&place("log"), &options, |command| {
            process::kill_with_parent(command);
            command.env(ABSENT, absent.join(","));
            Ok(())
        })?;
        (agent.socket, agent.control) = (socket.clone(), control.clone());
        Ok(agent)
    }

    fn start_with(options: &[&str], prepare: impl FnOnce(&mut Command) -> Result<()>) -> Result<Self> {
        Self::start_logging(Path::new(LOG), options, |command| {
            process::kill_with_parent(command);
            prepare(command)
        })
    }

    fn start_logging(
        log: &Path,
        options: &[&str],
        prepare: impl FnOnce(&mut Command) -> Result<()>,
    ) -> Result<Self> {
        let _span = stopwatch::starting();
        standing::end()?;
        let manager = ServiceManager::open()?;
        let _ = fs::remove_file(log);
        // A standing agent goes on at the beginning of a log that is emptied between two tests.
        let file = fs::File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot create {}", log.display()))?;
        let mut command = Command::new(BINARY);
        command.arg("-v").arg("agent");
        // A test that is meant for the programs must not pass because an agent without them starts.
        if !options.contains(&"--backend") {
            command.args(["--backend", BACKEND.get().map_or("fentry", String::as_str)]);
        }
        command.args(options);
        command.env("NOTIFY_SOCKET", ServiceManager::PATH).env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        prepare(&mut command)?;
        let process = AgentProcess::Own(command.spawn().with_context(|| format!("cannot start {BINARY}"))?);
        let (socket, control) = (monitor_client::SOCKET.into(), monitor_client::CONTROL_SOCKET.into());
        let mut agent = Self { process, socket, control, manager: Some(manager) };
        agent.ready()?;
        Ok(agent)
    }

    /// Waits until it says that it is ready: once more, after its supervisor has started
    /// it again.
    pub(crate) fn ready(&mut self) -> Result<()> {
        let _span = stopwatch::starting();
        stopwatch::agent_starts();
        let deadline = Instant::now() + PATIENCE;
        let manager = self.manager.as_ref().context("an agent with a service manager of its own")?;
        let AgentProcess::Own(child) = &mut self.process else { bail!("others use this agent") };
        while !manager.received("READY=1")? {
            if let Some(status) = child.try_wait().context("cannot wait for the agent")? {
                bail!("the agent ended with {status}: {}", Self::last_words());
            }
            ensure!(Instant::now() < deadline, "the agent is not ready: {}", Self::log());
        }
        Ok(())
    }

    /// The process that its supervisor has started.
    pub(crate) fn supervised(&self) -> Result<Pid> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        let mut found = None;
        until("the supervisor has started an agent", || {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            found = text.split_whitespace().next().and_then(|pid| pid.parse().ok());
            Ok(found.is_some())
        })?;
        found.map(Pid::from_raw).context("no agent")
    }

    /// Lines that the agent has logged.
    pub(crate) fn log() -> String {
        fs::read_to_string(LOG).unwrap_or_default()
    }

    /// Empties the log, since what follows is of another test.
    pub(crate) fn forget_log() {
        let _ = fs::File::options().write(true).truncate(true).open(LOG);
    }

    /// The last that it has logged.
    fn last_words() -> String {
        let log = Self::log();
        log.lines().rev().take(4).collect::<Vec<_>>().join(" | ")
    }

    /// The path of its registration socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn pid(&self) -> Pid {
        match &self.process {
            AgentProcess::Own(child) => Pid::from_raw(child.id().try_into().unwrap_or(0)),
            AgentProcess::Standing(pid) => *pid,
        }
    }

    /// Processes that it has started.
    pub(crate) fn children(&self) -> Result<Vec<Pid>> {
        let parent = format!("PPid:\t{}", self.pid());
        let processes = fs::read_dir("/proc").context("cannot read /proc")?.flatten();
        let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_child = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line == parent)
        };
        Ok(numbers.filter(is_child).map(Pid::from_raw).collect())
    }

    /// How long its threads have been on a CPU, in nanoseconds.
    pub(crate) fn on_cpu(&self) -> Result<u64> {
        process::on_cpu(self.pid().as_raw().cast_unsigned())
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        ensure!(matches!(self.process, AgentProcess::Own(_)), "others use this agent");
        kill(self.pid(), signal).with_context(|| format!("cannot send {signal} to the agent"))
    }

    /// Groups as the agent sees them. All that was crossed before this call has
    /// been signalled when it returns.
    pub(crate) fn list(&self) -> Result<(Vec<GroupRow>, AgentStatus)> {
        list(&self.control)
    }

    /// The row of one directory.
    pub(crate) fn row(&self, directory: &Path) -> Result<GroupRow> {
        let (rows, _) = self.list()?;
        let name = directory.to_string_lossy();
        rows.into_iter().find(|row| row.cgroup == name).with_context(|| format!("{name} is not in the list"))
    }

    pub(crate) fn status(&self) -> Result<AgentStatus> {
        Ok(self.list()?.1)
    }

    /// Waits until all that happened so far has been signalled.
    pub(crate) fn settle(&self) -> Result<()> {
        let _span = stopwatch::waiting();
        self.list().map(drop)
    }

    /// Descriptors it holds, by what they are.
    pub(crate) fn descriptors(&self) -> Result<Vec<String>> {
        let directory = format!("/proc/{}/fd", self.pid());
        let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))?;
        let mut links: Vec<_> = entries
            .flatten()
            .filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
            .collect();
        links.sort();
        Ok(links)
    }

    /// Ends it as a service manager does; its exit code.
    pub(crate) fn end(mut self, signal: Signal) -> Result<i32> {
        let _span = stopwatch::waiting();
        self.signal(signal)?;
        let AgentProcess::Own(child) = &mut self.process else { bail!("others use this agent") };
        let status = child.wait().context("cannot wait for the agent")?;
        status.code().with_context(|| format!("the agent ended by {status}"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let AgentProcess::Own(child) = &mut self.process {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Groups and status that an agent lists, once it has done what was under way.
pub(crate) fn list(control: &Path) -> Result<(Vec<GroupRow>, AgentStatus)> {
    let control = AdminConnection::connect(control)?;
    control.set_timeout(Some(PATIENCE))?;
    Ok(control.list()?)
}

/// Receives the notifications that a service manager would receive.
#[derive(Debug)]
struct ServiceManager(OwnedFd);

impl ServiceManager {
    const PATH: &str = "/run/notify";

    fn open() -> Result<Self> {
        let _ = fs::remove_file(Self::PATH);
        let fd = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .context("cannot make a socket")?;
        bind(fd.as_raw_fd(), &UnixAddr::new(Self::PATH)?).context("cannot bind the notify socket")?;
        Ok(Self(fd))
    }

    fn received(&self, word: &str) -> Result<bool> {
        use std::os::fd::AsFd;
        let timeout = PollTimeout::from(200u8);
        if poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
            return Ok(false);
        }
        let mut text = [0; 512];
        let length = recv(self.0.as_raw_fd(), &mut text, MsgFlags::empty())?;
        Ok(String::from_utf8_lossy(&text[..length]).lines().any(|line| line == word))
    }
}
