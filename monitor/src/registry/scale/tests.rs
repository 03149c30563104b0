//! The dense store against a plain list of thresholds.

use monitor_common::{
    band::Excursion,
    crossing::{Direction, Mark, Step, band_around},
    threshold::{At, Pages, Threshold},
};
use proptest::prelude::*;

use super::{BURST, Clock, Scale, pages};
use crate::{
    registry::{Account, Subscriber, account::Accounts},
    source::FileId,
    vault::Ticket,
};

const REST: u64 = 100;

/// Whose, of what, up or down.
type Told = (u64, u64, bool);

/// A threshold as the specification puts it.
struct Plain {
    file: FileId,
    wish: Threshold,
    mark: Mark,
    burst: (u64, u64),
    rests: Option<u64>,
}

impl Plain {
    fn apply(&mut self, step: &Step, now: u64, crossings: &mut Vec<Told>) {
        let (file, threshold) = (self.file, self.mark.threshold);
        let before = crossings.len();
        let crossed = self.mark.step(step).into_iter().flatten().filter(|way| self.wish.hears(*way));
        crossings.extend(crossed.map(|direction| (threshold, file.0, direction == Direction::Up)));
        let told = (crossings.len() - before) as u64;
        let (since, count) = self.burst;
        let is_over = count == 0 || now - since >= REST;
        self.burst = if is_over { (now, told) } else { (since, count + told) };
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
        8 => (threshold(), 0..6u64).prop_map(|(wish, file)| Act::Add(wish, file)),
        8 => (0..45u64, 0..45u64, 0..45u64).prop_map(|(low, high, now)| Act::Step(low, high, now)),
        1 => any::<bool>().prop_map(Act::Wake),
        1 => prop_oneof![0..80u64, Just(u64::MAX)].prop_map(Act::Follow),
        2 => (0..6u64).prop_map(Act::Remove),
    ]
}

impl Model {
    /// Crossings in any order, and how many went.
    fn act(&mut self, act: &Act, clock: Clock, limit: &mut u64) -> (Vec<Told>, u64) {
        let mut crossings = Vec::new();
        let still = |now| Step { from: now, seen: Excursion::NONE, now };
        match *act {
            Act::Add(wish, file) => {
                if self.list.is_empty() {
                    self.now = 20;
                }
                let mark = Mark::new(pages(wish.at, *limit), wish.hysteresis.0, self.now);
                self.list.push(Plain { file: FileId(file), wish, mark, burst: (0, 0), rests: None });
            }
            Act::Step(min, max, now) => {
                let step = Step { from: self.now, seen: Excursion { min, max }, now };
                self.now = now;
                let (lowest, highest) = step.range();
                for one in self.list.iter_mut().filter(|one| one.rests.is_none()) {
                    if (lowest + 1..=highest).contains(&one.mark.key()) {
                        one.apply(&step, clock.now, &mut crossings);
                        one.rests = (one.burst.1 >= BURST).then_some(one.burst.0 + REST);
                    }
                }
            }
            Act::Wake(all) => {
                for one in &mut self.list {
                    if one.rests.is_some_and(|until| all || until <= clock.now) {
                        (one.rests, one.burst) = (None, (clock.now, 0));
                        one.apply(&still(self.now), clock.now, &mut crossings);
                    }
                }
            }
            Act::Follow(to) => {
                *limit = to;
                for one in &mut self.list {
                    let to = pages(one.wish.at, to);
                    let moved = std::mem::replace(&mut one.mark.threshold, to) != to;
                    if moved && one.rests.is_none() {
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

fn sorted(mut told: Vec<Told>) -> Vec<Told> {
    told.sort_unstable();
    told
}

fn told(outcome: &super::Outcome) -> Vec<Told> {
    let told = |one: &super::Crossing| (one.threshold, one.to.file.0, one.direction == Direction::Up);
    outcome.crossings.iter().map(told).collect()
}

proptest! {
    #[test]
    fn it_does_what_a_plain_list_does(acts in prop::collection::vec((act(), 0..40u64), 1..120)) {
        let (mut scale, mut model) = (Scale::default(), Model::default());
        let payer = Accounts::default().charge(Account::Agent);
        let (mut clock, mut limit, mut its_limit) = (Clock { now: 1, rest: REST }, 50, 50);
        for (act, pause) in acts {
            clock.now += pause;
            let (heard, gone) = match act.clone() {
                Act::Add(wish, file) => {
                    let to = Subscriber { file: FileId(file), ticket: Ticket(0), payer };
                    scale.add(20, wish, limit, to, None);
                    (Vec::new(), 0)
                }
                Act::Step(min, max, now) => (told(&scale.step(Excursion { min, max }, now, clock)), 0),
                Act::Wake(all) => (told(&scale.wake(clock, all)), 0),
                Act::Follow(to) => {
                    limit = to;
                    (told(&scale.follow(to, clock)), 0)
                }
                Act::Remove(file) => (Vec::new(), scale.take_file(FileId(file), usize::MAX).len() as u64),
            };
            let (expected, went) = model.act(&act, clock, &mut its_limit);
            prop_assert_eq!(sorted(heard), sorted(expected), "{:?}", act);
            prop_assert_eq!(gone, went);
            prop_assert_eq!(scale.len(), model.list.len());
            let keys = || model.list.iter().filter(|one| one.rests.is_none()).map(|one| one.mark.key());
            let band = band_around(
                keys().filter(|key| *key <= scale.now()).max(),
                keys().filter(|key| *key > scale.now()).min(),
            );
            prop_assert_eq!(scale.band(), band);
            prop_assert_eq!(scale.rests_until(), model.list.iter().filter_map(|one| one.rests).min());
            let percents = model.list.iter().filter(|one| matches!(one.wish.at, At::Percent(_))).count();
            prop_assert_eq!(scale.percents(), percents);
            let mut files: Vec<_> = scale.thresholds().map(|(_, to)| to.file).collect();
            let mut expected: Vec<_> = model.list.iter().map(|one| one.file).collect();
            files.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(files, expected);
        }
    }
}
