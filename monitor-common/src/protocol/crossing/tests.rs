//! Thresholds against a naive model that sees every value of usage.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    grammar::threshold::Pages,
    kernel_model::empty_slot,
    protocol::band::{Excursion, Verdict, observe, take},
};

use Direction::{Down, Up};

/// A model that sees every value. Written from the prose: up at the threshold, down when
/// usage falls by the hysteresis below it, or to nothing.
struct Naive {
    threshold: u64,
    hysteresis: u64,
    above: bool,
    signalled: Vec<Direction>,
}

impl Naive {
    fn new(threshold: u64, hysteresis: u64, usage: u64) -> Self {
        Self { threshold, hysteresis, above: usage >= threshold, signalled: Vec::new() }
    }

    fn see(&mut self, usage: u64) {
        if self.threshold == 0 {
            return;
        }
        if !self.above && usage >= self.threshold {
            self.above = true;
            self.signalled.push(Up);
        }
        if self.above && (usage == 0 || usage + self.hysteresis < self.threshold) {
            self.above = false;
            self.signalled.push(Down);
        }
    }

    fn count(&self, direction: Direction) -> usize {
        self.signalled.iter().filter(|signalled| **signalled == direction).count()
    }
}

fn quiet(from: u64, now: u64) -> Step {
    Step { from, seen: Excursion::NONE, now }
}

/// The band that the agent publishes for `marks`.
fn band_of(marks: &[ThresholdState], usage: u64) -> Band {
    let keys = || marks.iter().map(ThresholdState::key);
    let below = keys().filter(|key| *key <= usage).max();
    band_around(below, keys().filter(|key| *key > usage).min())
}

#[test]
fn registration_gives_the_side_and_no_more() {
    assert!(ThresholdState::new(10, 5, 10).above);
    assert!(!ThresholdState::new(10, 5, 9).above);
    assert_eq!(ThresholdState::new(10, 5, 10).key(), 5);
    assert_eq!(ThresholdState::new(10, 5, 9).key(), 10);
    assert_eq!(ThresholdState::new(10, 5, 12).step(&quiet(12, 12)), [None, None]);
}

#[test]
fn usage_may_flap_within_the_hysteresis() {
    let mut mark = ThresholdState::new(10, 5, 9);
    assert_eq!(mark.step(&quiet(9, 10)), [Some(Up), None]);
    assert_eq!(mark.step(&quiet(10, 9)), [None, None]);
    assert_eq!(mark.step(&quiet(9, 11)), [None, None]);
    assert_eq!(mark.step(&quiet(11, 5)), [None, None]);
    assert_eq!(mark.step(&quiet(5, 4)), [Some(Down), None]);
    assert_eq!(mark.step(&quiet(4, 9)), [None, None]);
    assert_eq!(mark.step(&quiet(9, 10)), [Some(Up), None]);
}

#[test]
fn a_spike_to_both_ends_signals_what_is_certain() {
    let seen = Excursion { min: 3, max: 12 };
    let mut mark = ThresholdState::new(10, 5, 8);
    assert_eq!(mark.step(&Step { from: 8, seen, now: 8 }), [Some(Up), None]);
    assert!(mark.above);
    assert_eq!(mark.step(&Step { from: 8, seen, now: 8 }), [Some(Down), None]);
    assert!(!mark.above);
    assert_eq!(mark.step(&Step { from: 8, seen, now: 4 }), [Some(Up), Some(Down)]);
    assert!(!mark.above);
    let mut mark = ThresholdState::new(10, 5, 10);
    assert_eq!(mark.step(&Step { from: 10, seen, now: 10 }), [Some(Down), Some(Up)]);
    assert!(mark.above);
}

#[test]
fn a_wide_hysteresis_ends_when_the_group_is_empty() {
    for hysteresis in [10, 11, u64::MAX] {
        let mut mark = ThresholdState::new(10, hysteresis, 10);
        assert_eq!(mark.key(), 1);
        assert_eq!(mark.step(&quiet(10, 1)), [None, None]);
        assert_eq!(mark.step(&quiet(1, 0)), [Some(Down), None]);
        assert_eq!(mark.step(&quiet(0, 9)), [None, None]);
        assert_eq!(mark.step(&quiet(9, 10)), [Some(Up), None]);
    }
}

#[test]
fn the_ends_never_fire() {
    let seen = Excursion { min: 0, max: 1 << 40 };
    for threshold in [0, Pages::counter_max(4096).0, u64::MAX] {
        for hysteresis in [0, 1, u64::MAX] {
            let mut mark = ThresholdState::new(threshold, hysteresis, 7);
            assert_eq!(mark.step(&Step { from: 7, seen, now: 7 }), [None, None]);
            assert_eq!(mark.step(&Step { from: 7, seen, now: 0 }), [None, None]);
            assert_eq!(mark.above, threshold == 0);
        }
    }
    // Also when a threshold was moved to 0 while usage was below it.
    let mut mark = ThresholdState { threshold: 0, hysteresis: 0, above: false };
    assert_eq!(mark.step(&quiet(7, 8)), [None, None]);
    assert!(mark.above && mark.key() == 0);
}

#[test]
fn a_moved_threshold_is_crossed_by_the_next_step() {
    let mut mark = ThresholdState::new(10, 0, 5);
    mark.threshold = 4;
    assert_eq!(mark.step(&quiet(5, 5)), [Some(Up), None]);
    mark.threshold = 6;
    assert_eq!(mark.step(&quiet(5, 5)), [Some(Down), None]);
}

fn step_strategy() -> impl Strategy<Value = Step> {
    let min = prop_oneof![Just(u64::MAX), 0u64..32];
    let max = prop_oneof![Just(0u64), 0u64..32];
    (0u64..32, min, max, 0u64..32).prop_map(|(from, min, max, now)| Step {
        from,
        seen: Excursion { min, max },
        now,
    })
}

