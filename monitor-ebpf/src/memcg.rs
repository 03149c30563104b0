//! The only file that reads kernel structs; offsets come from the kernel's BTF.
//!
//! On the hot path pointers are followed by plain loads: the verifier knows their
//! types, checks each offset against BTF, and makes a bad address read as zero.

use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel, generated::bpf_probe_read_user};
use monitor_common::protocol::ring::{Doorbell, KillReason, Victim};

use crate::{maps, word::full_barrier};

/// A `struct page_counter` that the verifier knows as such.
#[derive(Clone, Copy)]
pub struct Counter(*const u8);

impl Counter {
    /// Wraps a traced function's argument.
    #[inline(always)]
    pub fn new(pointer: *const u8) -> Self {
        Self(pointer)
    }

    /// The counter's address, by which the slot table knows it.
    #[inline(always)]
    pub fn address(self) -> u64 {
        self.0 as u64
    }

    /// Number of pages charged now.
    #[inline(always)]
    pub fn usage(self) -> u64 {
        // SAFETY: a typed pointer and an offset from BTF, checked at load.
        let usage = unsafe { load(self.0, maps::off_counter_usage()) };
        // Momentarily negative while a racing uncharge underflows: not a lot.
        if (usage as i64) < 0 { 0 } else { usage }
    }

    /// The most pages charged so far, by the kernel's own mark.
    #[inline(always)]
    pub fn watermark(self) -> u64 {
        // SAFETY: as for `usage`.
        unsafe { load(self.0, maps::off_counter_watermark()) }
    }
}

/// Loads the word at `pointer + offset`: kprobes have no pointers that the verifier knows.
///
/// # Safety
/// None is needed; it is the other's signature.
#[cfg(feature = "kprobe")]
#[inline(always)]
pub unsafe fn load(pointer: *const u8, offset: u64) -> u64 {
    read(pointer as u64 + offset).unwrap_or(0)
}

/// Loads the word at `pointer + offset`.
///
/// # Safety
/// `pointer` must be one that the verifier tracks, and `offset` a global.
#[cfg(not(feature = "kprobe"))]
#[inline(always)]
pub unsafe fn load(pointer: *const u8, offset: u64) -> u64 {
    // SAFETY: the caller's promise; see the module's header.
    unsafe { pointer.wrapping_add(offset as usize).cast::<u64>().read_volatile() }
}

/// Reads a word anywhere in kernel memory; for rare paths.
#[inline(always)]
pub fn read(address: u64) -> Option<u64> {
    // SAFETY: the helper checks the address and fails on a bad one.
    unsafe { bpf_probe_read_kernel(address as *const u64) }.ok()
}

/// Turns an address into a plain number, which global functions take.
#[inline(always)]
pub fn scalar(address: u64) -> u64 {
    read((&raw const address) as u64).unwrap_or(0)
}

/// Usage of the counter at `address`, not typed.
pub fn usage_at(address: u64) -> Option<u64> {
    let usage = read(address + maps::off_counter_usage())?;
    Some(if (usage as i64) < 0 { 0 } else { usage })
}

/// The kernel's own high-water mark of the counter at `address`.
pub fn watermark_at(address: u64) -> Option<u64> {
    read(address + maps::off_counter_watermark())
}

/// The parent of the counter at `address`; 0 above the root.
pub fn parent_at(address: u64) -> Option<u64> {
    read(address + maps::off_counter_parent())
}

/// The memory counter of the memcg whose `css` (its first member) is here.
pub fn counter_of_css(css: u64) -> u64 {
    css + maps::off_memcg_memory()
}

/// The css of the memcg whose `memory` counter is at `address`.
pub fn css_of_counter(address: u64) -> u64 {
    address - maps::off_memcg_memory()
}

/// `cgroup_id()` of a `css`: its directory's inode number.
pub fn cgroup_id_of_css(css: u64) -> Option<u64> {
    let cgroup = read(css + maps::off_css_cgroup())?;
    let node = read(cgroup + maps::off_cgroup_kn())?;
    read(node + maps::off_kn_id())
}

