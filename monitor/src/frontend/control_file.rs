//! Resolves a line's control descriptor: which control file it is, of which group.

use std::{
    fs,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    rc::Rc,
    sync::Arc,
};

use monitor_common::grammar::control_file::{ControlFile, split_directory_args};
use nix::errno::Errno;

use crate::{
    cgroup::{
        Version,
        controller::UncontrolledCause,
        handle::{Directories, Directory},
    },
    frontend::{
        accounting::Accounting,
        cache::{GroupCache, ResolvedControlFile},
        deferred_close::DeferredClose,
        fair::Fair,
        inode::Inode,
        refusal::{DescriptorRole, Refusal, RefusalReason, failed_by, short_of},
        requester::{Requester, must_be_readable},
    },
    printable::printable,
    recorder::RecorderHandle,
    source::{GroupId, Identify, Located, Slots},
    view::tree::{MountedTree, Node, Tree},
};

/// State that all frontends share: where control files lie, in the hierarchy itself and in
/// the view of it, and how clients are accounted.
pub struct FrontendContext {
    /// The real directories of the groups.
    pub directories: Arc<Directories>,
    view: Option<MountedTree>,
    known: GroupCache,
    /// Closes the descriptors that clients sent.
    pub deferred_close: DeferredClose,
    /// Owner of the quota that each client counts against.
    pub accounting: Accounting,
    /// Turns of the users at the frontends.
    pub fair: Rc<Fair>,
    /// The recorder of the black box, where it is on.
    pub recorder: Option<RecorderHandle>,
    identity: Box<dyn Identify>,
}

impl std::fmt::Debug for FrontendContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrontendContext").field("view", &self.view).finish_non_exhaustive()
    }
}

impl FrontendContext {
    /// Begins with an empty cache.
    #[must_use]
    pub fn new(
        directories: Arc<Directories>,
        view: Option<MountedTree>,
        deferred_close: DeferredClose,
        identity: Box<dyn Identify>,
    ) -> Self {
        let view_device = view.as_ref().map(|view| view.device);
        deferred_close.trust([directories.device()].into_iter().chain(view_device));
        let (accounting, fair) = Default::default();
        Self {
            directories,
            view,
            known: GroupCache::default(),
            deferred_close,
            accounting,
            fair,
            recorder: None,
            identity,
        }
    }

    /// Identifies clients' files and descriptors.
    pub(super) fn identity(&self) -> &dyn Identify {
        self.identity.as_ref()
    }

    /// Whether the source sees what happens, for this thread; see [`Identify::is_alive`].
    #[must_use]
    pub fn is_source_alive(&self) -> bool {
        self.identity.is_alive()
    }

    /// The table of groups, without the watcher's lock.
    #[must_use]
    pub fn slots(&self) -> &dyn Slots {
        self.identity.as_ref()
    }

