//! Processes by descriptor, and duplicates of their descriptors.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::{errno::Errno, sys::signal::Signal};

use crate::new_descriptor;

/// The flag of [`open`] for a thread that need not be its process's first. Needs Linux 6.9.
pub const PIDFD_THREAD: i32 = libc::O_EXCL;

/// Opens a process by its number, as a descriptor that is close-on-exec; `flags` are 0 or
/// [`PIDFD_THREAD`]. Needs Linux 5.3.
///
/// # Errors
/// As `pidfd_open`: `ESRCH` where there is none of that number; `EINVAL` for a number below 1,
/// or a flag that the kernel does not know; `EINVAL` or, of newer kernels, `ENOENT` for a
/// thread that is not its process's first, without the flag; `EMFILE`, `ENFILE` or `ENOMEM`
/// without a descriptor for it.
pub fn open(pid: i32, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two numbers; what it returns is a new descriptor or -1.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) };
    // SAFETY: as above.
    unsafe { new_descriptor(opened) }
}

/// Duplicates descriptor `number` of a process, close-on-exec. Needs Linux 5.6.
///
/// # Errors
/// As `pidfd_getfd`: `EBADF` where the process has no such descriptor, or the first argument
/// is no pidfd; `EPERM` without the right to trace the process (`PTRACE_MODE_ATTACH_REALCREDS`);
/// `ESRCH` where it has ended; `EMFILE` or `ENFILE` without a descriptor for it.
pub fn duplicate(pidfd: impl AsFd, number: i32) -> Result<OwnedFd, Errno> {
    let pidfd = pidfd.as_fd();
    // SAFETY: takes three numbers; what it returns is a new descriptor or -1.
    let duplicate = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
    // SAFETY: as above.
    unsafe { new_descriptor(duplicate) }
}

/// Sends a signal to a process. Needs Linux 5.1.
///
/// # Errors
/// As `pidfd_send_signal`: `ESRCH` where it has ended; `EPERM` without the right to; `EBADF` where
/// the first argument is no pidfd.
pub fn send_signal(pidfd: impl AsFd, signal: Signal) -> Result<(), Errno> {
    let (pidfd, signal) = (pidfd.as_fd(), signal as libc::c_int);
    // SAFETY: takes numbers, and no information beside the signal: the pointer is null.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(sent).map(drop)
}

/// Reports whether a thread has the descriptors of its process (`CLONE_FILES`). Needs Linux 3.5;
/// where the kernel has no `kcmp` (`CONFIG_KCMP`), the answer is yes only where the thread is
/// the process.
///
/// # Errors
/// As `kcmp`: `ESRCH` where one of them has ended; `EPERM` without the right to look at both
/// (`PTRACE_MODE_READ_REALCREDS`).
pub fn shares_descriptors(thread: i32, process: i32) -> Result<bool, Errno> {
    /// `KCMP_FILES` of the kernel's headers.
    const FILES: i32 = 2;
    // SAFETY: takes five numbers, of which it looks at three.
    let order = Errno::result(unsafe { libc::syscall(libc::SYS_kcmp, thread, process, FILES, 0, 0) });
    order.map(|order| order == 0).or_else(|errno| match errno {
        Errno::ENOSYS => Ok(thread == process),
        errno => Err(errno),
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use nix::{sys::stat::fstat, unistd::getpid};

    use super::*;

    #[test]
    fn a_descriptor_of_a_process_is_duplicated() -> Result<(), Box<dyn std::error::Error>> {
        let file = std::fs::File::open("/proc/self/exe")?;
        let this = open(getpid().as_raw(), 0)?;
        let duplicate_of = |number| duplicate(&this, number);
        let copy = duplicate_of(file.as_raw_fd())?;
        assert_ne!(copy.as_raw_fd(), file.as_raw_fd());
        assert_eq!(fstat(&copy)?.st_ino, fstat(&file)?.st_ino);
        assert_eq!(duplicate_of(-1).err(), Some(Errno::EBADF));
        assert_eq!(duplicate(file.as_fd(), 0).err(), Some(Errno::EBADF), "no pidfd");
        assert_eq!(open(-1, 0).err(), Some(Errno::EINVAL));
        Ok(())
    }

    #[test]
    fn a_process_is_signalled() -> Result<(), Box<dyn std::error::Error>> {
        let mut child = std::process::Command::new("sleep").arg("600").spawn()?;
        let process = open(i32::try_from(child.id())?, 0)?;
        send_signal(&process, Signal::SIGKILL)?;
        assert!(!child.wait()?.success());
        assert_eq!(send_signal(&process, Signal::SIGKILL), Err(Errno::ESRCH));
        Ok(())
    }

    #[test]
    fn a_process_shares_descriptors_with_itself() {
        let this = getpid().as_raw();
        assert_eq!(shares_descriptors(this, this), Ok(true));
    }
}
