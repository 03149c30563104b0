//! Files of cgroup hierarchies by their ids (`open_by_handle_at(2)`).

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::errno::Errno;

use crate::new_descriptor;

/// A `struct file_handle` with what kernfs puts into it (`kernfs_encode_fh`).
#[repr(C)]
struct Handle {
    /// Bytes that follow the type.
    bytes: u32,
    kind: i32,
    id: u64,
}

const _: () = assert!(size_of::<Handle>() == 16);

/// `FILEID_KERNFS`, the type of such handles.
const KERNFS: i32 = 0xfe;

/// Opens the file or directory whose id (its `st_ino`) is `id` in the kernfs hierarchy, such
/// as cgroup's, that `mount` is in. `flags` are those of `open`; `O_CLOEXEC` is set in any
/// case. Needs Linux 5.5, from which on handles have 64 bits of id, and `CAP_DAC_READ_SEARCH`.
///
/// # Errors
/// As `open_by_handle_at`: `ESTALE` where nothing has that id, or nothing any more; `ENOTDIR`
/// where it is a file, with `O_DIRECTORY`; `EPERM` without the capability; `ESTALE`, as a
/// rule, on a file system of another kind.
pub fn open_by_id(mount: impl AsFd, id: u64, flags: i32) -> Result<OwnedFd, Errno> {
    let mut handle = Handle { bytes: size_of::<u64>() as u32, kind: KERNFS, id };
    let (mount, flags) = (mount.as_fd().as_raw_fd(), flags | libc::O_CLOEXEC);
    // SAFETY: the handle is laid out as the kernel's, says its own length, and outlives the
    // call, which only reads it. What the call returns is a new descriptor or -1.
    let opened = unsafe { libc::open_by_handle_at(mount, (&raw mut handle).cast(), flags) };
    // SAFETY: as above.
    unsafe { new_descriptor(opened.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_nothing_has_opens_nothing() -> std::io::Result<()> {
        let root = std::fs::File::open("/sys/kernel")?;
        assert!(open_by_id(&root, u64::MAX, libc::O_PATH).is_err());
        Ok(())
    }
}
