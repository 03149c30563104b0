//! The agent's questions, answered from the kernel's own memory. Run by
//! `BPF_PROG_TEST_RUN`, attached nowhere.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use monitor_common::{ask::Ask, slot::State, word::Word as _};

use crate::{file, kernel, maps};

/// Answers `question`, through the scratch cell: a raw tracepoint's own return
/// value goes nowhere.
#[inline(always)]
pub fn ask(question: u64, arg1: u64, arg2: u64) {
    let Some(scratch) = maps::scratch() else { return };
    let answer = match question {
        Ask::WHO_AM_I => {
            if let Some(readings) = maps::readings() {
                readings.agent.set(bpf_get_current_pid_tgid());
            }
            Ok(0)
        }
        Ask::NEW_EPOCH => {
            match arg1 {
                0 => maps::epoch().end(),
                first => maps::epoch().0.set(first),
            }
            Ok(0)
        }
        Ask::RECYCLE => recycle(arg1 as u32, arg2),
        Ask::USAGE | Ask::SUM | Ask::LIMIT | Ask::PEAK | Ask::UNDER_OOM => {
            counter(arg1 as u32, arg2, |at| match question {
                Ask::USAGE => kernel::usage_at(at),
                Ask::SUM => Some(kernel::sum_at(at)?.0),
                Ask::LIMIT => kernel::limit_at(at),
                Ask::PEAK => kernel::watermark_at(at),
                _ => kernel::under_oom_at(at),
            })
        }
        Ask::FILE_REFS => {
            file::count_references(arg1);
            Ok(0)
        }
        _ => Err(Ask::FAULT),
    };
    match answer {
        Ok(value) => {
            scratch.value.set(value);
            scratch.verdict.set(Ask::OK);
        }
        Err(verdict) => scratch.verdict.set(verdict),
    }
    scratch.answers.set(scratch.answers.get() + 1);
}

/// The slot is the agent's, so nobody else gives it back; unless an agent that was
/// killed has done so already.
#[inline(always)]
fn recycle(index: u32, generation: u64) -> Result<u64, u64> {
    let slot = maps::slot(index).ok_or(Ask::GONE)?;
    if slot.state().generation() != generation {
        return Err(Ask::GONE);
    }
    slot.recycle();
    maps::push_free(index);
    Ok(0)
}

/// Reads something by the address of the counter behind a slot. The state is
/// looked at before and after: `freed` marks it before the kernel gives the memory
/// back, so an unchanged live state vouches for what was read in between.
#[inline(always)]
fn counter(index: u32, generation: u64, read: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
    let Some(slot) = maps::slot(index) else {
        return Err(Ask::GONE);
    };
    // Refused at once, not after the look at the state: verifiers before 6.8
    // forget that a failed read has failed.
    let Some(value) = read(slot.counter.get()) else {
        let state = State(slot.state.cas(u64::MAX, u64::MAX));
        return Err(if state.has(State::ONLINE) && !state.has(State::FREED) {
            Ask::FAULT
        } else {
            Ask::GONE
        });
    };
    // A full barrier (on x86-64), and always a no-op: the state after the read.
    let state = State(slot.state.cas(u64::MAX, u64::MAX));
    if state.generation() != generation || state.has(State::FREED) || !state.has(State::ONLINE) {
        return Err(Ask::GONE);
    }
    Ok(value)
}
