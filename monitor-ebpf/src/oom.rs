//! OOM by a group's limit: when it begins and ends, and which processes it kills.
//!
//! Nothing here is kept in a table by thread, which a user could fill: an OOM is known by
//! its slot, the OOM killer's work by one word, and what a thread is in by bits that each
//! thread has.
//!
//! A storm of OOMs or writes makes the kernel skip programs: a task that is preempted in one
//! keeps it from all others on its CPU. So beginnings and ends have two programs each, and
//! whichever runs first does the work; what holds the `oom_lock` meanwhile needs no twin.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use monitor_common::protocol::{
    oom::{self, BY_LIMIT_WRITE, OomMark},
    query::Subscriptions,
    ring::{Doorbell, KillReason, LossKind},
    word::Word as _,
};

use crate::{group, maps, memcg};

/// The id of the current thread.
#[inline(always)]
fn thread() -> u32 {
    bpf_get_current_pid_tgid() as u32
}

/// Runs at `mem_cgroup_out_of_memory`: a charge found no memory. It may yet find some
/// without a kill, as in v1, where listeners were signalled before that, too.
#[inline(always)]
pub fn begun(css: u64) {
    let thread = thread();
    if maps::mark_thread(OomMark::InOom, thread) {
        // The twin has done it.
        return;
    }
    let Some(index) = group::place_of_oom(css) else { return };
    let Some(slot) = maps::slot(index) else { return };
    slot.oom_calls.add(1);
    // A write of `memory.max` below usage makes hundreds of calls (`memory_max_write`),
    // none of which is an OOM of a charge.
    if maps::has_mark(OomMark::WritesLimit, thread) {
        slot.oom_calls.or(BY_LIMIT_WRITE);
        return;
    }
    if maps::has_oom_notify() != 0 || !maps::is_wanted(Subscriptions::OOM) {
        return;
    }
    // SAFETY: takes nothing, returns a number.
    let now = unsafe { bpf_ktime_get_ns() };
    if oom::begin(maps::slot, index, thread, now) {
        record(index);
    } else {
        maps::count(LossKind::OomJoined);
    }
}

/// Runs when `mem_cgroup_out_of_memory` returns.
#[inline(always)]
pub fn ended(css: u64) {
    let thread = thread();
    if maps::unmark_thread(OomMark::InOom, thread)
        && maps::has_oom_notify() == 0
        && let Some(index) = maps::slot_of(memcg::counter_of_css(css))
    {
        oom::end(maps::slot, index, thread);
    }
}

/// Runs at `mem_cgroup_oom_notify`, where the kernel has it: v1's own notice, given by the
/// one OOM that holds the lock.
#[inline(always)]
pub fn notified(css: u64) {
    if maps::is_wanted(Subscriptions::OOM)
        && let Some(index) = group::place_of_oom(css)
    {
        record(index);
    }
}

#[inline(always)]
fn record(index: u32) {
    if let Some(slot) = maps::slot(index) {
        slot.ooms.add(1);
        maps::ring_slot(slot, index);
    }
}

/// Runs when `memory_max_write` begins.
#[inline(always)]
pub fn limit_write_begun() {
    maps::mark_thread(OomMark::WritesLimit, thread());
}

/// Runs when `memory_max_write` returns: for the program that is called before its twin.
#[inline(always)]
pub fn limit_write_ended() {
    if !maps::unmark_thread(OomMark::WritesLimit, thread()) && maps::has_limit_marks() != 0 {
        // Neither of the two at its beginning was called: an OOM in it was signalled.
        maps::count(LossKind::SkippedForGood);
    }
    limit_written();
}

/// Runs when `memory_max_write` returns: for the twin.
#[cfg(not(feature = "kprobe"))]
#[inline(always)]
pub fn limit_write_ended_twin() {
    if maps::unmark_thread(OomMark::WritesLimit, thread()) {
        limit_written();
    }
}

/// Rings because some group's limit has moved.
#[inline(always)]
pub fn limit_written() {
    if maps::is_wanted(Subscriptions::LIMITS) {
        maps::ring_limits();
    }
}

// What the OOM killer is doing: the thread in the upper half, the reason with the slot by whose
// limit, and this bit while a process is being killed. Whatever calls `out_of_memory` holds the
// kernel's `oom_lock`, so one word is enough; and as it names the thread, what is left of a
// call whose program was skipped is no other thread's cause.
const KILLS: u64 = 1 << 31;

/// Runs at `out_of_memory`: the OOM killer is called, by a group's limit or the host's.
#[inline(always)]
pub fn killer_called(control: u64) {
    if maps::off_oom_memcg() == 0 {
        return;
    }
    let thread = thread();
    let word = match memcg::counter_of_oom(control) {
        Some(counter) => {
            let lowered = maps::has_mark(OomMark::WritesLimit, thread);
            let reason = if lowered { KillReason::LoweredLimit } else { KillReason::Limit };
            reason.with_slot(maps::slot_of(counter).unwrap_or(KillReason::NO_SLOT))
        }
        None => KillReason::Host.with_slot(KillReason::NO_SLOT),
    };
    maps::cause().set(u64::from(thread) << 32 | u64::from(word));
}

/// The cause of what the OOM killer does in this thread.
#[inline(always)]
fn cause() -> Option<u64> {
    let cause = maps::cause().get();
    (cause != 0 && cause >> 32 == u64::from(thread())).then_some(cause)
}

/// The reason with the slot by whose limit it is, as records have it.
#[inline(always)]
const fn word_of(cause: u64) -> u32 {
    (cause & (KILLS - 1)) as u32
}

/// Runs at `__oom_kill_process`: what is marked as a victim next is killed.
#[inline(always)]
pub fn kills() {
    if let Some(cause) = cause() {
        maps::cause().set(cause | KILLS);
    }
}

/// Runs at `mark_oom_victim`: the process of `task` may use the reserves, and dies.
///
/// That is also called for one that dies anyway (`task_will_free_mem`), which the kernel
/// does not count as killed, and from 6.16 on again for one that was killed before.
#[inline(always)]
pub fn victim(task: u64) {
    let Some(cause) = cause() else { return };
    maps::cause().set(cause & !KILLS);
    let is_killed = maps::has_oom_kill() == 0 || cause & KILLS != 0;
    if !is_killed || memcg::is_victim(task) || !maps::is_wanted(Subscriptions::VICTIMS) {
        return;
    }
    let value = memcg::group_of_task(task).unwrap_or(0);
    let bell = Doorbell { kind: Doorbell::VICTIM, slot: word_of(cause), value };
    maps::send_victim(|record| {
        // SAFETY: the record is reserved, as long as it is, and all of it is written.
        unsafe { memcg::describe(task, bell, record) };
    });
}

/// Runs at `mem_cgroup_print_oom_group`: all of the group of `css` are to die.
#[inline(always)]
pub fn group_kill(css: u64) {
    if let Some(cause) = cause()
        && maps::is_wanted(Subscriptions::VICTIMS)
    {
        let value = memcg::cgroup_id_of_css(css).unwrap_or(0);
        maps::send_group_kill(Doorbell { kind: Doorbell::GROUP_KILL, slot: word_of(cause), value });
    }
}
