//! The view's tree, worked out anew for each request: names, attributes and contents. Nothing
//! is cached, so nothing is ever out of date.

use std::{
    ffi::{OsStr, OsString},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::errno::Errno;

use crate::{
    cgroup::{
        Version,
        handle::{Directories, Directory},
        v1_file::V1File,
    },
    view::{contents, pid_namespace::PidNamespace},
};

/// Inode numbers that a group has: its directory's and its files'.
const NUMBERS: u64 = 64;

/// Inode number of the view's root, by the protocol.
const ROOT: u64 = 1;

/// A directory, or a file in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// `st_ino` of the group's real directory.
    pub group: u64,
    /// The file; the directory itself when absent.
    pub file: Option<V1File>,
}

impl Node {
    /// The node's inode number in the view; `root` is the root group's id.
    #[must_use]
    pub fn number(self, root: u64) -> u64 {
        match self.file {
            None if self.group == root => ROOT,
            // Ids are below 2^58: the kernel counts generations in their upper half.
            file => self.group.wrapping_mul(NUMBERS) + file.map_or(0, V1File::number),
        }
    }

    /// The node with this inode number.
    #[must_use]
    pub fn numbered(number: u64, root: u64) -> Option<Self> {
        if number == ROOT {
            return Some(Self { group: root, file: None });
        }
        let group = number / NUMBERS;
        match number % NUMBERS {
            _ if group == 0 => None,
            0 => Some(Self { group, file: None }),
            file => Some(Self { group, file: Some(V1File::numbered(file)?) }),
        }
    }
}

/// Attributes of a node, as `stat` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Node that these belong to.
    pub node: Node,
    /// Permission bits of the node.
    pub mode: u32,
    /// User id of the owner.
    pub uid: u32,
    /// Group id of the owner.
    pub gid: u32,
    /// Number of links; for a directory, two more than there are directories in it.
    pub links: u32,
    /// Time of the real directory's last change: seconds since 1970 and nanoseconds.
    pub modified: (i64, i64),
}

/// Permission bits of a file, and its owner where that is not the directory's.
struct Permissions {
    mode: u32,
    owner: Option<(u32, u32)>,
}

/// The tree that the view shows.
#[derive(Debug)]
pub struct Tree {
    directories: Arc<Directories>,
    event_control_mode: u32,
    closed: AtomicBool,
}

/// The tree of a view that is mounted.
#[derive(Clone, Debug)]
pub struct MountedTree {
    /// `st_dev` of its files.
    pub device: u64,
    /// The tree that it shows.
    pub tree: Arc<Tree>,
}

impl Tree {
    /// The tree of this hierarchy.
    #[must_use]
    pub const fn new(directories: Arc<Directories>, event_control_mode: u32) -> Self {
        Self { directories, event_control_mode, closed: AtomicBool::new(false) }
    }

    /// Shows every group as removed from now on: the agent ends for good.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// The real directories of the groups.
    #[must_use]
    pub fn directories(&self) -> &Directories {
        &self.directories
    }

