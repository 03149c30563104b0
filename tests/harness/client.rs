//! A v1 client: an eventfd, a control file, and a line to register them by,
//! with the agent or with the kernel itself.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use anyhow::{Context, Result};
use memcg_monitor::cgroup::Version;
use monitor_client::Error;
use monitor_client::SOCKET;
use monitor_common::grammar::control_file::ControlFile;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::harness::group::Group;
use crate::harness::stopwatch;

/// An eventfd that waits.
#[derive(Debug)]
pub(crate) struct Waiter(pub(crate) EventFd);

impl Waiter {
    pub(crate) fn new() -> Result<Self> {
        EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map(Self)
            .context("eventfd failed")
    }

    /// A waiter registered with the agent on `group`.
    pub(crate) fn on(group: &Group, args: &str) -> Result<Self> {
        let waiter = Self::new()?;
        waiter.register(group, args)?;
        Ok(waiter)
    }

    /// A waiter registered with the kernel's own `cgroup.event_control` on `group` (v1).
    pub(crate) fn on_kernel(group: &Group, args: &str) -> Result<Self> {
        let waiter = Self::new()?;
        let control = File::open(group.usage_file()).context("cannot open the control file")?;
        let line = format!("{} {} {args}", waiter.0.as_raw_fd(), control.as_raw_fd());
        write_event_control(&group.path, line.as_bytes()).context("the kernel refused")?;
        Ok(waiter)
    }

    /// Registers once more with the agent; the numbers name our descriptors.
    pub(crate) fn register(&self, group: &Group, args: &str) -> Result<()> {
        let path = group.usage_file();
        let control = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let line = format!("{} {} {args}", self.0.as_raw_fd(), control.as_raw_fd());
        register_line(line.as_bytes()).with_context(|| format!("the agent refused {line:?}"))?;
        Ok(())
    }

    /// A waiter registered with the agent on a control file of `group`; where the hierarchy
    /// has no such file, on the directory.
    pub(crate) fn at(group: &Group, file: ControlFile, args: &str) -> Result<Self> {
        let waiter = Self::new()?;
        waiter.register_at(group, file, args)?;
        Ok(waiter)
    }

    /// Registers once more in this way.
    pub(crate) fn register_at(&self, group: &Group, file: ControlFile, args: &str) -> Result<()> {
        self.register_with(Path::new(SOCKET), group, file, args)
    }

    /// Registers in this way at the socket of one of several agents.
    pub(crate) fn register_with(
        &self,
        socket: &Path,
        group: &Group,
        file: ControlFile,
        args: &str,
    ) -> Result<()> {
        let (control, args) = open_control(group, file, args)?;
        let line = format!("{} {} {args}", self.0.as_raw_fd(), control.as_raw_fd());
        monitor_client::register(socket, line.as_bytes(), None)
            .with_context(|| format!("the agent refused {line:?}"))?;
        Ok(())
    }

    /// Takes the signals since the last call.
    pub(crate) fn take(&self) -> Result<u64> {
        match self.0.read() {
            Ok(count) => Ok(count),
            Err(Errno::EAGAIN) => Ok(0),
            Err(errno) => Err(errno).context("read of the eventfd failed"),
        }
    }

    /// Waits for the next signals.
    pub(crate) fn wait(&self) -> Result<u64> {
        let _span = stopwatch::waiting();
        let timeout = PollTimeout::from(60_000u16);
        let ready = poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout)?;
        anyhow::ensure!(ready == 1, "no signal");
        self.take()
    }

    /// Waits until usage is on the other side of a threshold: on its way a counter may step
    /// back by part of a batch, so signals come in an odd number.
    pub(crate) fn crosses(&self, what: &str) -> Result<()> {
        let mut received = 0;
        while received % 2 == 0 {
            received += self.wait().with_context(|| format!("{what}: received {received}"))?;
        }
        Ok(())
    }

    /// Waits for the next signals, which are to be this many; the agent may give them in
    /// several turns.
    pub(crate) fn receives(&self, count: u64, what: &str) -> Result<()> {
        let mut received = 0;
        while received < count {
            received += self.wait().with_context(|| format!("{what}: received {received}, not {count}"))?;
        }
        anyhow::ensure!(received == count, "{what}: received {received}, not {count}");
        Ok(())
    }
}

/// The control file, or the directory that stands for it, and the args for that.
pub(crate) fn open_control(group: &Group, file: ControlFile, args: &str) -> Result<(File, String)> {
    let name = match (group.version, file) {
        (_, ControlFile::Procs) | (Version::V1, _) => file.name(),
        (Version::V2, ControlFile::Usage) => "memory.current",
        _ => "",
    };
    let path = if group.path.join(name).is_file() { group.path.join(name) } else { group.path.clone() };
    let control = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let args = if path == group.path { format!("{} {args}", file.name()) } else { args.to_owned() };
    Ok((control, args))
}

/// Sends one line to the agent, numbers only.
pub(crate) fn register_line(line: &[u8]) -> std::result::Result<(), Error> {
    monitor_client::register(Path::new(SOCKET), line, None)
}

/// The agent's errno for a line; 0 when it registers.
pub(crate) fn agent_errno(line: &[u8]) -> Result<i32> {
    errno_of(register_line(line))
}

/// The errno of such an answer.
pub(crate) fn errno_of(answer: std::result::Result<(), Error>) -> Result<i32> {
    match answer {
        Ok(()) => Ok(0),
        Err(Error::Refused { errno, .. }) => Ok(errno),
        Err(other) => Err(other.into()),
    }
}

/// One `write` to the kernel's event_control of a v1 group.
pub(crate) fn write_event_control(group: &Path, line: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(group.join("cgroup.event_control"))?;
    nix::unistd::write(&file, line).map(drop).map_err(io::Error::from)
}

/// The kernel's errno for a line; 0 when it registers.
pub(crate) fn kernel_errno(group: &Path, line: &[u8]) -> i32 {
    match write_event_control(group, line) {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    }
}

/// Bytes in a page of the guest.
pub(crate) fn page() -> u64 {
    memcg_monitor::kernel::page_size()
}

/// Functions that something is attached to, by the kernel's own list.
pub(crate) fn attached() -> Result<Vec<String>> {
    let path = "/sys/kernel/tracing/enabled_functions";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect())
}
