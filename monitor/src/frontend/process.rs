//! A process, seen from outside: what `/proc` says of it.

use std::{ffi::CString, fs::File, io::Read as _, os::fd::OwnedFd};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::Mode,
};

use crate::frontend::{
    credentials::Credentials,
    refusal::{Refusal, RefusalReason},
    sender::Sender,
};

/// Opens the directory of a process in `/proc`.
pub(super) fn directory(pid: i32) -> Result<OwnedFd, Refusal> {
    let path = format!("/proc/{pid}");
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path.as_str(), flags, Mode::empty()).map_err(|errno| match errno {
        Errno::ENOENT | Errno::ESRCH => Refusal::new(Errno::ESRCH, RefusalReason::ProcessGone { pid }),
        Errno::EMFILE | Errno::ENFILE => Refusal::new(Errno::ENOMEM, RefusalReason::OutOfDescriptors),
        _ => Refusal::new(errno, RefusalReason::ProcessNotOpened { pid }),
    })
}

/// The directory in `/proc` of a sender, and not of another process that got its number.
pub(super) fn directory_of(sender: &Sender) -> Result<OwnedFd, Refusal> {
    let directory = directory(sender.pid())?;
    // Checked after the directory was opened: a number is used again only after its end.
    let is_it = match sender.is_there() {
        Ok(Some(there)) => there,
        // Kernels before 6.5: at the least it is a process of the same user.
        Ok(None) => status(&directory).is_ok_and(|status| Credentials::may_send_as(&status, sender.uid())),
        Err(Errno::EMFILE) => return Err(Refusal::new(Errno::ENOMEM, RefusalReason::OutOfDescriptors)),
        Err(errno) => return Err(Refusal::new(errno, RefusalReason::SenderNotChecked)),
    };
    if is_it {
        return Ok(directory);
    }
    Err(Refusal::new(Errno::ESRCH, RefusalReason::ProcessGone { pid: sender.pid() }))
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

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::{directory, thread_group};
    use crate::frontend::refusal::RefusalReason;

    #[test]
    fn a_number_without_a_process_is_one_that_is_gone() {
        // Beyond the kernel's largest pid, 2^22.
        let refusal = directory(i32::MAX).expect_err("no process");
        assert_eq!(refusal.errno, Errno::ESRCH);
        assert!(matches!(refusal.reason, RefusalReason::ProcessGone { pid: i32::MAX }), "{refusal}");
    }

    #[test]
    fn a_thread_names_its_process() {
        assert_eq!(thread_group("Name:\tTgid: 1\nTgid:\t812\nPid:\t815\n"), Some(812));
        assert_eq!(thread_group("Name:\tx\n"), None);
    }
}
