//! Each crossing is signalled once: charges and the agent in any order, step by step, against
//! the counter's own trace.

use std::sync::atomic::AtomicU64;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    kernel_model::empty_slot,
    protocol::{
        band::{compare, take},
        slot::Slot,
        word::Word as _,
    },
};

/// One CPU's next step, and what it has in hand.
#[derive(Clone, Copy)]
enum Charge {
    Change(i64),
    ReadBand,
    ReadUsage { band: u64 },
    Flag { band: u64, usage: u64 },
}

/// The agent's next step.
#[derive(Clone, Copy)]
enum Agent {
    Take,
    Measure { seen: Excursion, late: Excursion },
    Publish,
    Check { band: Band },
}

struct World {
    slot: Slot<AtomicU64>,
    thresholds: Vec<u64>,
    usage: u64,
    from: u64,
    signalled: Stretches,
    /// Crossings of each threshold: those that happened, and those that were signalled.
    happened: Vec<[usize; 2]>,
    signals: Vec<[usize; 2]>,
    agent: Agent,
    /// Whether readings are signalled whatever band they were compared with, as they once were.
    forgets_versions: bool,
}

const fn at(direction: Direction) -> usize {
    match direction {
        Direction::Up => 0,
        Direction::Down => 1,
    }
}

impl World {
    fn new(thresholds: Vec<u64>, usage: u64, forgets_versions: bool) -> Self {
        let none = vec![[0; 2]; thresholds.len()];
        let (slot, signalled, agent) = (empty_slot(), Stretches::NONE, Agent::Take);
        let (happened, signals) = (none.clone(), none);
        let world = Self {
            slot,
            thresholds,
            usage,
            from: usage,
            signalled,
            happened,
            signals,
            agent,
            forgets_versions,
        };
        world.publish();
        world
    }

    fn publish(&self) -> Band {
        let below = self.thresholds.iter().copied().filter(|t| *t <= self.from).max();
        let band = band_around(below, self.thresholds.iter().copied().filter(|t| *t > self.from).min());
        let _ = self.slot.memory().publish(band, 0);
        band
    }

    /// One step of a charge; `None` when it has returned.
    fn step(&mut self, charge: Charge) -> Option<Charge> {
        Some(match charge {
            Charge::Change(pages) => {
                let before = self.usage;
                self.usage = before.saturating_add_signed(pages);
                for (t, happened) in self.thresholds.iter().zip(&mut self.happened) {
                    match (*t <= before, *t <= self.usage) {
                        (false, true) => happened[0] += 1,
                        (true, false) => happened[1] += 1,
                        _ => {}
                    }
                }
                Charge::ReadBand
            }
            Charge::ReadBand => Charge::ReadUsage { band: self.slot.band.get() },
            Charge::ReadUsage { band } => Charge::Flag { band, usage: self.usage },
            Charge::Flag { band, usage } => {
                if let Some(outside) = compare(band, usage, 0) {
                    self.slot.memory().flag(outside);
                }
                return None;
            }
        })
    }

    /// One step of the agent; true when it has no look under way any more.
    fn look(&mut self) -> bool {
        self.agent = match self.agent {
            Agent::Take => {
                let taken = take(&self.slot);
                let (seen, late) = (taken.memory, taken.late[0]);
                if self.forgets_versions {
                    Agent::Measure { seen: seen.and(late), late: Excursion::NONE }
                } else {
                    Agent::Measure { seen, late }
                }
            }
            Agent::Measure { seen, late } => {
                let step = Step { from: self.from, seen, now: self.usage };
                let look = Look { step, late, signalled: self.signalled };
                for (t, signals) in self.thresholds.iter().zip(&mut self.signals) {
                    look.crossings(*t).into_iter().flatten().for_each(|way| signals[at(way)] += 1);
                }
                (self.from, self.signalled) = (self.usage, look.to_signal());
                Agent::Publish
            }
            Agent::Publish => {
                self.slot.next_version();
                Agent::Check { band: self.publish() }
            }
            Agent::Check { band } => {
                self.agent = Agent::Take;
                return !self.slot.memory().leaves(band, self.usage);
            }
        };
        false
    }

    /// Ends all charges and looks under way, and answers what was rung for.
    fn rest(&mut self, cpus: &mut [Option<Charge>]) {
        for cpu in cpus {
            while let Some(charge) = *cpu {
                *cpu = self.step(charge);
            }
        }
        while !self.look() {}
        while self.slot.pending.get() != 0 {
            while !self.look() {}
        }
    }

