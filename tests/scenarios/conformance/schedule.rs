//! A random schedule over all control files, and the smallest part of it that
//! fails.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use monitor_common::grammar::control_file::ControlFile::{self, Memsw, Oom, Pressure, Usage};

use super::book::{Both, agree};
use super::shrink::smallest;
use crate::harness::MIB;
use crate::harness::agent::{Agent, PATIENCE, until};
use crate::harness::block::{self, Swap};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::page;
use crate::harness::group::{Family, Group, read_number};
use crate::harness::random::Random;
use crate::harness::report::say;

/// Usage comes to rest at multiples of this, and thresholds lie half-way between.
const STEP: u64 = 4 * MIB;
const LIMIT: u64 = 16 * MIB;
/// Pages: nearer to a threshold than this the kernel may still be in the dark.
const NEAR: u64 = 256;
const LEGS: usize = 64;
/// Registrations among them, at the start.
const FIRST: usize = 12;
/// Time for a failing schedule and for making it smaller; a test has 120 seconds.
const TIME: Duration = Duration::from_secs(100);

/// Control files and arguments to register; the group is another number.
const TRIGGERS: [(ControlFile, &str); 13] = [
    (Usage, "6M"),
    (Usage, "10M"),
    (Usage, "22M"),
    (Memsw, "6M"),
    (Memsw, "14M"),
    (Memsw, "22M"),
    (Oom, ""),
    (Pressure, "low"),
    (Pressure, "low,hierarchy"),
    (Pressure, "medium,local"),
    (Pressure, "medium"),
    (Pressure, "critical,hierarchy"),
    (Pressure, "critical"),
];

/// One step. A number that names nothing does nothing, so that any part of a
/// schedule is a schedule.
#[derive(Clone, Copy, Debug)]
enum Leg {
    /// Registers a trigger of the table with both sides.
    Register {
        group: usize,
        trigger: usize,
    },
    /// Registers another on the same eventfds.
    Again {
        pair: usize,
        trigger: usize,
    },
    Close {
        pair: usize,
    },
    Grow {
        who: usize,
        steps: u64,
    },
    Shrink {
        who: usize,
    },
    ReadDisk {
        who: usize,
        steps: u64,
    },
    OutOfMemory,
    /// The child goes, and another of its name comes.
    Renew,
}

impl Leg {
    fn random(random: &mut Random, first: bool) -> Self {
        let (who, steps) = (random.below(2), 1 + random.below(4) as u64);
        match random.below(if first { 6 } else { 20 }) {
            0..6 => Self::Register { group: random.below(5), trigger: random.below(TRIGGERS.len()) },
            6 => Self::Again { pair: random.below(8), trigger: random.below(TRIGGERS.len()) },
            7 => Self::Close { pair: random.below(8) },
            8..12 => Self::Grow { who, steps },
            12..15 => Self::Shrink { who },
            15..18 => Self::ReadDisk { who, steps },
            18 => Self::OutOfMemory,
            _ => Self::Renew,
        }
    }
}

pub(super) fn random(seed: u64) -> Result<()> {
    let start = Instant::now();
    let _swap = Swap::on(32 * MIB)?;
    let _disk = block::disk()?;
    let agent = Agent::start(&[])?;
    let mut random = Random(seed);
    let legs: Vec<_> = (0..LEGS).map(|number| Leg::random(&mut random, number < FIRST)).collect();
    let received = match run(&agent, &legs) {
        Ok(received) => received,
        Err(error) => {
            say!("conformance_random_kinds, seed {seed:#x}, failed: {error:#}");
            // The last one begins before the deadline, and may fail by waiting.
            let deadline = start + TIME.saturating_sub(start.elapsed() + PATIENCE);
            let found = smallest(&legs, deadline, |legs| run(&agent, legs).is_err());
            say!("{} of {LEGS} legs fail:", found.len());
            found.iter().for_each(|leg| say!("    Leg::{leg:?},"));
            return Err(error);
        }
    };
    say!("conformance_random_kinds, seed {seed:#x}: {LEGS} legs, kernel {}, ours {}", received.0, received.1);
    Ok(())
}