    /// Opens the real directory of a group that is in the view.
    ///
    /// # Errors
    /// `ENOENT` when it is removed, or has no memory controller (any more), or the view is
    /// closed.
    pub fn open(&self, group: u64) -> Result<Directory, Errno> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Errno::ENOENT);
        }
        self.admit(self.directories.open(group)?, group)
    }

    fn admit(&self, directory: Directory, group: u64) -> Result<Directory, Errno> {
        if self.directories.host_root() != Some(group) {
            directory.stat_file(self.directories.version().usage_file()).map_err(gone)?;
        }
        Ok(directory)
    }

    /// Looks up the node of this name in a directory.
    ///
    /// # Errors
    /// `ENOENT` when there is none.
    pub fn look_up(&self, group: u64, name: &OsStr) -> Result<Attributes, Errno> {
        let directory = self.open(group)?;
        if let Some(file) = V1File::named(name.as_encoded_bytes()) {
            return self.attributes_of(&directory, Node { group, file: Some(file) });
        }
        let child = self.directories.child(&directory, name)?;
        let group = child.stat()?.st_ino;
        self.attributes_of(&self.admit(child, group)?, Node { group, file: None })
    }

    /// Reads the attributes of a node.
    ///
    /// # Errors
    /// `ENOENT` when the group is removed.
    pub fn attributes(&self, node: Node) -> Result<Attributes, Errno> {
        self.attributes_of(&self.open(node.group)?, node)
    }

    fn attributes_of(&self, directory: &Directory, node: Node) -> Result<Attributes, Errno> {
        let stat = directory.stat().map_err(gone)?;
        let (permissions, links) = match node.file {
            None => {
                let links = u32::try_from(stat.st_nlink).unwrap_or(2);
                (Permissions { mode: stat.st_mode & 0o7777, owner: None }, links)
            }
            Some(file) => (self.permissions(directory, node.group, file)?, 1),
        };
        let Permissions { mode, owner } = permissions;
        let (uid, gid) = owner.unwrap_or((stat.st_uid, stat.st_gid));
        Ok(Attributes { node, mode, uid, gid, links, modified: (stat.st_mtime, stat.st_mtime_nsec) })
    }

    /// Permissions of a file: a user may read no more here than in the real directory.
    /// `ENOENT` for a file that this group has not.
    fn permissions(&self, directory: &Directory, group: u64, file: V1File) -> Result<Permissions, Errno> {
        /// Read permission bits: for each user, one of them counts.
        const READABLE: u32 = 0o444;
        let version = self.directories.version();
        if version == Version::V2 && !contents::has(&self.directories, group, directory, file)? {
            return Err(Errno::ENOENT);
        }
        let of_directory = |mode| Permissions { mode, owner: None };
        let source = match version {
            _ if file == V1File::EventControl => return Ok(of_directory(self.event_control_mode)),
            Version::V1 => file.v1_source(),
            Version::V2 => file.v2_source(),
        };
        let Some(source) = source else { return Ok(of_directory(file.mode())) };
        match directory.stat_file(source) {
            Ok(stat) => {
                let mode = file.mode() & (stat.st_mode | 0o222);
                // Bits that exclude some users refer to the real file's owner, which need not
                // be the directory's.
                let shuts = stat.st_mode & READABLE != READABLE;
                Ok(Permissions { mode, owner: shuts.then_some((stat.st_uid, stat.st_gid)) })
            }
            // The root has few files of v2, and contents of the others are no secret; v1's
            // files are there or not, here as there.
            Err(Errno::ENOENT) if version == Version::V2 => Ok(of_directory(file.mode())),
            Err(errno) => Err(gone(errno)),
        }
    }

    /// Lists the names in a directory after the place `offset`, each with the place to go on from.
    /// Directories are in the order of their ids: whatever is made and removed meanwhile, the
    /// others are listed exactly once.
    ///
    /// # Errors
    /// `ENOENT` when the group is removed.
    pub fn list(&self, group: u64, offset: u64) -> Result<Vec<(u64, Node, OsString)>, Errno> {
        /// Places before the first directory's.
        const FILES: u64 = NUMBERS;
        let directory = self.open(group)?;
        let mut names = Vec::new();
        let mut add = |place: u64, node, name: OsString| {
            if place > offset {
                names.push((place, node, name));
            }
        };
        let itself = Node { group, file: None };
        add(1, itself, ".".into());
        add(2, itself, "..".into());
        for file in V1File::ALL {
            if self.permissions(&directory, group, file).is_ok() {
                add(2 + file.number(), Node { group, file: Some(file) }, file.name().into());
            }
        }
        if self.has_groups_below(&directory) {
            let mut children = directory.children().map_err(gone)?;
            children.sort_unstable();
            // A file hides a directory of its name, which v1 could not have had.
            children.retain(|(_, name)| V1File::named(name.as_encoded_bytes()).is_none());
            for (id, name) in children {
                add(FILES + id, Node { group: id, file: None }, name);
            }
        }
        Ok(names)
    }

    /// Whether the directories in it have the memory controller: all, or none.
    fn has_groups_below(&self, directory: &Directory) -> bool {
        self.directories.version() == Version::V1
            || contents::text(directory, "cgroup.subtree_control")
                .is_ok_and(|text| text.split_whitespace().any(|controller| controller == "memory"))
    }

    /// Reads the text of a file, as of now.
    ///
    /// # Errors
    /// `ENODEV` when the group is removed, `EINVAL` where there is nothing to read.
    pub fn read(&self, group: u64, file: V1File) -> Result<Vec<u8>, Errno> {
        let directory = self.open_to_read(group)?;
        contents::read(&self.directories, group, &directory, file)
    }

    /// Reads a list of tasks, as of now, with the numbers that they have in a pid namespace.
    ///
    /// # Errors
    /// `ENODEV` when the group is removed.
    pub fn read_tasks(&self, group: u64, file: V1File, namespace: PidNamespace) -> Result<Vec<u8>, Errno> {
        let directory = self.open_to_read(group)?;
        contents::read_tasks(&self.directories, &directory, file, namespace)
    }

    fn open_to_read(&self, group: u64) -> Result<Directory, Errno> {
        self.open(group).map_err(|errno| match errno {
            Errno::ENOENT => Errno::ENODEV,
            other => other,
        })
    }
}

/// Maps the errnos of a directory that is removed meanwhile to `ENOENT`.
fn gone(errno: Errno) -> Errno {
    match errno {
        Errno::ENODEV | Errno::ESTALE => Errno::ENOENT,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::{Node, V1File};

    #[test]
    fn numbers_lead_back() {
        for root in [1, 77] {
            for group in [1, 2, 77, 1 << 40] {
                for file in std::iter::once(None).chain(V1File::ALL.map(Some)) {
                    let node = Node { group, file };
                    assert_eq!(Node::numbered(node.number(root), root), Some(node));
                }
            }
        }
        assert_eq!(Node { group: 1, file: None }.number(1), 1);
        assert_eq!(Node::numbered(0, 1), None);
        assert_eq!(Node::numbered(5, 1), None);
        assert_eq!(Node::numbered(64 + 63, 1), None);
    }
}
