//! Groups, what they hold and which clients wait: the model beside the real ones.

use std::fs::File;
use std::os::fd::AsRawFd as _;

use anyhow::{Context, Result, ensure};
use monitor_client::Error;
use monitor_common::grammar::control_file::ControlFile;

use crate::harness::MIB;
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, register_line};
use crate::harness::group::Group;
use crate::harness::random::Random;
use crate::soak::tally::Tally;

/// Usage comes to rest at multiples of this, and thresholds lie half-way between.
const STEP: u64 = 4 * MIB;
const PARENTS: usize = 3;
const LEAVES: usize = 6;
/// Steps that a leaf holds at most.
const MOST: usize = 5;
const WAITERS: usize = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Grow(usize),
    Shrink(usize),
    Spike(usize),
    /// A new eventfd, on a leaf or a parent.
    Register,
    /// A further threshold for an eventfd.
    More(usize),
    Close(usize),
    /// A leaf goes, and another comes in its place.
    Replace(usize),
    /// A group comes, runs out of memory and goes.
    Oom(usize),
}

impl Act {
    pub(super) const fn needs_the_agent(self) -> bool {
        matches!(self, Self::Register | Self::More(_) | Self::Oom(_))
    }
}

/// A group without groups below.
struct Leaf {
    group: Group,
    charger: Charger,
    steps: Vec<usize>,
}

impl Leaf {
    fn new(parent: &Group, name: &str) -> Result<Self> {
        let group = parent.child(name)?;
        let charger = Charger::start(&group)?;
        Ok(Self { group, charger, steps: Vec::new() })
    }

    fn held(&self) -> usize {
        self.steps.iter().sum()
    }
}

/// An eventfd, and the thresholds that it waits for: so many and a half steps.
struct Wait {
    waiter: Waiter,
    place: usize,
    thresholds: Vec<usize>,
    /// Signals that are due since the last comparison.
    expected: u64,
    /// Crossings to and fro, in spikes.
    spikes: u64,
    /// Crossings that may have happened once more on the way, in pairs: the kernel gives back
    /// what a CPU has charged ahead, up to 63 pages, when that CPU charges another group
    /// (`drain_stock`) or a limit is reached (`drain_all_stock`), and charges again.
    again: u64,
    gone: bool,
}

pub(super) struct World {
    leaves: Vec<Leaf>,
    waits: Vec<Wait>,
    /// Last, for groups go before those above them.
    parents: Vec<Group>,
    made: usize,
}

impl World {
    pub(super) fn new() -> Result<Self> {
        let parents: Vec<_> = (0..PARENTS).map(|n| Group::new(&format!("soak{n}"))).collect::<Result<_>>()?;
        let leaves = (0..LEAVES).map(|n| Leaf::new(&parents[n % PARENTS], &format!("leaf{n}")));
        Ok(Self { leaves: leaves.collect::<Result<_>>()?, waits: Vec::new(), parents, made: LEAVES })
    }

    pub(super) fn choose(&self, random: &mut Random) -> Act {
        let (leaf, wait) = (random.below(LEAVES), random.below(self.waits.len().max(1)));
        let (has_room, has_some) = (self.leaves[leaf].held() < MOST, !self.leaves[leaf].steps.is_empty());
        match random.below(20) {
            0..5 if has_room => Act::Grow(leaf),
            5..9 if has_some => Act::Shrink(leaf),
            9..11 => Act::Spike(leaf),
            11..14 if self.waits.len() < WAITERS => Act::Register,
            14..16 if self.waits.get(wait).is_some_and(|wait| wait.thresholds.len() < 4) => Act::More(wait),
            16 if !self.waits.is_empty() => Act::Close(wait),
            17..19 => Act::Replace(leaf),
            19 => Act::Oom(leaf % PARENTS),
            _ if has_some => Act::Shrink(leaf),
            _ => Act::Grow(leaf),
        }
    }

    /// Places are leaves, then parents.
    fn group(&self, place: usize) -> &Group {
        self.leaves.get(place).map_or_else(|| &self.parents[place - LEAVES], |leaf| &leaf.group)
    }

    fn steps(&self, place: usize) -> usize {
        match self.leaves.get(place) {
            Some(leaf) => leaf.held(),
            None => (place - LEAVES..LEAVES).step_by(PARENTS).map(|leaf| self.leaves[leaf].held()).sum(),
        }
    }

    pub(super) fn act(&mut self, act: Act, random: &mut Random, tally: &mut Tally) -> Result<()> {
        let before: Vec<usize> = (0..LEAVES + PARENTS).map(|place| self.steps(place)).collect();
        match act {
            Act::Grow(leaf) => {
                let leaf = &mut self.leaves[leaf];
                let more = 1 + random.below((MOST - leaf.held()).min(2));
                leaf.charger.grow(Kind::Anonymous, more as u64 * STEP)?;
                leaf.steps.push(more);
            }
            Act::Shrink(leaf) => {
                let leaf = &mut self.leaves[leaf];
                leaf.charger.shrink(Kind::Anonymous)?;
                leaf.steps.pop();
            }
            Act::Spike(leaf) => {
                self.leaves[leaf].charger.spike(Kind::Anonymous, 2 * STEP, 1)?;
                self.passed(&[leaf, LEAVES + leaf % PARENTS], 2, &before, tally);
            }
            Act::Register => {
                let place = random.below(LEAVES + PARENTS);
                self.waits.push(Wait {
                    waiter: Waiter::new()?,
                    place,
                    thresholds: Vec::new(),
                    expected: 0,
                    spikes: 0,
                    again: 0,
                    gone: false,
                });
                self.more(self.waits.len() - 1, random, tally)?;
            }
            Act::More(wait) => self.more(wait, random, tally)?,
            Act::Close(wait) => drop(self.waits.swap_remove(wait)),
            Act::Replace(leaf) => self.replace(leaf)?,
            Act::Oom(parent) => {
                self.oom(parent, tally)?;
                // Half a step, and what all of them need for themselves.
                self.passed(&[LEAVES + parent], 1, &before, tally);
            }
        }
        for wait in &mut self.waits {
            let now = match self.leaves.get(wait.place) {
                _ if wait.gone => 0,
                Some(leaf) => leaf.held(),
                None => {
                    (wait.place - LEAVES..LEAVES).step_by(PARENTS).map(|leaf| self.leaves[leaf].held()).sum()
                }
            };
            let before = before[wait.place];
            // At and a half: crossed where one is at or below it, the other above.
            let crossed = wait.thresholds.iter().filter(|at| (before <= **at) != (now <= **at)).count();
            wait.expected += crossed as u64;
            wait.again += 2 * crossed as u64;
        }
        Ok(())
    }

