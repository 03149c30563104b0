//! The differences between kernels: this module reads the facts, decides, and configures the
//! programs. Everything is read from the running kernel (BTF); nothing is concluded from its
//! version.

pub mod btf;
pub(crate) mod error;
pub(crate) mod fuse;
pub(crate) mod hooks;
pub(crate) mod obstacle;
pub(crate) mod oom_log;
mod reclaim;
pub mod settings;
mod victim;

pub use hooks::{HOOKS, Hook, HookKind};
pub use reclaim::Windows;

use std::{env, fs, path::Path, sync::LazyLock};

use monitor_common::protocol::band;

use crate::{
    error::{Error, Result},
    kernel::{btf::Btf, error::KernelError},
};

/// The path of the kernel's own type information.
pub const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The highest number that a process may have: one below `PID_MAX_LIMIT` of a 64-bit kernel.
pub const HIGHEST_PID: i32 = 4 * 1024 * 1024 - 1;

/// Facts about the running kernel.
#[derive(Debug)]
pub struct Facts {
    /// The release, as in `uname -r`.
    pub release: String,
    /// The kernel's type information.
    pub btf: Btf,
    /// RAM and swap, in pages.
    pub pages: u64,
    /// Bytes in one page.
    pub page_size: u64,
    /// Whether the memory controller is on a v1 hierarchy.
    pub v1: bool,
    /// Functions that are taken for absent though the kernel may have them; see [`ABSENT`].
    pub absent: Vec<String>,
}

/// The environment variable that names functions, with commas between them, which the agent takes
/// for absent. By it tests compare what stands in for a function with the function itself.
pub const ABSENT: &str = "MEMCG_MONITOR_ABSENT";

