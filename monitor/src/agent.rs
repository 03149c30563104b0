//! The agent: its start, its end, and its two threads, one that signals and one for all
//! frontends.

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
        error::SocketError,
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

/// The longest time before READY in which the agent signals what happened before its start;
/// the rest is signalled after READY, beside all else.
const CATCH_UP: Duration = Duration::from_secs(5);

/// The options that the agent runs with.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Mount point of the hierarchy; found in `/proc/self/mountinfo` when absent.
    pub cgroup_root: Option<PathBuf>,
    /// Path of the registration socket.
    pub socket: PathBuf,
    /// Path of the admin socket.
    pub control_socket: PathBuf,
    /// Mode and group of the registration socket.
    pub access: Access,
    /// Mode and group of the admin socket.
    pub operators: Access,
    /// Sizes of the tables shared with the programs.
    pub sizes: TableSizes,
    /// Time between two sweeps for lost records.
    pub sweep: Duration,
    /// Time between two readings of quantities that can only be sampled.
    pub sample: Duration,
    /// Limits on what clients may register.
    pub limits: Limits,
    /// Whether a client's registrations count against its cgroup; else against its user.
    pub by_group: bool,
    /// The tree as cgroup v1 showed it; not mounted when absent.
    pub view: Option<view::MountOptions>,
    /// Address and selection of the metrics; not served when absent.
    pub metrics: Option<frontend::metrics_http::MetricsOptions>,
    /// Directory in which programs and maps are pinned while a descriptor store is there.
    pub pins: PathBuf,
    /// Whether the service manager keeps descriptors although it does not say so.
    pub keeps: bool,
    /// The rights that are given up before READY.
    pub sandbox: sandbox::Sandbox,
    /// Time without a sign of life after which the service manager ends the agent; never when
    /// absent.
    pub watchdog: Option<Duration>,
}

/// The two ways in which the agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Ends for good: every program is detached.
    ForGood,
    /// Ends for a next agent: pins and kept descriptors stay.
    ForNext,
}

