//! Registers that a kprobe's program reads: their places in the kernel's `struct pt_regs`, which
//! are this architecture's ABI (`arch/*/include/uapi/asm/ptrace.h`), by the program's global.

use crate::programs::error::ObjectError;

/// The places by the program's global, on a known architecture.
///
/// # Errors
/// The architecture's places are not known.
pub(super) fn known() -> Result<&'static [(&'static str, &'static u64)], ObjectError> {
    checked(OFFSETS)
}

const fn checked<T>(offsets: &[T]) -> Result<&[T], ObjectError> {
    if offsets.is_empty() {
        return Err(ObjectError::UnknownRegisters { architecture: std::env::consts::ARCH });
    }
    Ok(offsets)
}

/// `rdi`, `rsi`, `rdx`, `rcx`, `r8`, `r9` and `rsp`; a return takes its address from the stack.
#[cfg(target_arch = "x86_64")]
const OFFSETS: &[(&str, &u64)] = &[
    ("OFF_REGS_FIRST", &112),
    ("OFF_REGS_SECOND", &104),
    ("OFF_REGS_THIRD", &96),
    ("OFF_REGS_FOURTH", &88),
    ("OFF_REGS_FIFTH", &72),
    ("OFF_REGS_SIXTH", &64),
    ("OFF_REGS_STACK", &152),
    ("STACK_POPPED", &8),
];

/// `x0` to `x5` and `sp`; a return leaves the stack as it is.
#[cfg(target_arch = "aarch64")]
const OFFSETS: &[(&str, &u64)] = &[
    ("OFF_REGS_FIRST", &0),
    ("OFF_REGS_SECOND", &8),
    ("OFF_REGS_THIRD", &16),
    ("OFF_REGS_FOURTH", &24),
    ("OFF_REGS_FIFTH", &32),
    ("OFF_REGS_SIXTH", &40),
    ("OFF_REGS_STACK", &248),
    ("STACK_POPPED", &0),
];

/// Not known: the backend is refused.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OFFSETS: &[(&str, &u64)] = &[];

#[cfg(test)]
mod tests {
    use super::checked;

    #[test]
    fn an_architecture_without_known_registers_is_refused_by_its_name() {
        assert!(checked(&[("OFF_REGS_FIRST", 0)]).is_ok());
        let refusal = checked::<u64>(&[]).expect_err("nothing is known").to_string();
        assert!(refusal.contains(std::env::consts::ARCH) && refusal.contains("--backend"), "{refusal}");
    }
}
