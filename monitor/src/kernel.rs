//! The one place that knows what kernels differ in: look at the facts, decide,
//! tell the programs. Everything is asked of the running kernel (BTF), nothing
//! is concluded from its version.

pub mod btf;

use std::{fs, path::Path};

use monitor_common::band;

use crate::{
    error::{Error, Result},
    kernel::btf::Btf,
};

/// Where the kernel keeps its own type information.
pub const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// At the function's entry.
    Entry,
    /// At the function's return.
    Exit,
}

impl Kind {
    /// The kernel's name of it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Entry => "fentry",
            Self::Exit => "fexit",
        }
    }
}

/// One attachment: a program of the object, and the kernel function it watches.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// The program's name in the object.
    pub program: &'static str,
    /// The kernel function.
    pub function: &'static str,
    /// Entry or return.
    pub kind: Kind,
    /// Without it the agent does not start; an optional hook exists on some
    /// kernels only.
    pub required: bool,
    /// What it is for, in words for `check`.
    pub purpose: &'static str,
}

const fn hook(
    program: &'static str,
    function: &'static str,
    kind: Kind,
    required: bool,
    purpose: &'static str,
) -> Hook {
    Hook { program, function, kind, required, purpose }
}

/// Every attachment, in the order in which they are made: what frees a slot
/// before what fills one, and the charge path last, onto a full table.
pub const HOOKS: &[Hook] = &[
    hook("css_free", "mem_cgroup_css_free", Kind::Entry, true, "a group's memory is freed"),
    hook("css_offline", "mem_cgroup_css_offline", Kind::Entry, true, "a group is removed"),
    hook("css_online", "mem_cgroup_css_online", Kind::Entry, true, "a group comes online"),
    // v2: memory.current. v1: every page counter file.
    hook("usage_read", "memory_current_read", Kind::Entry, true, "which group a v2 file belongs to"),
    hook("usage_read_v1", "mem_cgroup_read_u64", Kind::Entry, false, "which group a v1 file belongs to"),
    hook("eventfd_fdinfo", "eventfd_show_fdinfo", Kind::Entry, true, "which eventfd a descriptor is"),
    hook("file_close", "filp_close", Kind::Exit, true, "a client closes its eventfd"),
    // Since 6.6 close(2) flushes by itself; before, filp_close did both.
    hook("file_flush", "filp_flush", Kind::Exit, false, "a client closes its eventfd (6.6 and newer)"),
    // The second of a pair before the first: the kernel runs the program that
    // was attached last before the others (`bpf_trampoline_link_prog`).
    hook("try_charge_2", "page_counter_try_charge", Kind::Exit, true, "memory is charged (twin)"),
    hook("try_charge_1", "page_counter_try_charge", Kind::Exit, true, "memory is charged"),
    hook("charge_2", "page_counter_charge", Kind::Exit, true, "memory is charged by force (twin)"),
    hook("charge_1", "page_counter_charge", Kind::Exit, true, "memory is charged by force"),
    hook("uncharge_2", "page_counter_uncharge", Kind::Exit, true, "memory is given back (twin)"),
    hook("uncharge_1", "page_counter_uncharge", Kind::Exit, true, "memory is given back"),
];

/// What the kernel offers.
#[derive(Debug)]
pub struct Facts {
    /// `uname -r`.
    pub release: String,
    /// Its type information.
    pub btf: Btf,
    /// RAM and swap, in pages.
    pub pages: u64,
    /// Bytes in a page.
    pub page_size: u64,
}

impl Facts {
    /// Asks the running kernel.
    ///
    /// # Errors
    /// When the kernel has no readable BTF.
    pub fn gather() -> Result<Self> {
        let bytes = fs::read(VMLINUX_BTF).map_err(|error| {
            Error::Kernel(format!(
                "{VMLINUX_BTF}: {error}; it must be built with CONFIG_DEBUG_INFO_BTF=y (Debian's, Ubuntu's, Fedora's and RHEL's are)"
            ))
        })?;
        let btf = Btf::parse(bytes).map_err(|error| Error::Kernel(format!("{VMLINUX_BTF}: {error}")))?;
        Ok(Self { release: release(), btf, pages: host_pages(), page_size: page_size() })
    }

    /// The hooks that this kernel's BTF has, and those that it lacks.
    #[must_use]
    pub fn hooks(&self) -> (Vec<Hook>, Vec<Hook>) {
        HOOKS.iter().partition(|hook| self.btf.has_func(hook.function))
    }
}

/// What the programs are told about this kernel, by the name of their global.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// What to attach.
    pub hooks: Vec<&'static str>,
    /// 64-bit globals.
    pub offsets: Vec<(&'static str, u64)>,
    /// Unit of the packed band.
    pub band_shift: u32,
}

impl Plan {
    /// Decides, from the facts.
    ///
    /// # Errors
    /// Names the first thing that this kernel lacks.
    pub fn decide(facts: &Facts) -> Result<Self> {
        let (present, absent) = facts.hooks();
        if let Some(hook) = absent.iter().find(|hook| hook.required) {
            return Err(Error::Kernel(format!(
                "the function {} is not in its BTF ({}); needed to see when {}. Is CONFIG_MEMCG=y?",
                hook.function, facts.release, hook.purpose
            )));
        }
        let offset = |name: &str, path: &str| {
            facts
                .btf
                .member_offset(name, path)
                .map(u64::from)
                .map_err(|error| Error::Kernel(format!("{error} ({})", facts.release)))
        };
        // `file_ref_t` (6.13 and newer) counts from zero for one reference.
        let (file_refs, bias) = match offset("file", "f_ref.refcnt") {
            Ok(at) => (at, 1),
            Err(_) => (offset("file", "f_count")?, 0),
        };
        Ok(Self {
            hooks: present.iter().map(|hook| hook.program).collect(),
            offsets: vec![
                ("OFF_COUNTER_USAGE", offset("page_counter", "usage")?),
                ("OFF_COUNTER_PARENT", offset("page_counter", "parent")?),
                ("OFF_COUNTER_WATERMARK", offset("page_counter", "watermark")?),
                ("OFF_MEMCG_MEMORY", offset("mem_cgroup", "memory")?),
                ("OFF_CSS_CGROUP", offset("cgroup_subsys_state", "cgroup")?),
                ("OFF_CGROUP_KN", offset("cgroup", "kn")?),
                ("OFF_KN_ID", offset("kernfs_node", "id")?),
                ("OFF_FILE_OP", offset("file", "f_op")?),
                ("OFF_FILE_REFS", file_refs),
                ("FILE_REFS_BIAS", bias),
            ],
            band_shift: band::shift_for(facts.pages),
        })
    }
}

/// `uname -r`.
#[must_use]
pub fn release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "unknown".into(), |name| name.release().to_string_lossy().into_owned())
}

/// Bytes in a page of this host.
#[must_use]
pub fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|bytes| u64::try_from(bytes).ok())
        .unwrap_or(4096)
}

fn host_pages() -> u64 {
    let kib: u64 = fs::read_to_string(Path::new("/proc/meminfo"))
        .unwrap_or_default()
        .lines()
        .filter(|line| line.starts_with("MemTotal:") || line.starts_with("SwapTotal:"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum();
    kib * 1024 / page_size()
}
