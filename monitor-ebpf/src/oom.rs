//! OOM by a group's limit: when it begins and ends, and whom it kills.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use monitor_common::{
    ask::Wanted,
    oom,
    ring::{Doorbell, Tally, Victim},
    word::Word as _,
};

use crate::{group, kernel, maps};

/// In the place of a slot: the task writes `memory.max`, and what the kernel then
/// does for lack of memory is not an OOM of a charge. One such write makes
/// hundreds of calls (`memory_max_write`).
const WRITES_LIMIT: u32 = u32::MAX;

/// `mem_cgroup_out_of_memory`: a charge found no memory. It may yet find some
/// without a kill, as in v1, where listeners were told before that, too.
#[inline(always)]
pub fn begun(css: u64) {
    let task = bpf_get_current_pid_tgid();
    if maps::oom_of(task).is_some() {
        return;
    }
    let Some(index) = group::place_of_oom(css) else {
        return;
    };
    if !maps::enter_oom(task, index) {
        maps::count(Tally::OomUnknown);
    }
    if maps::has_oom_notify() != 0 || !maps::is_wanted(Wanted::OOM) {
        return;
    }
    // SAFETY: takes nothing, returns a number.
    let now = unsafe { bpf_ktime_get_ns() };
    if oom::begin(maps::slot, index, task, now) {
        tell(index);
    } else {
        maps::count(Tally::OomJoined);
    }
}

/// ... and returns.
#[inline(always)]
pub fn ended() {
    let task = bpf_get_current_pid_tgid();
    if let Some(index) = maps::oom_of(task)
        && index != WRITES_LIMIT
    {
        oom::end(maps::slot, index, task);
        maps::leave_oom(task);
    }
}

/// `mem_cgroup_oom_notify`, where the kernel has it: v1's own notice, given by the
/// one OOM that holds the lock.
#[inline(always)]
pub fn notified(css: u64) {
    if maps::is_wanted(Wanted::OOM)
        && let Some(index) = group::place_of_oom(css)
    {
        tell(index);
    }
}

#[inline(always)]
fn tell(index: u32) {
    if let Some(slot) = maps::slot(index) {
        slot.ooms.add(1);
        maps::ring_slot(slot, index);
    }
}

/// `memory_max_write` begins.
#[inline(always)]
pub fn limit_write_begun() {
    if !maps::enter_oom(bpf_get_current_pid_tgid(), WRITES_LIMIT) {
        maps::count(Tally::OomUnknown);
    }
}

/// ... and returns.
#[inline(always)]
pub fn limit_write_ended() {
    maps::leave_oom(bpf_get_current_pid_tgid());
    limit_written();
}

/// Some group's limit has moved.
#[inline(always)]
pub fn limit_written() {
    if maps::is_wanted(Wanted::LIMITS) {
        maps::ring(Doorbell { kind: Doorbell::LIMITS, slot: 0, value: 0 });
    }
}

/// The slot whose OOM the current task is in.
#[inline(always)]
fn cause() -> Option<u32> {
    maps::oom_of(bpf_get_current_pid_tgid()).filter(|index| *index != WRITES_LIMIT)
}

/// `mark_oom_victim`: `task` is to die.
#[inline(always)]
pub fn victim(task: u64) {
    let Some(slot) = cause() else { return };
    if !maps::is_wanted(Wanted::OOM) {
        return;
    }
    let value = kernel::group_of_task(task).unwrap_or(0);
    maps::ring_victim(&Victim {
        bell: Doorbell { kind: Doorbell::VICTIM, slot, value },
        pid: kernel::pid_of_task(task).unwrap_or(0),
        comm: kernel::name_of_task(task).unwrap_or_default(),
    });
}

/// `mem_cgroup_print_oom_group`: all of the group of `css` are to die.
#[inline(always)]
pub fn group_kill(css: u64) {
    if let Some(slot) = cause()
        && maps::is_wanted(Wanted::OOM)
    {
        let value = kernel::cgroup_id_of_css(css).unwrap_or(0);
        maps::ring(Doorbell { kind: Doorbell::GROUP_KILL, slot, value });
    }
}
