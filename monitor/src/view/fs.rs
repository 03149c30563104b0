//! The tree as a FUSE file system: the answer to each request.
//!
//! Runs on threads of its own, which never wait for the agent's loop: that may close or inspect
//! a descriptor that lies on the view, and needs an answer from here.

use std::{
    ffi::OsStr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyOpen, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use monitor_common::grammar::line::MAX_LINE;
use nix::{
    errno::Errno as Code,
    time::{ClockId, clock_gettime},
};
use tokio::sync::mpsc;

use crate::{
    cgroup::v1_file::V1File,
    view::{
        gate::Gate,
        pid_namespace, setting,
        share::Shares,
        task_lists::TaskLists,
        texts::{ReadRequest, Texts},
        tree::{Attributes, Node, Tree},
        written::{WAITING, Written, WrittenReply},
    },
};

/// Time for which the kernel may cache answers: none, so that a removed group is gone at once.
const TTL: Duration = Duration::ZERO;

/// Longest write that arrives whole. It is more than a line, so a longer one is
/// refused by its first part.
pub(super) const LARGEST_WRITE: u32 = 1 << 20;

/// State that the FUSE threads share.
#[derive(Debug)]
pub struct View {
    tree: Arc<Tree>,
    texts: Arc<Texts>,
    task_lists: TaskLists,
    writes: mpsc::Sender<Written>,
    shares: Shares,
    opened: AtomicU64,
    gate: Arc<Gate>,
}

/// Handles on what the view's threads do, and on what is queued for others.
#[derive(Clone, Debug)]
pub struct ViewWork {
    gate: Arc<Gate>,
    shares: Shares,
    task_lists: TaskLists,
}

impl ViewWork {
    /// The gate of the view's threads.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Whether every request that was queued is answered.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.shares.is_idle() && self.task_lists.is_idle()
    }
}

/// The first number of an open file: later than any that an earlier agent on the same connection
/// has given out, one in a nanosecond at most.
fn first_handle() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(0).max(1)
}

impl View {
    /// Shows `tree`; writes to a `cgroup.event_control` are sent to `writes`.
    #[must_use]
    pub fn new(tree: Arc<Tree>, writes: mpsc::Sender<Written>) -> Self {
        let texts = Arc::new(Texts::new(Arc::clone(&tree)));
        let task_lists = TaskLists::new(Arc::clone(&texts));
        Self {
            tree,
            texts,
            task_lists,
            writes,
            shares: Shares::new(WAITING),
            opened: AtomicU64::new(first_handle()),
            gate: Arc::default(),
        }
    }

    /// The work that has to be quiet before the view is handed over.
    #[must_use]
    pub fn work(&self) -> ViewWork {
        ViewWork {
            gate: Arc::clone(&self.gate),
            shares: self.shares.clone(),
            task_lists: self.task_lists.clone(),
        }
    }

    /// The queue of reads that a thread of its own answers.
    #[must_use]
    pub fn task_lists(&self) -> TaskLists {
        self.task_lists.clone()
    }

    fn root(&self) -> u64 {
        self.tree.directories().root_id()
    }

    fn node(&self, number: INodeNo) -> Result<Node, Code> {
        Node::numbered(number.0, self.root()).ok_or(Code::ENOENT)
    }

    fn file(&self, number: INodeNo) -> Result<(u64, V1File), Code> {
        let node = self.node(number)?;
        Ok((node.group, node.file.ok_or(Code::EISDIR)?))
    }

    fn stat(&self, number: INodeNo) -> Result<FileAttr, Code> {
        Ok(file_attr(&self.tree.attributes(self.node(number)?)?, self.root()))
    }

    /// Checks of a write that are made before the line is parsed (`kernfs_fop_write_iter`,
    /// `cgroup_file_write`). Returns the group that a line registers on; a write to another file
    /// is refused, or has nothing to do.
    fn admit(&self, number: INodeNo, data: &[u8]) -> Result<Option<u64>, Code> {
        let (group, file) = self.file(number)?;
        if data.len() > MAX_LINE {
            return Err(Code::E2BIG);
        }
        self.tree.open(group).map_err(|_| Code::ENODEV)?;
        match file {
            V1File::EventControl => Ok(Some(group)),
            file => setting::check(file, group == self.root(), data).map(|()| None),
        }
    }
}

fn errno(code: Code) -> Errno {
    Errno::from_i32(code as i32)
}

