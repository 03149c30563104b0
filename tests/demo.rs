//! The demonstration of `cargo xtask run`: a group grows past thresholds and back, runs out
//! of memory, becomes empty, and is removed; with a listener for each. Fails if any event
//! was not signalled.

mod listener;

use std::process::Command;

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::Version;
use nix::sys::signal::Signal;

use crate::harness::MIB;
use crate::harness::agent::{Agent, BINARY};
use crate::harness::charger::{Charger, Kind};
use crate::harness::group::Group;
use crate::harness::report::say;
use listener::{Listener, hear};

/// Bytes of one step, and steps: usage rests a good MiB away from each threshold,
/// since the kernel charges up to 64 pages per CPU in advance.
const STEP: u64 = 5 * MIB;
const STEPS: usize = 5;
/// Thresholds of the first listeners, in MiB.
const THRESHOLDS: [u64; 3] = [8, 16, 24];
/// Right end of the bar, in MiB.
const SCALE: u64 = 30;

pub(crate) fn run() -> Result<()> {
    let agent = Agent::start(&[])?;
    let ready = Agent::log().lines().find_map(|line| Some(line.split_once("ready: ")?.1.to_owned()));
    tell("agent", &ready.unwrap_or_else(|| "ready".into()));
    let group = Group::new("demo")?;
    tell("mkdir", &format!("{} ({:?})", group.path.display(), group.version));
    let file = |name: &str| group.path.join(name).to_string_lossy().into_owned();
    let mut listeners = thresholds(&agent, &group, &file)?;

    let mut end = Vec::new();
    for (name, control, options) in [
        ("oom", "memory.oom_control", &["-o", "json"][..]),
        ("pressure", "memory.pressure_level", &["low"]),
        ("empty", "cgroup.procs", &["-o", "json"]),
    ] {
        end.push(Listener::start(&agent, name, &file(control), options)?);
    }
    out_of_memory(&group, &mut end)?;
    listeners.append(&mut end);

    group.remove()?;
    tell("rmdir", &group.path.to_string_lossy());
    hear(&mut listeners, "every listener says that the group is gone, and ends", |listeners| {
        listeners.iter().all(Listener::has_ended)
    })?;
    for listener in listeners {
        listener.finish()?;
    }

    let signals = agent.status()?.signals;
    let code = agent.end(Signal::SIGTERM)?;
    ensure!(code == 0, "the agent ended with exit code {code}: {}", Agent::log());
    tell("agent", &format!("ended by SIGTERM with exit code 0, after {signals} signals"));
    say!("Heard: memory and memory+swap across thresholds, pressure, out of memory, empty, removed.");
    Ok(())
}

/// Usage goes up and down past three thresholds: two of memory, one of memory+swap.
fn thresholds(agent: &Agent, group: &Group, file: &impl Fn(&str) -> String) -> Result<Vec<Listener>> {
    // Started first: it forks, and it is idle until it gets an order.
    let mut charger = Charger::start(group)?;
    let names = ["memory.usage_in_bytes", group.version.usage_file(), "memory.memsw.usage_in_bytes"];
    let mut listeners = Vec::new();
    for (place, (threshold, control)) in THRESHOLDS.into_iter().zip(names).enumerate() {
        let bytes = format!("{threshold}M");
        let (json, plain) = ([bytes.as_str(), "-o", "json"], [bytes.as_str()]);
        let options = if place == 2 { &json[..] } else { &plain[..] };
        let name = if place == 2 { format!("+swap {bytes}") } else { bytes.clone() };
        listeners.push(Listener::start(agent, &name, &file(control), options)?);
    }
    tell("", &scale());
    show("usage", group)?;
    for _ in 0..STEPS {
        let before = group.usage()?;
        charger.grow(Kind::Anonymous, STEP)?;
        show("grow by 5M", group)?;
        hear_crossings(&mut listeners, before, group.usage()?)?;
    }
    let list = Command::new(BINARY).arg("list").output().context("cannot start `memcg-monitor list`")?;
    ensure!(list.status.success(), "list: {}: {}", list.status, String::from_utf8_lossy(&list.stderr));
    tell("$", "memcg-monitor list");
    String::from_utf8_lossy(&list.stdout).lines().for_each(|line| tell("list", line));
    for _ in 0..STEPS {
        let before = group.usage()?;
        charger.shrink(Kind::Anonymous)?;
        show("give back", group)?;
        hear_crossings(&mut listeners, before, group.usage()?)?;
    }
    charger.end()?;
    Ok(listeners)
}

/// A limit, and a process that wants more: reclaim, OOM, the kill, and emptiness.
fn out_of_memory(group: &Group, listeners: &mut [Listener]) -> Result<()> {
    let limit = if group.version == Version::V2 { "memory.max" } else { "memory.limit_in_bytes" };
    group.write(limit, "16M")?;
    tell("limit", &format!("16M in {limit}, and a process that wants 64M"));
    let mut charger = Charger::start(group)?;
    // Pages of files can be reclaimed, so the kernel tries that first.
    let _ = charger.grow(Kind::Anonymous, 64 * MIB);
    drop(charger);
    let said = |listener: &Listener, word: &str| listener.lines.iter().any(|line| line.contains(word));
    hear(listeners, "OOM, the kill, pressure and emptiness are signalled", |listeners| {
        let [oom, pressure, empty] = listeners else { return false };
        said(oom, "\"event\":\"oom\"")
            && said(oom, "\"event\":\"oom_kill\"")
            && said(pressure, "crossed")
            && said(empty, "\"event\":\"empty\"")
    })
}

fn tell(who: &str, text: &str) {
    say!("{who:>10} | {text}");
}

/// The group's usage as a bar with a mark at each threshold.
fn show(what: &str, group: &Group) -> Result<()> {
    let usage = group.usage()?;
    let bar: String = (0..SCALE * 2)
        .map(|half| match half {
            _ if THRESHOLDS.iter().any(|threshold| threshold * 2 == half) => '|',
            _ if half * MIB / 2 < usage => '#',
            _ => '.',
        })
        .collect();
    tell(what, &format!("{bar} {:4.1}M", usage as f64 / MIB as f64));
    Ok(())
}

/// The thresholds above their marks in the bar.
fn scale() -> String {
    THRESHOLDS.iter().fold(String::new(), |line, threshold| {
        format!("{line:width$}{threshold}M", width = usize::try_from(threshold * 2).unwrap_or(0))
    })
}

/// Waits until each listener whose threshold lies between the two usages has
/// said so.
fn hear_crossings(listeners: &mut [Listener], before: u64, after: u64) -> Result<()> {
    let direction = if before < after { "up" } else { "down" };
    let (low, high) = (before.min(after), before.max(after));
    let heard: Vec<_> = listeners.iter().map(|listener| listener.lines.len()).collect();
    hear(listeners, &format!("the listener says that its threshold was crossed {direction}"), |listeners| {
        listeners.iter().zip(THRESHOLDS).zip(&heard).all(|((listener, threshold), &heard)| {
            let crossed = (low + 1..=high).contains(&(threshold * MIB));
            !crossed || listener.lines[heard..].iter().any(|line| is_crossing(line, threshold, direction))
        })
    })
}

/// Whether a line says that the threshold was crossed; only JSON says which way.
fn is_crossing(line: &str, threshold: u64, direction: &str) -> bool {
    line.ends_with(&format!("{threshold}M: crossed"))
        || line.contains(&format!("\"threshold\":{},\"direction\":\"{direction}\"", threshold * MIB))
}
