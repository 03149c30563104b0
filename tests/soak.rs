//! A random mix of everything, for as long as one likes, against a model that knows what
//! must be signalled; amid it the agent is killed, handed over and stopped, and an ordinary
//! user does its worst.

mod fault;
mod tally;
mod world;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;

use crate::harness::agent::{Agent, until};
use crate::harness::attack::{Attack, Size};
use crate::harness::random::Random;
use crate::harness::report::say;
use crate::scenarios::restart::{descriptors, nothing_is_left};
use crate::soak::fault::{Fault, Underway};
use crate::soak::tally::Tally;
use crate::soak::world::{Act, World};

/// Small, so that they overflow, or would if anything leaked.
const OPTIONS: [&str; 9] = [
    "--supervised",
    "--ring-bytes",
    "4096",
    "--max-groups",
    "512",
    "--max-eventfds",
    "1024",
    "--socket-mode",
    "0666",
];
/// Number of acts for each that runs beside an attack.
const ATTACKED: usize = 12;
const PROGRESS: Duration = Duration::from_secs(20);

/// Runs for `time`, from `seed`; beside attacks, or without any.
pub(crate) fn run(time: Duration, seed: u64, attacks: bool) -> Result<()> {
    say!("soak, seed {seed:#x}, {} s", time.as_secs());
    let mut random = Random(seed);
    let mut tally = Tally::default();
    let mut agent = Agent::start(&OPTIONS)?;
    let mut world = World::new()?;
    let before = Held::of(&agent)?;
    let (began, mut reported) = (Instant::now(), Instant::now());
    while began.elapsed() < time {
        let act = world.choose(&mut random);
        let fault = Fault::choose(&mut random, act);
        let attack = (attacks && random.below(ATTACKED) == 0).then(|| choose(&mut random));
        step(&mut agent, &mut world, (act, fault, attack), &mut random, &mut tally).with_context(|| {
            format!("act {} ({act:?}, {fault:?}, {attack:?}) of seed {seed:#x}", tally.acts)
        })?;
        if reported.elapsed() >= PROGRESS {
            reported = Instant::now();
            say!(
                "soak: {} s, {} acts, {} attacks, {} restarts, {} signals, {} lost, {} doubled",
                began.elapsed().as_secs(),
                tally.acts,
                tally.attacks,
                tally.kills + tally.hand_overs,
                tally.received,
                tally.lost + tally.registrations_lost,
                tally.doubled + tally.registrations_doubled
            );
        }
    }
    drop(world);
    until("nothing is registered any more", || Ok(agent.status()?.registrations == 0))?;
    let status = agent.status()?;
    let mut after = Held::of(&agent)?;
    until("the agent holds what it held", || {
        after = Held::of(&agent)?;
        Ok(after.descriptors.0 <= before.descriptors.0 && after.descriptors.1 <= before.descriptors.1)
    })
    .with_context(|| format!("before {before:?}, after {after:?}"))?;
    let full = status.losses.get("ring_full").copied().unwrap_or(0);
    let exhausted = status.losses.get("slots_exhausted").copied().unwrap_or(0);
    table(&tally, &before, &after, status.restarts, full);
    // Seen once in some 800 acts.
    ensure!(
        tally.stepped_back <= 1 + tally.acts / 200,
        "{} steps back in {} acts",
        tally.stepped_back,
        tally.acts
    );
    ensure!(exhausted == 0, "slots have leaked: {exhausted} groups found none");
    ensure!(
        status.restarts == tally.kills + tally.hand_overs,
        "{} restarts for {} deaths",
        status.restarts,
        tally.kills + tally.hand_overs
    );
    let code = agent.end(nix::sys::signal::Signal::SIGTERM)?;
    ensure!(code == 0, "exit code {code}");
    nothing_is_left()?;
    let wrong = [tally.lost, tally.doubled, tally.registrations_lost, tally.registrations_doubled];
    ensure!(wrong == [0; 4], "lost, doubled, registrations lost, doubled: {wrong:?} (seed {seed:#x})");
    Ok(())
}

