//! Thresholds registered with both sides, chargers that move usage, and the
//! comparison after each leg.

use std::fs;

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::Version;
use nix::sys::signal::Signal;

use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, page};
use crate::harness::group::Group;
use crate::harness::report::say;
use crate::harness::trace::{Change, Counter, Trace, most_crossings};

/// Usage moves in legs by multiples of this many bytes.
pub(crate) const STEP: u64 = 3 << 20;
/// Pages. The kernel looks every 129 pages on each processor, and charges come
/// in batches of 64: this near to a threshold it may still be in the dark.
const NEAR: u64 = 192;

/// How usage moves in a leg, and so what can be expected of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Usage moves one way, by one process: we give no fewer signals than the kernel.
    Ramp,
    /// Usage moves to and fro, by one process. We signal a threshold once in each direction
    /// for each wake-up: where the kernel gives any, we do.
    Teeth,
    /// Moves as `Teeth`, while the agent is stopped: all of it is one wake-up.
    Asleep,
    /// Moves as `Teeth`, by several processes. The kernel looks without a lock, so two
    /// of its looks may signal the same crossing: the parity of its count means
    /// nothing.
    Burst,
}

/// One threshold, registered with both sides, each on an eventfd of its own.
#[derive(Debug)]
struct Watch {
    group: usize,
    /// The threshold in pages.
    threshold: u64,
    kernel: Option<Waiter>,
    ours: Waiter,
    /// Usage was at or above it when the last leg ended; `None`: too near.
    above: Option<bool>,
    /// Whether usage is above, by our signals alone.
    signalled_above: bool,
    total: Count,
}

/// Signals of a threshold.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    kernel: u64,
    ours: u64,
    /// Crossings that the trace allows.
    trace: u64,
}

/// Groups, chargers, thresholds and witnesses. Fields are dropped in order.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) chargers: Vec<Charger>,
    watches: Vec<Watch>,
    counters: Vec<Counter>,
    trace: Trace,
    agent: Agent,
    legs: u32,
    /// Comparisons with the kernel left out because usage was near.
    near: u32,
    /// The groups, children first.
    groups: Vec<Group>,
}

impl Rig {
    /// `groups`, children first; one charger starts in each of `homes`.
    pub(crate) fn new(groups: Vec<Group>, homes: &[usize]) -> Result<Self> {
        let agent = Agent::start(&[])?;
        let mut trace = Trace::start()?;
        let counters = groups.iter().map(|group| trace.counter_of(group)).collect::<Result<Vec<_>>>()?;
        let chargers = homes.iter().map(|home| Charger::start(&groups[*home])).collect::<Result<_>>()?;
        let mut rig =
            Self { chargers, watches: Vec::new(), counters, trace, agent, legs: 0, near: 0, groups };
        // A process charges its own first pages and tables only now.
        for charger in &mut rig.chargers {
            Kind::ALL.into_iter().try_for_each(|kind| charger.spike(kind, STEP, 1))?;
        }
        rig.nudge()?;
        Ok(rig)
    }

    /// Thresholds half-way between all that usage comes to rest at: `steps` of
    /// them above what it is now.
    pub(crate) fn watch(&mut self, group: usize, steps: u64) -> Result<()> {
        // Nothing from before can count as a crossing.
        self.trace.leg()?;
        let target = &self.groups[group];
        let base = target.usage()?;
        for step in 0..steps {
            let bytes = base + step * STEP + STEP / 2;
            let args = bytes.to_string();
            self.watches.push(Watch {
                group,
                threshold: bytes / page(),
                kernel: (target.version == Version::V1)
                    .then(|| Waiter::on_kernel(target, &args))
                    .transpose()?,
                ours: Waiter::on(target, &args)?,
                above: Some(false),
                signalled_above: false,
                total: Count::default(),
            });
        }
        Ok(())
    }

