//! Directories by id instead of by name: no rename, mount, chroot or namespace
//! comes between, and an id is never used again.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

#[cfg(not(fuzzing))]
use monitor_sys::file_handle::open_by_id;
use monitor_sys::stat::statx;
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, open, openat},
    sys::stat::{FileStat, Mode, fstat, fstatat},
};

use crate::{
    cgroup::{
        hierarchy::{Hierarchy, Version},
        outside::KnownIds,
    },
    error::{Error, Result},
};

/// A directory by its path, as far as that goes: users may nest groups to any depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached<'a> {
    /// The directory at this path.
    At(&'a Path),
    /// A directory somewhere below this path, whose own is too long.
    Below(&'a Path),
}

/// Opens the directories of a hierarchy by their ids.
#[derive(Debug)]
pub struct Directories {
    root: OwnedFd,
    /// Mount point of the root at the start; the mount may be gone since.
    point: PathBuf,
    root_id: u64,
    /// Whether the root is a group with a usage of its own.
    root_is_group: bool,
    known: KnownIds,
    device: u64,
    version: Version,
}

impl Directories {
    /// Opens the root of a hierarchy.
    ///
    /// # Errors
    /// The root cannot be opened by its id: says which privilege is missing.
    pub fn new(hierarchy: &Hierarchy) -> Result<Self> {
        let path = &hierarchy.root;
        let failed = |call: &str, errno| Error::syscall(format!("{call} {}", path.display()), errno);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(path, flags, Mode::empty()).map_err(|errno| failed("open", errno))?;
        let stat = fstat(&root).map_err(|errno| failed("fstat", errno))?;
        let directories = Self {
            root,
            point: path.clone(),
            root_id: stat.st_ino,
            root_is_group: false,
            known: KnownIds::default(),
            device: stat.st_dev,
            version: hierarchy.version,
        };
        let root = directories.open(stat.st_ino).map_err(|errno| match errno {
            Errno::EPERM => failed("open_by_handle_at (the agent needs CAP_DAC_READ_SEARCH)", errno),
            _ => failed("open_by_handle_at", errno),
        })?;
        let is_host_root = root.is_host_root(directories.version);
        let root_is_group = !is_host_root.map_err(|errno| failed("newfstatat", errno))?;
        Ok(Self { root_is_group, ..directories })
    }

    /// Id of the root where it stands for the host. `None` where the root is a group, as in a cgroup
    /// namespace or a bind mount of a part of the hierarchy.
    #[must_use]
    pub const fn host_root(&self) -> Option<u64> {
        if self.root_is_group { None } else { Some(self.root_id) }
    }

    /// Id of the hierarchy's root.
    #[must_use]
    pub const fn root_id(&self) -> u64 {
        self.root_id
    }

    /// `st_dev` of everything in the hierarchy.
    #[must_use]
    pub const fn device(&self) -> u64 {
        self.device
    }

    /// Version of the hierarchy: v1 or v2.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The directory with this id.
    ///
    /// # Errors
    /// `ENOENT` when there is none, or none any more, or where the root is a group and the directory
    /// is not below it.
    pub fn open(&self, id: u64) -> nix::Result<Directory> {
        let directory = Directory { fd: self.open_any(id, libc::O_DIRECTORY)? };
        // An id reaches the whole file system, whatever part of it is mounted here.
        if self.root_is_group && !self.is_below_root(&directory, id)? {
            return Err(Errno::ENOENT);
        }
        Ok(directory)
    }

    /// Whether the root is on the way up from the directory. Outside, that way ends at the file
    /// system's root, or before it (`path_connected`, `fs/namei.c`).
    fn is_below_root(&self, directory: &Directory, id: u64) -> nix::Result<bool> {
        let (mut at, mut above) = (id, directory.parent());
        while at != self.root_id {
            let directory = match above {
                Ok(directory) => directory,
                Err(Errno::ENOENT) => return Ok(false),
                Err(errno) => return Err(errno),
            };
            let found = directory.stat()?;
            if found.st_dev != self.device || found.st_ino == at {
                return Ok(false);
            }
            (at, above) = (found.st_ino, directory.parent());
        }
        Ok(true)
    }

    /// The directory of this name in another, whatever is mounted on it.
    ///
    /// # Errors
    /// `ENOENT` when there is none.
    pub fn child(&self, directory: &Directory, name: &OsStr) -> nix::Result<Directory> {
        let child = directory.child(name)?;
        if !child.is_mount()? {
            return Ok(child);
        }
        let covered = directory.children()?.into_iter().find(|(_, known)| known == name);
        self.open(covered.ok_or(Errno::ENOENT)?.0)
    }

    /// The directory that the file with this id (its `st_ino`) lies in, whatever
    /// path it was opened by.
    ///
    /// # Errors
    /// `ENOENT` when there is none, or none any more.
    pub fn home_of(&self, id: u64) -> nix::Result<Directory> {
        let file = self.open_any(id, 0)?;
        let path = self.below_root(&file).ok_or(Errno::ENOENT)?;
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::ENOENT);
        };
        let home = self.below(directory)?;
        let found = fstatat(&home.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if (found.st_dev, found.st_ino) == (self.device, id) { Ok(home) } else { Err(Errno::ENOENT) }
    }

    /// The directory at a path below the root, whatever is mounted on it or on those above it: other
    /// file systems, another hierarchy, or this one once more.
    ///
    /// # Errors
    /// `ENOENT` when there is none, or the path leads above the root.
    pub fn below(&self, path: &Path) -> nix::Result<Directory> {
        let root = self.open(self.root_id)?;
        path.components().try_fold(root, |directory, part| match part {
            Component::Normal(name) => self.child(&directory, name),
            _ => Err(Errno::ENOENT),
        })
    }

    /// Whether the file or directory with this id is there, and beside or above a root that is a group. Such
    /// a group is not this agent's, although the programs see it. Where the root stands for the host it costs
    /// nothing; else a look-up in a table, once for each of the latest ids with an `open_by_handle_at`.
    #[must_use]
    pub fn is_outside(&self, id: u64) -> bool {
        let find = || Some(self.below_root(&self.open_any(id, 0).ok()?).is_none());
        self.root_is_group && self.known.is_outside(id, find).unwrap_or(false)
    }

    /// Whether a group is certainly removed, or its memory controller turned off, also of a group beside a
    /// root that is a group.
    #[must_use]
    pub fn is_gone(&self, id: u64) -> bool {
        let directory = self.open_any(id, libc::O_DIRECTORY).map(|fd| Directory { fd });
        let found = directory.and_then(|directory| directory.stat_file(self.version.usage_file()));
        matches!(found, Err(Errno::ENOENT | Errno::ENODEV))
    }

    fn open_any(&self, id: u64, more: i32) -> nix::Result<OwnedFd> {
        let flags = libc::O_PATH | libc::O_CLOEXEC | more;
        open_by_id(&self.root, id, flags).map_err(|errno| match errno {
            // Removed; or the id of a file.
            Errno::ESTALE | Errno::ENOTDIR => Errno::ENOENT,
            other => other,
        })
    }

    /// Returns the path of the directory with this id, below the hierarchy's mount point.
    #[must_use]
    pub fn path_of(&self, id: u64) -> Option<PathBuf> {
        let path = self.below_root(&self.open(id).ok()?.fd)?;
        Some(if path.as_os_str().is_empty() { self.point.clone() } else { self.point.join(path) })
    }

    /// Whether the directory with this id is there, and nested so deep that the kernel shows no path of it
    /// (`d_path` with `PATH_MAX` bytes).
    #[must_use]
    pub fn is_too_deep(&self, id: u64) -> bool {
        let path = self.open(id).map(|directory| link(&directory.fd));
        matches!(path, Ok(Err(error)) if error.raw_os_error() == Some(libc::ENAMETOOLONG))
    }

    /// The path of a group below the hierarchy's mount point, whether it is there or not.
    #[must_use]
    pub fn named(&self, below: &str) -> PathBuf {
        self.point.join(below.trim_start_matches('/'))
    }

    /// Returns its path in the agent's own mount, counted from that one's root: so it does not matter
    /// whether that was unmounted, or another mounted over it.
    fn below_root(&self, fd: &OwnedFd) -> Option<PathBuf> {
        let root = link(&self.root).ok()?;
        link(fd).ok()?.strip_prefix(root).map(Path::to_owned).ok()
    }
}