/// One pair of eventfds.
struct Pair {
    group: usize,
    triggers: Vec<(ControlFile, u64)>,
    /// Registrations whose signals a window's level decides.
    by_level: u64,
    both: Both,
}

/// Dropped in order: no process is left in a group that is removed.
struct World {
    chargers: [Charger; 2],
    held: [usize; 2],
    pairs: Vec<Pair>,
    family: Family,
}

/// The signals of both sides in all; an error where they differ.
fn run(agent: &Agent, legs: &[Leg]) -> Result<(u64, u64)> {
    let family = Family::new("random")?;
    family.group.set_limit(LIMIT)?;
    let chargers = [Charger::start(&family.child)?, Charger::start(&family.sibling)?];
    let mut world = World { chargers, held: [0; 2], pairs: Vec::new(), family };
    let mut sum = (0, 0);
    world.rest(agent)?;
    for (number, leg) in legs.iter().enumerate() {
        world
            .leg(*leg, &mut sum)
            .and_then(|()| world.rest(agent))
            .and_then(|()| world.compare())
            .with_context(|| format!("leg {number}, {leg:?}, after {:?}", &legs[..number]))?;
    }
    for pair in &mut world.pairs {
        let total = pair.both.total()?;
        sum = (sum.0 + total.0, sum.1 + total.1);
    }
    Ok(sum)
}

impl World {
    fn group(&self, index: usize) -> &Group {
        let Family { child, group, sibling, parent, root } = &self.family;
        [group, child, parent, sibling, root][index]
    }

    fn leg(&mut self, leg: Leg, sum: &mut (u64, u64)) -> Result<()> {
        match leg {
            Leg::Register { group, trigger } => {
                self.pairs.push(Pair { group, triggers: Vec::new(), by_level: 0, both: Both::new()? });
                self.register(self.pairs.len() - 1, trigger)?;
            }
            Leg::Again { pair, trigger } => self.register(pair, trigger)?,
            Leg::Close { pair } if pair < self.pairs.len() => {
                let mut closed = self.pairs.remove(pair);
                let total = closed.both.total()?;
                *sum = (sum.0 + total.0, sum.1 + total.1);
            }
            Leg::Grow { who, steps } if self.held[who] < 3 => {
                self.chargers[who].grow(Kind::Anonymous, steps * STEP)?;
                self.held[who] += 1;
            }
            Leg::Shrink { who } if self.held[who] > 0 => {
                self.chargers[who].shrink(Kind::Anonymous)?;
                self.held[who] -= 1;
            }
            Leg::ReadDisk { who, steps } => self.chargers[who].read_disk(2 * steps * STEP)?,
            Leg::OutOfMemory => {
                self.chargers[0].grow_to_death(128 * MIB)?;
                self.restart()?;
            }
            Leg::Renew => self.renew(sum)?,
            _ => {}
        }
        Ok(())
    }

    fn register(&mut self, at: usize, trigger: usize) -> Result<()> {
        let Some(pair) = self.pairs.get(at) else { return Ok(()) };
        let (file, args) = TRIGGERS[trigger];
        let group = self.group(pair.group);
        // Thresholds of the root are sampled here, not counted.
        if pair.group == 4 && matches!(file, Usage | Memsw) {
            return Ok(());
        }
        // What is compared to the signal is not mixed with what is not.
        let events = matches!(file, Oom | Pressure);
        if !pair.triggers.is_empty() && pair.is_of_events() != events {
            return Ok(());
        }
        pair.both.register(group, file, args)?;
        let level = args.trim_end_matches('M').parse::<u64>().unwrap_or(0) * MIB / page();
        let by_level = file == Pressure && args != "low,hierarchy";
        self.pairs[at].by_level += u64::from(by_level);
        self.pairs[at].triggers.push((file, level));
        Ok(())
    }

    /// A new charger in the child, which holds nothing, nor any eventfd.
    fn restart(&mut self) -> Result<()> {
        self.chargers[0] = Charger::start(&self.family.child)?;
        self.held[0] = 0;
        Ok(())
    }

