//! Ways to be notified that a group's usage has crossed a threshold.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memcg_monitor::view::POINT;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::bench::Scope;
use crate::harness::agent::{Agent, BINARY};
use crate::harness::client::{register_line, write_event_control};
use crate::harness::group::Group;
use crate::harness::init::Hierarchy;
use crate::harness::process;

/// A poller's period, as of the nearest peers.
const PERIOD: Duration = Duration::from_millis(100);
/// Least that the kernel takes: any stall at all within half a second.
const PRESSURE: &[u8] = b"some 1 500000\0";
/// Time in which pressure would have been signalled four times.
const PATIENCE: u16 = 2_000;

/// Sources of the notification, and how it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The kernel's own `cgroup.event_control` (v1).
    Kernel,
    /// Ours, registered by the socket.
    Socket,
    /// Ours, registered by the view's `cgroup.event_control`.
    View,
    /// Ours, by the lines that `memcg-monitor listen` prints.
    Listen,
    /// Ours, by the lines that `memcg-monitor watch` prints.
    Watch,
    /// The process that crosses writes to the eventfd itself: no way is sooner, and what it
    /// takes is the scheduler's.
    Direct,
    /// Reading the usage again and again.
    Poll,
    /// inotify on `memory.events`, with `memory.high` at the threshold.
    High,
    /// A trigger of `memory.pressure`.
    Pressure,
    /// A trigger of `memory.pressure`, with `memory.high` at the threshold.
    PressureHigh,
}

impl Way {
    pub(super) fn all(hierarchy: Hierarchy) -> Vec<Self> {
        match hierarchy {
            Hierarchy::V1 => {
                vec![
                    Self::Kernel,
                    Self::Socket,
                    Self::View,
                    Self::Listen,
                    Self::Watch,
                    Self::Direct,
                    Self::Poll,
                ]
            }
            Hierarchy::V2 => {
                vec![
                    Self::Socket,
                    Self::View,
                    Self::Listen,
                    Self::Watch,
                    Self::Direct,
                    Self::Poll,
                    Self::High,
                    Self::Pressure,
                    Self::PressureHigh,
                ]
            }
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel's event_control",
            Self::Socket => "ours, socket",
            Self::View => "ours, view",
            Self::Listen => "ours, a line of listen",
            Self::Watch => "ours, a line of watch",
            Self::Direct => "by the allocator itself",
            Self::Poll => "poll, 100 ms",
            Self::High => "inotify, memory.high",
            Self::Pressure => "PSI",
            Self::PressureHigh => "PSI, memory.high",
        }
    }

    pub(super) fn trials(self, scope: Scope) -> u64 {
        match self {
            Self::Kernel | Self::Socket | Self::View | Self::Listen | Self::Watch | Self::Direct => {
                scope.of(100, 3)
            }
            Self::Poll => scope.of(25, 2),
            Self::High => scope.of(25, 1),
            Self::Pressure => scope.of(5, 1),
            Self::PressureHigh => scope.of(20, 1),
        }
    }

    /// Nanoseconds; 0 where nothing is periodic.
    pub(super) fn period(self) -> u64 {
        u64::try_from(if self == Self::Poll { PERIOD } else { Duration::ZERO }.as_nanos()).unwrap_or(0)
    }

    /// Sets up the client's side.
    pub(super) fn start<'a>(
        self,
        hierarchy: Hierarchy,
        group: &'a Group,
        threshold: u64,
        direct: &EventFd,
    ) -> Result<Waiting<'a>> {
        let agent = matches!(self, Self::Socket | Self::View | Self::Listen | Self::Watch)
            .then(|| Agent::start(&[]))
            .transpose()?;
        let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("eventfd failed")?;
        let usage = File::open(group.usage_file()).context("cannot open the usage file")?;
        let line = format!("{} {} {threshold}", eventfd.as_raw_fd(), usage.as_raw_fd());
        let on = match self {
            Self::Kernel => {
                write_event_control(&group.path, line.as_bytes()).context("the kernel refused")?;
                On::EventFd(eventfd)
            }
            Self::Socket => {
                register_line(line.as_bytes()).context("the agent refused")?;
                On::EventFd(eventfd)
            }
            Self::View => {
                let root = hierarchy.root();
                let directory = std::path::Path::new(POINT).join(group.path.strip_prefix(root)?);
                write_event_control(&directory, line.as_bytes()).context("the view refused")?;
                On::EventFd(eventfd)
            }
            Self::Listen | Self::Watch => On::Lines(Lines::start(self, hierarchy, group, threshold)?),
            Self::Direct => {
                let fd = nix::unistd::dup(direct)?;
                // SAFETY: a duplicate of an eventfd, ours alone.
                On::EventFd(unsafe { EventFd::from_owned_fd(fd) })
            }
            Self::Poll => On::Usage(usage, threshold),
            Self::High => {
                let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
                inotify.add_watch(&group.path.join("memory.events"), AddWatchFlags::IN_MODIFY)?;
                On::Inotify(inotify)
            }
            Self::Pressure | Self::PressureHigh => {
                let path = group.path.join("memory.pressure");
                let file = OpenOptions::new().read(true).write(true).open(&path);
                let file = file.with_context(|| format!("cannot open {}", path.display()))?;
                nix::unistd::write(&file, PRESSURE).context("the kernel refused the trigger")?;
                On::Pressure(file)
            }
        };
        let high = matches!(self, Self::High | Self::PressureHigh).then_some(threshold);
        let waiting = Waiting { group, agent, on, high };
        waiting.set_high()?;
        Ok(waiting)
    }
}

