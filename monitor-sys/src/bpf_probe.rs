//! Finds out which BPF instructions the kernel has, by loading small programs that are never run.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use crate::{bpf::bpf, new_descriptor};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// The part of `union bpf_attr` for `BPF_PROG_LOAD` that a program without a log needs.
#[repr(C)]
struct Attributes {
    kind: u32,
    instructions: u32,
    first: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// Encodes `struct bpf_insn` for little-endian processors: code, registers (source, then
/// destination), offset, immediate.
const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> u64 {
    code as u64 | (registers as u64) << 8 | (offset as u16 as u64) << 16 | (immediate as u32 as u64) << 32
}

const RETURN_0: [u64; 2] = [instruction(0xb7, 0x00, 0, 0), instruction(0x95, 0x00, 0, 0)];

/// `BPF_STX | BPF_ATOMIC | BPF_DW` with `BPF_ADD | BPF_FETCH`, on the stack.
const FETCH_AND_ADD: [u64; 4] = [
    instruction(0xb7, 0x00, 0, 0),
    instruction(0x7b, 0x0a, -8, 0),
    instruction(0xdb, 0x0a, -8, 1),
    instruction(0x95, 0x00, 0, 0),
];

/// Whether the kernel's BPF has atomic instructions that return the old value (Linux 5.12);
/// `None` where that cannot be found out, because this process may load no program at all.
#[must_use]
pub fn has_fetching_atomics() -> Option<bool> {
    load(&RETURN_0).ok()?;
    match load(&FETCH_AND_ADD) {
        Ok(_) => Some(true),
        Err(Errno::EINVAL) => Some(false),
        Err(_) => None,
    }
}

/// Loads a socket filter, which is attached to no socket.
fn load(instructions: &[u64]) -> Result<OwnedFd, Errno> {
    let license = c"GPL";
    let mut attributes = Attributes {
        kind: BPF_PROG_TYPE_SOCKET_FILTER,
        instructions: u32::try_from(instructions.len()).map_err(|_| Errno::E2BIG)?,
        first: instructions.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads the attributes, as many instructions as they say, and the license
    // up to its NUL, all of which live until it returns; it writes to none of them.
    let returned = unsafe { bpf(BPF_PROG_LOAD, &mut attributes) };
    // SAFETY: it is a new descriptor, with close-on-exec set, or -1.
    unsafe { new_descriptor(returned) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_have_the_kernels_layout() {
        assert_eq!(FETCH_AND_ADD[2].to_le_bytes(), [0xdb, 0x0a, 0xf8, 0xff, 1, 0, 0, 0]);
    }

    /// Whoever may load programs finds them on every kernel that the agent runs on.
    #[test]
    fn atomics_are_found_where_programs_load() {
        assert_ne!(has_fetching_atomics(), Some(false));
        if load(&RETURN_0).is_ok() {
            assert_eq!(has_fetching_atomics(), Some(true));
        }
    }
}
