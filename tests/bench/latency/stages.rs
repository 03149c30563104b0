//! Stages of the time between a charge and the client's `read`, by the kernel's own trace of
//! which task is woken and which runs. Tracing costs, too: the sum is more than what is
//! measured without.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::unistd::{Pid, getpid};

use super::super::allocator::now;
use crate::harness::agent::until;
use crate::harness::report::{rounded, row, say};

/// A trace buffer of our own.
const DIRECTORY: &str = "/sys/kernel/tracing/instances/latency";
const EVENTS: [&str; 3] = ["sched/sched_waking", "sched/sched_switch", "raw_syscalls/sys_enter"];
/// The stages, each from the end of the one before.
const STAGES: [&str; 6] = [
    "charge, program, wake-up",
    "agent comes to run",
    "agent signals",
    "client comes to run",
    "read returns",
    "agent sleeps again",
];

/// The agent's thread that signals, by its name.
const THREAD: &str = "signals";

/// The trace, as long as it is on.
#[derive(Debug)]
pub(super) struct Stages {
    /// The agent's thread that signals.
    agent: Pid,
    /// Nanoseconds of each stage of each trial.
    times: Vec<[u64; STAGES.len()]>,
    /// How often the agent called what in each trial: before its signal, and after.
    calls: Vec<[BTreeMap<u64, u64>; 2]>,
    /// The client's clock and the trace's, when the trial began.
    began: (u64, u64),
}

/// One line of the trace.
struct Event {
    time: u64,
    pid: i32,
    name: String,
    rest: String,
}

impl Stages {
    /// Traces what the agent's thread that signals does, and which task runs.
    pub(super) fn start(agent: Pid) -> Result<Self> {
        let agent = signalling_thread(agent)?;
        if !Path::new(DIRECTORY).exists() {
            fs::create_dir(DIRECTORY).with_context(|| format!("cannot make {DIRECTORY}"))?;
        }
        let stages = Self { agent, times: Vec::new(), calls: Vec::new(), began: (0, 0) };
        // Finer than microseconds.
        set("trace_clock", "x86-tsc")?;
        set("events/raw_syscalls/sys_enter/filter", &format!("common_pid == {agent}"))?;
        EVENTS.iter().try_for_each(|event| set(&format!("events/{event}/enable"), "1"))?;
        Ok(stages)
    }

    /// Empties the trace for the next trial.
    pub(super) fn begin(&mut self) -> Result<()> {
        set("trace", "")?;
        self.began = clocks()?;
        Ok(())
    }

    /// The client woke at `woke`, for what happened at `up`.
    pub(super) fn end(&mut self, up: u64, woke: u64) -> Result<()> {
        let (ended, last) = clocks()?;
        let path = format!("{DIRECTORY}/trace");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let events: Vec<_> = text.lines().filter_map(event).collect();
        let (began, first) = self.began;
        ensure!(first < last, "the trace's clock stands still");
        let scale = (ended - began) as f64 / (last - first) as f64;
        let clock =
            |event: &Event| ended.saturating_sub((last.saturating_sub(event.time) as f64 * scale) as u64);

        let (agent, client) = (self.agent.as_raw(), getpid().as_raw());
        let named = |pid: i32, field: &str| format!("{field}={pid} ");
        let wakes =
            |event: &&Event, who| event.name == "sched_waking" && event.rest.contains(&named(who, " pid"));
        let runs = |event: &&Event, who| {
            event.name == "sched_switch" && event.rest.contains(&named(who, "next_pid"))
        };
        let mut after = events.iter().filter(|event| clock(event) >= up);
        let mut next = |what: &dyn Fn(&&Event) -> bool| after.find(|event| what(event));
        let steps = [
            next(&|event| wakes(event, agent)),
            next(&|event| runs(event, agent)),
            next(&|event| wakes(event, client)),
            next(&|event| runs(event, client)),
        ];
        let Some(steps) = steps.into_iter().collect::<Option<Vec<_>>>() else {
            // The agent was awake already.
            return Ok(());
        };
        let sleeps = |event: &&Event| {
            event.name == "sched_switch" && event.pid == agent && event.rest.contains("prev_state=S")
        };
        let signalled = clock(steps[2]);
        let asleep = events.iter().filter(|event| clock(event) > signalled).find(sleeps);
        let asleep = asleep.map_or(woke, clock);
        let mut times: Vec<u64> = vec![up];
        times.extend(steps.iter().map(|event| clock(event)));
        times.push(woke);
        let mut stages = [0; STAGES.len()];
        for (stage, pair) in stages.iter_mut().zip(times.windows(2)) {
            *stage = pair[1].saturating_sub(pair[0]);
        }
        stages[STAGES.len() - 1] = asleep.saturating_sub(signalled);
        self.times.push(stages);
        let calls = |from: u64, to: u64| {
            let mut calls = BTreeMap::new();
            let theirs = events.iter().filter(|event| event.name == "sys_enter" && event.pid == agent);
            for event in theirs.filter(|event| (from..to).contains(&clock(event))) {
                let number = event.rest.split_whitespace().nth(1).and_then(|word| word.parse().ok());
                *calls.entry(number.unwrap_or(0)).or_default() += 1;
            }
            calls
        };
        self.calls.push([calls(clock(steps[1]), signalled), calls(signalled, asleep)]);
        Ok(())
    }