/// A program of ours that prints a line for each event; killed with the value.
#[derive(Debug)]
struct Lines {
    child: Child,
    output: ChildStdout,
}

impl Lines {
    /// Starts it, and waits for the line by which it says that it is registered.
    fn start(way: Way, hierarchy: Hierarchy, group: &Group, threshold: u64) -> Result<Self> {
        let name = format!("/{}", group.path.strip_prefix(hierarchy.root())?.display());
        let file = group.usage_file().to_string_lossy().into_owned();
        let threshold = threshold.to_string();
        let mut command = Command::new(BINARY);
        match way {
            Way::Watch => command.args(["watch", "-o", "json", &name, &threshold]),
            _ => command.args(["listen", "-o", "json", "--announce", &file, &threshold]),
        };
        process::kill_with_parent(&mut command);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("cannot start {BINARY}"))?;
        let output = child.stdout.take().context("it has an output")?;
        let lines = Self { child, output };
        lines.read()?;
        Ok(lines)
    }

    /// Waits for a line, or several.
    fn read(&self) -> Result<()> {
        let length = nix::unistd::read(&self.output, &mut [0; 4096]).context("read failed")?;
        ensure!(length > 0, "the program that prints lines has ended");
        Ok(())
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The descriptor that the client waits on.
#[derive(Debug)]
enum On {
    EventFd(EventFd),
    Lines(Lines),
    Usage(File, u64),
    Inotify(Inotify),
    Pressure(File),
}

/// A client that waits, and what notifies it.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    group: &'a Group,
    agent: Option<Agent>,
    on: On,
    /// The file `memory.high`, where the notification depends on it.
    high: Option<u64>,
}

impl Waiting<'_> {
    /// Waits until it is notified; false when that will not happen.
    pub(super) fn wait(&mut self) -> Result<bool> {
        match &self.on {
            On::EventFd(eventfd) => super::read(eventfd)?,
            On::Lines(lines) => lines.read()?,
            On::Inotify(inotify) => super::read(inotify)?,
            On::Usage(file, threshold) => loop {
                std::thread::sleep(PERIOD);
                if super::usage(file)? >= *threshold {
                    break;
                }
            },
            On::Pressure(file) => {
                let ready =
                    poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], PollTimeout::from(PATIENCE))?;
                return Ok(ready > 0);
            }
        }
        Ok(true)
    }

    /// The agent's process, where there is one.
    pub(super) fn agent(&self) -> Option<Pid> {
        self.agent.as_ref().map(Agent::pid)
    }

    /// Takes late notifications, and those of the way down.
    pub(super) fn drain(&mut self) -> Result<()> {
        if let Some(agent) = &self.agent {
            agent.settle()?;
        }
        let (fd, event) = match &self.on {
            On::EventFd(eventfd) => (eventfd.as_fd(), PollFlags::POLLIN),
            On::Lines(lines) => (lines.output.as_fd(), PollFlags::POLLIN),
            On::Inotify(inotify) => (inotify.as_fd(), PollFlags::POLLIN),
            On::Pressure(file) => (file.as_fd(), PollFlags::POLLPRI),
            On::Usage(..) => return Ok(()),
        };
        while poll(&mut [PollFd::new(fd, event)], PollTimeout::ZERO)? > 0 {
            match &self.on {
                // A poll takes a trigger's notification away.
                On::Pressure(_) => {}
                On::Lines(lines) => lines.read()?,
                _ => super::read(fd)?,
            }
        }
        Ok(())
    }

    fn set_high(&self) -> Result<()> {
        self.high.map_or(Ok(()), |high| self.group.write("memory.high", &high.to_string()))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.high.is_some() {
            let _ = self.group.write("memory.high", "max");
        }
        if let Some(agent) = self.agent.take() {
            let _ = agent.end(Signal::SIGTERM);
        }
    }
}
