//! The programs by kprobes, for kernels without BPF trampolines. An argument cannot be read
//! at a function's return, so a program at its entry keeps it, by the frame's stack pointer.
//!
//! There are no twins: while one program runs on a processor the kernel calls no other there,
//! at either place. The agent makes up for such calls as far as the kernel counts them, and else
//! reads everything watched once more in each sweep.

use aya_ebpf::{
    EbpfContext,
    macros::{kprobe, kretprobe, map},
    maps::LruHashMap,
    programs::{ProbeContext, RetProbeContext},
};
use monitor_common::protocol::ring::LossKind;

use crate::{
    charge, file, group, maps, memcg,
    memcg::Counter,
    oom,
    reclaim::{self, Report},
};

/// Arguments of the calls that are under way, by the stack pointer at their entry. The
/// oldest give way: those of calls whose return the kernel did not report.
#[map]
static FRAMES: LruHashMap<u64, u64> = LruHashMap::with_max_entries(16384, 0);

/// Reads a register that the kernel saved for `ctx`, by its offset in `struct pt_regs`.
#[inline(always)]
fn register<C: EbpfContext>(ctx: &C, offset: u64) -> u64 {
    memcg::read(memcg::scalar(ctx.as_ptr() as u64) + offset).unwrap_or(0)
}

/// The first argument at a function's entry.
#[inline(always)]
fn first(ctx: &ProbeContext) -> u64 {
    register(ctx, maps::off_regs_first())
}

/// The second argument at a function's entry.
#[inline(always)]
fn second(ctx: &ProbeContext) -> u64 {
    register(ctx, maps::off_regs_second())
}

/// Keeps the first argument for the function's return.
#[inline(always)]
fn save(ctx: &ProbeContext) {
    keep(ctx, first(ctx));
}

/// Keeps an argument for the function's return.
#[inline(always)]
fn keep(ctx: &ProbeContext, argument: u64) {
    let frame = register(ctx, maps::off_regs_stack());
    // Without a place its return is counted, and made up for by the next sweep.
    let _ = FRAMES.insert(frame, argument, 0);
}

/// The argument of the call that returns.
#[inline(always)]
fn saved(ctx: &RetProbeContext) -> Option<u64> {
    let frame = register(ctx, maps::off_regs_stack()).wrapping_sub(maps::stack_popped());
    // SAFETY: the value is copied, and no other call has this frame.
    let Some(argument) = unsafe { FRAMES.get(frame) }.copied() else {
        maps::count(LossKind::ReturnsUnknown);
        return None;
    };
    let _ = FRAMES.remove(frame);
    Some(argument)
}

macro_rules! charge_hooks {
    ($($entry:ident, $program:ident, $rises:literal;)*) => {
        $(
            #[kprobe]
            fn $entry(ctx: ProbeContext) -> u32 {
                save(&ctx);
                0
            }

            #[kretprobe]
            fn $program(ctx: RetProbeContext) -> u32 {
                if let Some(counter) = saved(&ctx) {
                    charge::probed(Counter::new(counter as *const u8), $rises);
                }
                0
            }
        )*
    };
}

charge_hooks! {
    save_try_charge_1, try_charge_1, true;
    save_charge_1, charge_1, true;
    save_uncharge_1, uncharge_1, false;
}

#[kprobe]
fn save_oom_ended(ctx: ProbeContext) -> u32 {
    save(&ctx);
    0
}

#[kretprobe]
fn oom_ended(ctx: RetProbeContext) -> u32 {
    if let Some(css) = saved(&ctx) {
        oom::ended(css);
    }
    0
}

#[kretprobe]
fn limit_write_2(_ctx: RetProbeContext) -> u32 {
    oom::limit_write_ended();
    0
}

#[kretprobe]
fn limit_set(_ctx: RetProbeContext) -> u32 {
    oom::limit_written();
    0
}

#[kprobe]
fn css_online(ctx: ProbeContext) -> u32 {
    group::online(&ctx, first(&ctx));
    0
}

#[kprobe]
fn css_offline(ctx: ProbeContext) -> u32 {
    group::offline(first(&ctx));
    0
}

#[kprobe]
fn css_free(ctx: ProbeContext) -> u32 {
    group::freed(first(&ctx));
    0
}

#[kprobe]
fn usage_read(ctx: ProbeContext) -> u32 {
    group::called(first(&ctx));
    0
}

#[kprobe]
fn usage_read_v1(ctx: ProbeContext) -> u32 {
    group::called(first(&ctx));
    0
}

#[kprobe]
fn eventfd_fdinfo(ctx: ProbeContext) -> u32 {
    file::shown(second(&ctx));
    0
}

#[kprobe]
fn oom_begun(ctx: ProbeContext) -> u32 {
    oom::begun(first(&ctx));
    0
}

#[kprobe]
fn oom_scope(ctx: ProbeContext) -> u32 {
    oom::killer_called(first(&ctx));
    0
}

#[kprobe]
fn oom_kill(_ctx: ProbeContext) -> u32 {
    oom::kills();
    0
}

#[kprobe]
fn oom_notified(ctx: ProbeContext) -> u32 {
    oom::notified(first(&ctx));
    0
}

#[kprobe]
fn oom_victim(ctx: ProbeContext) -> u32 {
    oom::victim(first(&ctx));
    0
}

#[kprobe]
fn oom_group(ctx: ProbeContext) -> u32 {
    oom::group_kill(first(&ctx));
    0
}

#[kprobe]
fn limit_write_1(_ctx: ProbeContext) -> u32 {
    oom::limit_write_begun();
    0
}

#[kprobe]
fn reclaim_window(ctx: ProbeContext) -> u32 {
    reclaim::window(first(&ctx));
    0
}

#[kprobe]
fn reclaim_report(ctx: ProbeContext) -> u32 {
    reclaim::reported(Report {
        gfp: first(&ctx),
        memcg: second(&ctx),
        is_tree: register(&ctx, maps::off_regs_third()),
        scanned: register(&ctx, maps::off_regs_fourth()),
        reclaimed: register(&ctx, maps::off_regs_fifth()),
    });
    0
}

// The second argument is the allocation's order.
#[kprobe]
fn reclaim_report_6(ctx: ProbeContext) -> u32 {
    reclaim::reported(Report {
        gfp: first(&ctx),
        memcg: register(&ctx, maps::off_regs_third()),
        is_tree: register(&ctx, maps::off_regs_fourth()),
        scanned: register(&ctx, maps::off_regs_fifth()),
        reclaimed: register(&ctx, maps::off_regs_sixth()),
    });
    0
}

#[kprobe]
fn reclaim_begun(ctx: ProbeContext) -> u32 {
    reclaim::begun(second(&ctx));
    0
}

#[kprobe]
fn save_reclaim_ended(ctx: ProbeContext) -> u32 {
    keep(&ctx, second(&ctx));
    0
}

#[kretprobe]
fn reclaim_ended(ctx: RetProbeContext) -> u32 {
    if let Some(control) = saved(&ctx) {
        reclaim::ended(control);
    }
    0
}

#[kprobe]
fn reclaim_node(ctx: ProbeContext) -> u32 {
    reclaim::node(second(&ctx));
    0
}
