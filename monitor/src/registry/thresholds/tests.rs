//! Tests of the dense store against a plain list of thresholds.

use monitor_common::{
    grammar::threshold::{At, Pages, Threshold},
    protocol::{
        band::Excursion,
        crossing::{Direction, Look, Step, Stretches, ThresholdState, band_around},
    },
};
use proptest::prelude::*;

use super::{BURST, Clock, ThresholdSet, pages};
use crate::{
    persist::RecordId,
    registry::{Account, Outcome, Subscriber, account::Accounts},
    source::FileId,
};

const HOLDOFF: u64 = 100;

/// A crossing: the eventfd, the threshold, and whether it was up.
type Signal = (u64, u64, bool);

/// A threshold as the specification puts it.
struct Plain {
    file: FileId,
    trigger: Threshold,
    mark: ThresholdState,
    burst: (u64, u64),
    holdoff_end: Option<u64>,
}

impl Plain {
    fn apply(&mut self, step: &Step, now: u64, crossings: &mut Vec<Signal>) {
        let (file, threshold) = (self.file, self.mark.threshold);
        let before = crossings.len();
        let crossed = self.mark.step(step).into_iter().flatten().filter(|way| self.trigger.reports(*way));
        crossings.extend(crossed.map(|direction| (threshold, file.0, direction == Direction::Up)));
        let signalled = (crossings.len() - before) as u64;
        let (since, count) = self.burst;
        let is_over = count == 0 || now - since >= HOLDOFF;
        self.burst = if is_over { (now, signalled) } else { (since, count + signalled) };
    }
}

#[derive(Default)]
struct Model {
    now: u64,
    list: Vec<Plain>,
}

#[derive(Clone, Debug)]
enum Act {
    Add(Threshold, u64),
    Step(u64, u64, u64),
    Wake(bool),
    Follow(u64),
    Remove(u64),
}

fn threshold() -> impl Strategy<Value = Threshold> {
    let at = prop_oneof![
        4 => (0..40u64).prop_map(|pages| At::Pages(Pages(pages))),
        1 => (0..100u32).prop_map(|percent| At::Percent(percent * 100)),
    ];
    let ways = prop_oneof![Just((true, true)), Just((true, false)), Just((false, true))];
    let hysteresis = prop_oneof![3 => Just(0), 1 => 0..10u64];
    (at, ways, hysteresis).prop_map(|(at, (up, down), hysteresis)| Threshold {
        at,
        up,
        down,
        hysteresis: Pages(hysteresis),
    })
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (threshold(), 0..6u64).prop_map(|(trigger, file)| Act::Add(trigger, file)),
        8 => (0..45u64, 0..45u64, 0..45u64).prop_map(|(low, high, now)| Act::Step(low, high, now)),
        1 => any::<bool>().prop_map(Act::Wake),
        1 => prop_oneof![0..80u64, Just(u64::MAX)].prop_map(Act::Follow),
        2 => (0..6u64).prop_map(Act::Remove),
    ]
}

impl Model {
    /// Crossings in any order, and how many went.
    fn act(&mut self, act: &Act, clock: Clock, limit: &mut u64) -> (Vec<Signal>, u64) {
        let mut crossings = Vec::new();
        let still = |now| Step { from: now, seen: Excursion::NONE, now };
        match *act {
            Act::Add(trigger, file) => {
                if self.list.is_empty() {
                    self.now = 20;
                }
                let mark = ThresholdState::new(pages(trigger.at, *limit), trigger.hysteresis.0, self.now);
                self.list.push(Plain { file: FileId(file), trigger, mark, burst: (0, 0), holdoff_end: None });
            }
            Act::Step(min, max, now) => {
                let step = Step { from: self.now, seen: Excursion { min, max }, now };
                self.now = now;
                let (lowest, highest) = step.range();
                for one in self.list.iter_mut().filter(|one| one.holdoff_end.is_none()) {
                    if (lowest + 1..=highest).contains(&one.mark.key()) {
                        one.apply(&step, clock.now, &mut crossings);
                        one.holdoff_end = (one.burst.1 >= BURST).then_some(one.burst.0 + HOLDOFF);
                    }
                }
            }
            Act::Wake(all) => {
                for one in &mut self.list {
                    if one.holdoff_end.is_some_and(|until| all || until <= clock.now) {
                        (one.holdoff_end, one.burst) = (None, (clock.now, 0));
                        one.apply(&still(self.now), clock.now, &mut crossings);
                    }
                }
            }
            Act::Follow(to) => {
                *limit = to;
                for one in &mut self.list {
                    let to = pages(one.trigger.at, to);
                    let moved = std::mem::replace(&mut one.mark.threshold, to) != to;
                    if moved && one.holdoff_end.is_none() {
                        one.apply(&still(self.now), clock.now, &mut crossings);
                    }
                }
            }
            Act::Remove(file) => {
                let before = self.list.len();
                self.list.retain(|one| one.file != FileId(file));
                return (crossings, (before - self.list.len()) as u64);
            }
        }
        (crossings, 0)
    }
}

