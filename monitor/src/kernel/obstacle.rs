//! Obstacles: the reasons behind the errnos with which the kernel refuses BPF programs. The
//! verifier's own text names none of them.

use std::sync::LazyLock;

use monitor_sys::bpf_probe::has_fetching_atomics;
use nix::errno::Errno;

use crate::kernel::settings::Lockdown;

/// The kernel's own errno beyond those of user space: not supported here.
const ENOTSUPP: i32 = 524;

/// The step at which a program was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramStep {
    /// The load, past the verifier: `BPF_PROG_LOAD`.
    Load,
    /// The attachment, that of fentry and fexit too: `BPF_RAW_TRACEPOINT_OPEN`.
    Attach,
}

/// Facts about the host that explain refusals.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// The kernel's lockdown, where it has one.
    pub lockdown: Option<Lockdown>,
    /// Whether BPF has atomics that return the old value, where that can be found out.
    pub fetching_atomics: Option<bool>,
    /// Architecture of the processor, as Rust names it.
    pub architecture: &'static str,
}

impl Circumstances {
    /// Those of this host, found out once, at the first refusal.
    pub fn of_host() -> &'static Self {
        static HOST: LazyLock<Circumstances> = LazyLock::new(|| Circumstances {
            lockdown: Lockdown::read(),
            fetching_atomics: has_fetching_atomics(),
            architecture: std::env::consts::ARCH,
        });
        &HOST
    }
}

/// The reason why the kernel refuses a program, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Obstacle {
    /// Lockdown takes the helpers away that read kernel memory.
    #[error(
        "the kernel is locked down (confidentiality), so that BPF may not read its memory; boot with lockdown=integrity"
    )]
    LockedDown,
    /// The kernel is older than the instructions of the programs.
    #[error("this kernel's BPF has no atomics that return the old value; Linux 5.12 or newer is needed")]
    NoFetchingAtomics,
    /// Programs load, and attach nowhere.
    #[error(
        "this kernel cannot attach BPF programs to its functions on {architecture} (needs BPF trampolines; arm64: Linux 6.4)"
    )]
    NoTrampolines {
        /// Architecture of the processor, as Rust names it.
        architecture: &'static str,
    },
    /// The function has as many programs as the kernel allows (`BPF_MAX_TRAMP_LINKS`).
    #[error("38 programs are attached to it already (bpftool link)")]
    FunctionFull,
}

impl Obstacle {
    /// Finds the reason behind `errno` at this step; `None` where it is not known.
    #[must_use]
    pub fn find(step: ProgramStep, errno: i32, host: &Circumstances) -> Option<Self> {
        const EINVAL: i32 = Errno::EINVAL as i32;
        const E2BIG: i32 = Errno::E2BIG as i32;
        match (step, errno) {
            (ProgramStep::Load, EINVAL) if host.lockdown == Some(Lockdown::Confidentiality) => {
                Some(Self::LockedDown)
            }
            (ProgramStep::Load, EINVAL) if host.fetching_atomics == Some(false) => {
                Some(Self::NoFetchingAtomics)
            }
            (ProgramStep::Attach, ENOTSUPP) => Some(Self::NoTrampolines { architecture: host.architecture }),
            (ProgramStep::Attach, E2BIG) => Some(Self::FunctionFull),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Circumstances, ENOTSUPP, Obstacle, ProgramStep};
    use crate::kernel::settings::Lockdown;

    const PLAIN: Circumstances = Circumstances {
        lockdown: Some(Lockdown::None),
        fetching_atomics: Some(true),
        architecture: "aarch64",
    };

    #[test]
    fn each_obstacle_is_named_at_its_step_alone() {
        let locked = Circumstances { lockdown: Some(Lockdown::Confidentiality), ..PLAIN };
        let open = Circumstances { lockdown: Some(Lockdown::Integrity), ..PLAIN };
        let old = Circumstances { fetching_atomics: Some(false), lockdown: None, ..PLAIN };
        for (step, errno, host, wanted) in [
            (ProgramStep::Load, libc::EINVAL, locked, Some(Obstacle::LockedDown)),
            (ProgramStep::Load, libc::EPERM, locked, None),
            (ProgramStep::Load, libc::EINVAL, open, None),
            (ProgramStep::Load, libc::EINVAL, old, Some(Obstacle::NoFetchingAtomics)),
            (ProgramStep::Load, libc::E2BIG, PLAIN, None),
            (ProgramStep::Load, libc::EINVAL, Circumstances { fetching_atomics: None, ..old }, None),
            (ProgramStep::Attach, libc::E2BIG, PLAIN, Some(Obstacle::FunctionFull)),
            (ProgramStep::Attach, ENOTSUPP, PLAIN, Some(Obstacle::NoTrampolines { architecture: "aarch64" })),
            (ProgramStep::Attach, libc::EBUSY, PLAIN, None),
        ] {
            assert_eq!(Obstacle::find(step, errno, &host), wanted, "{step:?} {errno} {host:?}");
        }
    }
}
