//! `cargo xtask bench abuse`: what one user's worst costs another. Beside each attack a
//! bystander's latency from crossing to signal, how soon the frontends answer, and the
//! agent's processor time and memory; each beside the same agent's idle round.
//!
//! On a single counted processor an attacker takes its share of it from all others: now and
//! then the agent, or a waiting client, runs at the end of a slice only. So the first row
//! is of two threads that compute and do nothing else, and each is set beside that, too.

mod bystander;
mod crowd;
mod operator_frontends;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use self::bystander::{Bystander, Crossings};
use self::operator_frontends::OperatorFrontends;
use super::Scope;
use crate::harness::agent::Agent;
use crate::harness::attack::{Attack, Size};
use crate::harness::init::Hierarchy;
use crate::harness::report::{bars, rounded, row, say};

/// The project's aims: the 99th percentile beside the idle one, and seconds until a frontend
/// answers.
const AIM: f64 = 2.0;
const AIM_FRONTENDS: Duration = Duration::from_secs(1);
/// A bar that is higher is cut off.
const HIGHEST: f64 = 20.0;
/// How long the agent is waited for once an attack is over.
const AFTERWARDS: Duration = Duration::from_secs(10);

/// How much is measured in a round.
#[derive(Clone, Copy, Debug)]
struct Course {
    crossings: u64,
    /// Time for all crossings of the round.
    time: Duration,
    questions: u64,
    /// Time after which a frontend counts as not answering.
    limit: Duration,
    size: Size,
}

/// Measurements of a round: in nanoseconds, sorted; an answer that was not given in time is the
/// highest number.
#[derive(Clone, Debug)]
struct Round {
    crossings: Crossings,
    list: Vec<u64>,
    registration: Vec<u64>,
    scrape: Vec<u64>,
    /// Share of one processor that the agent took.
    agent: f64,
    /// Most resident memory, in KiB.
    resident: u64,
}

pub(crate) fn run(scope: Scope, hierarchy: Hierarchy) -> Result<()> {
    anyhow::ensure!(hierarchy == Hierarchy::V2, "attackers' groups are delegated as v2's are");
    let course = Course {
        crossings: scope.of(100, 5),
        time: Duration::from_secs(scope.of(12, 2)),
        questions: scope.of(5, 1),
        limit: Duration::from_secs(scope.of(3, 1)),
        size: scope.of(Size::FULL, Size::BRIEF),
    };
    let mut ratios = Vec::new();
    // Beside threads that only compute: the first of all.
    let mut computing = None;
    let mut stage: Option<Stage> = None;
    for attack in Attack::ALL {
        // A new agent for each, unless it is only to be seen that all of it works.
        stage.take_if(|stage| scope == Scope::Full || stage.options != attack.options());
        let mut here = match stage.take() {
            Some(stage) => stage,
            None => Stage::new(attack.options(), course)?,
        };
        let name = attack.name();
        say!("{name}: idle");
        let idle = here.round()?;
        say!("{name}: getting under way");
        let began = Instant::now();
        let running = attack.start(course.size)?;
        say!("{name}: under way after {:.1} s", began.elapsed().as_secs_f64());
        reset_peak(&here.agent);
        let attacked = here.round()?;
        say!("  measured; now it ends");
        let stopped = Instant::now();
        running.stop()?;
        let answered = here.frontends.until_answered(AFTERWARDS)?.map(|()| stopped.elapsed());
        let after = resident(&here.agent, "VmRSS:")?;
        let computing = *computing.get_or_insert_with(|| at(&attacked.crossings.latencies, 0.99));
        ratios.push((name, report(name, course, [&idle, &attacked], computing, answered, after)));
        // A frontend that does not answer any more is not queried any further.
        stage = answered.is_some().then_some(here);
    }
    let heights: Vec<_> = ratios.iter().map(|(name, ratio)| (*name, ratio.min(HIGHEST))).collect();
    bars("A bystander's 99th percentile beside an attack", "times the idle one (20: or more)", &heights);
    drop(stage);
    crowd::run(scope)
}

/// An agent, and the clients that use it.
struct Stage {
    agent: Agent,
    bystander: Bystander,
    frontends: OperatorFrontends,
    options: &'static [&'static str],
    course: Course,
}

impl Stage {
    fn new(options: &'static [&'static str], course: Course) -> Result<Self> {
        let common = ["--socket-mode", "0666", "--metrics", operator_frontends::METRICS];
        let agent = Agent::start(&[&common[..], options].concat())?;
        let bystander = Bystander::start(course.limit)?;
        Ok(Self { agent, bystander, frontends: OperatorFrontends::new(course.limit), options, course })
    }

    fn round(&mut self) -> Result<Round> {
        let (ran, start) = (self.agent.on_cpu()?, Instant::now());
        let crossings = self.bystander.crossings(self.course.crossings, self.course.time)?;
        say!("  {} crossings, {} signalled", crossings.tried, crossings.signalled);
        let questions = self.course.questions;
        let list = repeat(questions, || self.frontends.list())?;
        let registration = repeat(questions, || self.bystander.registration())?;
        let scrape = repeat(questions, || self.frontends.scrape())?;
        let agent = (self.agent.on_cpu()? - ran) as f64 / start.elapsed().as_nanos() as f64;
        let resident = resident(&self.agent, "VmHWM:")?;
        Ok(Round { crossings, list, registration, scrape, agent, resident })
    }
}

