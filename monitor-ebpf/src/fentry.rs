//! The programs by BPF trampolines: they take a function's arguments at its entry and at its
//! return, as pointers that the verifier knows.

use aya_ebpf::{
    EbpfContext as _,
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};

use crate::{
    charge, file, group,
    memcg::Counter,
    oom,
    reclaim::{self, Report},
};

macro_rules! charge_hooks {
    ($($first:ident, $second:ident, $rises:literal $(, $before:path)?;)*) => {
        $(
            #[fexit]
            fn $first(ctx: FExitContext) -> i32 {
                $($before(&ctx);)?
                charge::first(ctx.as_ptr() as u64, Counter::new(ctx.arg(0)), $rises);
                0
            }

            #[fexit]
            fn $second(ctx: FExitContext) -> i32 {
                $($before(&ctx);)?
                charge::second(ctx.as_ptr() as u64, Counter::new(ctx.arg(0)));
                0
            }
        )*
    };
}

charge_hooks! {
    try_charge_1, try_charge_2, true, charge::tried;
    charge_1, charge_2, true;
    uncharge_1, uncharge_2, false;
}

#[fentry]
fn css_online(ctx: FEntryContext) -> i32 {
    group::online(&ctx, ctx.arg(0));
    0
}

#[fentry]
fn css_offline(ctx: FEntryContext) -> i32 {
    group::offline(ctx.arg(0));
    0
}

#[fentry]
fn css_free(ctx: FEntryContext) -> i32 {
    group::freed(ctx.arg(0));
    0
}

#[fentry]
fn usage_read(ctx: FEntryContext) -> i32 {
    group::called(ctx.arg(0));
    0
}

#[fentry]
fn usage_read_v1(ctx: FEntryContext) -> i32 {
    group::called(ctx.arg(0));
    0
}

#[fentry]
fn eventfd_fdinfo(ctx: FEntryContext) -> i32 {
    file::shown(ctx.arg(1));
    0
}

#[fentry]
fn oom_begun(ctx: FEntryContext) -> i32 {
    oom::begun(ctx.arg(0));
    0
}

#[fentry]
fn oom_begun_twin(ctx: FEntryContext) -> i32 {
    oom::begun(ctx.arg(0));
    0
}

#[fexit]
fn oom_ended(ctx: FExitContext) -> i32 {
    oom::ended(ctx.arg(0));
    0
}

#[fexit]
fn oom_ended_twin(ctx: FExitContext) -> i32 {
    oom::ended(ctx.arg(0));
    0
}

#[fentry]
fn oom_scope(ctx: FEntryContext) -> i32 {
    oom::killer_called(ctx.arg(0));
    0
}

#[fentry]
fn oom_kill(_ctx: FEntryContext) -> i32 {
    oom::kills();
    0
}

#[fentry]
fn oom_notified(ctx: FEntryContext) -> i32 {
    oom::notified(ctx.arg(0));
    0
}

#[fentry]
fn oom_victim(ctx: FEntryContext) -> i32 {
    oom::victim(ctx.arg(0));
    0
}

#[fentry]
fn oom_group(ctx: FEntryContext) -> i32 {
    oom::group_kill(ctx.arg(0));
    0
}

#[fentry]
fn limit_write_1(_ctx: FEntryContext) -> i32 {
    oom::limit_write_begun();
    0
}

#[fexit]
fn limit_write_2(_ctx: FExitContext) -> i32 {
    oom::limit_write_ended();
    0
}

#[fentry]
fn limit_twin_1(_ctx: FEntryContext) -> i32 {
    oom::limit_write_begun();
    0
}

#[fexit]
fn limit_twin_2(_ctx: FExitContext) -> i32 {
    oom::limit_write_ended_twin();
    0
}

#[fexit]
fn limit_set(_ctx: FExitContext) -> i32 {
    oom::limit_written();
    0
}

#[fentry]
fn reclaim_window(ctx: FEntryContext) -> i32 {
    reclaim::window(ctx.arg(0));
    0
}

#[fentry]
fn reclaim_report(ctx: FEntryContext) -> i32 {
    reclaim::reported(Report {
        gfp: ctx.arg(0),
        memcg: ctx.arg(1),
        is_tree: ctx.arg(2),
        scanned: ctx.arg(3),
        reclaimed: ctx.arg(4),
    });
    0
}

// The second argument is the allocation's order.
#[fentry]
fn reclaim_report_6(ctx: FEntryContext) -> i32 {
    reclaim::reported(Report {
        gfp: ctx.arg(0),
        memcg: ctx.arg(2),
        is_tree: ctx.arg(3),
        scanned: ctx.arg(4),
        reclaimed: ctx.arg(5),
    });
    0
}

#[fentry]
fn reclaim_begun(ctx: FEntryContext) -> i32 {
    reclaim::begun(ctx.arg(1));
    0
}

#[fexit]
fn reclaim_ended(ctx: FExitContext) -> i32 {
    reclaim::ended(ctx.arg(1));
    0
}

#[fentry]
fn reclaim_node(ctx: FEntryContext) -> i32 {
    reclaim::node(ctx.arg(1));
    0
}
