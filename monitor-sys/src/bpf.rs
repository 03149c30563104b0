//! The system call `bpf`, for the modules that make requests of their own.

use std::os::fd::RawFd;

use nix::errno::Errno;

const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// The part of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttributes {
    fd: u32,
    length: u32,
    info: u64,
}

/// Calls `bpf`. Returns what it returned, which is -1 where it failed.
///
/// # Safety
/// `attributes` is the part of `union bpf_attr` for `command`. Each pointer in it is null, or leads to
/// as many bytes as the kernel reads or writes there, until the call returns.
pub(crate) unsafe fn bpf<A>(command: libc::c_int, attributes: &mut A) -> libc::c_long {
    // SAFETY: the kernel reads and writes at most the size that it is given; the rest is as the
    // caller says.
    unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<A>() as libc::c_uint)
    }
}

/// Reads what the kernel says of the program, map or link at this number. Returns how many bytes
/// of `info` it knows.
///
/// # Safety
/// `info` is the kernel's structure for that kind of object or its beginning, of integers alone, in
/// which each pointer is null.
///
/// # Errors
/// As `bpf`: `EBADF` where nothing is open at that number; `EINVAL` where it is nothing of BPF's;
/// `EPERM` without permission (`kernel.unprivileged_bpf_disabled`).
pub(crate) unsafe fn object_info<I>(fd: RawFd, info: &mut I) -> Result<usize, Errno> {
    let mut attributes = InfoAttributes {
        fd: u32::try_from(fd).map_err(|_| Errno::EBADF)?,
        length: size_of::<I>() as u32,
        info: std::ptr::from_mut(info).expose_provenance() as u64,
    };
    // SAFETY: these are the attributes of that command. The kernel writes at most `length` bytes to
    // `info`, which lives until it returns; it holds no other pointers, as the caller says.
    let answer = unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) };
    Errno::result(answer)?;
    Ok(attributes.length as usize)
}
