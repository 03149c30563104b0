//! The view: the host's cgroup tree as cgroup v1's memory hierarchy showed it,
//! mounted by FUSE, so that clients of v1 work as they are.
//!
//! [`tree`] finds files and their attributes, [`fs`] answers the kernel's requests, [`mount`]
//! mounts and unmounts. A registration is a write to `cgroup.event_control`; it is handed over
//! as [`Written`] to the agent's loop, which answers it
//! ([`frontend::event_control_write`](crate::frontend::event_control_write)).

pub mod contents;
pub mod error;
pub mod fs;
pub mod mount;
mod share;
pub mod snapshot;
pub mod tree;
pub mod unmounter;
pub mod values;

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use fuser::{Config, ReplyWrite, Session, SessionACL};
use nix::errno::Errno;
use tokio::sync::mpsc;

use crate::{
    error::Error,
    sandbox,
    view::{
        fs::View,
        mount::{Failure, Mounted},
        share::QueuePlace,
        tree::Tree,
    },
};

/// Default mount point of the view.
pub const POINT: &str = "/run/memcg-monitor/cgroup";
/// Default permission bits of each `cgroup.event_control`.
pub const EVENT_CONTROL_MODE: u32 = 0o200;

/// Threads that answer the kernel's requests.
const THREADS: usize = 4;

/// Registrations that wait for the frontends' thread, of all users together; each is a
/// client's blocked thread. Those beyond a user's [`share`] are refused.
const WAITING: usize = 1024;

/// Options of the view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Mount point, if not [`POINT`]. With one given, the agent fails without FUSE; else it
    /// goes on without a view.
    pub point: Option<PathBuf>,
    /// Permission bits of each `cgroup.event_control`.
    pub event_control_mode: u32,
}

/// One write to a `cgroup.event_control`. Its writer waits in the kernel.
#[derive(Debug)]
pub struct Written {
    /// The bytes that were written.
    pub line: Vec<u8>,
    /// Thread id of the writer; 0 when it is outside the agent's pid namespace.
    pub pid: i32,
    /// File-system user id of the writer.
    pub uid: u32,
    /// File-system group id of the writer.
    pub gid: u32,
    /// Id of the directory of the `cgroup.event_control`.
    pub group: u64,
    /// Handle that answers the writer.
    pub reply: WrittenReply,
}

/// Answers a write, at the latest when it is dropped.
#[derive(Debug)]
pub struct WrittenReply {
    reply: Option<ReplyWrite>,
    length: usize,
    _place: QueuePlace,
}

impl WrittenReply {
    pub(crate) const fn new(reply: ReplyWrite, length: usize, place: QueuePlace) -> Self {
        Self { reply: Some(reply), length, _place: place }
    }

    /// Answers that all bytes were written.
    pub fn accept(mut self) {
        if let Some(reply) = self.reply.take() {
            reply.written(self.length.try_into().unwrap_or(u32::MAX));
        }
    }

    /// Answers with an error.
    pub fn refuse(mut self, errno: Errno) {
        self.answer(errno);
    }

    fn answer(&mut self, errno: Errno) {
        if let Some(reply) = self.reply.take() {
            reply.error(fuser::Errno::from_i32(errno as i32));
        }
    }
}

impl Drop for WrittenReply {
    fn drop(&mut self) {
        // The agent ends: the errno that a later write would get.
        self.answer(Errno::ENOTCONN);
    }
}

/// A mounted view, which is unmounted when it is dropped.
#[derive(Debug)]
pub struct Shown {
    mounted: Mounted,
    device: u64,
}

impl Shown {
    /// Mount point of the view.
    #[must_use]
    pub fn point(&self) -> &Path {
        self.mounted.point()
    }

    /// `st_dev` of all files in the view.
    #[must_use]
    pub const fn device(&self) -> u64 {
        self.device
    }
}

/// Mounts the view of `tree`; the receiver yields the writes to it.
///
/// # Errors
/// [`Failure`] distinguishes a host without FUSE from other failures.
pub fn show(
    point: Option<&Path>,
    tree: Arc<Tree>,
    hierarchy: &Path,
    mode: sandbox::Sandbox,
) -> Result<(Shown, mpsc::Receiver<Written>), Failure> {
    let (writes, written) = mpsc::channel(WAITING);
    let (device, mounted) = mount::on(point.unwrap_or(Path::new(POINT)), point.is_none(), mode)?;
    let failed = |call, error| Error::file(call, mounted.point(), error);
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    // All threads read one descriptor. With one each (FUSE_DEV_IOC_CLONE) an
    // interrupt may be read from another than its request, and finds no match.
    let session = Session::from_fd(View::new(tree, writes), device, SessionACL::All, config)
        .map_err(|error| failed("greet the kernel's FUSE for", error))?;
    // Its threads end when the kernel releases the mount, or with the process. They have
    // the rights of the thread that starts them.
    let started = std::thread::scope(|scope| {
        let start = || {
            sandbox::view(mode, hierarchy);
            session.spawn()
        };
        scope.spawn(start).join().unwrap_or_else(|_| Err(std::io::Error::other("a panic")))
    });
    started.map_err(|error| failed("start the threads of", error))?;
    let device = std::fs::metadata(mounted.point()).map_err(|error| failed("look at", error))?.dev();
    Ok((Shown { mounted, device }, written))
}
