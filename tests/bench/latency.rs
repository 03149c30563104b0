//! `cargo xtask bench latency`: from the charge that crosses a threshold to the
//! return of the client's `read`, and what is allocated meanwhile; beside ours, the
//! kernel's own (v1) and what v2 features instead.
//!
//! Three processes: one allocates, page by page, and never rests; the client waits;
//! the agent is between. On a single CPU it is the scheduler that decides when the
//! others come to run, so a boot with two CPUs stands beside it. There the emulator
//! runs other threads of the host's, and only a comparison within a boot counts.

mod stages;
mod ways;

use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::alarm;

use self::stages::Stages;
use self::ways::Way;
use super::Scope;
use super::allocator::{Allocator, Ascended, Ascent, now};
use crate::harness::client::page;
use crate::harness::group::Group;
use crate::harness::init::Hierarchy;
use crate::harness::report::{line, rounded, row, say};

/// Between the group's usage at rest and the threshold.
const CLIMB: u64 = 2 << 20;
/// Longer than a threshold that flaps is given rest.
const BETWEEN: Duration = Duration::from_millis(150);
/// Seconds after which a signal will not come.
const LIMIT: u32 = 120;
/// Parts into which a poller's period is divided.
const PHASES: u64 = 100;

/// How fast is allocated.
#[derive(Clone, Copy, Debug)]
struct Pace {
    name: &'static str,
    /// Bytes in a second; 0: as fast as it goes.
    rate: u64,
}

impl Pace {
    const FLAT: Self = Self { name: "flat out", rate: 0 };
    const STEADY: Self = Self { name: "100 MB/s", rate: 100_000_000 };

    fn nanoseconds(self) -> u64 {
        (page() * 1_000_000_000).checked_div(self.rate).unwrap_or(0)
    }
}

/// One crossing, as it was signalled to the client.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Nanoseconds until the client's `read` returned.
    latency: u64,
    /// Bytes allocated until then.
    beyond: u64,
    /// Bytes in a second.
    rate: f64,
}

pub(crate) fn run(scope: Scope, hierarchy: Hierarchy) -> Result<()> {
    let two = std::thread::available_parallelism()?.get() > 1;
    // Emulated beside one another, they allocate more slowly than the steady pace.
    let paces: &[Pace] =
        if two || scope == Scope::Once { &[Pace::FLAT] } else { &[Pace::STEADY, Pace::FLAT] };
    for way in Way::all(hierarchy) {
        let group = Group::new("latency")?;
        let allocator = Allocator::start(&group)?;
        let threshold = group.usage()? + CLIMB;
        let threshold = threshold - threshold % page();
        let mut course = Course { way, hierarchy, group: &group, threshold, allocator };
        for &pace in paces {
            let trials = way.trials(scope);
            say!("{}, {}: {trials} times", way.name(), pace.name);
            let (samples, unsure) = course.measure(pace, trials, false)?;
            report(way, pace, &samples, unsure);
        }
        if !two && way == Way::Socket {
            say!("{}, traced", way.name());
            course.measure(Pace::FLAT, scope.of(40, 3), true)?;
        }
        drop(course);
        group.remove()?;
    }
    if !two {
        computed(Pace::STEADY);
    }
    Ok(())
}

/// A way to be notified, and the group, threshold and process of the crossings.
struct Course<'a> {
    way: Way,
    hierarchy: Hierarchy,
    group: &'a Group,
    threshold: u64,
    allocator: Allocator,
}

impl Course<'_> {
    /// Lets it cross `trials` times. The samples, and how many are left out since it
    /// is not known when they crossed.
    fn measure(&mut self, pace: Pace, trials: u64, traced: bool) -> Result<(Vec<Sample>, u64)> {
        let (way, threshold) = (self.way, self.threshold);
        let mut waiting = way.start(self.hierarchy, self.group, threshold, &self.allocator.direct)?;
        let mut stages = waiting.agent().filter(|_| traced).map(Stages::start).transpose()?;
        let (mut samples, mut unsure) = (Vec::new(), 0);
        for trial in 0..trials {
            std::thread::sleep(BETWEEN);
            waiting.drain()?;
            let ascent = Ascent {
                // A poller is met in each phase of its period.
                rest: way.period() * (trial % PHASES) / PHASES.min(trials) + 1,
                threshold,
                run_up: 200 + trial * 37 % 129,
                pace: pace.nanoseconds(),
                beyond: u64::MAX,
                hold: 0,
                direct: way == Way::Direct,
            };
            stages.as_mut().map_or(Ok(()), Stages::begin)?;
            alarm::set(LIMIT);
            self.allocator.begin(ascent)?;
            let received = waiting.wait()?;
            let (woke, touching) = (now()?, self.allocator.touching());
            self.allocator.stop();
            let ascended = self.allocator.finish()?;
            alarm::cancel();
            match sample(&ascended, woke, touching) {
                _ if !received => {}
                Some(sample) => {
                    samples.push(sample);
                    stages.as_mut().map_or(Ok(()), |stages| stages.end(ascended.up, woke))?;
                }
                None => unsure += 1,
            }
        }
        if let Some(stages) = stages {
            stages.report(way.name())?;
        }
        Ok((samples, unsure))
    }
}

