//! The agent's queries, answered from the kernel's own memory. Run by
//! `BPF_PROG_TEST_RUN`, attached nowhere.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_task};
use monitor_common::protocol::{
    query::Query,
    ring::LossKind,
    slot::{REACH, Slot, SlotState},
    word::Word as _,
};

use crate::{
    charge::{keep_peak, keep_usage},
    file,
    group::{self, TOP},
    maps, memcg,
};

/// Answers `query`, through the scratch cell: a raw tracepoint's own return
/// value goes nowhere.
#[inline(always)]
pub fn ask(query: u64, arg1: u64, arg2: u64) {
    // The thread that queries these is not the one that the other cell is for.
    if query == Query::FILE || query == Query::GROUP {
        by_descriptor(query, arg1);
        return;
    }
    let Some(scratch) = maps::scratch() else { return };
    let answer = match query {
        Query::WHO_AM_I => {
            if let Some(readings) = maps::readings() {
                readings.agent.set(bpf_get_current_pid_tgid());
            }
            Ok(0)
        }
        Query::NEW_EPOCH => {
            match arg1 {
                0 => maps::epoch().end(),
                first => maps::epoch().0.set(first),
            }
            Ok(0)
        }
        Query::RECYCLE => recycle(arg1 as u32, arg2),
        Query::TIDY => Ok(give_back_from(arg1 as u32)),
        Query::ABOVE => above(arg1 as u32, arg2),
        Query::LOWEST_LIMIT => counter(arg1 as u32, arg2, lowest_limit),
        Query::READ => {
            read_all(arg1 as u32, (arg2 as u32).min(Query::AT_ONCE));
            Ok(0)
        }
        Query::USAGE | Query::SUM | Query::LIMIT | Query::PEAK | Query::UNDER_OOM => {
            counter(arg1 as u32, arg2, |at| match query {
                Query::USAGE => {
                    keep_if_followed(arg1 as u32);
                    memcg::usage_at(at)
                }
                Query::SUM => Some(memcg::sum_at(at)?.0),
                Query::LIMIT => memcg::limit_at(at),
                Query::PEAK => memcg::watermark_at(at),
                _ => memcg::under_oom_at(at),
            })
        }
        Query::OOMS => counter(arg1 as u32, arg2, memcg::ooms_at),
        Query::POPULATED => counter(arg1 as u32, arg2, memcg::is_populated_at),
        Query::DEPART => group::depart_unseen(arg1 as u32, arg2).ok_or(Query::GONE),
        Query::FILE_REFS => {
            file::count_references(arg1);
            Ok(0)
        }
        _ => Err(Query::FAULT),
    };
    match answer {
        Ok(value) => {
            scratch.value.set(value);
            scratch.verdict.set(Query::OK);
        }
        Err(verdict) => scratch.verdict.set(verdict),
    }
    scratch.answers.set(scratch.answers.get() + 1);
}

/// Answers what a descriptor of the thread that queries is, as the programs do at what it reads:
/// while those are not called.
#[inline(always)]
fn by_descriptor(query: u64, descriptor: u64) {
    // SAFETY: returns a number.
    let task = unsafe { bpf_get_current_task() };
    let Some(file) = memcg::file_at_descriptor(task, descriptor) else { return };
    if query == Query::FILE {
        file::shown(file);
    } else if let Some(css) = memcg::css_of_directory(file) {
        group::called(css);
    }
}

/// Gives back a slot that is the agent's. No other gives it back, unless an agent that was
/// killed has done so already.
#[inline(always)]
fn recycle(index: u32, generation: u64) -> Result<u64, u64> {
    let slot = maps::slot(index).ok_or(Query::GONE)?;
    if !slot.let_go(generation) {
        return Err(Query::GONE);
    }
    Ok(give_back_from(index))
}

/// Keeps usage and peak as a charge does: after a first band was published, for charges that
/// did not see it, and in a sweep, for those that no program saw.
#[inline(always)]
fn keep_if_followed(index: u32) {
    if maps::slot(index).is_some_and(Slot::is_awaited) {
        keep_usage(index);
        keep_peak(index);
    }
}

/// Turns of a loop in a loop: few for the verifier, which goes through each.
const TURNS: u32 = 32;

const _: () = assert!(TURNS * TURNS == Query::AT_ONCE);

