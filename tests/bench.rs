//! exploratory
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::Hierarchy;
use memcg_monitor::client::SOCKET;
use memcg_monitor::door::seqpacket::connect;
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};

use crate::agent::Agent;
use crate::client::Waiter;
use crate::group::Group;
use crate::report::say;

fn now() -> u64 {
    let t = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
}

const BYTES: usize = 32 << 20;

fn map(bytes: usize) -> *mut u8 {
    let p = unsafe { libc::mmap(std::ptr::null_mut(), bytes, 3, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    unsafe { libc::madvise(p, bytes, libc::MADV_NOHUGEPAGE) };
    p.cast()
}

fn bulk() -> (f64, f64) {
    let p = map(BYTES);
    let t0 = now();
    for at in (0..BYTES).step_by(4096) {
        unsafe { p.add(at).write_volatile(1) };
    }
    let t1 = now();
    unsafe { libc::munmap(p.cast(), BYTES) };
    let t2 = now();
    let n = (BYTES / 4096) as f64;
    ((t1 - t0) as f64 / n, (t2 - t1) as f64 / n)
}

fn single() -> (f64, f64) {
    let p = map(4096);
    let t0 = now();
    for _ in 0..8192 {
        unsafe { p.write_volatile(1) };
        unsafe { libc::madvise(p.cast(), 4096, libc::MADV_DONTNEED) };
    }
    let t1 = now();
    unsafe { libc::munmap(p.cast(), 4096) };
    ((t1 - t0) as f64 / 8192.0, 0.0)
}

fn bare() -> f64 {
    let p = map(4096);
    unsafe { p.write_volatile(1) };
    let t0 = now();
    for _ in 0..8192 {
        unsafe { libc::madvise(p.cast(), 0, libc::MADV_DONTNEED) };
    }
    (now() - t0) as f64 / 8192.0
}

fn stosb() -> (f64, f64) {
    let p = map(4096);
    unsafe { p.write_volatile(1) };
    let t0 = now();
    for _ in 0..1000 {
        unsafe { std::arch::asm!("rep stosb", inout("rdi") p => _, inout("rcx") 4096usize => _, in("al") 0u8) };
    }
    let t1 = now();
    for _ in 0..1000 {
        unsafe { std::arch::asm!("rep stosq", inout("rdi") p => _, inout("rcx") 512usize => _, in("rax") 0u64) };
    }
    let t2 = now();
    ((t1 - t0) as f64 / 1000.0, (t2 - t1) as f64 / 1000.0)
}

fn measure(name: &str, group: &Group, root: &Path, agent: Option<&Agent>) -> Result<()> {
    let pid = std::process::id().to_string();
    group.write("cgroup.procs", &pid)?;
    let mut t = Vec::new();
    let mut u = Vec::new();
    let mut s = Vec::new();
    for _ in 0..10 {
        let (a, b) = bulk();
        t.push(a);
        u.push(b);
    }
    for _ in 0..10 {
        s.push(single().0);
    }
    fs::write(root.join("cgroup.procs"), &pid)?;
    say!("{name}: at {:.3}", now() as f64 / 1e9);
    say!("  touch {t:.2?}\n  unmap {u:.2?}\n single {s:.2?}");
    if let Some(agent) = agent {
        fs::write("/proc/sys/kernel/bpf_stats_enabled", "1")?;
        for kind in 0..3 {
            let before = agent.status()?;
            group.write("cgroup.procs", &pid)?;
            for _ in 0..4 {
                match kind {
                    0 => {}
                    1 => drop(bulk()),
                    _ => drop(single()),
                }
            }
            fs::write(root.join("cgroup.procs"), &pid)?;
            let after = agent.status()?;
            let (runs, ns) = (after.runs - before.runs, after.run_ns - before.run_ns);
            say!("  kind {kind}: {runs} runs {ns} ns = {:.2} ns/run", ns as f64 / runs as f64);
        }
        fs::write("/proc/sys/kernel/bpf_stats_enabled", "0")?;
    }
    Ok(())
}

fn register(waiter: &Waiter, group: &Group, from: u64, count: u64) -> Result<()> {
    let control = fs::File::open(group.usage_file())?;
    let connection: OwnedFd = connect(Path::new(SOCKET))?;
    for i in from..from + count {
        let line = format!("{} {} {}", waiter.0.as_raw_fd(), control.as_raw_fd(), (1u64 << 30) + i * 65536);
        send(connection.as_raw_fd(), line.as_bytes(), MsgFlags::empty())?;
        let mut answer = [0; 256];
        let n = recv(connection.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        ensure!(&answer[..n] == b"0", "{}", String::from_utf8_lossy(&answer[..n]));
    }
    Ok(())
}

pub(crate) fn run(_args: &[String]) -> Result<()> {
    let root = Hierarchy::find(None)?.root;
    let a = Group::new("bench")?;
    let b = a.child("b")?;
    let c = b.child("c")?;
    let d = b.child("d")?;
    let clock = fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource").context("clock")?;
    say!("clock {clock}; stosb {:?}; madvise {:?}", stosb(), bare());
    measure("warm", &c, &root, None)?;
    measure("without", &c, &root, None)?;
    let t = now();
    let agent = Agent::start(&[])?;
    say!("start took {} ms", (now() - t) / 1_000_000);
    measure("zero", &c, &root, Some(&agent))?;
    let w = Waiter::new()?;
    register(&w, &c, 0, 1)?;
    measure("one", &c, &root, Some(&agent))?;
    let t = now();
    register(&w, &c, 1, 9999)?;
    say!("registering took {} ms", (now() - t) / 1_000_000);
    measure("10000", &c, &root, Some(&agent))?;
    drop(w);
    crate::agent::until("unregistered", || Ok(agent.status()?.registrations == 0))?;
    measure("zero again", &c, &root, Some(&agent))?;
    let w = Waiter::new()?;
    register(&w, &d, 0, 10000)?;
    measure("sibling", &c, &root, Some(&agent))?;
    say!("{:?}", agent.status()?);
    let t = now();
    agent.end(Signal::SIGTERM)?;
    say!("end took {} ms", (now() - t) / 1_000_000);
    measure("without", &c, &root, None)?;
    Ok(())
}