/// The functions that [`ABSENT`] names.
pub(crate) fn absent() -> Vec<String> {
    let names = env::var(ABSENT).unwrap_or_default();
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

impl Facts {
    /// Reads the facts of the running kernel; `v1` says which hierarchy has the controller.
    ///
    /// # Errors
    /// The kernel has no readable BTF.
    pub fn gather(v1: bool) -> Result<Self> {
        let path = VMLINUX_BTF;
        let bytes = fs::read(path).map_err(|error| KernelError::NoBtf { path, error })?;
        let btf = Btf::parse(bytes).map_err(|error| KernelError::MalformedBtf { path, error })?;
        let absent = absent();
        if !absent.is_empty() {
            log::warn!("{ABSENT} is set, so these functions are taken for absent: {}", absent.join(", "));
        }
        Ok(Self { release: release(), btf, pages: host_pages(), page_size: page_size(), v1, absent })
    }

    /// Whether the kernel's BTF has this function.
    #[must_use]
    pub fn has_func(&self, name: &str) -> bool {
        self.btf.has_func(name) && !self.absent.iter().any(|absent| absent == name)
    }

    /// The source of windows of reclaim, if the kernel has `refused` these programs.
    #[must_use]
    pub fn windows(&self, refused: &[&str]) -> Windows {
        Windows::of(&self.btf, |name| self.has_func(name), self.v1, refused)
    }

    /// The hooks that this kernel's BTF has, and those that it lacks, of those that are needed for
    /// windows from `windows`.
    #[must_use]
    pub fn hooks(&self, windows: Windows) -> (Vec<Hook>, Vec<Hook>) {
        HOOKS
            .iter()
            .filter(|hook| windows.uses(hook.program))
            .partition(|hook| hook.is_in(&self.btf) && !self.absent.iter().any(|name| name == hook.function))
    }
}

/// Settings of the programs for this kernel, by the name of their global.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Programs to be attached, by name.
    pub hooks: Vec<&'static str>,
    /// The kernel functions of these, with their type ids.
    pub functions: Vec<(&'static str, u32)>,
    /// Values of 64-bit globals.
    pub offsets: Vec<(&'static str, u64)>,
    /// Values of 32-bit globals.
    pub numbers: Vec<(&'static str, u32)>,
    /// The unit of the packed band.
    pub band_shift: u32,
    /// Events that can be registered for beside memory and memory+swap.
    pub features: Features,
}

/// Events that this kernel can report beside usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// OOM by a group's limit.
    pub oom: bool,
    /// The kernel's own count of groups under OOM can be read.
    pub under_oom: bool,
    /// Windows of reclaim with their pressure.
    pub pressure: bool,
    /// Groups that become empty of tasks.
    pub empty: bool,
}

impl Features {
    /// Features by the programs that there are, and by the fields that the kernel has.
    fn of(has: impl Fn(&str) -> bool, under_oom: bool, windows: Windows) -> Self {
        Self {
            // The notice of v1's code, or the OOM itself.
            oom: has("oom_notified") || has("oom_begun") && has("oom_ended"),
            under_oom,
            pressure: windows.are_seen(&has),
            empty: has("populated"),
        }
    }

    /// Packs the features in one word, for agents that find programs already at work.
    #[must_use]
    pub fn bits(self) -> u64 {
        let all = [self.oom, self.under_oom, self.pressure, self.empty];
        (0..).zip(all).fold(0, |bits, (at, is)| bits | u64::from(is) << at)
    }

    /// Unpacks the word that [`Features::bits`] returns.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self { oom: bits & 1 != 0, under_oom: bits & 2 != 0, pressure: bits & 4 != 0, empty: bits & 8 != 0 }
    }
}

impl Plan {
    /// Decides from the facts, leaving out the programs that the kernel has `refused`.
    ///
    /// # Errors
    /// The error names the first thing that this kernel lacks.
    pub fn decide(facts: &Facts, refused: &[&str]) -> Result<Self> {
        let windows = facts.windows(refused);
        let (mut present, absent) = facts.hooks(windows);
        let release = || facts.release.clone();
        if !facts.btf.has_struct("mem_cgroup") {
            return Err(KernelError::NoController { release: release() }.into());
        }
        let is_missed = |hook: &&Hook| hook.is_refused(refused) && hook.is_required_on(facts.v1);
        if let Some(hook) = present.iter().find(is_missed) {
            let Hook { function, purpose, .. } = *hook;
            return Err(KernelError::Refused { function, release: release(), purpose }.into());
        }
        present.retain(|hook| !hook.is_refused(refused));
        if let Some(hook) = absent.iter().find(|hook| hook.required) {
            let Hook { function, purpose, .. } = *hook;
            return Err(KernelError::NoFunction { function, release: release(), purpose }.into());
        }
        let offset = |name: &str, path: &str| {
            facts
                .btf
                .member_offset(name, path)
                .map(u64::from)
                .map_err(|error| Error::from(KernelError::Offset { error, release: release() }))
        };
        let has = |program: &str| present.iter().any(|hook| hook.program == program);
        // `file_ref_t` (6.13 and newer) counts from zero for one reference.
        let (file_refs, bias) = match offset("file", "f_ref.refcnt") {
            Ok(at) => (at, 1),
            Err(_) => (offset("file", "f_count")?, 0),
        };
        // Where v1's code is built in, its own notice is also given on v2.
        let notified = has("oom_notified");
        let (oom_kill, limit_marks) = (has("oom_kill"), has("limit_write_1"));
        let under_oom = offset("mem_cgroup", "under_oom").ok();
        let memory = facts
            .btf
            .enum_value("cgroup_subsys_id", "memory_cgrp_id")
            .and_then(|id| u64::try_from(id).ok())
            .ok_or_else(|| KernelError::NoController { release: release() })?;
        let css = |name: &str| Ok::<_, Error>(offset(name, "subsys")? + memory * size_of::<u64>() as u64);
        let optional = |at: Result<u64>| at.unwrap_or(0);
        let proactive = facts.btf.member_bit_offset("scan_control", "proactive").map_or(0, u64::from);
        // All, or none: 0 says that it is not known.
        let together = |paths: &[(&str, &str)]| {
            let all: Result<Vec<_>> = paths.iter().map(|(name, path)| offset(name, path)).collect();
            all.unwrap_or_else(|_| vec![0; paths.len()])
        };
        let victim = together(&[("task_struct", "signal"), ("signal_struct", "oom_mm")]);
        let descriptors = together(&[
            ("task_struct", "files"),
            ("files_struct", "fdt"),
            ("fdtable", "fd"),
            ("file", "f_inode"),
            ("inode", "i_private"),
            ("kernfs_node", "priv"),
        ]);
        let populated = together(&[
            ("cgroup", "nr_populated_csets"),
            ("cgroup", "nr_populated_domain_children"),
            ("cgroup", "nr_populated_threaded_children"),
        ]);
        let ooms = offset("mem_cgroup", "memory_events_local").ok().and_then(|events| {
            let oom = u64::try_from(facts.btf.enum_value("memcg_memory_event", "MEMCG_OOM")?).ok()?;
            Some(events + oom * size_of::<u64>() as u64)
        });
        let features = Features::of(has, under_oom.is_some(), windows);
        Ok(Self {
            hooks: present.iter().map(|hook| hook.program).collect(),
            functions: present
                .iter()
                .filter_map(|hook| Some((hook.function, facts.btf.func_id(hook.function)?)))
                .collect(),
            offsets: vec![
                ("OFF_COUNTER_USAGE", offset("page_counter", "usage")?),
                ("OFF_COUNTER_PARENT", offset("page_counter", "parent")?),
                ("OFF_COUNTER_WATERMARK", offset("page_counter", "watermark")?),
                ("OFF_COUNTER_MAX", offset("page_counter", "max")?),
                ("OFF_MEMCG_MEMORY", offset("mem_cgroup", "memory")?),
                ("OFF_MEMCG_SWAP", offset("mem_cgroup", "swap")?),
                ("OFF_MEMCG_VMPRESSURE", optional(offset("mem_cgroup", "vmpressure"))),
                ("OFF_MEMCG_UNDER_OOM", under_oom.unwrap_or(0)),
                ("OFF_VMPRESSURE_WORK", optional(offset("vmpressure", "work"))),
                ("OFF_VMPRESSURE_SCANNED", optional(offset("vmpressure", "tree_scanned"))),
                ("OFF_VMPRESSURE_RECLAIMED", optional(offset("vmpressure", "tree_reclaimed"))),
                ("OFF_SCAN_PRIORITY", optional(offset("scan_control", "priority"))),
                ("OFF_SCAN_GFP", optional(offset("scan_control", "gfp_mask"))),
                ("OFF_SCAN_MEMCG", optional(offset("scan_control", "target_mem_cgroup"))),
                ("BIT_SCAN_PROACTIVE", proactive),
                ("OFF_CSS_CGROUP", offset("cgroup_subsys_state", "cgroup")?),
                ("OFF_CGROUP_KN", offset("cgroup", "kn")?),
                ("OFF_CGROUP_MEMORY_CSS", css("cgroup")?),
                ("OFF_CSS_SET_MEMORY_CSS", css("css_set")?),
                ("OFF_KN_ID", offset("kernfs_node", "id")?),
                ("OFF_TASK_FILES", descriptors[0]),
                ("OFF_FILES_TABLE", descriptors[1]),
                ("OFF_TABLE_FILES", descriptors[2]),
                ("OFF_FILE_INODE", descriptors[3]),
                ("OFF_INODE_PRIVATE", descriptors[4]),
                ("OFF_KN_PRIVATE", descriptors[5]),
                ("OFF_TASK_CGROUPS", offset("task_struct", "cgroups")?),
                ("OFF_TASK_TGID", offset("task_struct", "tgid")?),
                ("OFF_TASK_COMM", offset("task_struct", "comm")?),
                ("OFF_TASK_SIGNAL", victim[0]),
                ("OFF_SIGNAL_OOM_MM", victim[1]),
                ("OFF_OOM_MEMCG", optional(offset("oom_control", "memcg"))),
                ("OFF_MEMCG_OOMS", ooms.unwrap_or(0)),
                ("OFF_CGROUP_CSETS", populated[0]),
                ("OFF_CGROUP_DOMAINS", populated[1]),
                ("OFF_CGROUP_THREADED", populated[2]),
                ("OFF_FILE_REFS", file_refs),
                ("FILE_REFS_BIAS", bias),
            ]
            .into_iter()
            .chain(victim::offsets(&facts.btf))
            .collect(),
            numbers: vec![
                ("SWAP_IS_SUM", u32::from(facts.v1)),
                ("HAS_OOM_NOTIFY", u32::from(notified)),
                ("HAS_OOM_KILL", u32::from(oom_kill)),
                ("HAS_LIMIT_MARKS", u32::from(limit_marks)),
            ],
            features,
            band_shift: band::shift_for(facts.pages),
        })
    }
}

/// The release of the running kernel, as in `uname -r`.
#[must_use]
pub fn release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "unknown".into(), |name| name.release().to_string_lossy().into_owned())
}

