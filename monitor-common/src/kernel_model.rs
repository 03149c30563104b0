//! Property tests of our rules against an independent model of the kernel's own
//! algorithm, written from its description (an array sorted by threshold, a
//! current index, a walk down and a walk up at each check).

use std::sync::atomic::AtomicU64;

use proptest::{collection::vec, prelude::*};

use crate::protocol::{
    band::{Band, Excursion, Outside, Verdict, observe, shift_for, take},
    crossing::{Direction, Step, band_around},
    slot::{Slot, SlotState},
    word::Word as _,
};

/// The kernel's side: checked after *every* change, where the kernel samples.
struct KernelModel {
    sorted: Vec<u64>,
    current: isize,
    signals: Vec<(u64, Direction)>,
}

impl KernelModel {
    fn new(thresholds: &[u64], usage: u64) -> Self {
        let mut sorted = thresholds.to_vec();
        sorted.sort_unstable();
        let current = sorted.iter().filter(|t| **t <= usage).count() as isize - 1;
        Self { sorted, current, signals: Vec::new() }
    }

    fn check(&mut self, usage: u64) {
        while self.current >= 0 && self.sorted[self.current as usize] > usage {
            self.signals.push((self.sorted[self.current as usize], Direction::Down));
            self.current -= 1;
        }
        while self.current + 1 < self.sorted.len() as isize
            && self.sorted[(self.current + 1) as usize] <= usage
        {
            self.current += 1;
            self.signals.push((self.sorted[self.current as usize], Direction::Up));
        }
    }
}

pub(crate) fn empty_slot() -> Slot<AtomicU64> {
    let slot = Slot::new(AtomicU64::new);
    slot.recycle();
    slot
}

/// Our side: the charge hook after every change, the agent whenever it likes.
struct Ours {
    slot: Slot<AtomicU64>,
    thresholds: Vec<u64>,
    from: u64,
    shift: u32,
    signals: Vec<(u64, Direction)>,
    doorbells: usize,
}

impl Ours {
    fn new(thresholds: &[u64], usage: u64, shift: u32) -> Self {
        let ours = Self {
            slot: empty_slot(),
            thresholds: thresholds.to_vec(),
            from: usage,
            shift,
            signals: Vec::new(),
            doorbells: 0,
        };
        ours.publish(usage);
        ours
    }

    fn publish(&self, usage: u64) {
        let below = self.thresholds.iter().copied().filter(|t| *t <= usage).max();
        let above = self.thresholds.iter().copied().filter(|t| *t > usage).min();
        let _ = self.slot.memory().publish(band_around(below, above), self.shift);
    }

    fn charge(&mut self, usage: u64) {
        if observe(&self.slot, || usage, self.shift) != Verdict::Quiet {
            self.doorbells += 1;
        }
    }

    fn drain(&mut self, now: u64) {
        let step = Step { from: self.from, seen: take(&self.slot).memory, now };
        for &t in &self.thresholds {
            for direction in step.crossings(t).into_iter().flatten() {
                self.signals.push((t, direction));
            }
        }
        self.from = now;
        self.publish(now);
        self.doorbells = 0;
    }
}

fn counts(signals: &[(u64, Direction)], threshold: u64) -> (usize, usize) {
    let of = |d| signals.iter().filter(|s| **s == (threshold, d)).count();
    (of(Direction::Up), of(Direction::Down))
}

proptest! {
    /// The signals are the kernel's where the agent looks after every change:
    /// same thresholds, same directions, same number, duplicates included.
    #[test]
    fn looking_at_every_change_equals_the_kernel(
        start in 0u64..64,
        thresholds in vec(0u64..64, 0..8),
        path in vec(0u64..64, 0..64),
        shift in 0u32..3,
    ) {
        let mut kernel = KernelModel::new(&thresholds, start);
        let mut ours = Ours::new(&thresholds, start, shift);
        for usage in path {
            kernel.check(usage);
            ours.charge(usage);
            let due = ours.doorbells > 0;
            let before = ours.signals.len();
            ours.drain(usage);
            // A signal without a doorbell would have been missed.
            prop_assert!(due || ours.signals.len() == before);
        }
        let mut theirs = kernel.signals;
        let mut mine = ours.signals;
        theirs.sort_unstable();
        mine.sort_unstable();
        prop_assert_eq!(mine, theirs);
    }

    /// Checks an agent that looks only now and then: nothing that the kernel, at the
    /// same moments, would signal is missing; nothing is signalled that did not
    /// happen; and each threshold's last word is the truth.
    #[test]
    fn looking_now_and_then_misses_nothing(
        start in 0u64..64,
        thresholds in vec(0u64..64, 1..8),
        path in vec((0u64..64, any::<bool>()), 1..64),
    ) {
        let mut exact = KernelModel::new(&thresholds, start);
        let mut sampled = KernelModel::new(&thresholds, start);
        let mut ours = Ours::new(&thresholds, start, 0);
        let mut last = start;
        for (usage, look) in path {
            exact.check(usage);
            ours.charge(usage);
            last = usage;
            if look {
                sampled.check(usage);
                ours.drain(usage);
            }
        }
        sampled.check(last);
        let rang = ours.doorbells > 0;
        let before = ours.signals.len();
        ours.drain(last);
        prop_assert!(rang || ours.signals.len() == before);
        for &t in &thresholds {
            let (mine, least, most) =
                (counts(&ours.signals, t), counts(&sampled.signals, t), counts(&exact.signals, t));
            prop_assert!(mine.0 >= least.0 && mine.1 >= least.1, "{t}: {mine:?} < {least:?}");
            prop_assert!(mine.0 <= most.0 && mine.1 <= most.1, "{t}: {mine:?} > {most:?}");
            let entries = thresholds.iter().filter(|x| **x == t).count() as i64;
            let at_end = i64::from(t <= start) + (mine.0 as i64 - mine.1 as i64) / entries;
            prop_assert_eq!(at_end == 1, t <= last);
        }
    }

    /// A packed band never calls a usage quiet that lies outside the band.
    #[test]
    fn packing_rounds_inwards(lo in any::<u64>(), hi in any::<u64>(), usage in any::<u64>(), shift in 0u32..16, version in any::<u64>()) {
        let band = Band { lo, hi };
        if Band::unpack_contains(band.pack(shift, version), usage, shift) {
            prop_assert!(lo <= usage && usage < hi);
        }
    }

    /// Packing at shift 0 is exact on hosts whose pages fit.
    #[test]
    fn packing_is_exact_on_ordinary_hosts(lo in 0u64..1 << 27, hi in 0u64..1 << 27, usage in 0u64..1 << 27, version in any::<u64>()) {
        prop_assert_eq!(shift_for((1 << 27) - 1), 0);
        let band = Band { lo, hi };
        prop_assert_eq!(Band::unpack_contains(band.pack(0, version), usage, 0), lo <= usage && usage < hi);
    }

    /// No usage that a host can have is as much as the end of a packed band, were its
    /// memory doubled; with no band at all, all of it is in band.
    #[test]
    fn usage_never_saturates(pages in 1u64..1 << 42, version in any::<u64>()) {
        let shift = shift_for(pages);
        prop_assert!(shift < 16);
        prop_assert!(Band::unpack_contains(Band::EVERYTHING.pack(shift, version), 2 * pages, shift));
    }

    /// A reading is the same behind the ring.
    #[test]
    fn readings_pass_the_ring(usage in 0u64..1 << 55, is_above in any::<bool>(), version in 0u64..256) {
        let outside = Outside { usage, is_above, version };
        prop_assert_eq!(Outside::from_word(outside.to_word()), outside);
    }
}

