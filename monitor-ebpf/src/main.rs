//! The eBPF programs: one thin function for each attach point. What they do is
//! in the modules, in the order of the data's path.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "BPF atomics have no stable spelling on this target yet")]

mod black_box;
mod charge;
#[cfg(not(feature = "kprobe"))]
mod fentry;
mod file;
mod globals;
mod group;
mod guess;
#[cfg(feature = "kprobe")]
mod kprobe;
mod maps;
mod memcg;
mod oom;
mod query;
mod reclaim;
mod word;

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};

#[raw_tracepoint]
fn populated(ctx: RawTracePointContext) -> i32 {
    group::populated(ctx.arg(0), ctx.arg(2));
    0
}

#[raw_tracepoint]
fn ask(ctx: RawTracePointContext) -> i32 {
    query::ask(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that nothing gets here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