    /// The median of each.
    ///
    /// # Errors
    /// No trial was traced from end to end.
    pub(super) fn report(mut self, way: &str) -> Result<()> {
        ensure!(!self.times.is_empty(), "the trace has no way from a charge to the client");
        let mut columns = Vec::new();
        for (at, name) in STAGES.iter().enumerate() {
            self.times.sort_unstable_by_key(|times| times[at]);
            let middle = self.times.get(self.times.len() / 2).map_or(0, |times| times[at]);
            columns.push((*name, rounded(middle as f64 / 1e3, 1)));
        }
        row("stages, us", way, &columns);
        let [before, after] = self.calls.get(self.calls.len() / 2).cloned().unwrap_or_default();
        say!("the agent's system calls, by number: {before:?} up to its signal, {after:?} after it");
        Ok(())
    }
}

impl Drop for Stages {
    fn drop(&mut self) {
        for event in EVENTS {
            let _ = set(&format!("events/{event}/enable"), "0");
        }
        let _ = fs::remove_dir(DIRECTORY);
    }
}

fn signalling_thread(agent: Pid) -> Result<Pid> {
    let threads = format!("/proc/{agent}/task");
    let mut found = None;
    // It names itself once it runs for the first time.
    until("the thread that signals runs", || {
        for entry in fs::read_dir(&threads).with_context(|| format!("cannot list {threads}"))? {
            let path = entry?.path();
            if fs::read_to_string(path.join("comm"))?.trim_end() == THREAD {
                found = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            }
        }
        Ok(found.is_some())
    })?;
    found.map(Pid::from_raw).context("no thread")
}

/// The monotonic clock, and the trace's.
fn clocks() -> Result<(u64, u64)> {
    Ok((now()?, ticks()))
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> u64 {
    // SAFETY: every processor of this architecture has it, and user space may.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Returns 0: here the trace has no such clock, which an error says when it is set.
#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    0
}

/// `COMMAND-PID [CPU] FLAGS CLOCK: EVENT: ...`; a command may hold spaces.
fn event(line: &str) -> Option<Event> {
    let (head, rest) = line.split_once(" [")?;
    let pid = head.rsplit('-').next()?.trim().parse().ok()?;
    let mut words = rest.splitn(3, ": ");
    let time = words.next()?.split_whitespace().last()?.parse().ok()?;
    let name = words.next()?.trim().to_owned();
    Some(Event { time, pid, name, rest: format!("{} ", words.next().unwrap_or_default()) })
}

fn set(file: &str, value: &str) -> Result<()> {
    let path = format!("{DIRECTORY}/{file}");
    fs::write(&path, value).with_context(|| format!("cannot write {value:?} to {path}"))
}
