//! The windows of reclaim: where the kernel evaluates them itself, or what they are rebuilt from.

use crate::kernel::btf::Btf;

/// The source of the windows of reclaim on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// The kernel evaluates them (`vmpressure_work_fn`).
    Kernel,
    /// They are added up from what reclaim reports.
    Rebuilt {
        /// Whether `vmpressure` has the allocation's order for its second argument.
        has_order: bool,
        /// Whether passes at a critical priority are looked for, which the kernel does not report.
        has_passes: bool,
    },
    /// No windows can be seen.
    Nowhere,
}

/// The program at the kernel's own evaluation.
const OF_KERNEL: &str = "reclaim_window";

/// The programs at the passes of reclaim: where they begin, where they end, and what shows each.
pub(super) const PASSES: [&str; 3] = ["reclaim_begun", "reclaim_ended", "reclaim_node"];

/// The programs at `vmpressure`, by whether it has the allocation's order among its arguments.
const REPORT: &str = "reclaim_report";
const REPORT_WITH_ORDER: &str = "reclaim_report_6";

/// Whether the program belongs to windows that are rebuilt.
pub(super) fn is_of_rebuilt(program: &str) -> bool {
    program == REPORT || program == REPORT_WITH_ORDER || PASSES.contains(&program)
}

/// Facts about the kernel by which the source is chosen.
#[derive(Clone, Copy, Debug)]
struct Found {
    v1: bool,
    /// `vmpressure_work_fn` can be attached to, and what it evaluates can be read.
    has_kernels: bool,
    /// The sums of windows lie behind the lock of `struct vmpressure`: they are v1's alone.
    is_of_v1: bool,
    /// The number of arguments of `vmpressure`; `None`: it cannot be attached to.
    arguments: Option<usize>,
    /// Whether the kernel has `vmpressure_prio`.
    has_prio: bool,
    /// Passes of reclaim can be found.
    has_passes: bool,
}

impl Windows {
    /// Finds the source that can be used on this hierarchy, if the kernel has these functions, and
    /// has `refused` these programs.
    #[must_use]
    pub(super) fn of(btf: &Btf, has_func: impl Fn(&str) -> bool, v1: bool, refused: &[&str]) -> Self {
        let offset = |path| btf.member_offset("vmpressure", path);
        let (sum, lock) = (offset("tree_scanned"), offset("sr_lock"));
        let control = ["priority", "gfp_mask", "target_mem_cgroup"];
        let knows_control = control.iter().all(|member| btf.member_offset("scan_control", member).is_ok());
        Self::chosen(Found {
            v1,
            has_kernels: has_func("vmpressure_work_fn") && sum.is_ok() && !refused.contains(&OF_KERNEL),
            is_of_v1: matches!((&sum, &lock), (Ok(sum), Ok(lock)) if sum > lock),
            arguments: btf.func_arg_count("vmpressure").filter(|_| has_func("vmpressure")),
            has_prio: has_func("vmpressure_prio"),
            has_passes: knows_control && has_func("do_try_to_free_pages") && has_func("shrink_node"),
        })
    }

    /// From 7.3 on the sums are v1's, behind the lock, and on v2 nothing is evaluated: with or
    /// without v1's code `vmpressure` returns at once. Where that code is built in, it reports each
    /// pass at a critical priority to `vmpressure`.
    const fn chosen(found: Found) -> Self {
        if found.has_kernels && (found.v1 || !found.is_of_v1) {
            return Self::Kernel;
        }
        let has_order = match found.arguments {
            Some(5) => false,
            Some(6) => true,
            _ => return Self::Nowhere,
        };
        if !found.has_prio && !found.has_passes {
            return Self::Nowhere;
        }
        Self::Rebuilt { has_order, has_passes: !found.has_prio }
    }

    /// Whether the program is one that is to be attached. Where there are no windows, `check` names
    /// the kernel's own function.
    #[must_use]
    pub(super) fn uses(self, program: &str) -> bool {
        match (program, self) {
            (OF_KERNEL, _) => matches!(self, Self::Kernel | Self::Nowhere),
            (REPORT, Self::Rebuilt { has_order, .. }) => !has_order,
            (REPORT_WITH_ORDER, Self::Rebuilt { has_order, .. }) => has_order,
            (_, Self::Rebuilt { has_passes, .. }) if PASSES.contains(&program) => has_passes,
            _ => !is_of_rebuilt(program),
        }
    }

    /// Whether all the programs that it needs are there.
    pub(super) fn are_seen(self, has: impl Fn(&str) -> bool) -> bool {
        match self {
            Self::Kernel => has(OF_KERNEL),
            Self::Rebuilt { has_order, has_passes } => {
                has(if has_order { REPORT_WITH_ORDER } else { REPORT })
                    && (!has_passes || PASSES.iter().all(|program| has(program)))
            }
            Self::Nowhere => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Found, Windows};
    use crate::kernel::HOOKS;

    fn used(windows: Windows) -> Vec<&'static str> {
        let programs = HOOKS.iter().map(|hook| hook.program);
        programs.filter(|program| program.starts_with("reclaim_") && windows.uses(program)).collect()
    }

    const fn rebuilt(has_order: bool, has_passes: bool) -> Windows {
        Windows::Rebuilt { has_order, has_passes }
    }

    #[test]
    fn a_kernel_that_evaluates_nothing_on_v2_is_not_relied_on() {
        let old = Found {
            v1: false,
            has_kernels: true,
            is_of_v1: false,
            arguments: Some(5),
            has_prio: true,
            has_passes: true,
        };
        assert_eq!(Windows::chosen(old), Windows::Kernel);
        let refused = Found { has_kernels: false, ..old };
        assert_eq!(Windows::chosen(refused), rebuilt(false, false));
        // 7.3 with v1's code, on either hierarchy, and without it.
        let new = Found { is_of_v1: true, arguments: Some(6), ..old };
        assert_eq!(Windows::chosen(new), rebuilt(true, false));
        assert_eq!(Windows::chosen(Found { v1: true, ..new }), Windows::Kernel);
        let without = Found { has_kernels: false, has_prio: false, ..new };
        assert_eq!(Windows::chosen(without), rebuilt(true, true));
        assert_eq!(Windows::chosen(Found { has_passes: false, ..without }), Windows::Nowhere);
        for arguments in [None, Some(4), Some(7)] {
            assert_eq!(Windows::chosen(Found { arguments, ..without }), Windows::Nowhere);
        }
    }

    #[test]
    fn windows_are_seen_at_one_place() {
        let passes = ["reclaim_ended", "reclaim_begun", "reclaim_node"];
        assert_eq!(used(Windows::Kernel), ["reclaim_window"]);
        assert_eq!(used(Windows::Nowhere), ["reclaim_window"]);
        assert_eq!(used(rebuilt(true, false)), ["reclaim_report_6"]);
        assert_eq!(used(rebuilt(false, true)), [&["reclaim_report"][..], &passes].concat());
        for windows in [Windows::Kernel, rebuilt(true, false), rebuilt(false, true)] {
            let used = used(windows);
            assert!(windows.are_seen(|program| used.contains(&program)), "{windows:?}");
            for missing in &used {
                assert!(!windows.are_seen(|one| used.contains(&one) && one != *missing), "{missing}");
            }
        }
        assert!(!Windows::Nowhere.are_seen(|_| true));
    }
}
