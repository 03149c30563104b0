//! Model check: every interleaving of charges and the agent, for small cases.
//! `RUSTFLAGS="--cfg loom" cargo test --release -p monitor-common --lib`

use loom::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering, fence},
    },
    thread,
};

use crate::{
    band::{Place, Verdict, observe},
    calm::Epoch,
    crossing::{Direction, Step, band_around},
    slot::{Slot, State},
    word::Word,
};

impl Word for AtomicU64 {
    fn get(&self) -> u64 {
        // Loom has no SC loads; on the kernel's side loads are ordered after
        // the charge's full barrier, which `charge` models by a fence.
        Self::load(self, Ordering::Acquire)
    }

    fn set(&self, value: u64) {
        Self::store(self, value, Ordering::Release);
    }

    fn xchg(&self, value: u64) -> u64 {
        fence(Ordering::SeqCst);
        let held = Self::swap(self, value, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        held
    }

    fn cas(&self, old: u64, new: u64) -> u64 {
        fence(Ordering::SeqCst);
        let held = match self.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(held) | Err(held) => held,
        };
        fence(Ordering::SeqCst);
        held
    }

    fn or(&self, bits: u64) -> u64 {
        fence(Ordering::SeqCst);
        let held = self.fetch_or(bits, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        held
    }

    fn add(&self, value: u64) {
        self.fetch_add(value, Ordering::Relaxed);
    }
}

/// One group: the kernel's counter, its slot, and the ring as a count.
struct Group {
    counter: AtomicU64,
    slot: Slot<AtomicU64>,
    ring: AtomicU64,
    epoch: AtomicU64,
}

impl Group {
    fn new(usage: u64, thresholds: &[u64]) -> Self {
        let word = AtomicU64::new;
        let group = Self { counter: word(usage), slot: Slot::new(word), ring: word(0), epoch: word(0) };
        group.slot.state.set(State::online(0).0);
        group.publish(usage, thresholds);
        group
    }

    fn publish(&self, usage: u64, thresholds: &[u64]) {
        let below = thresholds.iter().copied().filter(|t| *t <= usage).max();
        let above = thresholds.iter().copied().filter(|t| *t > usage).min();
        if self.slot.memory().publish(band_around(below, above), 0) {
            Epoch(&self.epoch).end();
        }
    }

