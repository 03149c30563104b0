//! Mounts the view, and unmounts it without traces.

use std::{
    fs,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        stat::Mode,
        statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs},
    },
};

use crate::{
    error::{Error, Result},
    mounts, sandbox,
    view::{error::ViewError, unmounter::Unmounter},
};

/// Device file of FUSE.
const DEVICE: &str = "/dev/fuse";

/// Source and subtype of a mount, by which it is recognized as an agent's.
pub(super) const NAME: &str = "memcg-monitor";

/// Longest time that a view that is there already may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The mounted view, which is unmounted when it is dropped, unless its connection is kept.
#[derive(Debug)]
pub struct Mounted {
    point: PathBuf,
    remove: bool,
    kept: bool,
    unmounter: Unmounter,
}

/// Reasons why there is no view.
#[derive(Debug)]
pub enum Failure {
    /// This host, or this agent's privilege, has no FUSE.
    Unavailable(Error),
    /// Failed for any other reason.
    Other(Error),
}

impl Failure {
    /// The error of the failure.
    #[must_use]
    pub fn into_error(self) -> Error {
        let (Self::Unavailable(error) | Self::Other(error)) = self;
        error
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// Mounts on `point`, which is made if it is not there, and with `remove` is removed after the
/// mount. The mount of an agent that was killed is cleared away first.
///
/// # Errors
/// There is another mount, perhaps another agent's view; the directory is in a cgroup hierarchy; or there
/// is no FUSE.
pub fn on(point: &Path, remove: bool, mode: sandbox::Sandbox) -> Result<(OwnedFd, Mounted), Failure> {
    let device = open_device().map_err(Failure::Unavailable)?;
    clear(point)?;
    if let Some(kind) = hierarchy_of(point) {
        return Err(Error::from(ViewError::InHierarchy { point: point.into(), kind }).into());
    }
    let made = !point.exists();
    fs::create_dir_all(point).map_err(|error| Error::file("make the directory", point, error))?;
    let point = point.canonicalize().map_err(|error| Error::file("look at", point, error))?;
    mount_on(&point, &device).inspect_err(|_| {
        if made {
            let _ = fs::remove_dir(&point);
        }
    })?;
    let unmounter = Unmounter::start(&point, mode).inspect_err(|_| {
        let _ = umount2(&point, MntFlags::MNT_DETACH);
    })?;
    Ok((device, Mounted { point, remove: remove || made, kept: false, unmounter }))
}

/// The view of an earlier agent that is mounted on `point`, and whose connection this one has.
///
/// # Errors
/// The process that unmounts could not be started.
pub fn again(point: &Path, remove: bool, mode: sandbox::Sandbox) -> Result<Mounted> {
    let mut unmounter = Unmounter::start(point, mode)?;
    unmounter.keep();
    Ok(Mounted { point: point.to_owned(), remove, kept: true, unmounter })
}

/// Checks that this host has FUSE.
///
/// # Errors
/// The device file cannot be opened.
pub fn available() -> Result<()> {
    open_device().map(drop)
}

fn open_device() -> Result<OwnedFd> {
    open(DEVICE, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| {
        let hint = if errno == Errno::ENOENT { " (is the module fuse loaded?)" } else { "" };
        Error::syscall(format!("open {DEVICE}{hint}"), errno)
    })
}

/// The type of the cgroup hierarchy that a directory is in, or would be made in: there it would be a group.
fn hierarchy_of(point: &Path) -> Option<&'static str> {
    let found = point.ancestors().find_map(|at| statfs(at).ok())?;
    match found.filesystem_type() {
        CGROUP2_SUPER_MAGIC => Some("cgroup2"),
        CGROUP_SUPER_MAGIC => Some("cgroup"),
        _ => None,
    }
}

fn mount_on(point: &Path, device: &OwnedFd) -> Result<(), Failure> {
    let mut entries = fs::read_dir(point).map_err(|error| Error::file("read", point, error))?;
    if entries.next().is_some() {
        return Err(Error::from(ViewError::NotEmpty { point: point.into() }).into());
    }
    // Mode and owner of the root are requested before they are used.
    let options = format!(
        "fd={},rootmode=40755,user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd()
    );
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(NAME), point, Some("fuse"), flags, Some(options.as_str())).map_err(|errno| {
        let failed = |hint| Error::syscall(format!("mount fuse on {}{hint}", point.display()), errno);
        match errno {
            Errno::EPERM => Failure::Unavailable(failed(" (the agent needs CAP_SYS_ADMIN for it)")),
            Errno::ENODEV => Failure::Unavailable(failed(" (this kernel has no FUSE)")),
            _ => Failure::Other(failed("")),
        }
    })
}

/// The path of a mount point as mountinfo has it, without a request to its file system: the last
/// part of a dead mount's path cannot be inspected.
pub(super) fn real(point: &Path) -> PathBuf {
    let directory = point.parent().and_then(|directory| directory.canonicalize().ok());
    match (directory, point.file_name()) {
        (Some(directory), Some(name)) => directory.join(name),
        _ => point.to_owned(),
    }
}

/// Unmounts the views that killed agents left.
fn clear(point: &Path) -> Result<()> {
    let real = real(point);
    while let Some(found) = mounts::on(&real)? {
        if found.kind != "fuse" || found.source != NAME {
            return Err(ViewError::OtherMount { kind: found.kind, point: real }.into());
        }
        if !is_dead(&real) {
            return Err(ViewError::InUse { point: real }.into());
        }
        log::info!("clearing away what an agent that was killed left on {}", real.display());
        match umount2(&real, MntFlags::MNT_DETACH) {
            // The agent's own unmounting process was quicker.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(Error::syscall(format!("umount2 {}", real.display()), errno)),
        }
    }
    Ok(())
}

/// Whether the agent of a mount is dead. A thread of its own tries it, since an agent that is
/// stopped never answers.
fn is_dead(point: &Path) -> bool {
    let (sender, answer) = mpsc::channel();
    let point = point.to_owned();
    let tried = std::thread::Builder::new().spawn(move || {
        let dead = fs::metadata(&point)
            .is_err_and(|error| matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)));
        let _ = sender.send(dead);
    });
    tried.is_ok() && answer.recv_timeout(PATIENCE).unwrap_or(false)
}

impl Mounted {
    /// Mount point of the view.
    #[must_use]
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Whether the mount point is removed after the mount.
    #[must_use]
    pub const fn removes(&self) -> bool {
        self.remove
    }

    /// Whether the view outlives this agent, because its connection is in the descriptor store.
    #[must_use]
    pub const fn is_kept(&self) -> bool {
        self.kept
    }

    /// Leaves the view mounted when the agent ends, in whatever way: the connection is kept.
    pub fn keep(&mut self) {
        self.kept = true;
        self.unmounter.keep();
    }

    /// Unmounts the view at the end of the agent: there is no next one.
    pub fn let_go(&mut self) {
        self.kept = false;
        self.unmounter.let_go();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.unmounter.end();
        if self.remove
            && !self.kept
            && let Err(error) = fs::remove_dir(&self.point)
        {
            log::warn!("remove {}: {error}", self.point.display());
        }
    }
}