    fn run(&mut self, path: &[(usize, i64)], cpus: &mut [Option<Charge>]) {
        for &(who, pages) in path {
            match cpus.get_mut(who) {
                Some(cpu) => *cpu = self.step(cpu.unwrap_or(Charge::Change(pages))),
                None => {
                    self.look();
                }
            }
        }
    }
}

fn path() -> impl Strategy<Value = Vec<(usize, i64)>> {
    vec((0usize..5, -4i64..5), 1..120)
}

fn thresholds() -> impl Strategy<Value = Vec<u64>> {
    vec(1u64..12, 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// No crossing is signalled more often than it happened, and each threshold's last signal is
    /// the truth, however many processors race.
    #[test]
    fn nothing_is_signalled_twice(start in 0u64..12, thresholds in thresholds(), path in path()) {
        let mut world = World::new(thresholds, start, false);
        let mut cpus = [None; 3];
        world.run(&path, &mut cpus);
        world.rest(&mut cpus);
        for ((t, signalled), happened) in world.thresholds.iter().zip(&world.signals).zip(&world.happened) {
            prop_assert!(signalled[0] <= happened[0] && signalled[1] <= happened[1], "{t}: {signalled:?} of {happened:?}");
            let above = usize::from(*t <= start) + signalled[0] - signalled[1];
            prop_assert_eq!(above, usize::from(*t <= world.usage));
        }
    }

    /// A charge that goes over a threshold and returns there, before others go back, is
    /// signalled, whatever was under way.
    #[test]
    fn no_spike_is_dropped(start in 0u64..6, path in path(), looks in 0usize..9) {
        let mut world = World::new(vec![8], start, false);
        let mut cpus = [None; 3];
        world.run(&path, &mut cpus);
        // As much as to be below, at rest or not; then a spike, in one piece.
        world.rest(&mut cpus);
        let below = -(world.usage as i64);
        let whole = |world: &mut World, pages| {
            let mut next = Some(Charge::Change(pages));
            while let Some(charge) = next {
                next = world.step(charge);
            }
        };
        whole(&mut world, below);
        world.rest(&mut cpus);
        for _ in 0..looks {
            world.look();
        }
        let before = world.signals.clone();
        whole(&mut world, 9);
        whole(&mut world, -9);
        world.rest(&mut cpus);
        prop_assert_eq!(world.signals[0][0], before[0][0] + 1);
        prop_assert_eq!(world.signals[0][1], before[0][1] + 1);
    }
}

/// A crossing that a look signalled beyond a stretch of the look before is not signalled by the
/// next.
#[test]
fn what_was_signalled_in_pieces_is_signalled_once() {
    const PATH: [(usize, i64); 20] = [
        (2, -1),
        (0, -4),
        (1, 3),
        (1, 0),
        (2, 0),
        (3, 0),
        (1, 0),
        (3, 0),
        (1, 0),
        (3, 0),
        (0, 0),
        (1, 3),
        (0, 0),
        (2, 0),
        (2, 0),
        (2, -1),
        (3, 0),
        (3, 0),
        (0, 0),
        (0, -3),
    ];
    let mut world = World::new(vec![6], 5, false);
    let mut cpus = [None; 3];
    world.run(&PATH, &mut cpus);
    world.rest(&mut cpus);
    assert_eq!((world.signals, world.happened), (vec![[1, 1]], vec![[1, 1]]));
}

/// Two charges have seen a spike, and one records it only when the agent has signalled all of it.
#[test]
fn without_versions_it_is_signalled_twice() {
    for (forgets_versions, times) in [(true, 2), (false, 1)] {
        let mut world = World::new(vec![4], 3, forgets_versions);
        let whole = |world: &mut World, pages| {
            let mut next = Some(Charge::Change(pages));
            while let Some(charge) = next {
                next = world.step(charge);
            }
        };
        whole(&mut world, 1);
        let mut late = world.step(Charge::Change(0));
        while !matches!(late, Some(Charge::Flag { .. })) {
            late = late.and_then(|charge| world.step(charge));
        }
        whole(&mut world, -1);
        while !world.look() {}
        assert_eq!(world.signals, [[1, 1]]);
        world.rest(&mut [late]);
        assert_eq!(world.signals, [[times; 2]]);
    }
}