/// References to the file at `address`.
pub fn file_refs_at(address: u64) -> Option<u64> {
    Some(read(address + maps::off_file_refs())?.wrapping_add(maps::file_refs_bias()))
}

/// The `memory` counter of the group whose swap counter (on v1: memory+swap) is
/// at `address`. Of any other counter: an address that is no group's.
#[inline(always)]
pub fn memory_of_swap(address: u64) -> u64 {
    address.wrapping_sub(maps::off_memcg_swap()).wrapping_add(maps::off_memcg_memory())
}

/// Memory+swap of the group whose `memory` counter is at `address`, and whether
/// both were read at one moment. v1 counts the sum itself.
///
/// A task that is preempted between two readings may come back to another world:
/// so memory has to be the same before and after, in this order on every processor. Where
/// it never is, another charge changes it, and looks itself.
#[inline(always)]
pub fn sum_at(address: u64) -> Option<(u64, bool)> {
    const ATTEMPTS: usize = 4;
    let swap = address - maps::off_memcg_memory() + maps::off_memcg_swap();
    // Behind the band that it is compared with, too.
    full_barrier();
    if maps::swap_is_sum() != 0 {
        return Some((usage_at(swap)?, true));
    }
    let mut memory = usage_at(address)?;
    let mut sum = memory;
    for _ in 0..maps::rolled(ATTEMPTS) {
        full_barrier();
        sum = memory + usage_at(swap)?;
        full_barrier();
        let again = usage_at(address)?;
        if again == memory {
            return Some((sum, true));
        }
        memory = again;
    }
    Some((sum, false))
}

/// The limit of the counter at `address`.
pub fn limit_at(address: u64) -> Option<u64> {
    read(address + maps::off_counter_max())
}

/// `under_oom` of the group whose `memory` counter is at `address`; an `int`.
pub fn under_oom_at(address: u64) -> Option<u64> {
    let word = read(address - maps::off_memcg_memory() + maps::off_memcg_under_oom())?;
    Some(word & 0xffff_ffff)
}

/// Pages scanned and reclaimed of the `struct vmpressure` that `work` lies in.
pub fn window_at(work: u64) -> Option<(u64, u64)> {
    let vmpressure = work - maps::off_vmpressure_work();
    Some((
        read(vmpressure + maps::off_vmpressure_scanned())?,
        read(vmpressure + maps::off_vmpressure_reclaimed())?,
    ))
}

/// The `memory` counter of the group whose vmpressure `work` is.
pub fn counter_of_vmpressure_work(work: u64) -> u64 {
    counter_of_css(work - maps::off_vmpressure_work() - maps::off_memcg_vmpressure())
}

/// The priority of a `struct scan_control`, an `s8`.
pub fn reclaim_priority(control: u64) -> Option<i8> {
    Some(read(control + maps::off_scan_priority())? as i8)
}

/// The allocation's flags and the memcg (0: the root) of reclaim that the kernel accounts: not
/// what is requested by `memory.reclaim`.
pub fn accounted_reclaim(control: u64) -> Option<(u64, u64)> {
    // A bitfield; kernels that have no proactive reclaim do not have it.
    let bit = maps::bit_scan_proactive();
    if bit != 0 && read(control + bit / 64 * 8)? >> (bit % 64) & 1 != 0 {
        return None;
    }
    Some((read(control + maps::off_scan_gfp())? & 0xffff_ffff, read(control + maps::off_scan_memcg())?))
}

/// The `memory` counter of a `struct cgroup`, if it has the controller.
pub fn counter_of_cgroup(cgroup: u64) -> Option<u64> {
    match read(cgroup + maps::off_cgroup_memory_css())? {
        0 => None,
        css => Some(counter_of_css(css)),
    }
}

/// Address of the `struct file` at a descriptor of a task's own. The caller is in an RCU section, so
/// that the table of descriptors stays.
pub fn file_at_descriptor(task: u64, descriptor: u64) -> Option<u64> {
    if maps::off_task_files() == 0 {
        return None;
    }
    let files = read(task + maps::off_task_files())?;
    let table = read(files + maps::off_files_table())?;
    let all = read(table + maps::off_table_files())?;
    read(all + descriptor * size_of::<u64>() as u64).filter(|file| *file != 0)
}

