//! Descriptors that a service manager has passed to this process (`sd_listen_fds(3)`).

use std::{
    env, io,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::process::FIRST_PASSED;

/// Takes the descriptors that `LISTEN_FDS` counts, each with its name in `LISTEN_FDNAMES`
/// (`unknown` without that), and makes them close-on-exec. None where `LISTEN_PID` is another
/// process's. What was taken is not there a second time: later calls give none.
///
/// # Errors
/// The variables contradict each other, or one of the descriptors is not open (`EBADF`); or it
/// is close-on-exec, so that this process has opened it and did not inherit it.
pub fn listen_fds() -> io::Result<Vec<(String, OwnedFd)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    take()
}

fn take() -> io::Result<Vec<(String, OwnedFd)>> {
    // Looked at beforehand, for they are made close-on-exec when they are named.
    let count = env::var("LISTEN_FDS").ok().and_then(|count| count.parse::<RawFd>().ok()).unwrap_or(0);
    let passed = (FIRST_PASSED..FIRST_PASSED.saturating_add(count)).map_while(|at| Some((at, flags(at)?)));
    let own = passed.filter(|(_, flags)| flags & libc::FD_CLOEXEC != 0).map(|(number, _)| number).next();
    let named: Vec<_> = sd_notify::listen_fds_with_names()?.collect();
    if let Some(number) = own.filter(|number| named.iter().any(|(named, _)| named == number)) {
        return Err(io::Error::other(format!("descriptor {number} was opened by this process")));
    }
    // SAFETY: they are open, for `listen_fds_with_names` has looked; they came with `execve`,
    // which closes those that are close-on-exec, as what this process opens is; and they are
    // taken this once.
    Ok(named.into_iter().map(|(number, name)| (name, unsafe { OwnedFd::from_raw_fd(number) })).collect())
}

/// Flags of a descriptor (`FD_CLOEXEC`); `None` where none of that number is open.
fn flags(number: RawFd) -> Option<libc::c_int> {
    // SAFETY: takes two numbers, and changes nothing.
    Some(unsafe { libc::fcntl(number, libc::F_GETFD) }).filter(|flags| *flags >= 0)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn what_was_not_passed_is_not_taken() -> io::Result<()> {
        let opened_here = std::fs::File::open("/dev/null")?;
        assert_eq!(flags(opened_here.as_raw_fd()), Some(libc::FD_CLOEXEC));
        assert_eq!(flags(-1), None);
        assert!(listen_fds()?.is_empty() && listen_fds()?.is_empty(), "tests are passed none");
        Ok(())
    }
}
