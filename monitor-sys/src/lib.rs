//! System calls behind safe functions: the only crate of the agent with `unsafe` code.
//!
//! No function requires more of its caller than its types say: whatever is passed, memory stays
//! sound, and a descriptor is owned once. Each names the errno that it fails with and the
//! kernel that it needs; the agent's policy is in `monitor`, which forbids `unsafe` code.
//!
//! Sockets and descriptors: [`message`] (receive one, with its descriptors), [`socket`],
//! [`pidfd`], [`inherited`] (what the service manager has passed), [`descriptor`], [`stat`],
//! [`file_handle`].
//! Memory: [`table`] (a mapped array of atomic words), [`memory`]. Signals: [`aio`] (adds to an
//! eventfd), [`signals`]. The process: [`process`] (`fork`, `execve`), [`seccomp`],
//! [`landlock`], [`user_id`], [`namespace`]. The programs: [`program_stats`], [`bpf_probe`],
//! [`bpf_run`], [`probe_link`].

pub mod aio;
mod bpf;
pub mod bpf_probe;
pub mod bpf_run;
pub mod descriptor;
pub mod file_handle;
pub mod inherited;
pub mod landlock;
pub mod memory;
pub mod message;
pub mod namespace;
pub mod pidfd;
pub mod probe_link;
pub mod process;
pub mod program_stats;
pub mod seccomp;
pub mod signals;
pub mod socket;
pub mod stat;
pub mod table;
pub mod user_id;

use std::os::fd::{FromRawFd as _, OwnedFd};

use nix::errno::Errno;

/// Owns the descriptor that a system call has returned, which is -1 where it failed.
///
/// # Safety
/// `returned` comes from a system call that makes a new descriptor, and is owned once.
unsafe fn new_descriptor(returned: libc::c_long) -> Result<OwnedFd, Errno> {
    let number = Errno::result(returned)?;
    let number = i32::try_from(number).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the caller says that the kernel has just made it, for this process alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