/// Repeats a query, or stops at the first without an answer; times are sorted.
fn repeat(times: u64, mut query: impl FnMut() -> Result<Option<Duration>>) -> Result<Vec<u64>> {
    let mut took = Vec::new();
    for _ in 0..times {
        let nanoseconds =
            query()?.map_or(u64::MAX, |took| u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        took.push(nanoseconds);
        if nanoseconds == u64::MAX {
            break;
        }
    }
    took.sort_unstable();
    Ok(took)
}

/// Writes the rows; how many times the idle 99th percentile this one is.
fn report(
    name: &str,
    course: Course,
    [idle, attacked]: [&Round; 2],
    computing: u64,
    answered: Option<Duration>,
    after: u64,
) -> f64 {
    let limit = course.limit;
    let us = |sorted: &[u64], share| shown(at(sorted, share), 1e3, 0, limit);
    let ratio = times(at(&idle.crossings.latencies, 0.99), at(&attacked.crossings.latencies, 0.99), limit);
    let scheduled = times(computing, at(&attacked.crossings.latencies, 0.99), limit);
    let columns = [
        ("signalled", format!("{} of {}", attacked.crossings.signalled, attacked.crossings.tried).into()),
        ("p50 idle", us(&idle.crossings.latencies, 0.5)),
        ("p50", us(&attacked.crossings.latencies, 0.5)),
        ("p99 idle", us(&idle.crossings.latencies, 0.99)),
        ("p99", us(&attacked.crossings.latencies, 0.99)),
        ("max idle", us(&idle.crossings.latencies, 1.0)),
        ("max", us(&attacked.crossings.latencies, 1.0)),
        ("p99, times idle", rounded(ratio, 1)),
        ("p99, times computing", rounded(scheduled, 1)),
    ];
    row("a bystander's signals, us", name, &columns);

    let ms = |sorted: &[u64]| shown(at(sorted, 1.0), 1e6, 1, limit);
    let frontends = [
        ("list", &idle.list, &attacked.list),
        ("registration", &idle.registration, &attacked.registration),
        ("scrape", &idle.scrape, &attacked.scrape),
    ];
    let mut columns = Vec::new();
    for (frontend, idle, attacked) in frontends {
        columns.push((format!("{frontend} idle"), ms(idle)));
        columns.push((frontend.to_owned(), ms(attacked)));
        columns
            .push((format!("{frontend}, times"), rounded(times(at(idle, 1.0), at(attacked, 1.0), limit), 1)));
    }
    let columns: Vec<_> = columns.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    row("the slowest answer of each frontend, ms", name, &columns);

    let mib = |kib: u64| rounded(kib as f64 / 1024.0, 1);
    let columns = [
        ("% of a CPU, idle", rounded(100.0 * idle.agent, 1)),
        ("% of a CPU", rounded(100.0 * attacked.agent, 1)),
        ("MiB at most, idle", mib(idle.resident)),
        ("MiB at most", mib(attacked.resident)),
        ("MiB after", mib(after)),
        (
            "ms until it answers, once over",
            answered.map_or_else(
                || format!("none in {} s", AFTERWARDS.as_secs()).into(),
                |answered| rounded(answered.as_secs_f64() * 1e3, 0),
            ),
        ),
    ];
    row("the agent", name, &columns);

    let slowest = frontends.iter().map(|(_, _, attacked)| at(attacked, 1.0)).max().unwrap_or(0);
    let verdict = |held| if held { "within" } else { "above" };
    say!(
        "{name}: p99 is {ratio:.1} times the idle one, {} the aim of {AIM} ({scheduled:.1} times the one beside threads that compute); the slowest frontend is {} the aim of {} s",
        verdict(ratio <= AIM),
        verdict(Duration::from_nanos(slowest) <= AIM_FRONTENDS),
        AIM_FRONTENDS.as_secs()
    );
    ratio
}

/// The value below which `share` of all are.
fn at(sorted: &[u64], share: f64) -> u64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

fn shown(nanoseconds: u64, unit: f64, decimals: i32, limit: Duration) -> Value {
    match nanoseconds {
        u64::MAX => format!("none in {} s", limit.as_secs()).into(),
        _ => rounded(nanoseconds as f64 / unit, decimals),
    }
}

/// Divides two times; an answer that was not given in time counts as if it had been given then.
fn times(idle: u64, attacked: u64, limit: Duration) -> f64 {
    let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
    attacked.min(limit) as f64 / idle.clamp(1, limit) as f64
}

/// A size of the agent, as the kernel counts, in KiB.
fn resident(agent: &Agent, field: &str) -> Result<u64> {
    let path = format!("/proc/{}/status", agent.pid());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|kib| kib.parse().ok()).with_context(|| format!("{path} has no {field}"))
}

/// Restarts the kernel's record of the most memory that it holds.
fn reset_peak(agent: &Agent) {
    // Where the kernel has no such file, the peak is the one since its start.
    let _ = fs::write(format!("/proc/{}/clear_refs", agent.pid()), "5");
}
