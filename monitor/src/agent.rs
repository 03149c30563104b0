//! The agent: two threads, one that signals and one for all the doors; how both begin,
//! and the end.

mod sampler;
mod signals;

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use tokio::sync::mpsc;

use crate::{
    agent::{sampler::Sampler, signals::Signals},
    cgroup::{Hierarchy, Version, handle::Directories, host::Files},
    error::{Error, Result},
    fd_store::{FdStore, StoredDescriptors},
    frontend::{
        self,
        accounting::{Accounting, Groups},
        admin_socket,
        control_file::FrontendContext,
        deferred_close::DeferredClose,
        listing, registration_socket,
        seqpacket::{Access, Listener},
    },
    malloc,
    persist::Persistence,
    programs::{Pins, Programs, TableSizes},
    sandbox, socket_activation,
    view::{self, Shown, Written, mount::Failure, tree::Tree},
    watchdog,
    watcher::{Limits, Restored, SharedWatcher, Watcher},
};

/// For how long an agent tells what happened before it came, before it is ready and goes on
/// with that beside all else.
const CATCH_UP: Duration = Duration::from_secs(5);

/// How the agent is to run.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Mount point of the hierarchy; found by itself when absent.
    pub cgroup_root: Option<PathBuf>,
    /// The registration socket.
    pub socket: PathBuf,
    /// The operator's socket.
    pub control_socket: PathBuf,
    /// Who may use the registration socket.
    pub access: Access,
    /// Who may use the operator's.
    pub operators: Access,
    /// Table sizes.
    pub sizes: TableSizes,
    /// Time between two sweeps for what was lost.
    pub sweep: Duration,
    /// Time between two readings of what can only be sampled.
    pub sample: Duration,
    /// What clients may do.
    pub limits: Limits,
    /// Whether a client's cgroup pays for what it asks; else its user does.
    pub by_group: bool,
    /// The tree as cgroup v1 showed it; not mounted when absent.
    pub view: Option<view::MountOptions>,
    /// Where to tell metrics; not told when absent.
    pub metrics: Option<frontend::metrics_http::MetricsOptions>,
    /// Where programs and maps are pinned, while somebody keeps the descriptors.
    pub pins: PathBuf,
    /// The service manager keeps descriptors, even if it does not say so.
    pub keeps: bool,
    /// Which rights are given up before it is ready.
    pub sandbox: sandbox::Sandbox,
    /// After which time without a sign of life the service manager gives up on us;
    /// never when absent.
    pub watchdog: Option<Duration>,
}

/// How the agent is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// For good: everything is detached.
    ForGood,
    /// For another: what is pinned and kept stays.
    ForNext,
}

/// Held while the agent runs, so that there is one for each socket.
#[derive(Debug)]
struct Lock {
    _file: Flock<File>,
    path: PathBuf,
}