fn sorted(mut signals: Vec<Signal>) -> Vec<Signal> {
    signals.sort_unstable();
    signals
}

fn signals_of(outcome: &Outcome) -> Vec<Signal> {
    let signal = |one: &super::Crossing| (one.threshold, one.to.file.0, one.direction == Direction::Up);
    outcome.crossings.iter().map(signal).collect()
}

proptest! {
    #[test]
    fn it_does_what_a_plain_list_does(acts in prop::collection::vec((act(), 0..40u64), 1..120)) {
        let (mut scale, mut model) = (ThresholdSet::default(), Model::default());
        let payer = Accounts::default().charge(Account::Agent);
        let (mut clock, mut limit, mut its_limit) = (Clock { now: 1, holdoff: HOLDOFF }, 50, 50);
        for (act, pause) in acts {
            clock.now += pause;
            let (received, gone) = match act.clone() {
                Act::Add(trigger, file) => {
                    let to = Subscriber { file: FileId(file), record_id: RecordId(0), payer };
                    scale.add(20, trigger, limit, to, None);
                    (Vec::new(), 0)
                }
                Act::Step(min, max, now) => (signals_of(&scale.step(Excursion { min, max }, now, clock)), 0),
                Act::Wake(all) => (signals_of(&scale.wake(clock, all)), 0),
                Act::Follow(to) => {
                    limit = to;
                    (signals_of(&scale.follow(to, clock)), 0)
                }
                Act::Remove(file) => (Vec::new(), scale.take_file(FileId(file), usize::MAX).len() as u64),
            };
            let (expected, went) = model.act(&act, clock, &mut its_limit);
            prop_assert_eq!(sorted(received), sorted(expected), "{:?}", act);
            prop_assert_eq!(gone, went);
            prop_assert_eq!(scale.len(), model.list.len());
            let keys = || model.list.iter().filter(|one| one.holdoff_end.is_none()).map(|one| one.mark.key());
            let band = band_around(
                keys().filter(|key| *key <= scale.now()).max(),
                keys().filter(|key| *key > scale.now()).min(),
            );
            prop_assert_eq!(scale.band(), band);
            prop_assert_eq!(scale.first_holdoff_end(), model.list.iter().filter_map(|one| one.holdoff_end).min());
            let percents = model.list.iter().filter(|one| matches!(one.trigger.at, At::Percent(_))).count();
            prop_assert_eq!(scale.percents(), percents);
            let mut files: Vec<_> = scale.thresholds().map(|(_, to)| to.file).collect();
            let mut expected: Vec<_> = model.list.iter().map(|one| one.file).collect();
            files.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(files, expected);
        }
    }
}

/// Whole walks, though in pieces.
impl ThresholdSet {
    pub(in crate::registry) fn step(&mut self, seen: Excursion, now: u64, clock: Clock) -> Outcome {
        self.begin_look(seen, Excursion::NONE, now);
        self.end(clock)
    }

    pub(in crate::registry) fn wake(&mut self, clock: Clock, all: bool) -> Outcome {
        self.begin_wake(all);
        self.end(clock)
    }

    pub(in crate::registry) fn follow(&mut self, limit: u64, clock: Clock) -> Outcome {
        self.begin_follow(limit);
        self.end(clock)
    }

    fn end(&mut self, clock: Clock) -> Outcome {
        let mut outcome = Outcome::default();
        while !self.walk(clock, &mut 2, &mut outcome) {}
        outcome
    }
}

