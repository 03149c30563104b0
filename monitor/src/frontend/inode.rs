//! Identity and permissions of a descriptor's file, read without a call to its file system.

use std::{ffi::CStr, os::fd::BorrowedFd};

use monitor_sys::stat::statx;
use nix::errno::Errno;

/// An inode, as its file system last described it to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Device of its file system (`st_dev`).
    pub device: u64,
    /// Number on that file system (`st_ino`).
    pub number: u64,
    /// Permission bits and kind.
    pub mode: u32,
    /// User id of the owner.
    pub uid: u32,
    /// Group id of the file.
    pub gid: u32,
}

impl Inode {
    /// Reads the inode of an open descriptor. A FUSE file system whose daemon does not answer, or
    /// is this very process, is not queried (`AT_STATX_DONT_SYNC`).
    ///
    /// # Errors
    /// `statx` failed.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        Self::at(fd, c"", libc::AT_EMPTY_PATH)
    }

    /// Reads the inode of the file at `path` below a directory, with flags of `statx`.
    ///
    /// # Errors
    /// `statx` failed.
    pub fn at(directory: BorrowedFd<'_>, path: &CStr, flags: i32) -> Result<Self, Errno> {
        let stat = statx(directory, path, flags | libc::AT_STATX_DONT_SYNC, libc::STATX_BASIC_STATS)?;
        Ok(Self {
            device: libc::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            number: stat.stx_ino,
            mode: u32::from(stat.stx_mode),
            uid: stat.stx_uid,
            gid: stat.stx_gid,
        })
    }
}

impl From<nix::sys::stat::FileStat> for Inode {
    fn from(stat: nix::sys::stat::FileStat) -> Self {
        Self {
            device: stat.st_dev,
            number: stat.st_ino,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd as _, os::unix::fs::MetadataExt as _};

    use super::Inode;

    #[test]
    fn the_fields_are_those_of_stat() -> Result<(), Box<dyn std::error::Error>> {
        let file = fs::File::open("/proc/self/exe")?;
        let stat = file.metadata()?;
        let inode = Inode::of(file.as_fd())?;
        assert_eq!((inode.device, inode.number), (stat.dev(), stat.ino()));
        assert_eq!((inode.mode, inode.uid, inode.gid), (stat.mode(), stat.uid(), stat.gid()));
        Ok(())
    }
}