/// The path of an open directory or file, as the kernel shows it now.
fn link(fd: &OwnedFd) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// The hierarchy of the fuzz targets is a directory of files, whose file system has
/// other handles: there the inode is looked for.
#[cfg(fuzzing)]
fn open_by_id(root: &OwnedFd, id: u64, flags: i32) -> nix::Result<OwnedFd> {
    use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
    let path = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
    if fs::metadata(&path).is_ok_and(|metadata| metadata.ino() == id) {
        return open(&path, OFlag::from_bits_retain(flags), Mode::empty());
    }
    let mut waiting = vec![path];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).map_err(|_| Errno::ESTALE)?.flatten() {
            if entry.ino() == id {
                return open(&entry.path(), OFlag::from_bits_retain(flags), Mode::empty());
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(entry.path());
            }
        }
    }
    Err(Errno::ESTALE)
}

/// An open directory (`O_PATH`).
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
}

impl Directory {
    /// The directory of this name in it, or what is mounted there.
    ///
    /// # Errors
    /// `ENOENT` when there is none.
    fn child(&self, name: &OsStr) -> nix::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd }),
            Err(Errno::ENOTDIR | Errno::ELOOP | Errno::ENODEV) => Err(Errno::ENOENT),
            Err(errno) => Err(errno),
        }
    }

    /// Whether it is the root of a mount. The file system is not queried: it may be any
    /// (`AT_STATX_DONT_SYNC`).
    fn is_mount(&self) -> nix::Result<bool> {
        let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
        let attributes = statx(&self.fd, c"", flags, 0)?.stx_attributes;
        Ok(attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0)
    }

    /// The directory that it is in; itself at the root of a mount.
    ///
    /// # Errors
    /// `openat` failed.
    pub fn parent(&self) -> nix::Result<Self> {
        self.child("..".as_ref())
    }

    /// A file in it, for reading.
    ///
    /// # Errors
    /// `ENOENT` when it has no such file, `ENODEV` when it has gone.
    pub fn file(&self, name: &str) -> nix::Result<OwnedFd> {
        openat(&self.fd, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
    }

    /// The text of a file in it.
    ///
    /// # Errors
    /// As of [`Directory::file`], and of reading it.
    pub fn text(&self, name: &str) -> io::Result<String> {
        let mut text = String::new();
        File::from(self.file(name)?).read_to_string(&mut text)?;
        Ok(text)
    }

    /// Whether it is the hierarchy's own root, which stands for the host. On v1 the kernel gives a
    /// file to its root alone (`CFTYPE_ONLY_ON_ROOT`), on v2 to all groups but its root
    /// (`CFTYPE_NOT_ON_ROOT`), whatever their controllers.
    fn is_host_root(&self, version: Version) -> nix::Result<bool> {
        let (name, is_roots) = match version {
            Version::V1 => ("release_agent", true),
            Version::V2 => ("cgroup.events", false),
        };
        match self.stat_file(name) {
            Ok(_) => Ok(is_roots),
            Err(Errno::ENOENT) => Ok(!is_roots),
            Err(errno) => Err(errno),
        }
    }

    /// Returns the attributes of the directory.
    ///
    /// # Errors
    /// `fstat` failed.
    pub fn stat(&self) -> nix::Result<FileStat> {
        fstat(&self.fd)
    }

    /// Attributes of a file in it.
    ///
    /// # Errors
    /// `ENOENT` when it has no such file.
    pub fn stat_file(&self, name: &str) -> nix::Result<FileStat> {
        fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// The directories in it, each with its id.
    ///
    /// # Errors
    /// `ENOENT` when it has gone.
    pub fn children(&self) -> nix::Result<Vec<(u64, std::ffi::OsString)>> {
        use std::os::unix::ffi::OsStringExt as _;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut entries = nix::dir::Dir::openat(&self.fd, ".", flags, Mode::empty())?;
        let mut children = Vec::new();
        for entry in entries.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if entry.file_type() == Some(nix::dir::Type::Directory) && name != b"." && name != b".." {
                children.push((entry.ino(), std::ffi::OsString::from_vec(name.to_vec())));
            }
        }
        Ok(children)
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