    /// Usage went up by up to so many steps in these places, and back.
    fn passed(&mut self, places: &[usize], steps: usize, before: &[usize], tally: &mut Tally) {
        for wait in self.waits.iter_mut().filter(|wait| places.contains(&wait.place)) {
            let now = before[wait.place];
            let passed = wait.thresholds.iter().filter(|at| (now..now + steps).contains(*at)).count() as u64;
            wait.spikes += 2 * passed;
            wait.again += 2 * passed;
            tally.spikes += passed;
        }
    }

    /// A further threshold for an eventfd, other than those that it has, so that registering
    /// again for one whose answer was lost requests the same.
    fn more(&mut self, wait: usize, random: &mut Random, tally: &mut Tally) -> Result<()> {
        let place = self.waits[wait].place;
        let at = random.below(if place < LEAVES { MOST } else { 2 * MOST });
        if self.waits[wait].thresholds.contains(&at) {
            return Ok(());
        }
        let control = File::open(self.group(place).usage_file()).context("cannot open the control file")?;
        let wait = &mut self.waits[wait];
        let bytes = at as u64 * STEP + STEP / 2;
        insist(&format!("{} {} {bytes}", wait.waiter.0.as_raw_fd(), control.as_raw_fd()))?;
        wait.thresholds.push(at);
        tally.registered += 1;
        Ok(())
    }

    fn replace(&mut self, leaf: usize) -> Result<()> {
        let parent = &self.parents[leaf % PARENTS];
        let fresh = Leaf::new(parent, &format!("leaf{}", self.made))?;
        self.made += 1;
        let old = std::mem::replace(&mut self.leaves[leaf], fresh);
        old.charger.end()?;
        old.group.remove()?;
        for wait in self.waits.iter_mut().filter(|wait| wait.place == leaf && !wait.gone) {
            wait.gone = true;
            wait.expected += wait.thresholds.len() as u64;
        }
        Ok(())
    }

    fn oom(&mut self, parent: usize, tally: &mut Tally) -> Result<()> {
        let group = self.parents[parent].child(&format!("dies{}", self.made))?;
        self.made += 1;
        let waiter = Waiter::new()?;
        let control = File::open(&group.path)?;
        let name = ControlFile::Oom.name();
        insist(&format!("{} {} {name}", waiter.0.as_raw_fd(), control.as_raw_fd()))?;
        tally.registered += 1;
        group.set_limit(2 * MIB)?;
        let mut charger = Charger::start(&group)?;
        charger.grow_to_death(3 * MIB)?;
        drop(charger);
        let mut received = 0;
        crate::harness::agent::until("the OOM is signalled", || {
            received += waiter.take()?;
            Ok(received > 0)
        })?;
        group.remove()?;
        let before = received;
        crate::harness::agent::until("the removal is signalled", || {
            received += waiter.take()?;
            Ok(received > before)
        })?;
        tally.expected += 2;
        tally.received += received;
        Ok(())
    }

    /// Checks that each client has received the signals that are due.
    pub(super) fn compare(&mut self, died: bool, tally: &mut Tally) -> Result<()> {
        for wait in &mut self.waits {
            let mut received = wait.waiter.take()?;
            // The kernel takes a group offline some time after its directory has gone.
            while wait.gone && received < wait.expected {
                received += wait.waiter.wait()?;
            }
            let (least, most) = (wait.expected, wait.expected + wait.spikes);
            tally.expected += most;
            tally.received += received;
            tally.lost += least.saturating_sub(received);
            tally.spikes_missed += most.saturating_sub(received.max(least)) / 2;
            let again = received.saturating_sub(most).min(wait.again);
            let most = most + wait.again;
            let more = received.saturating_sub(most);
            *(if died { &mut tally.repeated } else { &mut tally.doubled }) += more;
            if !died {
                tally.stepped_back += again / 2;
            }
            // The last side is known: what is crossed once more is crossed back, too.
            let is_even = received % 2 == least % 2;
            ensure!(
                received >= least && (died || received <= most && is_even),
                "{received} signals instead of {least} to {most} for {:?} and a half steps on place {}",
                wait.thresholds,
                wait.place
            );
            (wait.expected, wait.spikes, wait.again) = (0, 0, 0);
        }
        self.waits.retain(|wait| !wait.gone);
        Ok(())
    }

    pub(super) fn registrations(&self) -> u64 {
        self.waits.iter().map(|wait| wait.thresholds.len() as u64).sum()
    }
}

/// Registers, also if the agent dies meanwhile: a client that has had no answer requests
/// again.
fn insist(line: &str) -> Result<()> {
    loop {
        match register_line(line.as_bytes()) {
            Ok(()) => return Ok(()),
            Err(error @ Error::Refused { .. }) => return Err(error).context("the agent refused"),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(1)),
        }
    }
}
