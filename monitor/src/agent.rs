//! The agent: its start, its end, and its two threads, one that signals and one for all
//! frontends.

mod liveness;
mod sampler;
mod signals;
mod source;

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
    backend::{BackendChoice, BackendKind},
    cgroup::{Hierarchy, handle::Directories, host::Files},
    error::{Error, Result},
    fd_store::{FdStore, StoredDescriptors},
    frontend::{
        self,
        accounting::{Accounting, Groups},
        admin_socket,
        connection_share::ConnectionShare,
        control_file::FrontendContext,
        deferred_close::DeferredClose,
        error::SocketError,
        kept_connections::{self, KeptConnections},
        listing, pressure_socket, registration_socket,
        seqpacket::{Access, Listener},
    },
    kills::{KernelLog, KillTeller, LogFollower},
    malloc,
    persist::Persistence,
    programs::{Pins, TableSizes},
    recorder::{self, BlackBoxOptions, Recorder},
    sampled, sandbox, socket_activation,
    view::{self, Shown, mount::Failure, tree::Tree, written::Written},
    watchdog,
    watcher::{Limits, Restored, SharedWatcher, Watcher},
};

/// The longest time before READY in which the agent signals what happened before its start;
/// the rest is signalled after READY, beside all else.
const CATCH_UP: Duration = Duration::from_secs(5);

