//! Settings of the running kernel that stand in the way of BPF programs or of the memory
//! controller: its command line, its lockdown, its sysctls.

use std::{fs, path::Path};

/// The mode of the kernel's lockdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    /// The kernel is not locked down.
    None,
    /// User space may not change the running kernel; BPF works.
    Integrity,
    /// User space may not read the kernel's memory either, as the programs do.
    Confidentiality,
}

impl Lockdown {
    /// Reads the mode; `None` where the kernel has no lockdown, or securityfs is not mounted.
    #[must_use]
    pub fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/sys/kernel/security/lockdown").ok()?)
    }

    /// Parses `none [integrity] confidentiality`, in which the mode has brackets.
    fn parse(text: &str) -> Option<Self> {
        match text.split_once('[')?.1.split_once(']')?.0 {
            "none" => Some(Self::None),
            "integrity" => Some(Self::Integrity),
            "confidentiality" => Some(Self::Confidentiality),
            _ => None,
        }
    }
}

/// Reads a sysctl by its path below `/proc/sys`, without the line's end; `None` where this kernel
/// has no such setting, or it may not be read.
#[must_use]
pub fn sysctl(path: &str) -> Option<String> {
    fs::read_to_string(Path::new("/proc/sys").join(path)).ok().map(|text| text.trim().to_owned())
}

/// Whether `kernel.ftrace_enabled` is 0. Then the kernel calls no programs at its functions,
/// although they are attached.
#[must_use]
pub fn is_ftrace_off() -> bool {
    sysctl("kernel/ftrace_enabled").is_some_and(|text| text == "0")
}

/// Whether the kernel was booted with `cgroup_disable=memory`.
#[must_use]
pub fn is_memory_disabled() -> bool {
    fs::read_to_string("/proc/cmdline").is_ok_and(|text| disables_memory(&text))
}

/// Whether this command line has `cgroup_disable=` with `memory` in its list.
fn disables_memory(command_line: &str) -> bool {
    let lists = command_line.split_whitespace().filter_map(|word| word.strip_prefix("cgroup_disable="));
    lists.flat_map(|list| list.split(',')).any(|name| name == "memory")
}

#[cfg(test)]
mod tests {
    use super::{Lockdown, disables_memory};

    #[test]
    fn the_mode_in_brackets_is_read() {
        assert_eq!(Lockdown::parse("[none] integrity confidentiality\n"), Some(Lockdown::None));
        assert_eq!(Lockdown::parse("none [integrity] confidentiality\n"), Some(Lockdown::Integrity));
        assert_eq!(Lockdown::parse("none integrity [confidentiality]\n"), Some(Lockdown::Confidentiality));
        assert_eq!(Lockdown::parse("none integrity\n"), None);
        assert_eq!(Lockdown::parse("[else]"), None);
    }

    #[test]
    fn the_controller_is_found_in_a_list() {
        assert!(disables_memory("ro quiet cgroup_disable=memory"));
        assert!(disables_memory("cgroup_disable=pids cgroup_disable=cpu,memory ro\n"));
        assert!(!disables_memory("cgroup_disable=cpu cgroup.memory=nokmem cgroup_enable=memory"));
        assert!(!disables_memory("cgroup_disable=memory_x xcgroup_disable=memory"));
    }
}
