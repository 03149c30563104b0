//! The kernel's counts of a BPF program: its runs, and the calls that it was skipped for.

use std::os::fd::RawFd;

use nix::errno::Errno;

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

/// The part of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct Attributes {
    fd: u32,
    length: u32,
    info: u64,
}

const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

impl ProgramStats {
    /// Reads those of the program that `fd` stands for: one system call, where `fdinfo` would
    /// be three and a text. The number is only looked at: one that is no longer a program's
    /// fails, or reads another program's. Needs Linux 5.1.
    ///
    /// # Errors
    /// As `bpf`: `EBADF` where nothing is open at that number; `EINVAL` where it is nothing of
    /// BPF's; `EPERM` without the right to ask (`kernel.unprivileged_bpf_disabled`).
    pub fn of(fd: RawFd) -> Result<Self, Errno> {
        let mut info = Info { before: [0; 24], stats: [0; 3] };
        let mut attributes = Attributes {
            fd: u32::try_from(fd).map_err(|_| Errno::EBADF)?,
            length: size_of::<Info>() as u32,
            info: (&raw mut info).expose_provenance() as u64,
        };
        // SAFETY: the kernel reads the attributes, and writes at most `length` bytes to
        // `info`, which lives until it returns; all other pointers in there are null.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_OBJ_GET_INFO_BY_FD,
                &raw mut attributes,
                size_of::<Attributes>() as libc::c_uint,
            )
        };
        Errno::result(answer)?;
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
