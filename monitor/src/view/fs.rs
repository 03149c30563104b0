//! The tree as a FUSE file system: the answer to each request.
//!
//! Runs on threads of its own, which never wait for the agent's loop: that may close or inspect
//! a descriptor that lies on the view, and needs an answer from here.

use std::{
    ffi::OsStr,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
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
use nix::errno::Errno as Code;
use tokio::sync::mpsc;

use crate::{
    cgroup::v1_file::V1File,
    view::{
        WAITING, Written, WrittenReply,
        share::Shares,
        snapshot::{Snapshots, part},
        tree::{Attributes, Node, Tree},
    },
};

/// Time for which the kernel may cache answers: none, so that a removed group is gone at once.
const TTL: Duration = Duration::ZERO;

/// Longest write that arrives whole. It is more than a line, so a longer one is
/// refused by its first part.
const LARGEST_WRITE: u32 = 1 << 20;

/// Bytes of text kept for readers in small pieces.
const SNAPSHOTS: usize = 8 << 20;

/// State that the FUSE threads share.
#[derive(Debug)]
pub struct View {
    tree: std::sync::Arc<Tree>,
    writes: mpsc::Sender<Written>,
    shares: Shares,
    opened: AtomicU64,
    snapshots: Mutex<Snapshots>,
}

impl View {
    /// Shows `tree`; writes to a `cgroup.event_control` are sent to `writes`.
    #[must_use]
    pub fn new(tree: std::sync::Arc<Tree>, writes: mpsc::Sender<Written>) -> Self {
        Self {
            tree,
            writes,
            shares: Shares::new(WAITING),
            opened: AtomicU64::new(1),
            snapshots: Mutex::new(Snapshots::new(SNAPSHOTS)),
        }
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

    fn snapshots(&self) -> MutexGuard<'_, Snapshots> {
        // The texts are whole even if a thread panicked under the lock.
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes for `read`: from a new text at offset 0, and from that text after it.
    fn text(&self, number: INodeNo, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, Code> {
        let (group, file) = self.file(number)?;
        if offset > 0 {
            let mut snapshots = self.snapshots();
            if let Some(text) = snapshots.get(handle) {
                // A removed group answers ENODEV in the middle, too.
                let piece = part(text, offset, size).to_vec();
                if piece.is_empty() {
                    snapshots.forget(handle);
                }
                drop(snapshots);
                self.tree.open(group).map_err(|_| Code::ENODEV)?;
                return Ok(piece);
            }
        }
        let text = self.tree.read(group, file)?;
        let piece = part(&text, offset, size).to_vec();
        if offset == 0 {
            let mut snapshots = self.snapshots();
            if piece.len() < text.len() {
                snapshots.keep(handle, text);
            } else {
                snapshots.forget(handle);
            }
        }
        Ok(piece)
    }

    /// Checks of a write that are made before the line is parsed (`kernfs_fop_write_iter`,
    /// `cgroup_file_write`).
    fn admit(&self, number: INodeNo, data: &[u8]) -> Result<u64, Code> {
        let (group, file) = self.file(number)?;
        if data.len() > MAX_LINE {
            return Err(Code::E2BIG);
        }
        self.tree.open(group).map_err(|_| Code::ENODEV)?;
        match file {
            V1File::EventControl => Ok(group),
            // No other file can be written to: the view is for watching.
            _ => Err(Code::EINVAL),
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
        match self.stat(number) {
            Ok(_) if mode.is_some() || uid.is_some() || gid.is_some() => reply.error(Errno::EPERM),
            Ok(found) => reply.attr(&TTL, &found),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
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
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.text(number, handle.0, offset, size) {
            Ok(text) => reply.data(&text),
            Err(code) => reply.error(errno(code)),
        }
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
        let group = match self.admit(number, data) {
            Ok(group) => group,
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
        self.snapshots().forget(handle.0);
        reply.ok();
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.node(number).and_then(|node| self.tree.open(node.group)) {
            Ok(_) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
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
