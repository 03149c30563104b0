//! The demonstration of `cargo xtask run`: a group grows past thresholds and back, runs out
//! of memory, becomes empty, and is removed; with a listener for each. Fails if any event
//! was not signalled. At the end `top` is on a screen for a moment, and the black box's report of
//! the kill is written.

mod listener;

use std::process::Command;
use std::sync::LazyLock;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::Version;
use nix::sys::signal::Signal;

use crate::harness::MIB;
use crate::harness::agent::{Agent, BINARY};
use crate::harness::charger::{Charger, Kind};
use crate::harness::group::Group;
use crate::harness::report::{self, say};
use crate::harness::screen::{Screen, size};
use listener::{Listener, await_lines};

/// Bytes of one step, and steps: usage rests a good MiB away from each threshold,
/// since the kernel charges up to 64 pages per CPU in advance.
const STEP: u64 = 5 * MIB;
const STEPS: usize = 5;
/// Thresholds of the first listeners, in MiB.
const THRESHOLDS: [u64; 3] = [8, 16, 24];
/// Directory of the black box's files.
const BOXES: &str = "/run/memcg-monitor-demo-boxes";
/// Right end of the bar, in MiB.
const SCALE: u64 = 30;

pub(crate) fn run() -> Result<()> {
    let version = Command::new(BINARY).arg("--version").output().context("cannot start memcg-monitor")?;
    report::text("version", String::from_utf8_lossy(&version.stdout).trim());
    let boxes = format!("--black-box-dir={BOXES}");
    let agent = Agent::start(&["--black-box=/**/demo", &boxes])?;
    let ready = Agent::log().lines().find_map(|line| Some(line.split_once("ready: ")?.1.to_owned()));
    print_row("agent", &ready.unwrap_or_else(|| "ready".into()));
    let group = Group::new("demo")?;
    print_row("mkdir", &format!("{} ({:?})", group.path.display(), group.version));
    let file = |name: &str| group.path.join(name).to_string_lossy().into_owned();
    let mut listeners = thresholds(&agent, &group, &file)?;

    let is_sampled = agent.status()?.precision == "sampled";
    let mut end = Vec::new();
    for (name, control, options) in [
        ("oom", "memory.oom_control", &[][..]),
        ("pressure", "memory.pressure_level", &["low"]),
        ("empty", "cgroup.procs", &[]),
    ] {
        // Where the groups' files are sampled, they do not show everything.
        if is_sampled && is_refused(name, &file(control), options)? {
            continue;
        }
        end.push(Listener::start(&agent, name, &file(control), options)?);
    }
    listeners.append(&mut end);
    out_of_memory(&agent, &group, &mut listeners)?;
    top()?;
    black_box(&group)?;

    group.remove()?;
    print_row("rmdir", &group.path.to_string_lossy());
    await_lines(&mut listeners, "every listener says that the group is gone, and ends", |listeners| {
        Ok(listeners.iter().all(Listener::has_ended))
    })?;
    for listener in listeners {
        listener.finish()?;
    }

    let signals = agent.status()?.signals;
    let code = agent.end(Signal::SIGTERM)?;
    ensure!(code == 0, "the agent ended with exit code {code}: {}", Agent::log());
    print_row("agent", &format!("ended by SIGTERM with exit code 0, after {signals} signals"));
    let all = "memory and memory+swap across thresholds, pressure, out of memory, empty, removed";
    let sampled = "memory and memory+swap across thresholds, out of memory, removed; the files were sampled";
    say!("Signalled: {}.", if is_sampled { sampled } else { all });
    Ok(())
}

/// Whether the agent does not offer the event; then its refusal is shown.
fn is_refused(name: &str, file: &str, options: &[&str]) -> Result<bool> {
    let args = [&["listen", "--timeout", "0", file], options].concat();
    let output = Command::new(BINARY).args(&args).output().context("cannot start a listener")?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let is_refused = text.contains("EOPNOTSUPP");
    if is_refused {
        print_row("$", &format!("memcg-monitor listen {file} {}", options.join(" ")));
        text.lines().for_each(|line| print_row(name, line));
    }
    Ok(is_refused)
}

/// Usage goes up and down past three thresholds: two of memory, one of memory+swap.
fn thresholds(agent: &Agent, group: &Group, file: &impl Fn(&str) -> String) -> Result<Vec<Listener>> {
    // Started first: it forks, and it is idle until it gets an order.
    let mut charger = Charger::start(group)?;
    let names = ["memory.usage_in_bytes", group.version.usage_file(), "memory.memsw.usage_in_bytes"];
    let mut listeners = Vec::new();
    for (place, (threshold, control)) in THRESHOLDS.into_iter().zip(names).enumerate() {
        let bytes = format!("{threshold}M");
        let name = if place == 2 { format!("+swap {bytes}") } else { bytes.clone() };
        listeners.push(Listener::start(agent, &name, &file(control), &[&bytes])?);
    }
    print_row("", &scale());
    show("usage", group)?;
    for _ in 0..STEPS {
        let before = group.usage()?;
        charger.grow(Kind::Anonymous, STEP)?;
        show("grow by 5M", group)?;
        await_crossings(&mut listeners, before, group.usage()?)?;
    }
    let list = Command::new(BINARY).arg("list").output().context("cannot start `memcg-monitor list`")?;
    ensure!(list.status.success(), "list: {}: {}", list.status, String::from_utf8_lossy(&list.stderr));
    print_row("$", "memcg-monitor list");
    String::from_utf8_lossy(&list.stdout).lines().for_each(|line| print_row("list", line));
    for _ in 0..STEPS {
        let before = group.usage()?;
        charger.shrink(Kind::Anonymous)?;
        show("give back", group)?;
        await_crossings(&mut listeners, before, group.usage()?)?;
    }
    charger.end()?;
    Ok(listeners)
}