    /// A charge in a group below this one, whose slot is `child`: it comes up here
    /// only if it has to.
    fn charge_below(&self, child: &Slot<AtomicU64>, pages: i64) {
        fence(Ordering::SeqCst);
        self.counter.fetch_add(pages as u64, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        let epoch = Epoch(&self.epoch);
        if epoch.is_calm_above(child) {
            return;
        }
        if self.slot.is_awaited() {
            observe(&self.slot, || self.counter.load(Ordering::Relaxed), 0);
            return;
        }
        let begun = epoch.begin();
        if !self.slot.is_awaited() {
            child.set_calm(begun, 0);
        }
    }

    fn read(&self) -> u64 {
        fence(Ordering::SeqCst);
        self.counter.load(Ordering::Relaxed)
    }

    /// A charge on some CPU: the kernel moves its counter with a full barrier,
    /// then our program looks. A failed doorbell (ring full) rings nothing.
    fn charge(&self, pages: i64, ring_is_full: bool) {
        fence(Ordering::SeqCst);
        self.counter.fetch_add(pages as u64, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        let usage = || self.counter.load(Ordering::Relaxed);
        if observe(&self.slot, usage, 0) != Verdict::Quiet && !ring_is_full {
            self.ring.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// What the agent does when it looks: the loop of `monitor::watch`.
    fn drain(&self, from: &mut u64, thresholds: &[u64], signals: &mut Vec<(u64, Direction)>) {
        loop {
            // `band::take`, of the words that a charge writes: the others would
            // only multiply the interleavings.
            self.slot.pending.xchg(0);
            let seen = self.slot.memory().take();
            let now = self.read();
            let step = Step { from: *from, seen, now };
            for &t in thresholds {
                signals.extend(step.crossings(t).into_iter().flatten().map(|d| (t, d)));
            }
            *from = now;
            self.publish(now, thresholds);
            if self.slot.memory().place(self.read(), 0) == Place::Inside {
                return;
            }
        }
    }
}

fn is_above(start: u64, threshold: u64, signals: &[(u64, Direction)]) -> bool {
    let ups = signals.iter().filter(|s| **s == (threshold, Direction::Up)).count() as i64;
    let downs = signals.iter().filter(|s| **s == (threshold, Direction::Down)).count() as i64;
    i64::from(threshold <= start) + ups - downs == 1
}

/// Two CPUs charge while the agent looks. At rest, with every rung doorbell
/// answered, each threshold's signals tell where usage is.
#[test]
fn what_holds_at_rest_was_signalled() {
    let mut three_threads = loom::model::Builder::new();
    // Unbounded, this takes hours; two preemptions take a minute, and the
    // two-thread cases below are exhaustive.
    three_threads.preemption_bound = Some(2);
    three_threads.check(|| {
        const THRESHOLDS: [u64; 2] = [4, 6];
        let group = Arc::new(Group::new(3, &THRESHOLDS));
        let cpus: Vec<_> = [2i64, 3]
            .into_iter()
            .map(|pages| {
                let group = Arc::clone(&group);
                thread::spawn(move || group.charge(pages, false))
            })
            .collect();
        let (mut from, mut signals) = (3, Vec::new());
        // The agent is woken at some moment, perhaps for nothing.
        group.drain(&mut from, &THRESHOLDS, &mut signals);
        for cpu in cpus {
            cpu.join().unwrap_or_default();
        }
        if group.slot.pending.load(Ordering::Acquire) != 0 {
            assert!(group.ring.load(Ordering::Acquire) > 0, "pending without a doorbell");
            group.drain(&mut from, &THRESHOLDS, &mut signals);
        }
        for t in THRESHOLDS {
            assert!(is_above(3, t, &signals), "{t} was crossed and not signalled: {signals:?}");
        }
    });
}

/// Over a threshold and back while the agent may be anywhere: either both
/// crossings are signalled or the agent saw neither, never one of the two.
#[test]
fn a_spike_is_told_whole() {
    loom::model(|| {
        const THRESHOLDS: [u64; 1] = [4];
        let group = Arc::new(Group::new(3, &THRESHOLDS));
        let cpu = {
            let group = Arc::clone(&group);
            thread::spawn(move || {
                group.charge(2, false);
                group.charge(-2, false);
            })
        };
        let (mut from, mut signals) = (3, Vec::new());
        group.drain(&mut from, &THRESHOLDS, &mut signals);
        cpu.join().unwrap_or_default();
        if group.slot.pending.load(Ordering::Acquire) != 0 {
            group.drain(&mut from, &THRESHOLDS, &mut signals);
        }
        assert!(!is_above(3, 4, &signals), "usage is below, signals say above: {signals:?}");
        assert!(!signals.is_empty(), "the charge returned with the threshold crossed");
    });
}

/// A first threshold comes while a group below charges, whose slot says that nobody
/// waits above: the charge comes up, or the agent sees it.
#[test]
fn a_calm_group_wakes_up() {
    for calm in [true, false] {
        loom::model(move || {
            const THRESHOLDS: [u64; 1] = [5];
            let group = Arc::new(Group::new(3, &[]));
            let child = Arc::new(Slot::new(AtomicU64::new));
            if calm {
                child.set_calm(Epoch(&group.epoch).begin(), 0);
            }
            let cpu = {
                let (group, child) = (Arc::clone(&group), Arc::clone(&child));
                thread::spawn(move || {
                    group.charge_below(&child, 1);
                    group.charge_below(&child, 1);
                })
            };
            let (mut from, mut signals) = (3, Vec::new());
            group.drain(&mut from, &THRESHOLDS, &mut signals);
            cpu.join().unwrap_or_default();
            if group.slot.pending.load(Ordering::Acquire) != 0 {
                group.drain(&mut from, &THRESHOLDS, &mut signals);
            }
            assert!(is_above(3, 5, &signals), "not signalled: {signals:?}");
        });
    }
}

/// A full ring loses the doorbell, never the state: the sweep finds `pending`.
#[test]
fn a_lost_doorbell_leaves_its_mark() {
    loom::model(|| {
        const THRESHOLDS: [u64; 1] = [4];
        let group = Arc::new(Group::new(3, &THRESHOLDS));
        let cpu = {
            let group = Arc::clone(&group);
            thread::spawn(move || group.charge(2, true))
        };
        let (mut from, mut signals) = (3, Vec::new());
        group.drain(&mut from, &THRESHOLDS, &mut signals);
        cpu.join().unwrap_or_default();
        if group.slot.pending.load(Ordering::Acquire) != 0 {
            group.drain(&mut from, &THRESHOLDS, &mut signals);
        }
        assert!(is_above(3, 4, &signals), "not signalled: {signals:?}");
    });
}