fn sample(ascended: &Ascended, woke: u64, touching: u64) -> Option<Sample> {
    let Ascended { up, crossing, touched, took, exact, .. } = *ascended;
    (exact && woke >= up).then(|| Sample {
        latency: woke - up,
        beyond: touching.saturating_sub(crossing) * page(),
        rate: (touched * page()) as f64 * 1e9 / took as f64,
    })
}

/// The value below which `share` of all are.
fn at(sorted: &[u64], share: f64) -> u64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

fn sorted(samples: &[Sample], of: fn(&Sample) -> u64) -> Vec<u64> {
    let mut values: Vec<_> = samples.iter().map(of).collect();
    values.sort_unstable();
    values
}

fn report(way: Way, pace: Pace, samples: &[Sample], unsure: u64) {
    let table = format!("signalled after, allocating {}", pace.name);
    if samples.is_empty() {
        row(&table, way.name(), &[("signalled", 0.into()), ("left out", unsure.into())]);
        return;
    }
    let (latencies, beyond) = (sorted(samples, |one| one.latency), sorted(samples, |one| one.beyond));
    let rate = samples.iter().map(|one| one.rate).sum::<f64>() / samples.len() as f64;
    let us = |share| rounded(at(&latencies, share) as f64 / 1e3, 1);
    let kib = |share| rounded(at(&beyond, share) as f64 / 1024.0, 0);
    let columns = [
        ("signalled", samples.len().into()),
        ("p50 us", us(0.5)),
        ("p99 us", us(0.99)),
        ("max us", us(1.0)),
        ("beyond, p50 KiB", kib(0.5)),
        ("p99 KiB", kib(0.99)),
        ("max KiB", kib(1.0)),
        ("MB/s", rounded(rate / 1e6, 0)),
        ("left out", unsure.into()),
    ];
    row(&table, way.name(), &columns);
    let share = |rank: usize| (rank + 1) as f64 / latencies.len() as f64;
    let points: Vec<_> =
        latencies.iter().enumerate().map(|(rank, latency)| (*latency as f64 / 1e3, share(rank))).collect();
    line(&format!("Signalled after, allocating {}", pace.name), ("us, log", "share"), way.name(), &points);
}

/// Kubelet's way: a crossing comes at any point of the period with the same chance.
fn computed(pace: Pace) {
    let period = 10.0;
    let columns = [0.5, 0.99, 1.0].map(|share| (share * period * 1e6, share * period * pace.rate as f64));
    let [p50, p99, max] = columns.map(|(us, _)| rounded(us, 0));
    let [half, most, all] = columns.map(|(_, bytes)| rounded(bytes / 1024.0, 0));
    row(
        &format!("signalled after, allocating {}", pace.name),
        "poll, 10 s (computed)",
        &[
            ("signalled", "".into()),
            ("p50 us", p50),
            ("p99 us", p99),
            ("max us", max),
            ("beyond, p50 KiB", half),
            ("p99 KiB", most),
            ("max KiB", all),
        ],
    );
}

/// Reads eight bytes or more of the client's descriptor, and waits for them.
fn read(fd: impl std::os::fd::AsFd) -> Result<()> {
    nix::unistd::read(fd, &mut [0; 4096]).map(drop).context("read failed")
}

/// The group's usage, by one `read`.
fn usage(file: &std::fs::File) -> Result<u64> {
    let mut text = [0; 32];
    let length = nix::sys::uio::pread(file, &mut text, 0).context("cannot read the usage")?;
    String::from_utf8_lossy(&text[..length]).trim().parse().context("the usage is no number")
}