proptest! {
    /// Thresholds come and go between two pieces: those that stay are signalled for the step,
    /// once; new ones are not.
    #[test]
    fn a_step_in_pieces_is_one_step(
        first in prop::collection::vec((threshold(), 0..6u64), 1..40),
        (from, min, max, now) in (0..45u64, 0..45u64, 0..45u64, 0..45u64),
        (late_min, late_max, signalled_min, signalled_max) in (0..45u64, 0..45u64, 0..45u64, 0..45u64),
        between in prop::collection::vec((1..4usize, prop::option::of((threshold(), 0..6u64)), 0..8u64), 0..30),
    ) {
        let clock = Clock { now: 1, holdoff: 0 };
        let mut scale = ThresholdSet::default();
        let payer = Accounts::default().charge(Account::Agent);
        let add = |scale: &mut ThresholdSet, trigger, file, record_id| {
            scale.add(from, trigger, 50, Subscriber { file: FileId(file), record_id: RecordId(record_id), payer }, None);
        };
        let mut model = Vec::new();
        for (record_id, (trigger, file)) in (0..).zip(&first) {
            add(&mut scale, *trigger, *file, record_id);
            let mark = ThresholdState::new(pages(trigger.at, 50), trigger.hysteresis.0, from);
            model.push((RecordId(record_id), *file, *trigger, mark));
        }
        let (seen, late) = (Excursion { min, max }, Excursion { min: late_min, max: late_max });
        let mut signalled = Stretches::NONE;
        signalled.add((signalled_min.min(from), from));
        signalled.add((from.max(signalled_max), signalled_max + 5));
        if let Some(store) = &mut scale.store {
            store.signalled = signalled;
        }
        scale.begin_look(seen, late, now);
        let (mut outcome, mut next, mut gone) = (Outcome::default(), 1000, Vec::new());
        for (mut room, comes, goes) in between {
            scale.walk(clock, &mut room, &mut outcome);
            gone.extend(scale.take_file(FileId(goes), usize::MAX).iter().map(|to| to.record_id));
            if let Some((trigger, file)) = comes.filter(|_| !scale.is_empty()) {
                add(&mut scale, trigger, file, next);
                next += 1;
            }
        }
        outcome.crossings.extend(scale.end(clock).crossings);
        let look = Look { step: Step { from, seen, now }, late, signalled };
        for (record_id, _, trigger, mut mark) in model {
            let step = if look.is_beyond(mark.key()) { look.late_step() } else { look.step };
            let expected: Vec<_> = mark.step(&step).into_iter().flatten().filter(|way| trigger.reports(*way)).collect();
            let mine = outcome.crossings.iter().filter(|one| one.to.record_id == record_id);
            let signalled: Vec<_> = mine.map(|one| one.direction).collect();
            let is_gone = gone.contains(&record_id);
            prop_assert!(signalled == expected || is_gone && signalled.is_empty(), "{:?}: {:?}", signalled, expected);
        }
        prop_assert!(outcome.crossings.iter().all(|one| one.to.record_id.0 < 1000));
        let (mut scale_marks, band) = (Vec::new(), scale.band());
        scale_marks.extend(scale.thresholds());
        prop_assert!(scale_marks.is_empty() || band.holds(scale.now()));
    }
}

/// Thresholds and eventfds, in no order.
fn unordered(mut all: Vec<(u64, FileId)>) -> Vec<(u64, FileId)> {
    all.sort_unstable();
    all
}

proptest! {
    /// Pages show each threshold once, those in a hold-off among them.
    #[test]
    fn pages_show_all(acts in prop::collection::vec((act(), 0..40u64), 1..120), most in 1..7usize) {
        let mut scale = ThresholdSet::default();
        let payer = Accounts::default().charge(Account::Agent);
        let mut clock = Clock { now: 1, holdoff: HOLDOFF };
        for (act, pause) in acts {
            clock.now += pause;
            match act {
                Act::Add(trigger, file) => {
                    scale.add(20, trigger, 50, Subscriber { file: FileId(file), record_id: RecordId(0), payer }, None);
                }
                Act::Step(min, max, now) => _ = scale.step(Excursion { min, max }, now, clock),
                Act::Wake(all) => _ = scale.wake(clock, all),
                Act::Follow(limit) => _ = scale.follow(limit, clock),
                Act::Remove(file) => _ = scale.take_file(FileId(file), usize::MAX),
            }
        }
        let (mut shown, mut after) = (Vec::new(), None);
        loop {
            let (page, next) = scale.page(after, most);
            prop_assert!(page.len() <= most);
            shown.extend(page.into_iter().map(|one| (one.threshold, one.file)));
            after = next;
            if after.is_none() {
                break;
            }
        }
        let all = scale.thresholds().map(|(threshold, to)| (threshold, to.file)).collect();
        prop_assert_eq!(unordered(shown), unordered(all));
    }
}