/// `kernel.yama.ptrace_scope`, where the kernel has Yama. At 3 no process may attach to another,
/// whatever its capabilities (`yama_ptrace_access_check`), nor take its descriptors.
#[must_use]
pub fn ptrace_scope() -> Option<String> {
    settings::sysctl("kernel/yama/ptrace_scope")
}

/// Bytes in a page of this host.
#[must_use]
pub fn page_size() -> u64 {
    // Needed for each group of a list: the C library's answer takes a hundred instructions.
    static BYTES: LazyLock<u64> = LazyLock::new(|| {
        let bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
        bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(4096)
    });
    *BYTES
}

/// Pages of memory and swap of this host.
#[must_use]
pub fn host_pages() -> u64 {
    let kib: u64 = fs::read_to_string(Path::new("/proc/meminfo"))
        .unwrap_or_default()
        .lines()
        .filter(|line| line.starts_with("MemTotal:") || line.starts_with("SwapTotal:"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum();
    kib * 1024 / page_size()
}

#[cfg(test)]
mod tests {
    use super::{Facts, Features, HOOKS, Plan, Windows, btf::Btf};

    const REBUILT: Windows = Windows::Rebuilt { has_order: true, has_passes: true };

    fn offers_by(windows: Windows, refused: &[&str]) -> Features {
        let left: Vec<_> = HOOKS.iter().filter(|hook| !hook.is_refused(refused)).collect();
        Features::of(|program| left.iter().any(|hook| hook.program == program), true, windows)
    }

    fn offers_without(refused: &[&str]) -> Features {
        offers_by(Windows::Kernel, refused)
    }

    #[test]
    fn what_cannot_be_seen_is_not_offered() {
        let all = Features { oom: true, under_oom: true, pressure: true, empty: true };
        for harmless in [&[][..], &["oom_victim"], &["oom_notified"], &["oom_begun"], &["limit_set"]] {
            assert_eq!(offers_without(harmless), all, "{harmless:?}");
        }
        assert_eq!(offers_without(&["oom_ended", "oom_notified"]), Features { oom: false, ..all });
        assert_eq!(offers_without(&["populated"]), Features { empty: false, ..all });
        assert_eq!(offers_without(&["reclaim_window"]), Features { pressure: false, ..all });
        assert_eq!(offers_by(REBUILT, &["reclaim_window"]), all);
        for needed in ["reclaim_report_6", "reclaim_begun", "reclaim_ended", "reclaim_node"] {
            assert_eq!(offers_by(REBUILT, &[needed]), Features { pressure: false, ..all }, "{needed}");
        }
    }

    /// Facts of a kernel whose types are one structure of this name.
    fn facts(structure: &str) -> Facts {
        let names = [b"\0", structure.as_bytes(), b"\0"].concat();
        let types = [1, 4 << 24, 0];
        let (length, of_names) = (size_of_val(&types) as u32, names.len() as u32);
        let words = [0x1_eb9f, 24, 0, length, length, of_names].into_iter().chain(types);
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).chain(names).collect();
        let btf = Btf::parse(bytes).expect("well-formed");
        Facts {
            release: "5.10.0".into(),
            btf,
            pages: 1 << 20,
            page_size: 4096,
            v1: false,
            absent: Vec::new(),
        }
    }

    #[test]
    fn a_build_without_the_controller_is_distinguished_from_a_missing_function() {
        let refusal = |structure| Plan::decide(&facts(structure), &[]).expect_err("no function").to_string();
        let (without, with) = (refusal("task_struct"), refusal("mem_cgroup"));
        assert!(without.contains("CONFIG_MEMCG=y") && without.contains("5.10.0"), "{without}");
        assert!(!with.contains("CONFIG_MEMCG"), "{with}");
        assert!(with.contains("mem_cgroup_css_free") && with.contains("too old, or inlined"), "{with}");
    }

    #[test]
    fn programs_for_a_begin_and_its_end_are_left_out_together() {
        let left_out = |refused: &str| {
            let left_out = HOOKS.iter().filter(|hook| hook.is_refused(&[refused]));
            left_out.map(|hook| hook.program).collect::<Vec<_>>()
        };
        let oom = ["oom_ended_twin", "oom_ended", "oom_begun_twin", "oom_begun"];
        let limit = ["limit_twin_2", "limit_write_2", "limit_twin_1", "limit_write_1"];
        for program in oom {
            assert_eq!(left_out(program), oom);
        }
        assert_eq!(left_out("limit_write_2"), limit);
        let rebuilt =
            ["reclaim_report", "reclaim_report_6", "reclaim_ended", "reclaim_begun", "reclaim_node"];
        for program in rebuilt {
            assert_eq!(left_out(program), rebuilt);
        }
        // That a limit was written is still reported.
        assert_eq!(left_out("limit_write_1"), ["limit_twin_2", "limit_twin_1", "limit_write_1"]);
    }
}