/// Sets a limit, and starts a process that needs more: reclaim, OOM, the kill, and emptiness. Usage goes
/// past thresholds and back meanwhile.
fn out_of_memory(agent: &Agent, group: &Group, listeners: &mut [Listener]) -> Result<()> {
    let limit = if group.version == Version::V2 { "memory.max" } else { "memory.limit_in_bytes" };
    group.write(limit, "16M")?;
    print_row("limit", &format!("16M in {limit}, and a process that wants 64M"));
    let before = listeners.first().map_or(0, Listener::signals);
    let mut charger = Charger::start(group)?;
    // Pages of files can be reclaimed, so the kernel tries that first.
    let _ = charger.grow(Kind::Anonymous, 64 * MIB);
    drop(charger);
    let said = |listener: &Listener, word: &str| listener.lines.iter().any(|line| line.contains(word));
    if agent.status()?.precision == "sampled" {
        return await_lines(listeners, "OOM is signalled", |listeners| {
            Ok(listeners.iter().any(|listener| said(listener, "out of memory")))
        });
    }
    await_lines(listeners, "OOM, the kill, pressure, emptiness and crossings are signalled", |listeners| {
        let [lowest, .., oom, pressure, empty] = listeners else { return Ok(false) };
        // 8M up and down at least; and every signal has been shown, so that none is left for later.
        let shown: u64 = listeners.iter().map(Listener::signals).sum();
        Ok(said(oom, "out of memory")
            && said(oom, "  killed ")
            && said(pressure, "pressure: ")
            && said(empty, "the group is empty")
            && lowest.signals() >= before + 2
            && shown == agent.status()?.signals)
    })
}

/// Shows the group on the screen of `top`, as long as it takes to be read.
fn top() -> Result<()> {
    let mut screen = Screen::start(&[BINARY, "top"], size(100, 12), &[("NO_COLOR", "1")])?;
    screen.says("F1Help")?;
    screen.press("\\demo\r")?;
    let lines = screen.shows("the group of the demonstration", |lines| {
        lines.iter().skip(4).any(|line| line.ends_with("demo"))
            && lines.iter().any(|line| line.contains("16M"))
    })?;
    print_row("$", "memcg-monitor top");
    lines.iter().filter(|line| !line.is_empty()).for_each(|line| print_row("top", line));
    screen.press("q")?;
    let status = screen.ends()?;
    ensure!(status.success(), "top ended with {status}");
    Ok(())
}

/// Has the agent write what it recorded of the group, and draws it.
fn black_box(group: &Group) -> Result<()> {
    let run = |args: &[&str]| -> Result<String> {
        let output = Command::new(BINARY).args(args).output().context("cannot start memcg-monitor")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{args:?}: {}: {errors}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    };
    let directory = group.path.to_string_lossy();
    let file = run(&["record", &directory])?;
    print_row("$", &format!("memcg-monitor record {directory}"));
    print_row("record", &file);
    print_row("$", &format!("memcg-monitor report {file}"));
    run(&["report", &file])?.lines().for_each(|line| print_row("report", line));
    for format in ["svg", "html"] {
        report::text(&format!("report.{format}"), &run(&["report", &file, "--format", format])?);
    }
    Ok(())
}

/// Prints a line, and reports it with its time, for a recording.
fn print_row(who: &str, text: &str) {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    say!("{who:>10} | {text}");
    report::step(START.elapsed().as_secs_f64(), who, text);
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
    print_row(what, &format!("{bar} {:4.1}M", usage as f64 / MIB as f64));
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
fn await_crossings(listeners: &mut [Listener], before: u64, after: u64) -> Result<()> {
    let direction = if before < after { "up" } else { "down" };
    let (low, high) = (before.min(after), before.max(after));
    let received: Vec<_> = listeners.iter().map(|listener| listener.lines.len()).collect();
    await_lines(
        listeners,
        &format!("the listener says that its threshold was crossed {direction}"),
        |listeners| {
            Ok(listeners.iter().zip(THRESHOLDS).zip(&received).all(|((listener, threshold), &received)| {
                let crossed = (low + 1..=high).contains(&(threshold * MIB));
                !crossed
                    || listener.lines[received..].iter().any(|line| is_crossing(line, threshold, direction))
            }))
        },
    )
}

/// Whether a line says that the threshold was crossed that way.
fn is_crossing(line: &str, threshold: u64, direction: &str) -> bool {
    line.contains(&format!("{threshold}M: crossed {threshold}M {direction}wards, "))
}