/// The options that the agent runs with.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Backend that the operator chose.
    pub backend: BackendChoice,
    /// Mount point of the hierarchy; found in `/proc/self/mountinfo` when absent.
    pub cgroup_root: Option<PathBuf>,
    /// Path of the registration socket.
    pub socket: PathBuf,
    /// Path of the admin socket.
    pub control_socket: PathBuf,
    /// Path of the socket of systemd's memory-pressure protocol; without one it is served where the
    /// service manager hands it over.
    pub pressure_socket: Option<PathBuf>,
    /// Mode and group of the registration socket, and of the pressure socket.
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
    /// Connections at all sockets together.
    pub connections: u64,
    /// Clients' descriptors that may wait to be closed, all accounts' together.
    pub to_close: u64,
    /// Whether a client's registrations count against its cgroup; else against its user.
    pub by_group: bool,
    /// The tree as cgroup v1 showed it; not mounted when absent.
    pub view: Option<view::MountOptions>,
    /// Address and selection of the metrics; not served when absent.
    pub metrics: Option<frontend::metrics_http::MetricsOptions>,
    /// Directory in which programs and maps are pinned while a descriptor store is there.
    pub pins: PathBuf,
    /// The black box; off when absent.
    pub black_box: Option<BlackBoxOptions>,
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
    check_paths(options)?;
    let _locks = [Some(&options.socket), Some(&options.control_socket), options.pressure_socket.as_ref()]
        .into_iter()
        .flatten()
        .map(|socket| Lock::take(socket))
        .collect::<Result<Vec<_>>>()?;
    let metrics = options.metrics.as_ref();
    let metrics = metrics
        .map(|wanted| frontend::metrics_http::MetricsServer::open(wanted, &options.access))
        .transpose()?;
    let hierarchy = Hierarchy::find(options.cgroup_root.as_deref())?;
    let given = socket_activation::listener(&mut handed, socket_activation::REGISTER)?;
    let operators = socket_activation::listener(&mut handed, socket_activation::OPERATOR)?;
    let pressure = socket_activation::listener(&mut handed, socket_activation::PRESSURE)?;
    let kept = view::kept::taken(&mut handed);
    let connections = kept_connections::taken(&mut handed);
    let fd_store = FdStore::found(options.keeps);
    let notes = recorder::notes_taken(&mut handed);
    fd_store
        .iter()
        .filter(|_| notes.is_some() && options.black_box.is_none())
        .for_each(recorder::forget_notes);
    let mut keeping = view::Keeping { fd_store, views: kept };
    let persistence = fd_store.map(|fd_store| Persistence::open(fd_store, handed)).transpose()?;
    let mut pins = persistence.as_ref().and_then(|_| open_pins(options));
    if pins.is_none() && Pins::hold_programs(&options.pins) {
        let directory = options.pins.display();
        log::warn!(
            "programs of an earlier agent stay attached, and cost what they did: this agent does not \
             open what is pinned in {directory}; unless another agent uses it, rm -r {directory}"
        );
    }
    let runtime = signals::RuntimeGuard::new()?;
    let has_sampled = persistence.as_ref().is_some_and(|(_, left)| sampled::is_instance(left.instance));
    let (source, ring) = source::start(options.backend, &hierarchy, options.sizes, &mut pins, has_sampled)?;
    // While the agent has the right to open it.
    let kernel_log = (source.kind() == BackendKind::Sampled).then(KernelLog::open);
    let needed = sandbox::capabilities::needed_for(&sandbox::QUERY, || source.answers());
    let groups = hierarchy.enumerate_groups()?;
    let (kind, instance, identity) = (source.kind(), source.instance(), source.identity());
    let writes = source.writes_files();
    let host = Box::new(Files::new(&hierarchy)?);
    let mut watcher = Watcher::new(source, host, options.limits)?;
    if let Some((persistence, left)) = persistence {
        let restored = watcher.restore(persistence, left, instance, identity.as_ref())?;
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
    deferred_close.bound(options.to_close);
    let share = ConnectionShare::new(options.connections);
    let accounting = if options.by_group {
        Accounting::ByGroup(Arc::new(Groups::new(&hierarchy)?))
    } else {
        Accounting::ByUser
    };
    let listener = Listener::open(given, &options.socket, &options.access, &deferred_close)?;
    let listener = Rc::new(listener.counted(&accounting, &share));
    let operator = Listener::open(operators, &options.control_socket, &options.operators, &deferred_close)?;
    let operator = Rc::new(operator.counted(&accounting, &share));
    let pressure = Listener::open_stream(
        pressure,
        options.pressure_socket.as_deref(),
        &options.access,
        &deferred_close,
    )?;
    let pressure = pressure.map(|listener| listener.counted(&accounting, &share));
    let directories = Arc::new(Directories::new(&hierarchy)?);
    let told = Arc::clone(&directories);
    // Dropped before the tasks end: first no client is admitted any more, then those
    // admitted are answered.
    let shown = match &options.view {
        Some(wanted) => show(wanted, &directories, &hierarchy.root, options.sandbox, keeping)?,
        None => {
            keeping.end_all();
            None
        }
    };
    let tree = shown.as_ref().map(|(shown, _)| shown.tree());
    let mut context = FrontendContext::new(Arc::clone(&directories), tree, deferred_close, identity);
    context.accounting = accounting;
    let closes_metrics = context.deferred_close.clone();
    let recorder = options.black_box.as_ref();
    let recorder = recorder
        .map(|wanted| {
            let rights = (options.sandbox, needed);
            Recorder::start(wanted, &watcher, &directories, &hierarchy, rights, (fd_store, notes))
        })
        .transpose()?;
    context.recorder = recorder.as_ref().map(Recorder::handle);
    let log_follower = kernel_log
        .map(|log| LogFollower::start(log, &watcher, (&hierarchy, &directories), options.sandbox))
        .transpose()?;
    let context = Rc::new(context);
    let (listing, listed) = listing::start(watcher.clone(), Arc::clone(&directories));
    let liveness = liveness::watch(watcher.clone(), Rc::clone(&context), options.sweep, options.sample);
    let mut tasks = vec![
        tokio::task::spawn_local(listed),
        tokio::task::spawn_local(liveness),
        tokio::task::spawn_local(registration_socket::serve(listener, watcher.clone(), Rc::clone(&context))),
        tokio::task::spawn_local(admin_socket::serve(
            operator,
            watcher.clone(),
            Rc::clone(&context),
            listing,
        )),
    ];
    let unserved = match pressure {
        Some(listener) => {
            let (watcher, context) = (watcher.clone(), Rc::clone(&context));
            let left = left_at(fd_store, connections, context.deferred_close.clone());
            let groups = Groups::new(&hierarchy)
                .inspect_err(|error| log::warn!("{error}; every text at the pressure socket is refused"));
            tasks.push(tokio::task::spawn_local(pressure_socket::serve(
                listener,
                left,
                groups.ok(),
                watcher,
                context,
            )));
            StoredDescriptors::new()
        }
        None => connections,
    };
    if !unserved.is_empty() {
        log::warn!(
            "an earlier agent's connections at its pressure socket are held, and not served (--pressure-socket)"
        );
    }
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
        let collector = frontend::metrics_http::Collector::new(
            &watcher,
            directories,
            &hierarchy,
            options.limits.eventfds,
        );
        addresses = format!("{addresses}; metrics at {}", server.address());
        tasks.push(tokio::task::spawn_local(server.serve(collector, closes_metrics)));
    }
    // Memory of the start, most of it the kernel's types (BTF), is free by now.
    malloc::trim();
    let writes = sandbox::seccomp::Writes { groups: writes, black_box: recorder.is_some() };
    sandbox::agent(options.sandbox, needed, writes);
    let kills =
        KillTeller::start(told).map_err(|error| Error::start("the thread that looks up kills", error))?;
    watcher.lock().keep_kills(kills);
    let _ = log_follower.as_ref().map(LogFollower::begin);
    let sampler = Sampler::start(watcher.clone(), options.sample)
        .map_err(|error| Error::start("the thread that samples", error))?;
    let mut signals = Signals::start(runtime, ring, watcher.clone(), options.sweep, sampler.wake())
        .map_err(|error| Error::start("the thread that signals", error))?;
    ready(&format!(
        "watching {groups} groups below {} ({}, backend {kind}, thresholds {}); register at {addresses}",
        hierarchy.root.display(),
        hierarchy.version,
        kind.precision().as_str()
    ));

    let (end, outcome) = tokio::select! {
        outcome = signals.ended() => (Shutdown::ForNext, outcome),
        end = shutdown => (end, Ok(())),
    };
    // Without a store there is nothing that a next agent could take over.
    let ends = end == Shutdown::ForGood || fd_store.is_none();
    match shown {
        Some(shown) if ends => {
            // A client that is signalled below finds its group gone.
            shown.tree().tree.close();
            shown.end(fd_store.as_ref());
        }
        Some(shown) if shown.is_kept() && outcome.is_ok() => shown.hand_over().await,
        shown => drop(shown),
    }
    for task in tasks {
        task.abort();
        // The listener, and with it the socket's file, is dropped with its task.
        let _ = task.await;
    }
    drop(log_follower);
    // Files that are due are written before what is recorded goes.
    let has_notes = recorder.is_some();
    drop(recorder);
    if ends {
        fd_store.iter().filter(|_| has_notes).for_each(recorder::forget_notes);
        let mut watcher = watcher.lock();
        let (signalled, failed) = watcher.signal_the_end();
        if signalled + failed > 0 {
            log::info!(
                "the registrations end with this agent: {signalled} eventfds were signalled of that, {failed} could not be"
            );
        }
        if end == Shutdown::ForGood {
            watcher.leave_nothing();
            watcher.source().detach();
            // Those of an agent before, which could not be removed when this one began.
            pins.iter().for_each(|pins| _ = pins.clear());
        }
    }
    outcome
}

