//! Hooks: every place in the kernel that a program is attached to.

use crate::kernel::{btf::Btf, reclaim};

/// The way in which a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// The program runs at the function's entry.
    Entry,
    /// The program runs at the function's return.
    Exit,
    /// A tracepoint, raw: `function` is its name.
    Tracepoint,
}

impl HookKind {
    /// The kernel's name of it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Entry => "fentry",
            Self::Exit => "fexit",
            Self::Tracepoint => "tracepoint",
        }
    }
}

/// One attachment: a program of the object, and the kernel function it watches.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// The program's name in the object.
    pub program: &'static str,
    /// The kernel function, or tracepoint.
    pub function: &'static str,
    /// The way in which it is attached.
    pub kind: HookKind,
    /// Whether the agent needs it to start; an optional hook exists on some kernels only.
    pub required: bool,
    /// The purpose in words, for `check`.
    pub purpose: &'static str,
}

const fn hook(
    program: &'static str,
    function: &'static str,
    kind: HookKind,
    required: bool,
    purpose: &'static str,
) -> Hook {
    Hook { program, function, kind, required, purpose }
}

impl Hook {
    /// Whether it is the second program at its place, for calls at which the kernel skips the first.
    #[must_use]
    pub fn is_twin(&self) -> bool {
        self.program.contains("twin")
            || self.function.starts_with("page_counter_") && self.program.ends_with("_2")
    }

    /// Whether it is to be left out where the kernel has refused these programs: the hooks of
    /// these, and those that must not run without one of them, for what begins has to end.
    #[must_use]
    pub fn is_refused(&self, refused: &[&str]) -> bool {
        const OOM: [&str; 4] = ["oom_begun", "oom_begun_twin", "oom_ended", "oom_ended_twin"];
        const LIMIT: [&str; 4] = ["limit_write_1", "limit_twin_1", "limit_write_2", "limit_twin_2"];
        let needs: &[&str] = match self.program {
            name if OOM.contains(&name) => &OOM,
            // That a limit was written is worth knowing by itself.
            "limit_write_2" => &[],
            name if LIMIT.contains(&name) => &LIMIT,
            // Windows of which a part is not seen would be of a lower level than the kernel's.
            name if reclaim::is_of_rebuilt(name) => {
                return refused.iter().any(|one| reclaim::is_of_rebuilt(one));
            }
            _ => &[],
        };
        refused.contains(&self.program) || needs.iter().any(|needed| refused.contains(needed))
    }

    /// Whether the agent needs it, on a `v1` hierarchy or not.
    #[must_use]
    pub fn is_required_on(&self, v1: bool) -> bool {
        self.required || v1 && self.program == "usage_read_v1"
    }

    /// Whether the kernel that `btf` describes has it.
    #[must_use]
    pub fn is_in(&self, btf: &Btf) -> bool {
        match self.kind {
            HookKind::Entry | HookKind::Exit => btf.has_func(self.function),
            HookKind::Tracepoint => btf.has_typedef(&format!("btf_trace_{}", self.function)),
        }
    }
}