/// The memcg's css of the group whose directory is open as the file at `address`, if it has the
/// controller. The directory of a group is a kernfs node whose private word is the cgroup.
pub fn css_of_directory(address: u64) -> Option<u64> {
    let inode = read(address + maps::off_file_inode())?;
    let node = read(inode + maps::off_inode_private())?;
    let cgroup = read(node + maps::off_kn_private())?;
    read(cgroup + maps::off_cgroup_memory_css()).filter(|css| *css != 0)
}

/// Id of the group that a task's memory is charged to.
pub fn group_of_task(task: u64) -> Option<u64> {
    let set = read(task + maps::off_task_cgroups())?;
    cgroup_id_of_css(read(set + maps::off_css_set_memory_css())?)
}

/// `task->tgid`: the process id in the first pid namespace.
pub fn pid_of_task(task: u64) -> Option<u64> {
    Some(read(task + maps::off_task_tgid())? & 0xffff_ffff)
}

/// Whether the OOM killer has chosen the task's process before (`signal->oom_mm`).
pub fn is_victim(task: u64) -> bool {
    maps::off_task_signal() != 0
        && read(task + maps::off_task_signal())
            .and_then(|signal| read(signal + maps::off_signal_oom_mm()))
            .is_some_and(|memory| memory != 0)
}

/// The `memory` counter of the group by whose limit `out_of_memory` is called; `None`: it
/// is the host's memory that is short.
pub fn counter_of_oom(control: u64) -> Option<u64> {
    match read(control + maps::off_oom_memcg())? {
        0 => None,
        css => Some(counter_of_css(css)),
    }
}

/// OOMs by the limit of the group whose `memory` counter is at `address`, as the kernel
/// has counted them.
pub fn ooms_at(address: u64) -> Option<u64> {
    if maps::off_memcg_ooms() == 0 {
        return None;
    }
    read(address - maps::off_memcg_memory() + maps::off_memcg_ooms())
}

/// Whether a task is in the group whose `memory` counter is at `address`, or below it
/// (`cgroup_is_populated`).
pub fn is_populated_at(address: u64) -> Option<u64> {
    if maps::off_cgroup_csets() == 0 {
        return None;
    }
    let cgroup = read(address - maps::off_memcg_memory() + maps::off_css_cgroup())?;
    // Each is an `int`.
    let sets = read(cgroup + maps::off_cgroup_csets())?;
    let domains = read(cgroup + maps::off_cgroup_domains())?;
    let threaded = read(cgroup + maps::off_cgroup_threaded())?;
    Some(u64::from((sets | domains | threaded) as u32 != 0))
}

/// Name of a task (`task->comm`).
pub fn name_of_task(task: u64) -> Option<[u8; 16]> {
    // SAFETY: the helper checks the address and fails on a bad one.
    unsafe { bpf_probe_read_kernel((task + maps::off_task_comm()) as *const [u8; 16]) }.ok()
}

/// The word at an optional offset from `base`; `None` where the offset or the base is not known.
#[inline(always)]
fn read_optional(base: u64, offset: u64) -> Option<u64> {
    if base == 0 || offset == 0 { None } else { read(base + offset) }
}

/// One of a process's counts of pages, as the kernel's own line of a kill has it: what it read while
/// a change on another processor was under way may be below 0.
#[inline(always)]
fn pages_of(mm: u64, offset: u64) -> u64 {
    match read_optional(mm, offset) {
        Some(count) if (count as i64) < 0 => 0,
        Some(count) => count,
        None => Victim::UNKNOWN,
    }
}

/// The process id in the process's own pid namespace.
#[inline(always)]
fn own_pid(signal: u64) -> Option<u32> {
    /// The kernel's own bound, `MAX_PID_NS_LEVEL`.
    const DEEPEST: u64 = 32;
    let pid = read_optional(signal, maps::off_signal_pid())?;
    let level = read_optional(pid, maps::off_pid_level())? & 0xffff_ffff;
    if level > DEEPEST {
        return None;
    }
    Some(read(pid + maps::off_pid_numbers() + level * maps::size_upid())? as u32)
}

