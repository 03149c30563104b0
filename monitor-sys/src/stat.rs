//! Attributes of files by `statx`, which can leave the file system out of it.

use std::{
    ffi::CStr,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd as _},
};

use nix::errno::Errno;

/// Reads the attributes of what is at `path` below `directory`; of `directory` itself where
/// `path` is empty and `flags` have `AT_EMPTY_PATH`. `mask` says which are wanted
/// (`STATX_BASIC_STATS`); the file system may fill in fewer, or more, as `stx_mask` says, and
/// the others are 0. With `AT_STATX_DONT_SYNC` in `flags` no file system is queried, which may
/// never answer. Needs Linux 4.11; `STATX_ATTR_MOUNT_ROOT` needs 5.8.
///
/// # Errors
/// As `statx`: `ENOENT` where there is nothing of that name; `EACCES` without the right to
/// search a directory on the way; `EINVAL` for flags or a mask that the kernel does not know.
pub fn statx(directory: impl AsFd, path: &CStr, flags: i32, mask: u32) -> Result<libc::statx, Errno> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    let fd = directory.as_fd().as_raw_fd();
    // SAFETY: the path is a C string, and the kernel writes no more than one statx; both
    // outlive the call.
    let result = unsafe { libc::statx(fd, path.as_ptr(), flags, mask, stat.as_mut_ptr()) };
    Errno::result(result)?;
    // SAFETY: all zeros is a valid statx, and the call has filled in more.
    Ok(unsafe { stat.assume_init() })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::MetadataExt as _};

    use super::*;

    #[test]
    fn a_file_and_what_is_below_a_directory_are_found() -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let inner = File::create(directory.path().join("a"))?.metadata()?.ino();
        let directory = File::open(directory.path())?;
        let here = |path, flags| statx(&directory, path, flags, libc::STATX_BASIC_STATS);
        assert_eq!(here(c"a", libc::AT_STATX_DONT_SYNC)?.stx_ino, inner);
        assert_eq!(here(c"", libc::AT_EMPTY_PATH)?.stx_ino, directory.metadata()?.ino());
        assert_eq!(here(c"b", 0).err(), Some(Errno::ENOENT));
        Ok(())
    }
}
