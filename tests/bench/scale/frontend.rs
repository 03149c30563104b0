//! The ways to register: the kernel's own file, and each of the agent's frontends. The
//! client's part is as small as it can be, and the same for all.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use memcg_monitor::view::POINT;
use monitor_client::{Builder, Registration, SOCKET, connect};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, recv, sendmsg};
use nix::unistd::write;

use crate::harness::client::Waiter;
use crate::harness::group::Group;

/// Thresholds lie above all usage, this far apart.
const OUT_OF_REACH: u64 = 1 << 30;
const APART: u64 = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frontend {
    /// `cgroup.event_control` of the kernel (v1).
    Kernel,
    /// The socket, with the numbers of our descriptors.
    Numbers,
    /// The socket, with the descriptors themselves.
    Rights,
    /// `cgroup.event_control` of the view.
    View,
    /// The client library: a connection and an eventfd for each.
    Library,
}

impl Frontend {
    pub(super) const OURS: [Self; 4] = [Self::Numbers, Self::Rights, Self::View, Self::Library];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kernel => "the kernel's write",
            Self::Numbers => "socket, numbers",
            Self::Rights => "socket, SCM_RIGHTS",
            Self::View => "view",
            Self::Library => "client library",
        }
    }
}

/// Registers through one frontend, again and again.
pub(super) struct Client {
    frontend: Frontend,
    connection: Option<OwnedFd>,
    kept: RefCell<Vec<Registration>>,
}

/// A group, opened as a client of a frontend opens it.
pub(super) struct Opened {
    path: PathBuf,
    control: File,
    event_control: Option<File>,
}

impl Client {
    pub(super) fn new(frontend: Frontend) -> Result<Self> {
        let by_socket = matches!(frontend, Frontend::Numbers | Frontend::Rights);
        let connection = by_socket.then(|| connect(Path::new(SOCKET))).transpose()?;
        Ok(Self { frontend, connection, kept: RefCell::default() })
    }

    pub(super) fn open(&self, group: &Group, hierarchy: &Path) -> Result<Opened> {
        let directory = match self.frontend {
            Frontend::View => Path::new(POINT).join(group.path.strip_prefix(hierarchy)?),
            _ => group.path.clone(),
        };
        let path = match self.frontend {
            Frontend::View => directory.join("memory.usage_in_bytes"),
            _ => group.usage_file(),
        };
        let control = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let event_control = match self.frontend {
            Frontend::Kernel | Frontend::View => {
                Some(OpenOptions::new().write(true).open(directory.join("cgroup.event_control"))?)
            }
            _ => None,
        };
        Ok(Opened { path, control, event_control })
    }

    /// Registers the threshold of this number.
    pub(super) fn register(&self, waiter: &Waiter, group: &Opened, number: u64) -> Result<()> {
        let threshold = OUT_OF_REACH + number * APART;
        let (event, control) = (waiter.0.as_raw_fd(), group.control.as_raw_fd());
        let line = format!("{event} {control} {threshold}");
        if let Some(file) = &group.event_control {
            write(file, line.as_bytes()).with_context(|| format!("{line:?} was refused"))?;
        } else if let Some(connection) = &self.connection {
            let both = [event, control];
            let rights = [ControlMessage::ScmRights(&both)];
            let along: &[_] = if self.frontend == Frontend::Rights { &rights } else { &[] };
            let line = [IoSlice::new(line.as_bytes())];
            sendmsg::<UnixAddr>(connection.as_raw_fd(), &line, along, MsgFlags::MSG_NOSIGNAL, None)?;
            let mut answer = [0; 256];
            let length =
                recv(connection.as_raw_fd(), &mut answer, MsgFlags::empty()).context("recv failed")?;
            let answer = &answer[..length];
            ensure!(answer == b"0", "the agent refused: {}", String::from_utf8_lossy(answer));
        } else {
            let registration = Builder::new(&group.path).args(threshold.to_string()).register()?;
            self.kept.borrow_mut().push(registration);
        }
        Ok(())
    }
}

/// Room for as many descriptors, here and in an agent that is started from now on.
pub(super) fn allow_descriptors(count: u64) -> Result<()> {
    use nix::libc::{RLIMIT_NOFILE, rlimit, setrlimit};
    let room = count + 4096;
    let most: u64 = fs::read_to_string("/proc/sys/fs/nr_open")?.trim().parse()?;
    if room > most {
        fs::write("/proc/sys/fs/nr_open", room.to_string())?;
    }
    let limit = rlimit { rlim_cur: room, rlim_max: room };
    // SAFETY: the kernel reads one rlimit.
    let result = unsafe { setrlimit(RLIMIT_NOFILE, &raw const limit) };
    ensure!(result == 0, "setrlimit RLIMIT_NOFILE {room} failed");
    Ok(())
}
