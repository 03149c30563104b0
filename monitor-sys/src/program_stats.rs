//! The kernel's counts of a BPF program: its runs, and the calls that it was skipped for.

use std::os::fd::RawFd;

use nix::errno::Errno;

use crate::bpf::object_info;

/// Counts of one program since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramStats {
    /// Time spent in it, in nanoseconds; counted while `kernel.bpf_stats_enabled` is set.
    pub nanoseconds: u64,
    /// How often it ran; counted while `kernel.bpf_stats_enabled` is set.
    pub runs: u64,
    /// Calls at which it was at work already (`recursion_misses`); 0 before Linux 5.12.
    pub misses: u64,
}

/// `struct bpf_prog_info`, up to the counts.
#[repr(C)]
struct Info {
    before: [u64; 24],
    stats: [u64; 3],
}

impl ProgramStats {
    /// Reads those of the program that `fd` stands for: one system call, where `fdinfo` would
    /// be three and a text. The number is only looked at: one that is no longer a program's
    /// fails, or reads another program's. Needs Linux 5.1.
    ///
    /// # Errors
    /// As `bpf`: `EBADF` where nothing is open at that number; `EINVAL` where it is nothing of
    /// BPF's; `EPERM` without permission (`kernel.unprivileged_bpf_disabled`).
    pub fn of(fd: RawFd) -> Result<Self, Errno> {
        let mut info = Info { before: [0; 24], stats: [0; 3] };
        // SAFETY: it is the beginning of `struct bpf_prog_info`; every pointer in there is null.
        unsafe { object_info(fd, &mut info) }?;
        let [nanoseconds, runs, misses] = info.stats;
        Ok(Self { nanoseconds, runs, misses })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_no_program_has_no_counts() {
        assert_eq!(ProgramStats::of(-1), Err(Errno::EBADF));
        assert!(ProgramStats::of(RawFd::MAX).is_err());
    }
}
