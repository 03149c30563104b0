//! The view: the host's cgroup tree as cgroup v1's memory hierarchy showed it,
//! mounted by FUSE, so that clients of v1 work as they are.
//!
//! [`tree`] finds files and their attributes, [`fs`] answers the kernel's requests, [`mount`]
//! mounts and unmounts, [`kept`] goes on with an earlier agent's. A registration is a write to `cgroup.event_control`; it is handed over
//! as [`Written`] to the agent's loop, which answers it
//! ([`frontend::event_control_write`](crate::frontend::event_control_write)).

pub(crate) mod contents;
pub(crate) mod error;
pub(crate) mod fs;
pub(crate) mod gate;
pub(crate) mod kept;
pub mod mount;
pub(crate) mod pid_namespace;
mod setting;
mod share;
pub(crate) mod snapshot;
pub(crate) mod task_lists;
pub(crate) mod texts;
pub(crate) mod tree;
pub mod unmounter;
pub mod values;
pub(crate) mod written;

use std::{
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use fuser::{Config, Session, SessionACL};
use nix::sys::stat::fstat;
use tokio::{sync::mpsc, time::sleep};

use crate::{
    error::Error,
    fd_store::FdStore,
    sandbox,
    view::{
        fs::{View, ViewWork},
        kept::{KeptView, ViewName},
        mount::{Failure, Mounted},
        tree::{MountedTree, Tree},
        written::{WAITING, Written},
    },
};

/// Default mount point of the view.
pub const POINT: &str = "/run/memcg-monitor/cgroup";
/// Default permission bits of each `cgroup.event_control`.
pub const EVENT_CONTROL_MODE: u32 = 0o200;

/// Threads that answer the kernel's requests.
const THREADS: usize = 4;

/// Options of the view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Mount point, if not [`POINT`]. With one given, the agent fails without FUSE; else it
    /// continues without a view.
    pub point: Option<PathBuf>,
    /// Permission bits of each `cgroup.event_control`.
    pub event_control_mode: u32,
}

/// Longest time in which an agent that hands its view over answers what it has read.
const PATIENCE: Duration = Duration::from_secs(5);

/// A mounted view, which is unmounted when it is dropped, unless its connection is kept for the
/// next agent.
#[derive(Debug)]
pub struct Shown {
    mounted: Mounted,
    tree: MountedTree,
    /// Another descriptor of the connection.
    device: OwnedFd,
    /// The mount's root, whatever is mounted there later.
    root: OwnedFd,
    work: ViewWork,
    name: ViewName,
}

impl Shown {
    /// Mount point of the view.
    #[must_use]
    pub fn point(&self) -> &Path {
        self.mounted.point()
    }

    /// The tree that it shows.
    #[must_use]
    pub fn tree(&self) -> MountedTree {
        self.tree.clone()
    }

    /// Whether the next agent goes on with the view.
    #[must_use]
    pub const fn is_kept(&self) -> bool {
        self.mounted.is_kept()
    }

