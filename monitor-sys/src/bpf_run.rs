//! Runs of a BPF program that is attached to nothing, in the calling thread.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::errno::Errno;

use crate::bpf::bpf;

const BPF_PROG_TEST_RUN: libc::c_int = 10;

/// The part of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
struct Attributes {
    program: u32,
    returned: u32,
    data_size: [u32; 2],
    data: [u64; 2],
    repeat: u32,
    duration: u32,
    context_size: [u32; 2],
    context: [u64; 2],
    flags: u32,
    processor: u32,
    batch: u32,
    padding: u32,
}

/// Runs a program for raw tracepoints once, with these arguments, on this thread's processor. Needs
/// Linux 5.10.
///
/// # Errors
/// As `bpf`: `EINVAL` where `program` is of another type, or reads more arguments.
pub fn run_raw_tracepoint(program: BorrowedFd<'_>, arguments: &[u64; 3]) -> Result<(), Errno> {
    let mut attributes = Attributes {
        program: u32::try_from(program.as_raw_fd()).map_err(|_| Errno::EBADF)?,
        returned: 0,
        data_size: [0; 2],
        data: [0; 2],
        repeat: 0,
        duration: 0,
        context_size: [size_of_val(arguments) as u32, 0],
        context: [arguments.as_ptr().expose_provenance() as u64, 0],
        flags: 0,
        processor: 0,
        batch: 0,
        padding: 0,
    };
    // SAFETY: the kernel reads the attributes and, of `context_size` bytes, the arguments; it writes
    // to the attributes alone. Both live until it returns.
    let answer = unsafe { bpf(BPF_PROG_TEST_RUN, &mut attributes) };
    Errno::result(answer).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::run_raw_tracepoint;

    #[test]
    fn what_is_no_program_is_not_run() {
        let file = std::fs::File::open("/dev/null").expect("open");
        assert!(run_raw_tracepoint(file.as_fd(), &[0; 3]).is_err());
    }
}
