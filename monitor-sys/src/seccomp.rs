//! Filters of system calls (`seccomp(2)`).

use nix::errno::Errno;

/// The outcome of [`install`] where the kernel did not take the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotInstalled {
    /// The thread of this id has a filter that others of the process have not.
    OtherFilter(i64),
    /// The system call failed.
    Syscall(Errno),
}

/// Installs a filter for all threads (`TSYNC`), with a line in the kernel's log for each call
/// that it refuses. The process has `no_new_privs`, or `CAP_SYS_ADMIN`. Needs Linux 4.14.
///
/// A filter allows, refuses with an errno, logs, or ends the process: one that could have a
/// call fail and look like a success is not installed.
///
/// # Errors
/// `EINVAL` for a filter that returns something else, or that the kernel cannot check (more
/// than 4096 instructions, say); `EACCES` without `no_new_privs`; `ENOSYS` without seccomp.
pub fn install(filter: &[libc::sock_filter]) -> Result<(), NotInstalled> {
    const FLAGS: libc::c_ulong = libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_LOG;
    let invalid = NotInstalled::Syscall(Errno::EINVAL);
    if !filter.iter().all(is_honest) {
        return Err(invalid);
    }
    let len = u16::try_from(filter.len()).map_err(|_| invalid)?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    // SAFETY: as many instructions as it says, which outlive the call; the kernel copies them,
    // and writes nothing. What the filter does to later calls, `is_honest` has looked at.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, FLAGS, &raw const program) };
    match Errno::result(result) {
        Ok(0) => Ok(()),
        Ok(thread) => Err(NotInstalled::OtherFilter(thread)),
        Err(errno) => Err(NotInstalled::Syscall(errno)),
    }
}

/// Whether an instruction returns nothing but what callers of the call expect: the kernel's own
/// result, an errno, or the end.
const fn is_honest(instruction: &libc::sock_filter) -> bool {
    const CLASS: u16 = 0x07;
    /// `BPF_RET | BPF_K`: returns a constant.
    const RETURN: u16 = 0x06;
    if instruction.code & CLASS != RETURN {
        return true;
    }
    if instruction.code != RETURN {
        return false;
    }
    match instruction.k & libc::SECCOMP_RET_ACTION_FULL {
        libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG | libc::SECCOMP_RET_KILL_PROCESS => true,
        libc::SECCOMP_RET_ERRNO => instruction.k & libc::SECCOMP_RET_DATA != 0,
        _ => false,
    }
}

/// Reports whether this kernel's filters can refuse a call with an errno. Needs Linux 4.14 to
/// say so.
///
/// # Errors
/// They cannot: `ENOSYS` without seccomp, `EINVAL` before Linux 4.14, `EOPNOTSUPP` without
/// that action.
pub fn available() -> Result<(), Errno> {
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads one word.
    let known =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    Errno::result(known).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_feigns_success_is_refused() {
        let returns = |k| [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k }];
        let refused = Err(NotInstalled::Syscall(Errno::EINVAL));
        let others = [libc::SECCOMP_RET_ERRNO, libc::SECCOMP_RET_TRACE | 1, libc::SECCOMP_RET_USER_NOTIF];
        for k in others.into_iter().chain([libc::SECCOMP_RET_KILL_THREAD, libc::SECCOMP_RET_TRAP]) {
            assert_eq!(install(&returns(k)), refused, "{k:#x}");
        }
        let accumulator = [libc::sock_filter { code: 0x16, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW }];
        assert_eq!(install(&accumulator), refused);
        assert_eq!(install(&[]), refused, "the kernel's own");
        for k in [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_ERRNO | 1] {
            assert!(returns(k).iter().all(is_honest));
        }
    }
}