    /// The tree that the view shows, if a file on this device is a file of the view.
    fn tree_on(&self, device: u64) -> Option<&Tree> {
        self.view.as_ref().filter(|view| view.device == device).map(|view| &*view.tree)
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
    context: &FrontendContext,
    number: u32,
    client: &impl Requester,
    args: &'a [u8],
) -> Result<(ResolvedControlFile, &'a [u8]), Refusal> {
    let role = client.control_role(number);
    if let Some(inode) = client.peek(number) {
        if let Some(tree) = context.tree_on(inode.device) {
            return in_view(context, tree, (inode, role), client, args);
        }
        if inode.device == context.directories.device()
            && let Some(control) = context.known.control(context.slots(), inode.number)
        {
            must_be_readable(&inode, role, client)?;
            return Ok((control, args));
        }
    }
    let held = client.control(number)?;
    let fd = held.descriptor().map_err(|errno| Refusal::new(errno, RefusalReason::Closed(role)))?;
    let inode = Inode::of(fd).map_err(|errno| Refusal::new(errno, RefusalReason::NoInode(role)))?;
    if let Some(tree) = context.tree_on(inode.device) {
        return in_view(context, tree, (inode, role), client, args);
    }
    must_be_readable(&inode, role, client)?;
    if inode.device != context.directories.device() {
        return Err(Refusal::new(Errno::EINVAL, RefusalReason::OtherHierarchy(role)));
    }
    match inode.mode & libc::S_IFMT {
        libc::S_IFDIR => {
            let (file, args) = named(args, role)?;
            let stand_in = context.directories.open(inode.number);
            let stand_in = stand_in.map_err(|errno| not_found(context, inode.number, role, errno))?;
            named_must_be_readable(context, &stand_in, file, role, client)?;
            let group = group_of(context, Some(&stand_in), inode.number, role)?;
            Ok((ResolvedControlFile { group, cgroup_id: inode.number, file }, args))
        }
        libc::S_IFREG => {
            let name = name_of(fd);
            let Some(file) = ControlFile::from_name(&name).filter(|file| is_real(context, *file)) else {
                return Err(mute(role, String::from_utf8_lossy(&name).into_owned()));
            };
            let home = context.directories.home_of(inode.number);
            let home = home.map_err(|errno| not_found(context, inode.number, role, errno))?;
            let cgroup_id = home.stat().map_err(|_| gone(role))?.st_ino;
            let group = group_of(context, Some(&home), cgroup_id, role)?;
            let control = ResolvedControlFile { group, cgroup_id, file };
            context.known.remember_control(inode.number, control);
            Ok((control, args))
        }
        _ => Err(Refusal::new(Errno::EINVAL, RefusalReason::NotRegularFile(role))),
    }
}

/// Resolves a file or directory of the view.
fn in_view<'a>(
    context: &FrontendContext,
    tree: &Tree,
    (inode, role): (Inode, DescriptorRole),
    client: &impl Requester,
    args: &'a [u8],
) -> Result<(ResolvedControlFile, &'a [u8]), Refusal> {
    let node = Node::numbered(inode.number, context.directories.root_id()).ok_or_else(|| gone(role))?;
    // The view's attributes of now; the kernel may remember an older answer.
    let found = tree.attributes(node).map_err(|_| gone(role))?;
    let found = Inode { mode: found.mode, uid: found.uid, gid: found.gid, ..inode };
    must_be_readable(&found, role, client)?;
    let (file, args) = match node.file {
        None => {
            let (file, args) = named(args, role)?;
            let directory = tree.open(node.group).map_err(|errno| not_opened(role, errno))?;
            named_must_be_readable(context, &directory, file, role, client)?;
            (file, args)
        }
        Some(file) => {
            let control = file.control().ok_or_else(|| mute(role, file.name().to_owned()))?;
            (control, args)
        }
    };
    let group = group_of(context, None, node.group, role)?;
    Ok((ResolvedControlFile { group, cgroup_id: node.group, file }, args))
}

/// The control file that the arguments for a directory begin with.
fn named(args: &[u8], role: DescriptorRole) -> Result<(ControlFile, &[u8]), Refusal> {
    split_directory_args(args).ok_or_else(|| Refusal::new(Errno::EINVAL, RefusalReason::NoFileName(role)))
}

/// Checks a client that names a control file by its directory: it needs the permission that
/// opening the file would have needed, on a real directory and on the view's alike. Where
/// this host has no such file (no swap, no PSI), the usage file's permission counts.
fn named_must_be_readable(
    context: &FrontendContext,
    directory: &Directory,
    file: ControlFile,
    role: DescriptorRole,
    client: &impl Requester,
) -> Result<(), Refusal> {
    for name in [stand_in_for(context, file), context.directories.version().usage_file()] {
        match directory.stat_file(name) {
            Ok(stat) => return must_be_readable(&Inode::from(stat), role, client),
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(not_opened(role, errno)),
        }
    }
    // The root of v2 has neither; its numbers are those of /proc/meminfo.
    Ok(())
}

const fn mute(role: DescriptorRole, name: String) -> Refusal {
    Refusal::new(Errno::EINVAL, RefusalReason::NoNotifications { role, name })
}

/// The refusal for a directory or file that could not be opened: as a rule, it is gone.
fn not_opened(role: DescriptorRole, errno: Errno) -> Refusal {
    short_of(errno).unwrap_or_else(|| gone(role))
}