    /// Answers what was read, reads no more, and leaves the view to the next agent.
    pub async fn hand_over(self) {
        self.work.gate().shut();
        // Threads that wait in the kernel pass the gate with a request of the agent's own.
        let root = self.root;
        let own = move || {
            for _ in 0..THREADS {
                let _ = fstat(&root);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("last-requests".into()).spawn(own) {
            log::warn!("start the thread that stops those of the view: {error}");
        }
        let is_quiet = || self.work.gate().stopped() == THREADS && self.work.is_idle();
        let end = Instant::now() + PATIENCE;
        while !is_quiet() && Instant::now() < end {
            sleep(Duration::from_millis(1)).await;
        }
        if is_quiet() {
            kept::leave_clean(self.device.as_fd());
        } else {
            log::warn!("some requests to the view are not answered yet: the next agent ends them");
        }
    }

    /// Unmounts the view for good, and takes its connection out of the store.
    pub fn end(mut self, fd_store: Option<&FdStore>) {
        if let Some(Err(error)) = fd_store.map(|fd_store| fd_store.forget(&self.name.in_store())) {
            log::warn!("{error}");
        }
        self.mounted.let_go();
    }
}

/// The descriptor store, where there is one, and the views that lay in it.
#[derive(Debug, Default)]
pub struct Keeping {
    /// The descriptor store of the next agent.
    pub fd_store: Option<FdStore>,
    /// Connections of earlier agents.
    pub views: Vec<KeptView>,
}

impl Keeping {
    /// Ends the views that are not gone on with.
    pub fn end_all(&mut self) {
        for view in self.views.drain(..) {
            view.end(self.fd_store.as_ref());
        }
    }

    /// The connection of the view of `root` that is mounted on `point`; every other is ended.
    fn take(&mut self, point: &Path, root: u64) -> Option<(PathBuf, ViewName, OwnedFd)> {
        let point = mount::real(point);
        let mut found = None;
        for view in std::mem::take(&mut self.views) {
            match view.fitting(&point, root) {
                Ok((name, device)) if found.is_none() => found = Some((point.clone(), name, device)),
                // The store has one twice: it is the same connection.
                Ok(_) => {}
                Err(view) => view.end(self.fd_store.as_ref()),
            }
        }
        found
    }
}

/// Mounts the view of `tree`, or goes on with a view of an earlier agent; the receiver yields the
/// writes to it.
///
/// # Errors
/// [`Failure`] distinguishes a host without FUSE from other failures.
pub fn show(
    point: Option<&Path>,
    tree: Arc<Tree>,
    hierarchy: &Path,
    mode: sandbox::Sandbox,
    mut keeping: Keeping,
) -> Result<(Shown, mpsc::Receiver<Written>), Failure> {
    let (writes, written) = mpsc::channel(WAITING);
    let (path, root) = (point.unwrap_or(Path::new(POINT)), tree.directories().root_id());
    let view = View::new(Arc::clone(&tree), writes);
    let work = view.work();
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    // All threads read one descriptor. With one each (FUSE_DEV_IOC_CLONE) an
    // interrupt may be read from another than its request, and finds no match.
    let (session, device, mut mounted, name) = match keeping.take(path, root) {
        Some((point, name, device)) => {
            let mounted = mount::again(&point, name.remove, mode)?;
            kept::begin_again(device.as_fd(), &point);
            log::info!("the view on {} goes on, with what is open in it", point.display());
            start_lists(&view, mode, &mounted)?;
            (kept::session(view, device.as_fd(), config)?, device, mounted, name)
        }
        None => {
            let (device, mounted) = mount::on(path, point.is_none(), mode)?;
            let failed = |call, error| Error::file(call, mounted.point(), error);
            let number = kept::device_of(mounted.point()).unwrap_or(0);
            let name = ViewName { root, device: number, remove: mounted.removes() };
            let ours = device.try_clone().map_err(|error| failed("duplicate the device of", error))?;
            start_lists(&view, mode, &mounted)?;
            let session = Session::from_fd(view, device, SessionACL::All, config)
                .map_err(|error| failed("greet the kernel's FUSE for", error))?;
            (session, ours, mounted, name)
        }
    };
    let failed = |call, error| Error::file(call, path, error);
    let root = kept::open_root(mounted.point()).map_err(|errno| failed("open", errno.into()))?;
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
    // Once it is greeted: a connection that is not yet is of no use to another agent.
    if let Some(fd_store) = keeping.fd_store.as_ref().filter(|_| !mounted.is_kept()) {
        match fd_store.store(&name.in_store(), device.as_fd()) {
            Ok(()) => mounted.keep(),
            Err(error) => log::warn!("{error}; the view ends with this agent"),
        }
    }
    let number = std::fs::metadata(mounted.point()).map_err(|error| failed("look at", error))?.dev();
    let shown = Shown { mounted, tree: MountedTree { device: number, tree }, device, root, work, name };
    Ok((shown, written))
}

fn start_lists(view: &View, mode: sandbox::Sandbox, mounted: &Mounted) -> Result<(), Error> {
    let started = view.task_lists().start(mode);
    started.map_err(|error| Error::file("start the thread of task lists of", mounted.point(), error))
}