/// Writes the record of a victim.
///
/// # Safety
/// `record` may be written, as a whole.
#[inline(always)]
#[expect(clippy::multiple_unsafe_ops_per_block, reason = "one promise covers all fields of the record")]
pub unsafe fn describe(task: u64, bell: Doorbell, record: *mut Victim) {
    let signal = read_optional(task, maps::off_task_signal()).unwrap_or(0);
    let uid =
        read_optional(task, maps::off_task_cred()).and_then(|cred| read_optional(cred, maps::off_cred_uid()));
    let start = read_optional(task, maps::off_task_leader())
        .and_then(|leader| read_optional(leader, maps::off_task_start()));
    // An `s16`.
    let score = read_optional(signal, maps::off_signal_score_adj()).map(|word| i32::from(word as i16));
    let slot = read(task + maps::off_task_cgroups())
        .and_then(|set| read(set + maps::off_css_set_memory_css()))
        .and_then(|css| maps::slot_of(counter_of_css(css)));
    let mm = read_optional(task, maps::off_task_mm()).unwrap_or(0);
    // SAFETY: the caller's promise; each is a field of the record.
    unsafe {
        (&raw mut (*record).bell).write(bell);
        (&raw mut (*record).pid).write(pid_of_task(task).unwrap_or(0));
        (&raw mut (*record).comm).write(name_of_task(task).unwrap_or_default());
        (&raw mut (*record).start).write(start.unwrap_or(0));
        (&raw mut (*record).uid).write(uid.map_or(Victim::NO_USER, |uid| uid as u32));
        (&raw mut (*record).own_pid).write(own_pid(signal).unwrap_or(0));
        (&raw mut (*record).score_adj).write(score.unwrap_or(Victim::NO_SCORE));
        (&raw mut (*record).slot).write(slot.unwrap_or(KillReason::NO_SLOT));
        let memory = &raw mut (*record).memory;
        (&raw mut (*memory).total).write(pages_of(mm, maps::off_mm_total()));
        (&raw mut (*memory).anon).write(pages_of(mm, maps::off_mm_anon()));
        (&raw mut (*memory).file).write(pages_of(mm, maps::off_mm_file()));
        (&raw mut (*memory).shmem).write(pages_of(mm, maps::off_mm_shmem()));
        (&raw mut (*memory).swap).write(pages_of(mm, maps::off_mm_swap()));
        (&raw mut (*memory).page_tables).write(pages_of(mm, maps::off_mm_page_tables()));
        let command = &raw mut (*record).command;
        command.cast::<[u64; Victim::COMMAND / 8]>().write([0; Victim::COMMAND / 8]);
        let bytes = read_command(mm, command.cast()).unwrap_or(0);
        (&raw mut (*record).command_bytes).write(bytes);
    }
}

/// Reads the beginning of the command line, where the victim is the process that runs: of no other's
/// memory is it known that it is there. Returns its length in all.
///
/// # Safety
/// `command` may be written for [`Victim::COMMAND`] bytes.
#[inline(always)]
unsafe fn read_command(mm: u64, command: *mut u8) -> Option<u64> {
    // SAFETY: takes nothing, returns an address.
    let current = unsafe { bpf_get_current_task() };
    if mm == 0 || read_optional(current, maps::off_task_mm())? != mm {
        return None;
    }
    let start = read_optional(mm, maps::off_mm_arg_start())?;
    let bytes = read_optional(mm, maps::off_mm_arg_end())?.checked_sub(start)?;
    let part = if bytes < Victim::COMMAND as u64 { bytes } else { Victim::COMMAND as u64 };
    // SAFETY: the caller's promise; the helper checks the address that it reads.
    let failed = unsafe { bpf_probe_read_user(command.cast(), part as u32, start as *const _) };
    (failed == 0).then_some(bytes)
}