/// The refusal for the directory or file with this id, which the hierarchy did not give: it is gone, or
/// outside of a root that is a group.
fn not_found(context: &FrontendContext, id: u64, role: DescriptorRole, errno: Errno) -> Refusal {
    if errno == Errno::ENOENT && context.directories.is_outside(id) {
        return Refusal::new(Errno::EINVAL, RefusalReason::OutsideRoot(role));
    }
    not_opened(role, errno)
}

const fn gone(role: DescriptorRole) -> Refusal {
    Refusal::new(Errno::EINVAL, RefusalReason::GroupGone(role))
}

/// The refusal for a directory without a usage file: it has no memory controller, or is gone.
fn without_usage(context: &FrontendContext, directory: &Directory, role: DescriptorRole) -> Refusal {
    let Some(found) = context.directories.uncontrolled(directory) else { return gone(role) };
    let shown = |path: &Path| printable(&path.to_string_lossy()).into_owned();
    let group = shown(&found.group);
    let reason = match found.cause {
        UncontrolledCause::Withheld { above, is_parent } => {
            RefusalReason::NoController { role, group, above: shown(&above), is_parent }
        }
        UncontrolledCause::Threaded { domain } => {
            RefusalReason::Threaded { role, group, domain: shown(&domain) }
        }
        UncontrolledCause::AboveRoot { root } => {
            RefusalReason::WithheldAboveRoot { role, group, root: shown(&root) }
        }
        UncontrolledCause::ThreadedAboveRoot { root } => {
            RefusalReason::ThreadedAboveRoot { role, group, root: shown(&root) }
        }
    };
    Refusal::new(Errno::EINVAL, reason)
}

/// Whether this hierarchy has that control file as a file of its own.
fn is_real(context: &FrontendContext, file: ControlFile) -> bool {
    match file {
        ControlFile::Usage | ControlFile::Procs => true,
        ControlFile::WorkingSet | ControlFile::Anon => false,
        ControlFile::Memsw | ControlFile::Oom | ControlFile::Pressure => {
            context.directories.version() == Version::V1
        }
    }
}

/// The file of this hierarchy whose permissions are those of a control file.
fn stand_in_for(context: &FrontendContext, file: ControlFile) -> &'static str {
    match file {
        ControlFile::Usage => context.directories.version().usage_file(),
        file if is_real(context, file) => file.name(),
        ControlFile::Memsw => "memory.swap.current",
        ControlFile::Oom => "memory.events.local",
        ControlFile::Pressure => "memory.pressure",
        ControlFile::WorkingSet | ControlFile::Anon | ControlFile::Procs => "memory.stat",
    }
}

/// The file's own name: the last part of the link is that in every mount namespace; the rest
/// of it is not read.
fn name_of(fd: BorrowedFd<'_>) -> Vec<u8> {
    let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default();
    link.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default()
}

/// The group of the directory with this id, as the kernel reports it now or did before.
pub(super) fn group_of(
    context: &FrontendContext,
    directory: Option<&Directory>,
    id: u64,
    role: DescriptorRole,
) -> Result<GroupId, Refusal> {
    if context.directories.host_root() == Some(id) {
        return Ok(context.identity().root());
    }
    if let Some(group) = context.known.group(context.slots(), id) {
        return Ok(group);
    }
    let opened;
    let directory = match directory {
        Some(directory) => directory,
        None => {
            opened = context.directories.open(id).map_err(|errno| not_opened(role, errno))?;
            &opened
        }
    };
    let usage = directory.file(context.directories.version().usage_file()).map_err(|errno| match errno {
        Errno::ENOENT => without_usage(context, directory, role),
        errno => not_opened(role, errno),
    })?;
    match context.identity().locate(usage.as_fd(), directory.as_fd(), id) {
        Ok(Located::Group(group)) => {
            context.known.remember_group(id, group);
            Ok(group)
        }
        Ok(Located::Root) => Ok(context.identity().root()),
        Ok(Located::TableFull) => Err(Refusal::new(Errno::ENOMEM, RefusalReason::GroupsFull)),
        Ok(Located::NoGroup) => Err(gone(role)),
        Err(error) => Err(failed_by(&error, RefusalReason::QueryFailed)),
    }
}