impl Lock {
    fn take(socket: &Path) -> Result<Self> {
        let directory = socket.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).map_err(|error| Error::file("make the directory", directory, error))?;
        let mut name = socket.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        loop {
            // Made, and then held for reading: a file that is open for writing would keep
            // its file system from being made read-only.
            let made = File::options().create(true).append(true).open(&path);
            let file =
                made.and_then(|_| File::open(&path)).map_err(|error| Error::file("open", &path, error))?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    let mut holder = String::new();
                    let _ = file.read_to_string(&mut holder);
                    return Err(Error::Busy(format!(
                        "another agent (process {}) serves {}; stop it, or give this one other sockets",
                        holder.trim(),
                        socket.display()
                    )));
                }
                Err((_, errno)) => return Err(Error::syscall(format!("flock {}", path.display()), errno)),
            };
            // An agent that ends removes the file: a lock on that one is no lock.
            let ours = file.metadata().map_err(|error| Error::file("stat", &path, error))?.ino();
            if fs::metadata(&path).is_ok_and(|found| found.ino() == ours) {
                fs::write(&path, format!("{}\n", std::process::id()))
                    .map_err(|error| Error::file("write", &path, error))?;
                return Ok(Self { _file: file, path });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Runs until `shutdown` is ready. `ready` is called once, when every program
/// is attached, every group is known, and both sockets are open.
///
/// # Errors
/// Says what the host lacks and what to do.
pub async fn run(
    options: &AgentOptions,
    mut handed: StoredDescriptors,
    ready: impl FnOnce(&str),
    shutdown: impl Future<Output = Shutdown>,
) -> Result<()> {
    let _locks = [Lock::take(&options.socket)?, Lock::take(&options.control_socket)?];
    let metrics = options.metrics.as_ref();
    let metrics =
        metrics.map(|wanted| frontend::metrics_http::Door::open(wanted, &options.access)).transpose()?;
    let hierarchy = Hierarchy::find(options.cgroup_root.as_deref())?;
    let v1 = hierarchy.version == Version::V1;
    let given = socket_activation::listener(&mut handed, socket_activation::REGISTER)?;
    let operators = socket_activation::listener(&mut handed, socket_activation::OPERATOR)?;
    let persistence =
        FdStore::found(options.keeps).map(|fd_store| Persistence::open(fd_store, handed)).transpose()?;
    let pins = persistence.as_ref().and_then(|_| open_pins(&options.pins));
    if pins.is_none() && Pins::hold_programs(&options.pins) {
        let directory = options.pins.display();
        log::warn!(
            "programs of an earlier agent stay attached, and cost what they did: this agent does not \
             open what is pinned in {directory}; unless another agent uses it, rm -r {directory}"
        );
    }
    let runtime = signals::RuntimeGuard::new()?;
    let (programs, ring) = Programs::start(v1, options.sizes, pins)?;
    let asks = sandbox::capabilities::needed_for(&sandbox::ASK, || programs.answers());
    let groups = hierarchy.enumerate_groups()?;
    let instance = programs.instance();
    let host = Box::new(Files::new(&hierarchy)?);
    let identity = programs.identity().clone();
    let mut watcher = Watcher::new(programs, host, options.limits)?;
    if let Some((persistence, left)) = persistence {
        let restored = watcher.restore(persistence, left, instance, &identity)?;
        // Every band stands before anybody is told that the agent is ready.
        watcher.catch_up_within(CATCH_UP);
        if restored != Restored::default() {
            let Restored { registrations, removed, lost } = restored;
            log::info!(
                "{registrations} registrations taken over; {removed} ended with their groups meanwhile; {lost} lost"
            );
        }
    }
    watcher.take_stock();
    let watcher = SharedWatcher::new(watcher);

    let deferred_close =
        DeferredClose::start(options.sandbox).map_err(|error| Error::file("start", "threads", error))?;
    let accounting = if options.by_group {
        Accounting::ByGroup(Arc::new(Groups::new(&hierarchy)?))
    } else {
        Accounting::ByUser
    };
    let door = Listener::open(given, &options.socket, &options.access, &deferred_close)?;
    let door = Rc::new(door.counted(&accounting));
    let operator = Listener::open(operators, &options.control_socket, &options.operators, &deferred_close)?;
    let operator = Rc::new(operator.counted(&accounting));
    let mode = options.view.as_ref().map_or(view::EVENT_CONTROL_MODE, |wanted| wanted.event_control_mode);
    let tree = Arc::new(Tree::new(Directories::new(&hierarchy)?, mode));
    // Dropped before the tasks end: nobody comes in any more, then those that did
    // are answered.
    let shown = match &options.view {
        Some(wanted) => show(wanted, &tree, &hierarchy.root, options.sandbox)?,
        None => None,
    };
    let device = shown.as_ref().map(|(shown, _)| shown.device());
    let mut places = FrontendContext::new(Arc::clone(&tree), device, deferred_close, Box::new(identity));
    places.accounting = accounting;
    let places = Rc::new(places);
    let (listing, listed) = listing::start(watcher.clone(), Arc::clone(&tree));
    let mut tasks = vec![
        tokio::task::spawn_local(listed),
        tokio::task::spawn_local(registration_socket::serve(door, watcher.clone(), Rc::clone(&places))),
        tokio::task::spawn_local(admin_socket::serve(operator, watcher.clone(), Rc::clone(&places), listing)),
    ];
    if let Some(time) = options.watchdog {
        let (watcher, places) = (watcher.clone(), Rc::clone(&places));
        tasks.push(tokio::task::spawn_local(watchdog::serve(time, watcher, places, hierarchy.clone())));
    }
    let mut doors = options.socket.display().to_string();
    let shown = shown.map(|(shown, writes)| {
        doors = format!("{doors} and {}", shown.point().display());
        tasks.push(tokio::task::spawn_local(frontend::event_control_write::serve(
            writes,
            watcher.clone(),
            places,
        )));
        shown
    });
    if let Some(door) = metrics {
        let collector =
            frontend::metrics_http::Collector::new(&watcher, tree, &hierarchy, options.limits.eventfds);
        doors = format!("{doors}; metrics at {}", door.address());
        tasks.push(tokio::task::spawn_local(door.serve(collector)));
    }
    // What it took to get here, the kernel's types above all, is needed no more.
    malloc::trim();
    sandbox::agent(options.sandbox, asks);
    let sampler = Sampler::start(watcher.clone(), options.sample)
        .map_err(|error| Error::file("start", "the thread that samples", error))?;
    let mut signals = Signals::start(runtime, ring, watcher.clone(), options.sweep, sampler.wake())
        .map_err(|error| Error::file("start", "the thread that signals", error))?;
    ready(&format!("watching {groups} groups below {}; register at {doors}", hierarchy.root.display()));

    let outcome = tokio::select! {
        outcome = signals.ended() => outcome,
        end = shutdown => {
            if end == Shutdown::ForGood {
                let watcher = watcher.lock();
                watcher.leave_nothing();
                watcher.source().detach();
            }
            Ok(())
        }
    };
    drop(shown);
    for task in tasks {
        task.abort();
        // The listener, and with it the socket's file, goes with its task.
        let _ = task.await;
    }
    outcome
}

/// Without pins the agent goes on: what holds when it comes back is still told.
fn open_pins(directory: &Path) -> Option<Pins> {
    if !socket_activation::may_reopen_programs() {
        log::info!("without CAP_SYS_ADMIN no program is pinned; nothing is seen while there is no agent");
        return None;
    }
    let failed = |error: &Error| log::warn!("{error}; nothing is seen while there is no agent");
    Pins::open(directory).inspect_err(failed).ok()
}

type View = (Shown, mpsc::Receiver<Written>);

/// Mounts the view. An agent that was not told where does without it on a host
/// that has no FUSE.
fn show(
    wanted: &view::MountOptions,
    tree: &Arc<Tree>,
    hierarchy: &Path,
    mode: sandbox::Sandbox,
) -> Result<Option<View>> {
    match view::show(wanted.point.as_deref(), Arc::clone(tree), hierarchy, mode) {
        Ok(view) => Ok(Some(view)),
        Err(Failure::Unavailable(error)) if wanted.point.is_none() => {
            log::warn!(
                "{error}; going on without {}, clients need the socket (--no-mount says so)",
                view::POINT
            );
            Ok(None)
        }
        Err(failure) => Err(failure.into_error()),
    }
}