/// Reads `count` slots, from `first` on.
#[inline(always)]
fn read_all(first: u32, count: u32) {
    for turn in 0..maps::rolled(TURNS as usize) as u32 {
        let done = turn * TURNS;
        if done >= count {
            break;
        }
        read_some(first + done, count - done);
    }
}

/// Reads at most [`TURNS`] slots, from `first` on.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn read_some(first: u32, count: u32) -> u64 {
    for turn in 0..maps::rolled(TURNS as usize) as u32 {
        if turn >= count {
            break;
        }
        read_one(first + turn);
    }
    0
}

/// Reads one slot; usage only where it is not kept. By the protocol of
/// [`usage`](monitor_common::protocol::usage), since the agent may begin to follow the group;
/// of which group it was is written last, and only if that is still there.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn read_one(index: u32) -> u64 {
    let Some(slot) = maps::slot(index) else { return 0 };
    let state = slot.state();
    if !state.is_live() {
        return 0;
    }
    if slot.kept_usage().is_none() {
        keep_usage(index);
    }
    keep_peak(index);
    let Some(limit) = memcg::limit_at(slot.counter.get()) else { return 0 };
    slot.limit.set(limit);
    let after = SlotState(slot.state.or(0));
    if after.generation() == state.generation() && after.is_live() {
        slot.read_of.set(state.generation() + 1);
    }
    0
}

/// Gives slot `index` back, and those above it that only waited for that: where to go on,
/// if there are many.
#[inline(always)]
fn give_back_from(index: u32) -> u64 {
    const AT_ONCE: usize = 8;
    let mut next = u64::from(index);
    for _ in 0..maps::rolled(AT_ONCE) {
        if next == Query::NOWHERE {
            break;
        }
        next = group::give_back(next as u32);
    }
    next
}

/// Finds what is above a group that has no parent's slot to go by. The agent holds the slot, so
/// that it stays this group's; and the programs run in one RCU section, in which a memcg
/// that was online at its beginning is there to its end.
#[inline(always)]
fn above(index: u32, generation: u64) -> Result<u64, u64> {
    let above = group::above(index, generation);
    if above == TOP {
        maps::count(LossKind::ParentUnknown);
        return Err(Query::GONE);
    }
    Ok(above)
}

/// Levels whose limits are read in one call.
const LEVELS: usize = 8;

/// The lowest limit from the counter at `address` up to below the root.
#[inline(always)]
fn lowest_limit(address: u64) -> Option<u64> {
    let scratch = maps::scratch()?;
    scratch.value.set(u64::MAX);
    let mut at = address;
    for _ in 0..maps::rolled(REACH / LEVELS) {
        at = lower_limits(at);
        if at == 0 {
            break;
        }
    }
    Some(scratch.value.get())
}

/// Lowers the answer to the lowest limit of the next [`LEVELS`] counters, from that at
/// `address` on; where to go on, or 0 at the root.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn lower_limits(address: u64) -> u64 {
    let Some(scratch) = maps::scratch() else { return 0 };
    let mut address = address;
    for _ in 0..maps::rolled(LEVELS) {
        let Some(parent) = memcg::parent_at(address) else { return 0 };
        if parent == 0 {
            return 0;
        }
        if let Some(limit) = memcg::limit_at(address)
            && limit < scratch.value.get()
        {
            scratch.value.set(limit);
        }
        address = parent;
    }
    address
}

/// Reads something by the address of the counter behind a slot. The address is looked at
/// before, the state before and after: `mem_cgroup_css_offline`'s program takes the one
/// away and marks the other before the kernel gives the memory back, so an unchanged live
/// state vouches for what was read in between.
#[inline(always)]
fn counter(index: u32, generation: u64, read: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
    let Some(slot) = maps::slot(index) else {
        return Err(Query::GONE);
    };
    // Refused at once, not after the look at the state: verifiers before 6.8
    // forget that a failed read has failed.
    let Some(value) = read(slot.counter.get()) else {
        let state = SlotState(slot.state.or(0));
        return Err(if state.is_live() { Query::FAULT } else { Query::GONE });
    };
    // Changes nothing, and is a full barrier: the state after the read.
    let state = SlotState(slot.state.or(0));
    if state.generation() != generation || !state.is_live() {
        return Err(Query::GONE);
    }
    Ok(value)
}