/// Takes over what an earlier agent has left at the pressure socket. An agent that cannot go on with that, as it
/// may have too few descriptors, serves all else.
fn left_at(
    fd_store: Option<FdStore>,
    connections: StoredDescriptors,
    deferred_close: DeferredClose,
) -> pressure_socket::Left {
    let Some(fd_store) = fd_store else { return pressure_socket::Left::default() };
    match KeptConnections::open(fd_store, connections, deferred_close) {
        Ok((kept, connections)) => pressure_socket::Left { kept: Some(kept), connections },
        Err(error) => {
            log::error!("{error}; the kept connections at the pressure socket are lost");
            pressure_socket::Left::default()
        }
    }
}

/// Refuses two sockets of one path: the second would take the place of the first, or wait for its lock.
///
/// # Errors
/// [`SocketError::SamePath`] names the two options.
fn check_paths(options: &AgentOptions) -> Result<()> {
    let metrics = options.metrics.as_ref().and_then(|metrics| metrics.address.socket());
    let sockets = [
        ("--socket", Some(options.socket.as_path())),
        ("--control-socket", Some(options.control_socket.as_path())),
        ("--pressure-socket", options.pressure_socket.as_deref()),
        ("--metrics", metrics),
    ];
    let sockets: Vec<_> = sockets.iter().filter_map(|(name, path)| Some((*name, (*path)?))).collect();
    for (place, (second, path)) in sockets.iter().enumerate() {
        let same = sockets.iter().take(place).find(|(_, other)| is_same(other, path));
        if let Some((first, _)) = same {
            return Err(SocketError::SamePath { first, second, path: path.to_path_buf() }.into());
        }
    }
    Ok(())
}

/// Whether two paths name one file, which need not be there.
fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| {
        let directory = path.parent().and_then(|directory| directory.canonicalize().ok());
        directory
            .zip(path.file_name())
            .map_or_else(|| path.to_owned(), |(directory, name)| directory.join(name))
    };
    one == other || real(one) == real(other)
}

/// Opens the pins. Without them the agent continues: what holds at its next start is still
/// signalled then.
fn open_pins(options: &AgentOptions) -> Option<Pins> {
    let directory = &options.pins;
    if options.backend == BackendChoice::Only(BackendKind::Sampled) && !directory.exists() {
        // It has no programs to pin, and no earlier agent's are to be removed.
        return None;
    }
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
    directories: &Arc<Directories>,
    hierarchy: &Path,
    mode: sandbox::Sandbox,
    keeping: view::Keeping,
) -> Result<Option<View>> {
    let tree = Arc::new(Tree::new(Arc::clone(directories), wanted.event_control_mode));
    match view::show(wanted.point.as_deref(), tree, hierarchy, mode, keeping) {
        Ok(view) => Ok(Some(view)),
        Err(Failure::Unavailable(error)) if wanted.point.is_none() => {
            log::warn!(
                "{error}; continuing without the view on {}: clients need the socket (--no-mount silences this line)",
                view::POINT
            );
            Ok(None)
        }
        Err(failure) => Err(failure.into_error()),
    }
}
