//! Cost of one operation by the kernel's own accounts, and what the agent holds.
//! The host boots us with one CPU and icount: a nanosecond is an instruction.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::harness::agent::Agent;

const SHORT: Duration = Duration::from_millis(1);

/// Instructions of one of many like it, by which process ran them; and time until it was done,
/// in which none may have run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    pub(super) client: f64,
    pub(super) agent: f64,
    pub(super) all: f64,
    pub(super) until_done: f64,
}

impl Cost {
    /// Measures each of `count` operations, which `work` does.
    pub(super) fn of(agent: Option<&Agent>, count: u64, work: impl FnOnce() -> Result<()>) -> Result<Self> {
        let agent = || agent.map_or(Ok(0), |agent| run_time(agent.pid()));
        // The kernel books a task's time when another one gets the CPU.
        sleep(SHORT);
        let (agent_before, all_before) = (agent()?, processor()?);
        sleep(SHORT);
        let (start, own_before) = (Instant::now(), own()?);
        work()?;
        let (own_after, elapsed) = (own()?, start.elapsed());
        sleep(SHORT);
        let (all_after, agent_after) = (processor()?, agent()?);
        let each = |before: u64, after: u64| (after - before) as f64 / count as f64;
        Ok(Self {
            client: each(own_before, own_after),
            agent: each(agent_before, agent_after),
            all: each(all_before, all_after),
            until_done: elapsed.as_nanos() as f64 / count as f64,
        })
    }
}

fn own() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("clock_gettime failed")?;
    Ok(u64::try_from(time.tv_sec())? * 1_000_000_000 + u64::try_from(time.tv_nsec())?)
}

/// Nanoseconds that all threads of a process ran.
fn run_time(process: Pid) -> Result<u64> {
    tasks(process, "schedstat", |text| text.split_whitespace().next()?.parse().ok())
}

/// Nanoseconds that the CPU was not idle.
fn processor() -> Result<u64> {
    let text = read("/proc/schedstat")?;
    let line = text.lines().find(|line| line.starts_with("cpu0 ")).context("/proc/schedstat has no cpu0")?;
    let field = line.split_whitespace().nth(7).and_then(|field| field.parse().ok());
    field.with_context(|| format!("/proc/schedstat says {line:?}"))
}

/// Memory that a process holds, and time that it ran.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// Bytes resident, the mapped tables included.
    pub(crate) resident: u64,
    /// Bytes of them that are its own.
    pub(crate) anonymous: u64,
    pub(crate) descriptors: u64,
    /// Times that a thread of it went to sleep by itself.
    pub(crate) sleeps: u64,
    /// Nanoseconds that it ran.
    pub(crate) ran: u64,
}

impl Held {
    pub(crate) fn by(agent: &Agent) -> Result<Self> {
        Self::of(agent.pid())
    }

    /// Measures any process by its number.
    pub(crate) fn of(process: Pid) -> Result<Self> {
        let status = read(format!("/proc/{process}/status"))?;
        let kilobytes = |name| -> Result<u64> {
            Ok(1024 * field(&status, name).with_context(|| format!("/proc/PID/status has no {name}"))?)
        };
        Ok(Self {
            resident: kilobytes("VmRSS:")?,
            anonymous: kilobytes("RssAnon:")?,
            descriptors: fs::read_dir(format!("/proc/{process}/fd"))?.count() as u64,
            sleeps: tasks(process, "status", |text| field(text, "voluntary_ctxt_switches:"))?,
            ran: run_time(process)?,
        })
    }
}

fn field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// The sum over a process's threads of something in one of their files.
fn tasks(process: Pid, file: &str, of: impl Fn(&str) -> Option<u64>) -> Result<u64> {
    let directory = format!("/proc/{process}/task");
    let mut sum = 0;
    for task in fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))? {
        let path = task?.path().join(file);
        sum += of(&read(&path)?).with_context(|| format!("{} is not understood", path.display()))?;
    }
    Ok(sum)
}

fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
