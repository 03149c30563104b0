//! The agent's part behind the frontends: a hierarchy of plain files, the unit
//! tests' kernel, and the real watcher.

use std::{
    fs::{self, File},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use memcg_monitor::{
    Limits,
    cgroup::{Hierarchy, Version, handle::Directories},
    fuzzing::{
        frontend::{control_file::FrontendContext, deferred_close::DeferredClose},
        source::FileId,
        view::{MountedTree, Tree},
        watcher::{SharedWatcher, Watcher},
    },
    sandbox,
    view::EVENT_CONTROL_MODE,
};
use nix::{
    fcntl::{OFlag, open},
    sys::{
        eventfd::{EfdFlags, EventFd},
        stat::Mode,
    },
    unistd::{dup2, pipe},
};

use crate::fake::{FakeHost, FakeKernel};

/// Files that each group has, on the newest kernels, with their contents.
const FILES: [(&str, &str); 16] = [
    ("cgroup.procs", "1\n"),
    ("cgroup.threads", "1\n"),
    ("cgroup.subtree_control", "memory\n"),
    ("memory.current", "1048576\n"),
    ("memory.peak", "2097152\n"),
    ("memory.max", "max\n"),
    ("memory.high", "max\n"),
    ("memory.stat", "anon 4096\nfile 8192\ninactive_file 4096\nactive_file 4096\nshmem 0\n"),
    ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n"),
    ("memory.events.local", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n"),
    ("memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
    ("memory.swap.current", "0\n"),
    ("memory.swap.max", "max\n"),
    ("memory.oom.group", "0\n"),
    ("cgroup.events", "populated 1\nfrozen 0\n"),
    ("cgroup.type", "domain\n"),
];

/// Time for a thread to close descriptors on a busy host.
const PATIENCE: Duration = Duration::from_secs(10);

/// Descriptors that lines can name, whatever else is open.
const FIRST: i32 = 100;

pub(crate) struct Stage {
    pub(crate) watcher: SharedWatcher<FakeKernel>,
    pub(crate) context: Rc<FrontendContext>,
    pub(crate) tree: Arc<Tree>,
    /// Inode numbers of the groups: the root, one, one below it, one without the
    /// controller.
    pub(crate) groups: [u64; 4],
    /// Directory of the stage, for sockets.
    pub(crate) directory: PathBuf,
    /// Descriptors, one of each kind.
    pub(crate) kinds: Vec<OwnedFd>,
}

impl Stage {
    pub(crate) fn new(view: bool) -> Self {
        // The process ends without running destructors: TMPDIR says where this may be
        // left.
        let directory = tempfile::tempdir().expect("TMPDIR can be written to").keep();
        let root = directory.join("hierarchy");
        let group = |path: &Path, files: &[(&str, &str)]| {
            fs::create_dir(path).expect("a new directory");
            for (name, text) in files {
                fs::write(path.join(name), text).expect("a new file");
            }
            fs::metadata(path).expect("it was just made").ino()
        };
        let groups = [
            group(&root, &FILES[..3]),
            group(&root.join("a"), &FILES),
            group(&root.join("a/b"), &FILES),
            group(&root.join("c"), &FILES[..3]),
        ];
        let private = root.join("a/b/memory.current");
        fs::set_permissions(private, fs::Permissions::from_mode(0o600)).expect("it is ours");

        let hierarchy = Hierarchy { version: Version::V2, root: root.clone() };
        let directories = Arc::new(Directories::new(&hierarchy).expect("the hierarchy can be opened"));
        let device = directories.device();
        let tree = Arc::new(Tree::new(Arc::clone(&directories), EVENT_CONTROL_MODE));
        let limits = Limits { quota: 1000, registrations: 4000, eventfds: 1000, holdoff_ms: 0 };
        let host = Box::new(FakeHost::forever());
        let watcher = Watcher::new(FakeKernel::new(), host, limits).expect("the host has AIO");
        // Its files are numbered as the view's only where it says so.
        let deferred_close = DeferredClose::start(sandbox::Sandbox::Off).expect("threads");
        let context = FrontendContext::new(
            directories,
            view.then(|| MountedTree { device: device + 1, tree: Arc::clone(&tree) }),
            deferred_close,
            Box::new(FakeKernel::new()),
        );
        Self {
            watcher: SharedWatcher::new(watcher),
            context: Rc::new(context),
            tree,
            groups,
            kinds: kinds(&root),
            directory,
        }
    }

    /// Every registration's last reference goes. The stage is as it was.
    pub(crate) fn clear(&self) {
        let mut watcher = self.watcher.lock();
        if watcher.registry().len() == 0 {
            return;
        }
        for file in eventfds() {
            watcher.source().references.borrow_mut().insert(file, 1);
        }
        watcher.end_closed();
        watcher.source().references.borrow_mut().clear();
        assert_eq!(watcher.registry().len(), 0, "a registration outlived its eventfd");
    }
}

/// One descriptor of each kind, also by the numbers from [`FIRST`] on.
fn kinds(root: &Path) -> Vec<OwnedFd> {
    let plain = |path: &Path| -> OwnedFd { File::open(path).expect("it is there").into() };
    let path_only =
        |path: &Path| open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).expect("it is there");
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("an eventfd");
    let event_path = path_only(Path::new(&format!("/proc/self/fd/{}", event.as_raw_fd())));
    let (reader, writer) = pipe().expect("a pipe");
    let kinds = vec![
        event.into(),
        plain(&root.join("a/memory.current")),
        plain(&root.join("a")),
        plain(Path::new("/dev/null")),
        event_path,
        path_only(&root.join("a/memory.current")),
        plain(&root.join("a/b/memory.current")),
        plain(&root.join("memory.current").parent().unwrap_or(root).join("cgroup.procs")),
        plain(&root.join("c")),
        plain(root),
        plain(&root.join("a/memory.stat")),
        reader,
        writer,
        EventFd::from_flags(EfdFlags::EFD_SEMAPHORE | EfdFlags::EFD_NONBLOCK).expect("an eventfd").into(),
    ];
    for (number, fd) in (FIRST..).zip(&kinds) {
        // Never dropped: that number stays open to the end.
        std::mem::forget(dup_to(fd, number));
    }
    kinds
}

fn dup_to(fd: &OwnedFd, number: i32) -> OwnedFd {
    // SAFETY: nothing is open there: a stage is made once, before all else.
    let mut to = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(number) };
    dup2(fd, &mut to).expect("a free number");
    to
}

/// Descriptors that this process has open.
fn eventfds() -> Vec<FileId> {
    let numbers = fs::read_dir("/proc/self/fdinfo").expect("/proc is there").flatten();
    let texts = numbers.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    texts
        .filter_map(|text| {
            text.lines().find_map(|line| line.strip_prefix("eventfd-id:")?.trim().parse().ok()).map(FileId)
        })
        .collect()
}

/// Waits until so many descriptors are open as before: some are closed by threads.
pub(crate) fn none_leaked(before: usize) {
    let start = Instant::now();
    while descriptors() != before {
        assert!(start.elapsed() < PATIENCE, "{} descriptors, {before} before", descriptors());
        std::thread::yield_now();
    }
}

/// How many descriptors this process has open.
pub(crate) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("/proc is there").count()
}