#[test]
fn equality_is_crossed_up_and_zero_never_fires() {
    let step = |from, now| Step { from, seen: Excursion::NONE, now };
    assert_eq!(step(4, 5).crossings(5), [Some(Direction::Up), None]);
    assert_eq!(step(5, 4).crossings(5), [Some(Direction::Down), None]);
    assert_eq!(step(5, 9).crossings(5), [None, None]);
    assert_eq!(step(9, 0).crossings(0), [None, None]);
    assert_eq!(step(0, 9).crossings(0), [None, None]);
}

#[test]
fn a_spike_between_looks_crosses_twice() {
    let up = Step { from: 1, seen: Excursion { min: u64::MAX, max: 9 }, now: 1 };
    assert_eq!(up.crossings(5), [Some(Direction::Up), Some(Direction::Down)]);
    let down = Step { from: 9, seen: Excursion { min: 1, max: 0 }, now: 9 };
    assert_eq!(down.crossings(5), [Some(Direction::Down), Some(Direction::Up)]);
}

#[test]
fn out_of_band_rings_once_until_taken() {
    let slot = empty_slot();
    let _ = slot.memory().publish(Band { lo: 10, hi: 20 }, 0);
    assert_eq!(observe(&slot, || 15, 0), Verdict::Quiet);
    assert_eq!(observe(&slot, || 20, 0), Verdict::Ring);
    assert_eq!(observe(&slot, || 30, 0), Verdict::Quiet);
    assert_eq!(observe(&slot, || 5, 0), Verdict::Quiet);
    assert_eq!(take(&slot).memory, Excursion { min: 5, max: 30 });
    assert_eq!(take(&slot).memory, Excursion::NONE);
    assert_eq!(observe(&slot, || 9, 0), Verdict::Ring);
}

#[test]
fn a_slot_used_again_is_distinguished() {
    let slot = empty_slot();
    let generation = slot.state().generation();
    slot.state.set(SlotState::online(generation).0);
    assert!(slot.watch(generation));
    assert!(slot.leave(7, 9), "the watcher is rung for");
    assert_eq!((slot.last.get(), slot.sum_last.get(), slot.counter.get()), (7, 9, 0));
    assert!(!slot.watch(generation), "it is too late to begin");
    assert!(!slot.unwatch(generation), "the agent owns it");
    assert!(slot.hold(generation), "and may look at it");
    assert!(!slot.retire(), "held");
    assert!(slot.let_go(generation));
    assert!(!slot.retire(), "something is to be signalled");
    take(&slot);
    assert!(slot.retire());
    slot.clear();
    assert_eq!(slot.state(), SlotState((generation + 1) << 8));
    assert!(!slot.retire(), "once");
    assert!(!slot.watch(generation) && !slot.hold(generation) && !slot.let_go(generation));
    slot.state.set(SlotState::online(generation + 1).0);
    assert!(!slot.watch(generation));
    assert!(slot.watch(generation + 1));
    assert!(slot.unwatch(generation + 1));
    assert!(!slot.leave(0, 0), "no registration is left");
    assert!(slot.retire());
}

#[test]
fn a_slot_outlives_those_below_it() {
    let slot = empty_slot();
    slot.state.set(SlotState::online(1).0);
    slot.counter.set(0x1000);
    assert!(!slot.name(0x2000), "another group's");
    slot.unname();
    assert!(slot.name(0x1000) && slot.name(0x1000));
    assert!(!slot.leave(0, 0));
    assert!(!slot.name(0x1000), "too late");
    slot.unname();
    slot.unname();
    assert!(!slot.retire(), "one is left below");
    slot.unname();
    assert!(slot.retire());
}