    /// Does some work and compares what came of it.
    pub(crate) fn leg(
        &mut self,
        what: &str,
        shape: Shape,
        work: impl FnOnce(&mut [Charger]) -> Result<()>,
    ) -> Result<()> {
        self.legs += 1;
        if shape == Shape::Asleep {
            self.stop_agent()?;
        }
        work(&mut self.chargers).and_then(|()| self.nudge()).with_context(|| format!("leg {what}"))?;
        self.agent.signal(Signal::SIGCONT)?;
        self.agent.settle()?;
        let mut counts = Vec::new();
        for watch in &self.watches {
            let kernel = watch.kernel.as_ref().map(Waiter::take).transpose()?.unwrap_or(0);
            counts.push(Count { kernel, ours: watch.ours.take()?, trace: 0 });
        }
        let usages =
            self.groups.iter().map(|group| Ok(group.usage()? / page())).collect::<Result<Vec<_>>>()?;
        let traced = self.trace.leg()?;
        let changes: Vec<_> = self.counters.iter().map(|counter| traced.changes(*counter)).collect();

        for (watch, mut count) in self.watches.iter_mut().zip(counts) {
            let threshold = watch.threshold.cast_signed();
            let changes = &changes[watch.group];
            count.trace = most_crossings(changes, threshold);
            // On the other side than where the leg began, beyond all doubt.
            let crossed = watch.above.is_some_and(|above| {
                changes.iter().filter_map(Change::left).any(|left| (left >= threshold) != above)
            });
            let usage = usages[watch.group];
            let before = watch.above;
            watch.end_leg(shape, count, usage, crossed).with_context(|| {
                format!(
                    "leg {} ({what}, {shape:?}), {} at {} pages: usage is {usage}, was above: {before:?}, {count:?}, in all {:?}; the probes missed {}",
                    self.legs,
                    self.groups[watch.group].path.display(),
                    watch.threshold,
                    watch.total,
                    traced.missed
                )
            })?;
            self.near += u32::from(watch.kernel.is_some() && watch.above.is_none());
        }
        Ok(())
    }

    fn stop_agent(&self) -> Result<()> {
        self.agent.signal(Signal::SIGSTOP)?;
        let path = format!("/proc/{}/stat", self.agent.pid());
        until("the agent has stopped", || {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            // `PID (COMMAND) STATE ...`
            Ok(text.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")))
        })
    }

    /// The kernel looks only every 129 pages that come or go, and never for
    /// kernel memory. One page, many times, makes it look while usage stays; and
    /// calls that nothing runs beside let the trace find what it missed.
    fn nudge(&mut self) -> Result<()> {
        // Enough for one of two processors, wherever the charger runs.
        self.chargers.iter_mut().try_for_each(|charger| charger.spike(Kind::Anonymous, page(), 160))
    }

    /// Reports the counts of both sides.
    pub(crate) fn report(self, name: &str) -> Result<()> {
        let mut sum = Count::default();
        for Watch { total, .. } in &self.watches {
            sum.kernel += total.kernel;
            sum.ours += total.ours;
            sum.trace += total.trace;
        }
        ensure!(sum.ours > 0, "nothing was crossed");
        say!(
            "{name}: {} legs, {} thresholds: kernel {}, ours {}, trace at most {}; {} comparisons too near",
            self.legs,
            self.watches.len(),
            sum.kernel,
            sum.ours,
            sum.trace,
            self.near
        );
        Ok(())
    }
}

impl Watch {
    fn end_leg(&mut self, shape: Shape, leg: Count, usage: u64, crossed: bool) -> Result<()> {
        self.total.kernel += leg.kernel;
        self.total.ours += leg.ours;
        self.total.trace += leg.trace;
        let before = self.above;
        self.above = (usage.abs_diff(self.threshold) > NEAR).then_some(usage >= self.threshold);
        self.signalled_above ^= leg.ours % 2 == 1;

        // The kernel may signal one crossing twice where two processors race. We do not.
        ensure!(
            self.total.ours <= self.total.trace,
            "we signalled more often than the trace of the counter has crossings"
        );
        ensure!(leg.ours > 0 || !crossed, "we missed a crossing that the trace of the counter has");
        if shape == Shape::Asleep {
            ensure!(leg.ours <= 2, "in one wake-up we signalled more than once in each direction");
        }
        let Some(above) = self.above else { return Ok(()) };
        ensure!(self.signalled_above == above, "our signals so far say the other side");
        let (Some(before), Some(_)) = (before, &self.kernel) else { return Ok(()) };
        ensure!(leg.ours > 0 || leg.kernel == 0, "the kernel signalled, we did not");
        if shape == Shape::Ramp {
            ensure!(leg.ours >= leg.kernel, "the kernel signalled more often than we did");
        }
        if shape != Shape::Burst {
            let turned = leg.kernel % 2 == 1;
            ensure!(turned == (before != above), "the kernel's own signals say the other side");
        }
        Ok(())
    }
}
