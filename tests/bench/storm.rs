//! `cargo xtask bench storm`: every CPU crosses thresholds as fast as it can. What
//! a charge costs then, beside the same work with the thresholds out of reach; what
//! the agent takes of a CPU; how many crossings are signalled; and whether each client's
//! signals end on the side that usage ended on.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use super::Scope;
use super::allocator::{BATCH, Mapping, now};
use crate::harness::agent::Agent;
use crate::harness::client::{Waiter, page};
use crate::harness::group::Group;
use crate::harness::init::Hierarchy;
use crate::harness::process;
use crate::harness::report::{rounded, row, say};

/// Pages that come and go: so many that all thresholds are crossed each time, though
/// the CPU may keep a batch.
const PAGES: u64 = 3 * BATCH;
/// Thresholds on each group, and pages between them.
const THRESHOLDS: u64 = 8;
const APART: u64 = 6;
/// Above all that is reached, in bytes.
const OUT_OF_REACH: u64 = 1 << 30;
/// The project's aims, in percent: of a charge, and of a CPU.
const AIM: f64 = 5.0;
const AIM_AGENT: f64 = 5.0;

/// Orders to the process: one of these, and how many rounds.
const WORK: u64 = 1;
const STAY: u64 = 2;

pub(crate) fn run(scope: Scope, _hierarchy: Hierarchy) -> Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    let top = Group::new("storm")?;
    let leaves = (0..cpus).map(|cpu| top.child(&format!("cpu{cpu}"))).collect::<Result<Vec<_>>>()?;
    let starts = leaves.iter().enumerate().map(|(cpu, leaf)| Process::start(leaf, cpu));
    let mut processes = starts.collect::<Result<Vec<_>>>()?;
    let rounds = scope.of(300, 50);
    // What they need for themselves is charged by then.
    work(&mut processes, 20, None)?;
    let mut costs: [Vec<Cost>; 3] = Default::default();
    for pass in 0..scope.of(3, 1) {
        say!("pass {}: {cpus} CPUs, {rounds} times {PAGES} pages up and down", pass + 1);
        for (at, (name, options)) in CONDITIONS.into_iter().enumerate() {
            let agent = Agent::start(options)?;
            let storm = Storm::register(&top, &leaves, at > 0)?;
            let before = agent.status()?.signals;
            let mut cost = work(&mut processes, rounds, Some(agent.pid()))?;
            storm.check(&agent, &top, &leaves).with_context(|| format!("{name}, below"))?;
            cost.signals = agent.status()?.signals - before;
            let received = storm.received();
            ensure!(received == cost.signals, "{name}: {received} of {} signals arrived", cost.signals);
            // And where they end above.
            for process in &mut processes {
                process.order(STAY, rounds / 10)?;
            }
            for process in &mut processes {
                process.answer()?;
            }
            storm.check(&agent, &top, &leaves).with_context(|| format!("{name}, above"))?;
            work(&mut processes, 1, None)?;
            storm.check(&agent, &top, &leaves).with_context(|| format!("{name}, below again"))?;
            costs[at].push(cost);
            drop(storm);
            agent.end(Signal::SIGTERM)?;
        }
    }
    report(costs, rounds * 2 * THRESHOLDS * cpus as u64);
    drop(processes);
    leaves.iter().try_for_each(Group::remove)?;
    top.remove()
}

const CONDITIONS: [(&str, &[&str]); 3] =
    [("thresholds out of reach", &[]), ("storm", &[]), ("storm, --holdoff-ms 0", &["--holdoff-ms", "0"])];

/// Measurements of one pass.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// Nanoseconds of a fault and its way back: the process's own CPU time, and all.
    own: f64,
    all: f64,
    /// Share of one CPU.
    agent: f64,
    signals: u64,
}

