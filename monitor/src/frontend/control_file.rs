//! Resolves a line's control descriptor: which control file it is, of which group.

use std::{
    fs,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    rc::Rc,
    sync::Arc,
};

use monitor_common::grammar::control_file::{ControlFile, split_directory_args};
use nix::errno::Errno;

use crate::{
    cgroup::{
        Version,
        handle::{Directories, Directory},
    },
    frontend::{
        accounting::Accounting,
        cache::{GroupCache, ResolvedControlFile},
        deferred_close::DeferredClose,
        fair::Fair,
        inode::Inode,
        refusal::{DescriptorRole, Refusal, RefusalReason},
        requester::{Requester, must_be_readable},
    },
    source::{GroupId, Identify, Located, Slots},
    view::tree::{Node, Tree},
};

/// State that all frontends share: where control files lie, in the hierarchy itself and in
/// the view of it, and how clients are accounted.
pub struct FrontendContext {
    /// The tree that the view shows.
    pub tree: Arc<Tree>,
    /// `st_dev` of the view, while it is mounted.
    view: Option<u64>,
    known: GroupCache,
    /// Closes the descriptors that clients sent.
    pub deferred_close: DeferredClose,
    /// Owner of the quota that each client counts against.
    pub accounting: Accounting,
    /// Turns of the users at the frontends.
    pub fair: Rc<Fair>,
    identity: Box<dyn Identify>,
}

impl std::fmt::Debug for FrontendContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Places").field("view", &self.view).finish_non_exhaustive()
    }
}

impl FrontendContext {
    /// Begins with an empty cache.
    #[must_use]
    pub fn new(
        tree: Arc<Tree>,
        view: Option<u64>,
        deferred_close: DeferredClose,
        identity: Box<dyn Identify>,
    ) -> Self {
        deferred_close.trust([tree.directories().device()].into_iter().chain(view));
        let (accounting, fair) = Default::default();
        Self { tree, view, known: GroupCache::default(), deferred_close, accounting, fair, identity }
    }

    /// Identifies clients' files and descriptors.
    pub(super) fn identity(&self) -> &dyn Identify {
        self.identity.as_ref()
    }

    fn slots(&self) -> &dyn Slots {
        self.identity.as_ref()
    }

    fn directories(&self) -> &Directories {
        self.tree.directories()
    }
}

/// Resolves a client's control descriptor, and the arguments for it. Checks in the kernel's
/// order: may the client read it, is it a cgroup file, of a kind that notifies, of an online
/// group. No request goes to the file system that it lies on: it may be the agent's own view,
/// or that of a daemon that never answers.
///
/// # Errors
/// `EACCES` and `EINVAL` as the kernel; `ENOMEM` when the table of groups is full.
pub fn resolve<'a>(
    places: &FrontendContext,
    number: u32,
    client: &impl Requester,
    args: &'a [u8],
) -> Result<(ResolvedControlFile, &'a [u8]), Refusal> {
    let which = DescriptorRole::Control(number);
    if let Some(inode) = client.peek(number) {
        if Some(inode.device) == places.view {
            return in_view(places, (inode, which), client, args);
        }
        if inode.device == places.directories().device()
            && let Some(control) = places.known.control(places.slots(), inode.number)
        {
            must_be_readable(&inode, which, client)?;
            return Ok((control, args));
        }
    }
    let held = client.control(number)?;
    let fd = held.descriptor().map_err(|errno| Refusal::new(errno, RefusalReason::Closed(which)))?;
    let inode = Inode::of(fd).map_err(|errno| Refusal::new(errno, RefusalReason::NoInode(which)))?;
    if Some(inode.device) == places.view {
        return in_view(places, (inode, which), client, args);
    }
    must_be_readable(&inode, which, client)?;
    if inode.device != places.directories().device() {
        return Err(Refusal::new(Errno::EINVAL, RefusalReason::OtherHierarchy(which)));
    }
    match inode.mode & libc::S_IFMT {
        libc::S_IFDIR => {
            let (file, args) = named(args, which)?;
            let stand_in =
                places.directories().open(inode.number).map_err(|errno| not_opened(which, errno))?;
            named_must_be_readable(places, &stand_in, file, which, client)?;
            let group = group_of(places, Some(&stand_in), inode.number, which)?;
            Ok((ResolvedControlFile { group, cgroup_id: inode.number, file }, args))
        }
        libc::S_IFREG => {
            let name = name_of(fd);
            let Some(file) = ControlFile::from_name(&name).filter(|file| is_real(places, *file)) else {
                return Err(mute(which, String::from_utf8_lossy(&name).into_owned()));
            };
            let home =
                places.directories().home_of(inode.number).map_err(|errno| not_opened(which, errno))?;
            let cgroup_id = home.stat().map_err(|_| gone(which))?.st_ino;
            let group = group_of(places, Some(&home), cgroup_id, which)?;
            let control = ResolvedControlFile { group, cgroup_id, file };
            places.known.remember_control(inode.number, control);
            Ok((control, args))
        }
        _ => Err(Refusal::new(Errno::EINVAL, RefusalReason::NotRegularFile(which))),
    }
}