/// A lock held while the agent runs, so that each socket has one agent.
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
            // Made, and then opened for reading: a file that is open for writing would keep
            // its file system from being remounted read-only.
            let made = File::options().create(true).append(true).open(&path);
            let file =
                made.and_then(|_| File::open(&path)).map_err(|error| Error::file("open", &path, error))?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    let mut holder = String::new();
                    let _ = file.read_to_string(&mut holder);
                    let holder = holder.trim().to_owned();
                    return Err(SocketError::InUse { holder, path: socket.into() }.into());
                }
                Err((_, errno)) => return Err(Error::syscall(format!("flock {}", path.display()), errno)),
            };
            // An agent that ends removes the file: a lock on a removed file locks nothing.
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
/// The error names what the host lacks and what to do.
pub async fn run(
    options: &AgentOptions,
    mut handed: StoredDescriptors,
    ready: impl FnOnce(&str),
    shutdown: impl Future<Output = Shutdown>,
) -> Result<()> {
    let _locks = [Lock::take(&options.socket)?, Lock::take(&options.control_socket)?];
    let metrics = options.metrics.as_ref();
    let metrics = metrics
        .map(|wanted| frontend::metrics_http::MetricsServer::open(wanted, &options.access))
        .transpose()?;
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
    let needed = sandbox::capabilities::needed_for(&sandbox::QUERY, || programs.answers());
    let groups = hierarchy.enumerate_groups()?;
    let instance = programs.instance();
    let host = Box::new(Files::new(&hierarchy)?);
    let identity = programs.identity().clone();
    let mut watcher = Watcher::new(programs, host, options.limits)?;
    if let Some((persistence, left)) = persistence {
        let restored = watcher.restore(persistence, left, instance, &identity)?;
        // Every band is set before the agent reports READY.
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
        DeferredClose::start(options.sandbox).map_err(|error| Error::start("threads", error))?;
    let accounting = if options.by_group {
        Accounting::ByGroup(Arc::new(Groups::new(&hierarchy)?))
    } else {
        Accounting::ByUser
    };
    let listener = Listener::open(given, &options.socket, &options.access, &deferred_close)?;
    let listener = Rc::new(listener.counted(&accounting));
    let operator = Listener::open(operators, &options.control_socket, &options.operators, &deferred_close)?;
    let operator = Rc::new(operator.counted(&accounting));
    let mode = options.view.as_ref().map_or(view::EVENT_CONTROL_MODE, |wanted| wanted.event_control_mode);
    let tree = Arc::new(Tree::new(Directories::new(&hierarchy)?, mode));
    // Dropped before the tasks end: first no client is admitted any more, then those
    // admitted are answered.
    let shown = match &options.view {
        Some(wanted) => show(wanted, &tree, &hierarchy.root, options.sandbox)?,
        None => None,
    };
    let device = shown.as_ref().map(|(shown, _)| shown.device());
    let mut context = FrontendContext::new(Arc::clone(&tree), device, deferred_close, Box::new(identity));
    context.accounting = accounting;
    let context = Rc::new(context);
    let (listing, listed) = listing::start(watcher.clone(), Arc::clone(&tree));
    let mut tasks = vec![
        tokio::task::spawn_local(listed),
        tokio::task::spawn_local(registration_socket::serve(listener, watcher.clone(), Rc::clone(&context))),
        tokio::task::spawn_local(admin_socket::serve(
            operator,
            watcher.clone(),
            Rc::clone(&context),
            listing,
        )),
    ];
    if let Some(time) = options.watchdog {
        let (watcher, context) = (watcher.clone(), Rc::clone(&context));
        tasks.push(tokio::task::spawn_local(watchdog::serve(time, watcher, context, hierarchy.clone())));
    }
    let mut addresses = options.socket.display().to_string();
    let shown = shown.map(|(shown, writes)| {
        addresses = format!("{addresses} and {}", shown.point().display());
        tasks.push(tokio::task::spawn_local(frontend::event_control_write::serve(
            writes,
            watcher.clone(),
            context,
        )));
        shown
    });
    if let Some(server) = metrics {
        let collector =
            frontend::metrics_http::Collector::new(&watcher, tree, &hierarchy, options.limits.eventfds);
        addresses = format!("{addresses}; metrics at {}", server.address());
        tasks.push(tokio::task::spawn_local(server.serve(collector)));
    }
    // Memory of the start, most of it the kernel's types (BTF), is free by now.
    malloc::trim();
    sandbox::agent(options.sandbox, needed);
    let sampler = Sampler::start(watcher.clone(), options.sample)
        .map_err(|error| Error::start("the thread that samples", error))?;
    let mut signals = Signals::start(runtime, ring, watcher.clone(), options.sweep, sampler.wake())
        .map_err(|error| Error::start("the thread that signals", error))?;
    ready(&format!("watching {groups} groups below {}; register at {addresses}", hierarchy.root.display()));

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
        // The listener, and with it the socket's file, is dropped with its task.
        let _ = task.await;
    }
    outcome
}

/// Opens the pins. Without them the agent goes on: what holds at its next start is still
/// signalled then.
fn open_pins(directory: &Path) -> Option<Pins> {
    if !socket_activation::may_reopen_programs() {
        log::info!("without CAP_SYS_ADMIN no program is pinned; nothing is seen while there is no agent");
        return None;
    }
    let failed = |error: &Error| log::warn!("{error}; nothing is seen while there is no agent");
    Pins::open(directory).inspect_err(failed).ok()
}

type View = (Shown, mpsc::Receiver<Written>);

/// Mounts the view. Without `--mount` the agent does without it on a host that has no
/// FUSE.
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
                "{error}; going on without the view on {}: clients need the socket (--no-mount silences this line)",
                view::POINT
            );
            Ok(None)
        }
        Err(failure) => Err(failure.into_error()),
    }
}