/// The middle pass of each condition, beside the first condition.
fn report(costs: [Vec<Cost>; 3], crossings: u64) {
    let middle = |mut values: Vec<f64>| {
        values.sort_unstable_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let mut base = 0.0;
    for ((name, _), passes) in CONDITIONS.into_iter().zip(costs) {
        let of = |part: fn(&Cost) -> f64| middle(passes.iter().map(part).collect());
        let (own, all, agent) = (of(|cost| cost.own), of(|cost| cost.all), of(|cost| cost.agent));
        let signals = of(|cost| cost.signals as f64);
        if base == 0.0 {
            base = own;
        }
        let added = 100.0 * (own - base) / base;
        let mut columns = vec![
            ("fault, own ns", rounded(own, 1)),
            ("added %", rounded(added, 2)),
            ("elapsed ns", rounded(all, 1)),
            ("agent, % of a CPU", rounded(100.0 * agent, 2)),
        ];
        if name.starts_with("storm") {
            columns.push(("leaves' crossings", crossings.into()));
            columns.push(("signals", rounded(signals, 0)));
        }
        row("storm", name, &columns);
        if name == "storm" {
            let verdict = |held| if held { "within" } else { "above" };
            say!(
                "{added:+.2} % on a fault, {} the aim of {AIM} %; the agent takes {:.2} % of a CPU, {} the aim of {AIM_AGENT} %",
                verdict(added <= AIM),
                100.0 * agent,
                verdict(100.0 * agent <= AIM_AGENT)
            );
        }
    }
}

/// Makes all processes work; returns the mean cost, and the time that the agent took meanwhile.
fn work(processes: &mut [Process], rounds: u64, agent: Option<Pid>) -> Result<Cost> {
    let cpu_time = || agent.map_or(Ok(0), |agent| time(clock_getcpuclockid(agent)?));
    let (before, start) = (cpu_time()?, now()?);
    for process in &mut *processes {
        process.order(WORK, rounds)?;
    }
    let mut cost = Cost::default();
    let count = processes.len() as f64;
    for process in &mut *processes {
        let (own, all) = process.answer()?;
        let faults = (rounds * PAGES) as f64 * count;
        cost.own += own as f64 / faults;
        cost.all += all as f64 / faults;
    }
    cost.agent = (cpu_time()? - before) as f64 / (now()? - start) as f64;
    Ok(cost)
}

/// A client for each threshold.
struct Storm {
    clients: Vec<Client>,
}

struct Client {
    waiter: Waiter,
    /// The leaf, by number, that it waits on, or none: the top.
    leaf: Option<usize>,
    threshold: u64,
    received: std::cell::Cell<u64>,
}

impl Storm {
    fn register(top: &Group, leaves: &[Group], in_reach: bool) -> Result<Self> {
        let mut clients = Vec::new();
        let groups = leaves.iter().enumerate().map(|(at, leaf)| (Some(at), leaf));
        for (leaf, group) in groups.chain([(None, top)]) {
            let usage = group.usage()?;
            for number in 0..THRESHOLDS {
                let pages = BATCH + 4 + number * APART;
                let threshold = usage + pages * page() + if in_reach { 0 } else { OUT_OF_REACH };
                let waiter = Waiter::on(group, &threshold.to_string())?;
                clients.push(Client { waiter, leaf, threshold, received: 0.into() });
            }
        }
        Ok(Self { clients })
    }

    /// Each client has received an odd number of signals if usage has ended above, where it was
    /// not when it registered, else an even number.
    fn check(&self, agent: &Agent, top: &Group, leaves: &[Group]) -> Result<()> {
        agent.settle()?;
        for client in &self.clients {
            client.received.set(client.received.get() + client.waiter.take()?);
            let group = client.leaf.map_or(top, |leaf| &leaves[leaf]);
            let (usage, received) = (group.usage()?, client.received.get());
            ensure!(
                (received % 2 == 1) == (usage >= client.threshold),
                "{}: {received} signals for a threshold of {}, and usage is {usage}",
                group.path.display(),
                client.threshold
            );
        }
        Ok(())
    }

    fn received(&self) -> u64 {
        self.clients.iter().map(|client| client.received.get()).sum()
    }
}

/// A process that touches pages and gives them back, on a CPU of its own.
struct Process {
    pid: Pid,
    pipe: UnixStream,
}

impl Process {
    fn start(group: &Group, cpu: usize) -> Result<Self> {
        let (pid, pipe) = process::spawn_with_socket(|pipe| serve(pipe, cpu))?;
        group.add(pid)?;
        Ok(Self { pid, pipe })
    }

    fn order(&mut self, what: u64, rounds: u64) -> Result<()> {
        let words = [what.to_ne_bytes(), rounds.to_ne_bytes()].concat();
        self.pipe.write_all(&words).context("a process of the storm died")
    }

    /// Nanoseconds of its own CPU time, and all.
    fn answer(&mut self) -> Result<(u64, u64)> {
        let mut word = || {
            let mut bytes = [0; 8];
            self.pipe.read_exact(&mut bytes).context("a process of the storm died")?;
            anyhow::Ok(u64::from_ne_bytes(bytes))
        };
        Ok((word()?, word()?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

fn serve(mut pipe: UnixStream, cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &only)?;
    let mut order = [[0; 8]; 2];
    let memory = Mapping::new(PAGES + 1)?;
    // One page stays, and with it what the kernel needs around it.
    memory.touch(PAGES);
    while pipe.read_exact(order.as_flattened_mut()).is_ok() {
        let [what, rounds] = order.map(u64::from_ne_bytes);
        let (own, start) = (time(ClockId::CLOCK_PROCESS_CPUTIME_ID)?, now()?);
        for _ in 0..rounds {
            memory.give_back(0, PAGES);
            (0..PAGES).for_each(|at| memory.touch(at));
        }
        if what != STAY {
            memory.give_back(0, PAGES);
        }
        let (own, all) = (time(ClockId::CLOCK_PROCESS_CPUTIME_ID)? - own, now()? - start);
        pipe.write_all(&[own.to_ne_bytes(), all.to_ne_bytes()].concat())?;
    }
    Ok(())
}

fn time(clock: ClockId) -> Result<u64> {
    Ok(u64::try_from(Duration::from(clock_gettime(clock)?).as_nanos())?)
}