/// An attack that is one.
fn choose(random: &mut Random) -> Attack {
    let attacks: Vec<_> = Attack::ALL.into_iter().filter(|attack| *attack != Attack::Compute).collect();
    attacks[random.below(attacks.len())]
}

/// One act, with what goes wrong amid it; then each client's eventfd is compared, while an
/// attack goes on.
fn step(
    agent: &mut Agent,
    world: &mut World,
    (act, fault, attack): (Act, Fault, Option<Attack>),
    random: &mut Random,
    tally: &mut Tally,
) -> Result<()> {
    tally.acts += 1;
    tally.attacks += u64::from(attack.is_some());
    let attack = attack.map(|attack| attack.start(Size::SMALL)).transpose()?;
    let underway = Underway::begin(agent, fault, random)?;
    let done = world.act(act, random, tally);
    underway.end(agent, tally)?;
    done?;
    agent.settle()?;
    world.compare(fault.ends_the_agent(), tally)?;
    if let Some(attack) = attack {
        attack.stop().context("the attack does not end")?;
    }
    // Closed eventfds end before a list; a process that was killed closes its own in its time.
    let (mut registered, expected) = (0, world.registrations());
    let settled = until("as many registrations as there should be", || {
        registered = agent.status()?.registrations;
        Ok(registered == expected)
    });
    tally.registrations_lost += expected.saturating_sub(registered);
    tally.registrations_doubled += registered.saturating_sub(expected);
    settled.with_context(|| format!("{registered} instead of {expected}: {}", log_end()))
}

/// The last lines that the agents logged.
fn log_end() -> String {
    let log = Agent::log();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(12)..].join(" | ")
}

/// Memory and descriptors that the agent and its supervisor hold.
#[derive(Debug)]
struct Held {
    descriptors: (usize, usize),
    /// Resident memory, in KiB.
    resident: (u64, u64),
}

impl Held {
    fn of(agent: &Agent) -> Result<Self> {
        let (agent_pid, parent) = (agent.supervised()?, agent.pid());
        Ok(Self {
            descriptors: (descriptors(agent_pid)?.len(), descriptors(parent)?.len()),
            resident: (resident(agent_pid)?, resident(parent)?),
        })
    }
}

fn resident(process: Pid) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).context("VmRSS is no number")
}

fn table(tally: &Tally, before: &Held, after: &Held, restarts: u64, full: u64) {
    let deaths = u32::try_from(tally.kills + tally.hand_overs).unwrap_or(u32::MAX).max(1);
    let rows: [(&str, String); 16] = [
        ("acts", tally.acts.to_string()),
        ("registrations made", tally.registered.to_string()),
        ("signals expected, received", format!("{}, {}", tally.expected, tally.received)),
        ("spikes, not signalled", format!("{}, {}", tally.spikes, tally.spikes_missed)),
        ("kill -9", tally.kills.to_string()),
        ("handed over (SIGHUP)", tally.hand_overs.to_string()),
        ("stopped and continued", tally.stops.to_string()),
        ("attacks", tally.attacks.to_string()),
        (
            "ms until ready again: mean, longest",
            format!("{}, {}", (tally.away / deaths).as_millis(), tally.longest_away.as_millis()),
        ),
        ("restarts, as the agent counts", restarts.to_string()),
        ("full ring, as the programs count", full.to_string()),
        ("lost: signals, registrations", format!("{}, {}", tally.lost, tally.registrations_lost)),
        ("doubled: signals, registrations", format!("{}, {}", tally.doubled, tally.registrations_doubled)),
        ("crossed twice more, by a step back", tally.stepped_back.to_string()),
        ("signalled again by the next agent", tally.repeated.to_string()),
        (
            "descriptors first, last: agent, supervisor",
            format!(
                "{}, {}: {}, {}",
                before.descriptors.0, after.descriptors.0, before.descriptors.1, after.descriptors.1
            ),
        ),
    ];
    for (name, value) in rows {
        say!("| {name:<44} | {value:>20} |");
    }
    let (first, last) = (before.resident, after.resident);
    let memory = format!("{} {}, {} {}", first.0, last.0, first.1, last.1);
    say!("| {:<44} | {memory:>20} |", "RSS KiB first last: agent, supervisor");
}