fn file_attr(found: &Attributes, root: u64) -> FileAttr {
    let (seconds, nanoseconds) = found.modified;
    let since = Duration::new(seconds.try_into().unwrap_or(0), nanoseconds.try_into().unwrap_or(0));
    let time = UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH);
    FileAttr {
        ino: INodeNo(found.node.number(root)),
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: if found.node.file.is_some() { FileType::RegularFile } else { FileType::Directory },
        perm: (found.mode & 0o7777) as u16,
        nlink: found.links,
        uid: found.uid,
        gid: found.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for View {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // A kernel with a lower limit reports it, and applies that.
        let _ = config.set_max_write(LARGEST_WRITE);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _passage = self.gate.enter();
        let found = self.node(parent).and_then(|node| match node.file {
            None => self.tree.look_up(node.group, name),
            Some(_) => Err(Code::ENOTDIR),
        });
        match found {
            Ok(found) => reply.entry(&TTL, &file_attr(&found, self.root()), Generation(0)),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let _passage = self.gate.enter();
        match self.stat(number) {
            Ok(found) => reply.attr(&TTL, &found),
            Err(code) => reply.error(errno(code)),
        }
    }

    /// Accepts `O_TRUNC`, which arrives here, and changes nothing. Owner and mode are the real
    /// directory's.
    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _passage = self.gate.enter();
        match self.stat(number) {
            Ok(_) if mode.is_some() || uid.is_some() || gid.is_some() => reply.error(Errno::EPERM),
            Ok(found) => reply.attr(&TTL, &found),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let _passage = self.gate.enter();
        let opened = self.file(number).and_then(|(group, _)| self.tree.open(group));
        match opened {
            // Without flush: it would take the inode's lock, which a writer holds
            // while the agent answers it.
            Ok(_) => reply.opened(
                FileHandle(self.opened.fetch_add(1, Ordering::Relaxed)),
                FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
            ),
            Err(Code::ENOENT) => reply.error(Errno::ENODEV),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn read(
        &self,
        request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _passage = self.gate.enter();
        let answer = |text: Result<Vec<u8>, Code>, reply: ReplyData| match text {
            Ok(text) => reply.data(&text),
            Err(code) => reply.error(errno(code)),
        };
        let read = match self.file(number) {
            Ok((group, file)) => ReadRequest { group, file, handle: handle.0, offset, size },
            Err(code) => return reply.error(errno(code)),
        };
        if let Some(rest) = self.texts.rest(&read) {
            return answer(rest, reply);
        }
        let reader = request.pid().try_into().unwrap_or(0);
        if read.file.lists_tasks() && pid_namespace::depth(reader) != Ok(0) {
            return self.task_lists.submit(request.uid(), reader, read, reply);
        }
        answer(self.texts.begin(&read), reply);
    }

    /// Takes one write as one line, as in the kernel; the offset is ignored.
    fn write(
        &self,
        request: &Request,
        number: INodeNo,
        _: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _passage = self.gate.enter();
        let group = match self.admit(number, data) {
            Ok(Some(group)) => group,
            Ok(None) => return reply.written(data.len().try_into().unwrap_or(u32::MAX)),
            Err(code) => return reply.error(errno(code)),
        };
        let Some(place) = self.shares.take(request.uid()) else {
            log::warn!(
                "a registration of uid {} was refused: too many of that user's are waiting",
                request.uid()
            );
            return reply.error(errno(Code::ENOMEM));
        };
        let written = Written {
            line: data.to_vec(),
            pid: request.pid().try_into().unwrap_or(0),
            uid: request.uid(),
            gid: request.gid(),
            group,
            reply: WrittenReply::new(reply, data.len(), place),
        };
        match self.writes.try_send(written) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(written)) => {
                log::warn!("a registration was refused: too many are waiting to be handled");
                written.reply.refuse(Code::ENOMEM);
            }
            // The agent ends; dropped, it answers ENOTCONN.
            Err(mpsc::error::TrySendError::Closed(_)) => {}
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let _passage = self.gate.enter();
        self.texts.forget(handle.0);
        reply.ok();
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let _passage = self.gate.enter();
        match self.node(number).and_then(|node| self.tree.open(node.group)) {
            Ok(_) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let _passage = self.gate.enter();
        let names = self.node(number).and_then(|node| self.tree.list(node.group, offset));
        let names = match names {
            Ok(names) => names,
            // An open directory that is removed is empty, as in the kernel.
            Err(Code::ENOENT) => return reply.ok(),
            Err(code) => return reply.error(errno(code)),
        };
        for (place, node, name) in names {
            let kind = if node.file.is_some() { FileType::RegularFile } else { FileType::Directory };
            if reply.add(INodeNo(node.number(self.root())), place, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    // Operations that a cgroup directory does not have, with the errno that it gives.

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EACCES);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    // Everything else is answered ENOSYS, and from then on by the kernel itself: a
    // poll with "ready", flush and fsync with success, attributes by name and the
    // like with "not supported".
}