/// All hooks, in the order in which they are attached: those that free a slot before those that
/// fill one, and the charge path last, onto a full table.
pub const HOOKS: &[Hook] = &[
    hook("css_free", "mem_cgroup_css_free", HookKind::Entry, true, "a group's memory is freed"),
    hook("css_offline", "mem_cgroup_css_offline", HookKind::Entry, true, "a group is removed"),
    hook("css_online", "mem_cgroup_css_online", HookKind::Entry, true, "a group comes online"),
    // v2: memory.current. v1: every page counter file.
    hook("usage_read", "memory_current_read", HookKind::Entry, true, "which group a v2 file belongs to"),
    hook("usage_read_v1", "mem_cgroup_read_u64", HookKind::Entry, false, "which group a v1 file belongs to"),
    hook("eventfd_fdinfo", "eventfd_show_fdinfo", HookKind::Entry, true, "which eventfd a descriptor is"),
    // The notice of v1's code, where the kernel is built with v1; else the OOM itself.
    hook(
        "oom_notified",
        "mem_cgroup_oom_notify",
        HookKind::Entry,
        false,
        "a group is out of memory (the notice of v1's code)",
    ),
    hook("oom_ended_twin", "mem_cgroup_out_of_memory", HookKind::Exit, false, "an OOM ends (second program)"),
    hook(
        "oom_ended",
        "mem_cgroup_out_of_memory",
        HookKind::Exit,
        false,
        "a group is out of memory no longer",
    ),
    hook(
        "oom_begun_twin",
        "mem_cgroup_out_of_memory",
        HookKind::Entry,
        false,
        "an OOM begins (second program)",
    ),
    hook("oom_begun", "mem_cgroup_out_of_memory", HookKind::Entry, false, "a group is out of memory"),
    // Under the kernel's `oom_lock`, so one at a time.
    hook("oom_scope", "out_of_memory", HookKind::Entry, false, "by whose limit the OOM killer is called"),
    hook("oom_kill", "__oom_kill_process", HookKind::Entry, false, "the OOM killer kills a process"),
    hook("oom_victim", "mark_oom_victim", HookKind::Entry, false, "which process the OOM killer chose"),
    hook("oom_group", "mem_cgroup_print_oom_group", HookKind::Entry, false, "an OOM kills a whole group"),
    // A write below usage ends in the OOM killer, too: not an OOM of a charge.
    // The twin at the end is called after the other, so attached before it.
    hook("limit_twin_2", "memory_max_write", HookKind::Exit, false, "a limit was written (second program)"),
    hook("limit_write_2", "memory_max_write", HookKind::Exit, false, "a limit was written"),
    hook("limit_twin_1", "memory_max_write", HookKind::Entry, false, "a limit is written (second program)"),
    hook("limit_write_1", "memory_max_write", HookKind::Entry, false, "a limit is written"),
    hook("limit_set", "page_counter_set_max", HookKind::Exit, false, "a limit was written (v1)"),
    hook("reclaim_window", "vmpressure_work_fn", HookKind::Entry, false, "how hard reclaim works"),
    // Instead of that, where it evaluates nothing (`reclaim::Windows`).
    hook("reclaim_report", "vmpressure", HookKind::Entry, false, "how hard reclaim works"),
    hook("reclaim_report_6", "vmpressure", HookKind::Entry, false, "how hard reclaim works"),
    hook("reclaim_ended", "do_try_to_free_pages", HookKind::Exit, false, "how hard reclaim works (its end)"),
    hook(
        "reclaim_begun",
        "do_try_to_free_pages",
        HookKind::Entry,
        false,
        "how hard reclaim works (its beginning)",
    ),
    hook("reclaim_node", "shrink_node", HookKind::Entry, false, "how hard reclaim works (its passes)"),
    hook("populated", "cgroup_notify_populated", HookKind::Tracepoint, false, "a group becomes empty"),
    // The second of a pair before the first: the kernel runs the program that
    // was attached last before the others (`bpf_trampoline_link_prog`).
    hook(
        "try_charge_2",
        "page_counter_try_charge",
        HookKind::Exit,
        true,
        "memory is charged (second program)",
    ),
    hook("try_charge_1", "page_counter_try_charge", HookKind::Exit, true, "memory is charged"),
    hook(
        "charge_2",
        "page_counter_charge",
        HookKind::Exit,
        true,
        "memory is charged by force (second program)",
    ),
    hook("charge_1", "page_counter_charge", HookKind::Exit, true, "memory is charged by force"),
    hook(
        "uncharge_2",
        "page_counter_uncharge",
        HookKind::Exit,
        true,
        "memory is given back (second program)",
    ),
    hook("uncharge_1", "page_counter_uncharge", HookKind::Exit, true, "memory is given back"),
];

#[cfg(test)]
mod tests {
    use super::HOOKS;

    /// A hook that every fork, exec and exit runs for each descriptor would cost all processes of
    /// the host, most of which have no eventfd.
    #[test]
    fn no_close_of_a_descriptor_is_hooked() {
        for function in ["filp_close", "filp_flush", "close_fd", "fput", "__fput", "eventfd_release"] {
            assert!(HOOKS.iter().all(|hook| hook.function != function), "{function} is hooked");
        }
    }
}