    fn renew(&mut self, sum: &mut (u64, u64)) -> Result<()> {
        let stand_in = Charger::start(&self.family.sibling)?;
        std::mem::replace(&mut self.chargers[0], stand_in).end()?;
        let before: Vec<_> = self.pairs.iter_mut().map(|pair| pair.both.total()).collect::<Result<_>>()?;
        self.family.child.remove()?;
        let (gone, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pairs).into_iter().zip(before).partition(|(pair, _)| pair.group == 1);
        self.pairs = left.into_iter().map(|(pair, _)| pair).collect();
        for (mut pair, before) in gone {
            let each = pair.triggers.len() as u64;
            let more = before.0.max(before.1) + each;
            agree_after(&mut pair.both, before, each).with_context(|| format!("removal, {more} at most"))?;
            let total = pair.both.total()?;
            *sum = (sum.0 + total.0, sum.1 + total.1);
        }
        // Not a new value: the old one's end would remove it.
        fs::create_dir(&self.family.child.path).context("cannot make the child again")?;
        self.restart()
    }

    /// Makes the kernel look, and waits until both sides have signalled all.
    fn rest(&mut self, agent: &Agent) -> Result<()> {
        self.chargers.iter_mut().try_for_each(|charger| charger.spike(Kind::Anonymous, page(), 160))?;
        agent.settle()?;
        let (mut events, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pairs).into_iter().partition(Pair::is_of_events);
        agree(&mut events.iter_mut().map(|pair| &mut pair.both).collect::<Vec<_>>())?;
        self.pairs = others;
        self.pairs.append(&mut events);
        Ok(())
    }

    fn compare(&mut self) -> Result<()> {
        let mut usages = Vec::new();
        for index in 0..4 {
            let of = |file: ControlFile| read_number(&self.group(index).path.join(file.name()));
            usages.push((of(Usage)? / page(), of(Memsw)? / page()));
        }
        for pair in &mut self.pairs {
            let (kernel, ours) = pair.both.total()?;
            let near = |(file, level): &(ControlFile, u64)| match file {
                Usage => usages[pair.group].0.abs_diff(*level) <= NEAR,
                Memsw => usages[pair.group].1.abs_diff(*level) <= NEAR,
                _ => false,
            };
            let what = format!("{:?} on group {}: kernel {kernel}, ours {ours}", pair.triggers, pair.group);
            if pair.is_of_events() {
                ensure!(kernel == ours || pair.is_a_window_apart(kernel, ours), "{what}");
                // Else each later leg would wait in vain for the two to be equal again.
                pair.both.accept();
            } else if !pair.triggers.iter().any(near) {
                // The counter's steps between the kernel's looks come in pairs.
                ensure!(kernel % 2 == ours % 2, "{what}");
                ensure!(kernel == 0 || ours > 0, "{what}");
            }
        }
        Ok(())
    }
}

impl Pair {
    /// Whether it waits for OOM or pressure only, of which both counts have to be equal.
    fn is_of_events(&self) -> bool {
        self.triggers.iter().all(|(file, _)| matches!(file, Oom | Pressure))
    }

    /// Whether the counts differ by one window's level, as in `kinds`: pages that another CPU
    /// adds after the program's look can lift or lower it. Then those that wait for a level
    /// are signalled or not, and so are those in default mode, by what was signalled below.
    fn is_a_window_apart(&self, kernel: u64, ours: u64) -> bool {
        kernel.abs_diff(ours) <= self.by_level && kernel.min(ours) > self.by_level
    }
}

/// Waits until a removal has been signalled to both, once for each registration.
fn agree_after(both: &mut Both, before: (u64, u64), each: u64) -> Result<()> {
    if each == 0 {
        return Ok(());
    }
    // Each side beyond what it had signalled before: of crossings that need not be the same.
    until("the removal is signalled", || {
        let total = both.total()?;
        Ok(total.0 >= before.0 + each && total.1 >= before.1 + each)
    })
    .with_context(|| format!("before it the kernel had signalled {}, we {}", before.0, before.1))?;
    let total = both.total()?;
    // A last look of the kernel's may signal a crossing, too.
    let more = (total.0 - before.0, total.1 - before.1);
    if more.0 < each || more.1 < each || more.1 % 2 != each % 2 {
        bail!("{each} registrations, the kernel signalled {}, we {}", more.0, more.1);
    }
    Ok(())
}