proptest! {
    #[test]
    fn without_hysteresis_it_is_the_kernels_rule(step in step_strategy(), threshold in 0u64..34) {
        let mut mark = ThresholdState::new(threshold, 0, step.from);
        prop_assert_eq!(mark.step(&step), step.crossings(threshold));
        prop_assert_eq!(mark.above, threshold <= step.now);
    }

    /// After any step, consistent with its state or not, a threshold is on its side of
    /// `now`, and the band around all keys holds `now`.
    #[test]
    fn after_a_step_the_keys_enclose_usage(
        step in step_strategy(),
        marks in vec((0u64..34, 0u64..40, any::<bool>()), 0..6),
    ) {
        let mut marks: Vec<ThresholdState> = marks
            .into_iter()
            .map(|(threshold, hysteresis, above)| ThresholdState { threshold, hysteresis, above })
            .collect();
        for mark in &mut marks {
            mark.step(&step);
            if mark.above {
                prop_assert!(mark.key() <= step.now, "{mark:?}");
            } else {
                prop_assert!(mark.key() > step.now, "{mark:?}");
            }
        }
        let band = band_of(&marks, step.now);
        prop_assert!(band.lo <= step.now && step.now < band.hi);
    }

    /// Checks an agent that looks after every change that rang: all crossings of the naive
    /// model, in its order, and nothing else. A change that did not ring crossed
    /// nothing.
    #[test]
    fn looking_at_every_change_equals_the_naive_model(
        start in 0u64..32,
        marks in vec((0u64..34, 0u64..40), 1..6),
        path in vec(0u64..32, 0..64),
        shift in 0u32..3,
    ) {
        let mut naive: Vec<Naive> = marks.iter().map(|(t, h)| Naive::new(*t, *h, start)).collect();
        let mut ours: Vec<ThresholdState> = marks.iter().map(|(t, h)| ThresholdState::new(*t, *h, start)).collect();
        let mut signalled = vec![Vec::new(); ours.len()];
        let slot = empty_slot();
        let _ = slot.memory().publish(band_of(&ours, start), shift);
        let mut from = start;
        for now in path {
            naive.iter_mut().for_each(|mark| mark.see(now));
            if observe(&slot, || now, shift) != Verdict::Quiet {
                let step = Step { from, seen: take(&slot).memory, now };
                for (mark, signalled) in ours.iter_mut().zip(&mut signalled) {
                    signalled.extend(mark.step(&step).into_iter().flatten());
                }
                let _ = slot.memory().publish(band_of(&ours, now), shift);
                from = now;
            }
            for ((mark, signalled), naive) in ours.iter().zip(&signalled).zip(&naive) {
                prop_assert_eq!(signalled, &naive.signalled);
                prop_assert!(naive.threshold == 0 || mark.above == naive.above);
            }
        }
    }

    /// Checks an agent that looks now and then: each threshold's directions alternate; as
    /// many of each as a model has that sees only those moments, and no more
    /// than one that sees every value; and the side fits the usage.
    #[test]
    fn looking_now_and_then_misses_nothing(
        start in 0u64..32,
        marks in vec((1u64..34, 0u64..40), 1..6),
        path in vec((0u64..32, any::<bool>()), 1..64),
    ) {
        let all = || marks.iter().map(|(t, h)| Naive::new(*t, *h, start)).collect::<Vec<_>>();
        let (mut exact, mut sampled) = (all(), all());
        let mut ours: Vec<ThresholdState> = marks.iter().map(|(t, h)| ThresholdState::new(*t, *h, start)).collect();
        let mut signalled = vec![Vec::new(); ours.len()];
        let slot = empty_slot();
        let _ = slot.memory().publish(band_of(&ours, start), 0);
        let (mut from, mut rang) = (start, false);
        let length = path.len();
        for (i, (now, look)) in path.into_iter().enumerate() {
            exact.iter_mut().for_each(|mark| mark.see(now));
            rang |= observe(&slot, || now, 0) != Verdict::Quiet;
            if !look && i + 1 < length {
                continue;
            }
            sampled.iter_mut().for_each(|mark| mark.see(now));
            let step = Step { from, seen: take(&slot).memory, now };
            for (mark, signalled) in ours.iter_mut().zip(&mut signalled) {
                let crossings = mark.step(&step);
                prop_assert!(rang || crossings == [None, None]);
                signalled.extend(crossings.into_iter().flatten());
                prop_assert!(now < mark.threshold || mark.above);
                prop_assert!(now >= mark.low() || !mark.above);
            }
            let _ = slot.memory().publish(band_of(&ours, now), 0);
            (from, rang) = (now, false);
            for ((signalled, exact), sampled) in signalled.iter().zip(&exact).zip(&sampled) {
                prop_assert!(signalled.windows(2).all(|pair| pair[0] != pair[1]), "{signalled:?}");
                for direction in [Up, Down] {
                    let count = signalled.iter().filter(|signalled| **signalled == direction).count();
                    prop_assert!(count >= sampled.count(direction), "{signalled:?} < {:?}", sampled.signalled);
                    prop_assert!(count <= exact.count(direction), "{signalled:?} > {:?}", exact.signalled);
                }
            }
        }
    }

    #[test]
    fn no_numbers_panic(
        threshold in any::<u64>(), hysteresis in any::<u64>(), above in any::<bool>(),
        from in any::<u64>(), now in any::<u64>(), min in any::<u64>(), max in any::<u64>(),
    ) {
        let mut mark = ThresholdState { threshold, hysteresis, above };
        mark.step(&Step { from, seen: Excursion { min, max }, now });
        prop_assert_eq!(mark.above, mark.key() <= now);
    }
}
