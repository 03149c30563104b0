//! Namespaces, by descriptors of the files in `/proc/PID/ns` (`ioctl_nsfs(2)`).

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::errno::Errno;

use crate::new_descriptor;

/// The request `NS_GET_PARENT` of `ioctl`: `_IO(0xb7, 0x2)`.
pub const GET_PARENT: u32 = 0xb702;

/// Opens the parent of a pid namespace or user namespace. Needs Linux 4.9.
///
/// # Errors
/// `EPERM` where the parent is outside the caller's own namespace, or where there is none;
/// `EINVAL` for a namespace that has no parents; `ENOTTY` for another file.
pub fn parent(namespace: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the request takes no argument; what it returns is a new descriptor or -1.
    let opened = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), GET_PARENT.into()) };
    // SAFETY: as above.
    unsafe { new_descriptor(opened.into()) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn only_namespaces_have_parents() -> std::io::Result<()> {
        assert_eq!(parent(File::open("/proc/self/status")?).err(), Some(Errno::ENOTTY));
        // Its parent, if any, is outside what this process sees.
        assert_eq!(parent(File::open("/proc/self/ns/pid")?).err(), Some(Errno::EPERM));
        assert_eq!(parent(File::open("/proc/self/ns/net")?).err(), Some(Errno::EINVAL));
        Ok(())
    }
}
