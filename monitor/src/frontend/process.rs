//! A process, seen from outside: what `/proc` says of it.

use std::{ffi::CString, os::fd::OwnedFd};

use nix::errno::Errno;

use crate::{
    frontend::{
        credentials::Credentials,
        refusal::{Refusal, RefusalReason, short_of},
        sender::Sender,
    },
    procfs::{self, status},
};

/// Opens the directory of a process in `/proc`.
pub(super) fn directory(pid: i32) -> Result<OwnedFd, Refusal> {
    procfs::task(pid).map_err(|errno| match errno {
        Errno::ENOENT | Errno::ESRCH => Refusal::new(Errno::ESRCH, RefusalReason::ProcessGone { pid }),
        _ => short_of(errno).unwrap_or_else(|| Refusal::new(errno, RefusalReason::ProcessNotOpened { pid })),
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
