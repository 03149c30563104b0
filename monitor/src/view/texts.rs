//! Texts of the view's files on their way to readers, whole or in pieces.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use crate::{
    cgroup::v1_file::V1File,
    view::{
        pid_namespace::PidNamespace,
        snapshot::{Snapshots, part},
        tree::Tree,
    },
};

/// Bytes of text kept for readers in small pieces.
const SNAPSHOTS: usize = 8 << 20;

/// One read of an open file.
#[derive(Clone, Copy, Debug)]
pub struct ReadRequest {
    /// `st_ino` of the group's real directory.
    pub group: u64,
    /// The file that is read.
    pub file: V1File,
    /// Number of the open file.
    pub handle: u64,
    /// First byte that is wanted.
    pub offset: u64,
    /// Largest number of bytes that are wanted.
    pub size: u32,
}

/// The texts of a tree's files.
#[derive(Debug)]
pub struct Texts {
    tree: Arc<Tree>,
    snapshots: Mutex<Snapshots>,
}

impl Texts {
    /// Begins with nothing kept.
    #[must_use]
    pub fn new(tree: Arc<Tree>) -> Self {
        Self { tree, snapshots: Mutex::new(Snapshots::new(SNAPSHOTS)) }
    }

    /// The bytes for a read that goes on in the text it began with; `None` where it begins one.
    pub fn rest(&self, read: &ReadRequest) -> Option<Result<Vec<u8>, Errno>> {
        if read.offset == 0 {
            return None;
        }
        let mut snapshots = self.snapshots();
        let piece = part(snapshots.get(read.handle)?, read.offset, read.size).to_vec();
        if piece.is_empty() {
            snapshots.forget(read.handle);
        }
        drop(snapshots);
        // A removed group answers ENODEV in the middle, too.
        Some(self.tree.open(read.group).map(|_| piece).map_err(|_| Errno::ENODEV))
    }

    /// The bytes for a read of a new text, for a reader in the agent's pid namespace.
    ///
    /// # Errors
    /// As [`Tree::read`].
    pub fn begin(&self, read: &ReadRequest) -> Result<Vec<u8>, Errno> {
        Ok(self.piece(read, self.tree.read(read.group, read.file)?))
    }

    /// The bytes for a read of a new list of tasks, for a reader in another pid namespace.
    ///
    /// # Errors
    /// As [`Tree::read`], and as [`PidNamespace::of`] for the reader.
    pub fn begin_for(&self, read: &ReadRequest, reader: i32) -> Result<Vec<u8>, Errno> {
        let namespace = PidNamespace::of(reader)?;
        Ok(self.piece(read, self.tree.read_tasks(read.group, read.file, namespace)?))
    }

    /// Drops what is kept for an open file.
    pub fn forget(&self, handle: u64) {
        self.snapshots().forget(handle);
    }

    fn piece(&self, read: &ReadRequest, text: Vec<u8>) -> Vec<u8> {
        let piece = part(&text, read.offset, read.size).to_vec();
        if read.offset == 0 {
            let mut snapshots = self.snapshots();
            if piece.len() < text.len() {
                snapshots.keep(read.handle, text);
            } else {
                snapshots.forget(read.handle);
            }
        }
        piece
    }

    fn snapshots(&self) -> MutexGuard<'_, Snapshots> {
        // The texts are whole even if a thread panicked under the lock.
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