/// Resolves a file or directory of the view.
fn in_view<'a>(
    places: &FrontendContext,
    (inode, which): (Inode, DescriptorRole),
    client: &impl Requester,
    args: &'a [u8],
) -> Result<(ResolvedControlFile, &'a [u8]), Refusal> {
    let node = Node::numbered(inode.number, places.directories().root_id()).ok_or_else(|| gone(which))?;
    // The view's attributes of now; the kernel may remember an older answer.
    let found = places.tree.attributes(node).map_err(|_| gone(which))?;
    let found = Inode { mode: found.mode, uid: found.uid, gid: found.gid, ..inode };
    must_be_readable(&found, which, client)?;
    let (file, args) = match node.file {
        None => {
            let (file, args) = named(args, which)?;
            let directory = places.tree.open(node.group).map_err(|errno| not_opened(which, errno))?;
            named_must_be_readable(places, &directory, file, which, client)?;
            (file, args)
        }
        Some(file) => {
            let control = file.control().ok_or_else(|| mute(which, file.name().to_owned()))?;
            (control, args)
        }
    };
    let group = group_of(places, None, node.group, which)?;
    Ok((ResolvedControlFile { group, cgroup_id: node.group, file }, args))
}

/// The control file that the arguments for a directory begin with.
fn named(args: &[u8], which: DescriptorRole) -> Result<(ControlFile, &[u8]), Refusal> {
    split_directory_args(args).ok_or_else(|| Refusal::new(Errno::EINVAL, RefusalReason::NoFileName(which)))
}

/// Checks a client that names a control file by its directory: it needs the permission that
/// opening the file would have needed, on a real directory and on the view's alike. Where
/// this host has no such file (no swap, no PSI), the usage file's permission counts.
fn named_must_be_readable(
    places: &FrontendContext,
    directory: &Directory,
    file: ControlFile,
    which: DescriptorRole,
    client: &impl Requester,
) -> Result<(), Refusal> {
    for name in [stand_in_for(places, file), places.directories().version().usage_file()] {
        match directory.stat_file(name) {
            Ok(stat) => return must_be_readable(&Inode::from(stat), which, client),
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(not_opened(which, errno)),
        }
    }
    // The root of v2 has neither; its numbers are those of /proc/meminfo.
    Ok(())
}

const fn mute(role: DescriptorRole, name: String) -> Refusal {
    Refusal::new(Errno::EINVAL, RefusalReason::NoNotifications { role, name })
}

/// The refusal for a directory or file that could not be opened: as a rule, it is gone.
const fn not_opened(which: DescriptorRole, errno: Errno) -> Refusal {
    match errno {
        Errno::EMFILE | Errno::ENFILE => Refusal::new(Errno::ENOMEM, RefusalReason::OutOfDescriptors),
        Errno::ENOMEM => Refusal::new(errno, RefusalReason::OutOfMemory),
        _ => gone(which),
    }
}

const fn gone(which: DescriptorRole) -> Refusal {
    Refusal::new(Errno::EINVAL, RefusalReason::GroupGone(which))
}

/// Whether this hierarchy has that control file as a file of its own.
fn is_real(places: &FrontendContext, file: ControlFile) -> bool {
    match file {
        ControlFile::Usage | ControlFile::Procs => true,
        ControlFile::WorkingSet => false,
        ControlFile::Memsw | ControlFile::Oom | ControlFile::Pressure => {
            places.directories().version() == Version::V1
        }
    }
}

/// The file of this hierarchy whose permissions are those of a control file.
fn stand_in_for(places: &FrontendContext, file: ControlFile) -> &'static str {
    match file {
        ControlFile::Usage => places.directories().version().usage_file(),
        file if is_real(places, file) => file.name(),
        ControlFile::Memsw => "memory.swap.current",
        ControlFile::Oom => "memory.events.local",
        ControlFile::Pressure => "memory.pressure",
        ControlFile::WorkingSet | ControlFile::Procs => "memory.stat",
    }
}

/// The file's own name: the last part of the link is that in every mount namespace; the rest
/// of it is not read.
fn name_of(fd: BorrowedFd<'_>) -> Vec<u8> {
    let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default();
    link.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default()
}

/// The group of the directory with this id, as the kernel reports it now or did before.
fn group_of(
    places: &FrontendContext,
    directory: Option<&Directory>,
    id: u64,
    which: DescriptorRole,
) -> Result<GroupId, Refusal> {
    if id == places.directories().root_id() {
        return Ok(places.identity().root());
    }
    if let Some(group) = places.known.group(places.slots(), id) {
        return Ok(group);
    }
    let opened;
    let directory = match directory {
        Some(directory) => directory,
        None => {
            opened = places.directories().open(id).map_err(|errno| not_opened(which, errno))?;
            &opened
        }
    };
    let usage = directory
        .file(places.directories().version().usage_file())
        .map_err(|errno| not_opened(which, errno))?;
    match places.identity().locate(usage.as_fd()) {
        Ok(Located::Group(group)) => {
            places.known.remember_group(id, group);
            Ok(group)
        }
        Ok(Located::Root) => Ok(places.identity().root()),
        Ok(Located::TableFull) => Err(Refusal::new(Errno::ENOMEM, RefusalReason::GroupsFull)),
        Ok(Located::Nobody) => Err(gone(which)),
        Err(error) => {
            log::error!("registration failed: {error}");
            Err(Refusal::new(Errno::EIO, RefusalReason::QueryFailed))
        }
    }
}
