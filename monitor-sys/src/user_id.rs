//! User ids of a single thread; the C library's functions change those of all threads.

use libc::uid_t;
use nix::errno::Errno;

/// Stands for "leave it as it is" in [`set_real_and_saved`].
pub const UNCHANGED: u32 = uid_t::MAX;

/// Sets the real and the saved user id of the calling thread, which threads that it starts
/// later inherit. The effective id stays, and so do capabilities.
///
/// # Errors
/// As `setresuid`: `EPERM` without `CAP_SETUID`, unless each is one of the thread's three ids;
/// `EINVAL` for an id that its user namespace does not map; `EAGAIN` without memory.
pub fn set_real_and_saved(real: u32, saved: u32) -> Result<(), Errno> {
    // SAFETY: takes three numbers, and changes no memory.
    let done = unsafe { libc::syscall(libc::SYS_setresuid, real, UNCHANGED, saved) };
    Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    use nix::unistd::getresuid;

    use super::*;

    #[test]
    fn ids_that_a_thread_has_may_be_set() -> nix::Result<()> {
        let before = getresuid()?;
        set_real_and_saved(UNCHANGED, UNCHANGED)?;
        set_real_and_saved(before.real.as_raw(), before.saved.as_raw())?;
        assert_eq!(getresuid()?, before);
        Ok(())
    }
}
