//! `cargo xtask bench accuracy`: of a random trace of excursions above a threshold, how
//! many crossings are not signalled, or signalled more than 100 ms late: by us, by the
//! kernel's own `event_control` (v1), and by pollers. A poller is a function of the
//! trace, so it is reckoned, over all phases of its period.
//!
//! When usage was above is known from the process that made it so
//! (`allocator`); the trace of the kernel's own counter bears witness that there
//! were as many crossings.

use std::os::fd::AsFd;

use anyhow::{Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::alarm;
use serde_json::Value;

use super::Scope;
use super::allocator::{Allocator, Ascended, Ascent, BATCH, now};
use crate::harness::agent::Agent;
use crate::harness::client::{Waiter, page};
use crate::harness::group::Group;
use crate::harness::init::Hierarchy;
use crate::harness::report::{row, say};
use crate::harness::trace::{Trace, most_crossings};

/// Between the group's usage at rest and the threshold.
const CLIMB: u64 = 2 << 20;
/// Nanoseconds after which a crossing is signalled late.
const LATE: u64 = 100_000_000;
/// Excursions that the process makes by itself, without waiting for us.
const SERIES: u64 = 8;
/// Any seed will do; the same each time, so that each client sees the same trace.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
/// Upper ends of the classes of durations, in nanoseconds.
const CLASSES: [(u64, &str); 6] = [
    (100_000, "< 100 us"),
    (1_000_000, "< 1 ms"),
    (10_000_000, "< 10 ms"),
    (100_000_000, "< 100 ms"),
    (1_000_000_000, "< 1 s"),
    (u64::MAX, ">= 1 s"),
];
const TABLE: &str = "of a million crossings: not signalled + signalled late, by how long usage was above";

/// Crossings of each class: all, not signalled, signalled late. Reckoned ones are fractions.
type Score = [[f64; 3]; CLASSES.len()];

/// Signals that one client received: when, and how many at once.
type Signals = Vec<(u64, u64)>;

pub(crate) fn run(scope: Scope, hierarchy: Hierarchy) -> Result<()> {
    let excursions = scope.of(200, SERIES);
    witness(scope.of(40, SERIES))?;
    for (name, options, wide) in [
        ("ours", &[][..], true),
        ("ours, close together", &[][..], false),
        ("ours, close together, --holdoff-ms 0", &["--holdoff-ms", "0"][..], false),
    ] {
        say!("{name}: {excursions} excursions");
        let round = Round::make(options, hierarchy, excursions, wide)?;
        if wide {
            let score = round.score(|_, _| None);
            let all: f64 = score.iter().map(|class| class[0]).sum();
            say!("{all} crossings by {} excursions", round.excursions.len());
            row(TABLE, "crossings", &columns(&score, |class| Value::from(class[0] as u64)));
        }
        let scored =
            |signals: &Signals| round.score(|at, side| arrival(signals, &round.excursions, at, side));
        show(name, &scored(&round.ours));
        if let Some(kernel) = &round.kernel {
            show(
                &name.replace("ours", "kernel's event_control").replace(", --holdoff-ms 0", ", again"),
                &scored(kernel),
            );
        }
        if wide {
            show("poll, 100 ms", &round.polled(100_000_000));
            show("poll, 10 s", &round.polled(10_000_000_000));
        }
    }
    Ok(())
}

/// Excursions, and the signals of each client for them.
struct Round {
    excursions: Vec<Ascended>,
    ours: Signals,
    kernel: Option<Signals>,
}

impl Round {
    fn make(options: &[&str], hierarchy: Hierarchy, count: u64, wide: bool) -> Result<Self> {
        let group = Group::new("accuracy")?;
        let mut allocator = Allocator::start(&group)?;
        let threshold = threshold(&group)?;
        let agent = Agent::start(options)?;
        let ours = Waiter::on(&group, &threshold.to_string())?;
        let on_kernel = || Waiter::on_kernel(&group, &threshold.to_string());
        let kernel = (hierarchy == Hierarchy::V1).then(on_kernel).transpose()?;
        let mut round = Self { excursions: Vec::new(), ours: Vec::new(), kernel: None };
        let mut theirs = Signals::new();
        let mut random = Random(SEED);
        for number in 0..count {
            if number % SERIES == 0 {
                alarm::set(600);
                for _ in 0..SERIES.min(count - number) {
                    allocator.begin(random.ascent(threshold, wide))?;
                }
            }
            // The next excursion ends; until then, each client's signals are read.
            loop {
                let silent = kernel.as_ref().unwrap_or(&ours);
                let mut fds = [allocator.pipe.as_fd(), ours.0.as_fd(), silent.0.as_fd()]
                    .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
                poll(&mut fds, PollTimeout::NONE)?;
                let ended = fds[0].any() == Some(true);
                take(&ours, &mut round.ours)?;
                kernel.as_ref().map_or(Ok(()), |kernel| take(kernel, &mut theirs))?;
                if ended {
                    break;
                }
            }
            round.excursions.push(allocator.finish()?);
        }
        alarm::cancel();
        // Signals that were given at once have been read; this takes the rest.
        std::thread::sleep(std::time::Duration::from_millis(300));
        take(&ours, &mut round.ours)?;
        kernel.as_ref().map_or(Ok(()), |kernel| take(kernel, &mut theirs))?;
        agent.end(Signal::SIGTERM)?;
        round.kernel = kernel.map(|_| theirs);
        drop(allocator);
        group.remove()?;
        let exact = round.excursions.iter().filter(|one| one.exact).count();
        ensure!(exact * 10 >= round.excursions.len() * 9, "only {exact} crossings are where they should be");
        Ok(round)
    }

    /// Counts crossings by class; `arrival` gives the times at which the first crossing (up) and
    /// the second (down) of an excursion were signalled.
    fn score(&self, arrival: impl Fn(usize, usize) -> Option<u64>) -> Score {
        let mut score = Score::default();
        for (at, one) in self.excursions.iter().enumerate().filter(|(_, one)| one.exact) {
            let class = &mut score[class(one.down - one.up)];
            for (side, happened) in [one.up, one.down].into_iter().enumerate() {
                class[0] += 1.0;
                match arrival(at, side) {
                    None => class[1] += 1.0,
                    Some(time) if time > happened + LATE => class[2] += 1.0,
                    Some(_) => {}
                }
            }
        }
        score
    }

    /// The score of a poller with this period, over all its phases: it notices an excursion if
    /// it looks meanwhile.
    fn polled(&self, period: u64) -> Score {
        let mut score = Score::default();
        let (period, late) = (period as f64, LATE as f64);
        for one in self.excursions.iter().filter(|one| one.exact) {
            let above = ((one.down - one.up) as f64).min(period);
            let seen = above / period;
            let class = &mut score[class(one.down - one.up)];
            class[0] += 2.0;
            class[1] += 2.0 * (1.0 - seen);
            class[2] += (above - late).max(0.0) / period + seen * (period - late) / period;
        }
        score
    }
}

/// When the `side`th signal after the `at`th excursion began came, and before the
/// next one.
fn arrival(received: &Signals, excursions: &[Ascended], at: usize, side: usize) -> Option<u64> {
    let until = excursions.get(at + 1).map_or(u64::MAX, |next| next.up);
    let mut signals = received
        .iter()
        .filter(|(time, _)| (excursions[at].up..until).contains(time))
        .flat_map(|(time, count)| (0..*count).map(|_| *time));
    signals.nth(side)
}

fn class(above: u64) -> usize {
    CLASSES.iter().position(|(end, _)| above < *end).unwrap_or(CLASSES.len() - 1)
}

fn columns(score: &Score, cell: impl Fn(&[f64; 3]) -> Value) -> Vec<(&'static str, Value)> {
    CLASSES.iter().zip(score).map(|((_, name), class)| (*name, cell(class))).collect()
}

fn show(name: &str, score: &Score) {
    let million = |part: f64, all: f64| (part / all * 1e6).round() as u64;
    let cell = |class: &[f64; 3]| {
        let [all, missed, late] = *class;
        if all == 0.0 {
            return Value::from("");
        }
        Value::from(format!("{} + {}", million(missed, all), million(late, all)))
    };
    row(TABLE, name, &columns(score, cell));
}

fn threshold(group: &Group) -> Result<u64> {
    let threshold = group.usage()? + CLIMB;
    Ok(threshold - threshold % page())
}

fn take(waiter: &Waiter, received: &mut Signals) -> Result<()> {
    let count = waiter.take()?;
    if count > 0 {
        received.push((now()?, count));
    }
    Ok(())
}

/// The counter's own trace has as many crossings as we say.
fn witness(count: u64) -> Result<()> {
    let group = Group::new("witness")?;
    let mut allocator = Allocator::start(&group)?;
    let threshold = threshold(&group)?;
    let mut trace = Trace::start()?;
    let counter = trace.counter_of(&group)?;
    let mut random = Random(SEED);
    let (mut most, mut exact) = (0, 0);
    for _ in 0..count {
        allocator.begin(random.ascent(threshold, false))?;
        exact += u64::from(allocator.finish()?.exact);
        let changes = trace.leg()?.changes(counter);
        most += most_crossings(&changes, (threshold / page()).cast_signed());
    }
    say!("the trace of the counter: {most} crossings by {count} excursions");
    ensure!(most >= 2 * exact, "the trace has {most} crossings, and {exact} excursions were made");
    drop(allocator);
    group.remove()
}

/// Random numbers by Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % limit
    }

    /// Draws from `10^low` to `10^high`, each power of ten with the same chance.
    fn powers(&mut self, low: u64, high: u64) -> u64 {
        let part = self.below(1000) as f64 / 1000.0;
        10f64.powf(low as f64 + part * (high - low) as f64) as u64
    }

    /// `wide`: later after the one before than a threshold is given rest.
    fn ascent(&mut self, threshold: u64, wide: bool) -> Ascent {
        Ascent {
            rest: if wide { 110_000_000 + self.below(100_000_000) } else { self.powers(6, 8) },
            threshold,
            run_up: BATCH + 1 + self.below(130),
            // At once, or one page in up to 20 us.
            pace: self.below(2) * self.below(20_000),
            beyond: if self.below(2) == 0 { 0 } else { self.powers(0, 3) },
            hold: if self.below(5) == 0 { 0 } else { self.powers(4, 9) + self.below(2) * self.powers(8, 9) },
            direct: false,
        }
    }
}
