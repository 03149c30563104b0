//! The kernel's answer on Landlock, which the `landlock` crate keeps to itself.

use nix::errno::Errno;

/// Reads the version of the kernel's Landlock, from 1 on. Needs Linux 5.13.
///
/// # Errors
/// `EOPNOTSUPP` where it is built in, and not on (`lsm=`); `ENOSYS` where it is not built in.
pub fn version() -> Result<i64, Errno> {
    /// `LANDLOCK_CREATE_RULESET_VERSION` of the kernel's headers.
    const VERSION: u32 = 1;
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the kernel reads nothing, and returns a number.
    Errno::result(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0, VERSION) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_version_is_a_number_from_1_on() {
        assert!(super::version().is_ok_and(|version| version >= 1) || super::version().is_err());
    }
}
