//! A process, seen from outside: what `/proc` says of it, and duplicates of its
//! descriptors.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io::Read as _,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    libc,
    sys::stat::Mode,
    unistd::read,
};

use crate::door::request::Refusal;

/// What `/proc` says of a process.
pub(super) fn folder(pid: i32) -> Result<OwnedFd, Refusal> {
    let path = format!("/proc/{pid}");
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path.as_str(), flags, Mode::empty()).map_err(|errno| match errno {
        Errno::ENOENT | Errno::ESRCH => Refusal::new(Errno::ESRCH, format!("process {pid} is gone")),
        Errno::EMFILE | Errno::ENFILE => Refusal::new(Errno::ENOMEM, OUT_OF_DESCRIPTORS),
        _ => Refusal::new(errno, format!("{path} cannot be opened")),
    })
}

pub(super) fn path(folder: &str, number: u32) -> CString {
    CString::new(format!("{folder}/{number}")).unwrap_or_default()
}

pub(super) fn status(folder: &OwnedFd) -> Result<String, Errno> {
    let fd = openat(folder, "status", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    File::from(fd)
        .read_to_string(&mut text)
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    Ok(text)
}

/// A `/proc/PID/fdinfo/N`.
pub(super) struct Info([u8; INFO]);

/// What there is to know comes first.
pub(super) const INFO: usize = 256;

impl Info {
    pub(super) fn read(folder: BorrowedFd<'_>, path: &CStr) -> Result<Self, Errno> {
        let fd = openat(folder, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut text = [0; INFO];
        read(&fd, &mut text)?;
        Ok(Self(text))
    }

    pub(super) fn text(&self) -> &str {
        // Cut where it no longer is text: the rest is not filled in.
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(INFO);
        str::from_utf8(&self.0[..end]).unwrap_or_default()
    }
}

/// `O_PATH` in the octal flags of a `/proc/PID/fdinfo/N`.
pub(super) fn is_path_only(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_PATH != 0)
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
    use super::{is_path_only, thread_group};

    #[test]
    fn fdinfo_tells_path_descriptors() {
        let info = |flags: &str| format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t31\nino:\t65\n");
        assert!(is_path_only(&info("012000000")));
        assert!(!is_path_only(&info("0100002")));
        assert!(!is_path_only("pos:\t0\n"));
    }

    #[test]
    fn a_thread_names_its_process() {
        assert_eq!(thread_group("Name:\tTgid: 1\nTgid:\t812\nPid:\t815\n"), Some(812));
        assert_eq!(thread_group("Name:\tx\n"), None);
    }
}
