//! A process, seen from outside: what `/proc` says of it, and duplicates of its
//! descriptors.

use std::{
    ffi::CString,
    fs::File,
    io::Read as _,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    libc,
    sys::stat::Mode,
};

use crate::frontend::register::Refusal;

/// What `/proc` says of a process.
pub(super) fn directory(pid: i32) -> Result<OwnedFd, Refusal> {
    let path = format!("/proc/{pid}");
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path.as_str(), flags, Mode::empty()).map_err(|errno| match errno {
        Errno::ENOENT | Errno::ESRCH => Refusal::new(Errno::ESRCH, format!("process {pid} is gone")),
        Errno::EMFILE | Errno::ENFILE => Refusal::new(Errno::ENOMEM, OUT_OF_DESCRIPTORS),
        _ => Refusal::new(errno, format!("{path} cannot be opened")),
    })
}

pub(super) fn path(directory: &str, number: u32) -> CString {
    CString::new(format!("{directory}/{number}")).unwrap_or_default()
}

/// The text of `/proc/PID/status`. What is not UTF-8 (the process's name may be) is
/// replaced.
pub(super) fn status(directory: &OwnedFd) -> Result<String, Errno> {
    read_all(directory, "status").map(|text| String::from_utf8_lossy(&text).into_owned())
}

/// A file of `/proc/PID`, in full.
pub(super) fn read_all(directory: &OwnedFd, name: &str) -> Result<Vec<u8>, Errno> {
    let fd = openat(directory, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut text = Vec::new();
    File::from(fd)
        .read_to_end(&mut text)
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    Ok(text)
}

/// The process that a thread belongs to, from its `/proc/TID/status`.
pub(super) fn thread_group(status: &str) -> Option<i32> {
    status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
}

pub(super) const OUT_OF_DESCRIPTORS: &str = "the agent is out of descriptors; raise its LimitNOFILE";

/// A pidfd of a thread that need not be its process's first.
pub(super) const PIDFD_THREAD: i32 = libc::O_EXCL;

pub(super) fn pidfd_open(pid: i32, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two numbers and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })?;
    own(fd)
}

pub(super) fn pidfd_getfd(pidfd: &OwnedFd, number: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes three numbers and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })?;
    own(fd)
}

/// Whether a thread has the descriptors of its process (`CLONE_FILES`).
pub(super) fn shares_descriptors(thread: i32, process: i32) -> Result<bool, Errno> {
    /// `KCMP_FILES`
    const FILES: i32 = 2;
    // SAFETY: takes five numbers, of which it looks at three.
    let order = Errno::result(unsafe { libc::syscall(libc::SYS_kcmp, thread, process, FILES, 0, 0) });
    // A kernel without kcmp (CONFIG_KCMP): then only where the thread is the process.
    order.map(|order| order == 0).or_else(|errno| match errno {
        Errno::ENOSYS => Ok(thread == process),
        errno => Err(errno),
    })
}

pub(super) fn own(fd: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = i32::try_from(fd).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel just made this descriptor for us, close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::thread_group;

    #[test]
    fn a_thread_names_its_process() {
        assert_eq!(thread_group("Name:\tTgid: 1\nTgid:\t812\nPid:\t815\n"), Some(812));
        assert_eq!(thread_group("Name:\tx\n"), None);
    }
}
