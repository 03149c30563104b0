//! Tests of the registry's rules.

mod model;
mod work;

use std::sync::atomic::{AtomicU32, Ordering};

use monitor_common::{
    grammar::{
        control_file::{ControlFile, Trigger},
        pressure::{Pressure, PressureMode, Propagation},
        threshold::{At, Pages, Threshold},
    },
    protocol::{
        band::{Band, Excursion},
        crossing::Direction::{self, Down, Up},
        pressure::Level,
    },
};

use super::{Account, BURST, Clock, Crossing, FileId, GroupId, RecordId, Registry, Subscription};

const A: FileId = FileId(1);
const B: FileId = FileId(2);
const G: GroupId = GroupId { slot: 7, generation: 1 };
const USAGE: ControlFile = ControlFile::Usage;
const ENDLESS: u64 = u64::MAX;
const NO_HOLDOFF: Clock = Clock { now: 0, holdoff: 0 };

/// A registration with a record id of its own, on `file`.
fn registration(on: ControlFile, trigger: Trigger, file: FileId, account: Account) -> Subscription {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let record_id = RecordId(NEXT.fetch_add(1, Ordering::Relaxed));
    Subscription { on, trigger, file, account, record_id, above: None }
}

/// A crossing as a test sees it: the eventfd, the threshold, the direction.
type Signal = (FileId, u64, Direction);

fn signals_of(crossings: Vec<Crossing>) -> Vec<Signal> {
    crossings.into_iter().map(|one| (one.to.file, one.threshold, one.direction)).collect()
}

fn add(registry: &mut Registry, id: GroupId, usage: u64, threshold: u64, file: FileId) {
    let trigger = Trigger::Threshold(Threshold::plain(Pages(threshold)));
    registry.add(id, registration(USAGE, trigger, file, Account::User(0)), usage, ENDLESS);
}

fn quiet(registry: &mut Registry, now: u64) -> Vec<Signal> {
    let crossings = registry
        .group_mut(G.slot)
        .map(|group| group.scale_mut(USAGE).step(Excursion::NONE, now, NO_HOLDOFF).crossings)
        .unwrap_or_default();
    signals_of(crossings)
}

fn counts(record_ids: Vec<(FileId, Vec<RecordId>)>) -> Vec<(FileId, usize)> {
    record_ids.into_iter().map(|(file, record_ids)| (file, record_ids.len())).collect()
}

fn up(threshold: u64, file: FileId) -> Signal {
    (file, threshold, Up)
}

fn down(threshold: u64, file: FileId) -> Signal {
    (file, threshold, Down)
}

#[test]
fn each_entry_is_signalled_duplicates_included() {
    let mut registry = Registry::default();
    for (threshold, file) in [(10, A), (10, A), (20, B), (30, A)] {
        add(&mut registry, G, 0, threshold, file);
    }
    assert_eq!(quiet(&mut registry, 20), vec![up(10, A), up(10, A), up(20, B)]);
    assert_eq!(registry.group(7).map(|group| group.scale(USAGE).band()), Some(Band { lo: 20, hi: 30 }));
    assert_eq!(quiet(&mut registry, 19), vec![down(20, B)]);
}

#[test]
fn standing_still_crosses_nothing() {
    let mut registry = Registry::default();
    add(&mut registry, G, 10, 10, A);
    assert_eq!(quiet(&mut registry, 10), vec![]);
    assert_eq!(quiet(&mut registry, u64::MAX), vec![]);
    assert_eq!(quiet(&mut registry, u64::MAX), vec![]);
}

#[test]
fn registered_above_is_signalled_for_the_drop_first() {
    let mut registry = Registry::default();
    add(&mut registry, G, 50, 10, A);
    assert_eq!(quiet(&mut registry, 60), vec![]);
    assert_eq!(quiet(&mut registry, 9), vec![down(10, A)]);
}

#[test]
fn removal_counts_every_registration_of_every_kind() {
    let mut registry = Registry::default();
    add(&mut registry, G, 0, 10, A);
    add(&mut registry, G, 0, 20, A);
    add(&mut registry, G, 0, 20, B);
    for (on, trigger) in [
        (ControlFile::Memsw, Trigger::Threshold(Threshold::plain(Pages(1)))),
        (ControlFile::Oom, Trigger::Oom),
        (ControlFile::Procs, Trigger::Empty),
        (
            ControlFile::Pressure,
            Trigger::Pressure(Pressure { level: Level::Low, mode: PressureMode::Default }),
        ),
    ] {
        registry.add(G, registration(on, trigger, A, Account::User(5)), 0, ENDLESS);
    }
    let held = [0, 5].map(|user| registry.held_by(Account::User(user)));
    assert_eq!(held, [3, 4], "the requester pays, whoever owns the eventfd");
    assert_eq!(counts(registry.remove_group(7)), vec![(A, 6), (B, 1)]);
    assert!(registry.is_empty());
    assert_eq!([0, 5].map(|user| registry.held_by(Account::User(user))), [0, 0]);
    assert_eq!(registry.files(), vec![]);
    assert_eq!(registry.wanted(), 0);
}

#[test]
fn closing_an_eventfd_leaves_the_others() {
    let mut registry = Registry::default();
    add(&mut registry, G, 0, 10, A);
    add(&mut registry, G, 0, 10, B);
    add(&mut registry, GroupId { slot: 8, generation: 3 }, 0, 10, A);
    let (mut slots, record_ids) = registry.remove_file(A);
    assert_eq!(record_ids.len(), 2);
    slots.sort_unstable();
    assert_eq!(slots, vec![7, 8]);
    assert_eq!(registry.len(), 1);
    registry.forget_group(8);
    registry.forget_group(7);
    assert_eq!(registry.slots(), vec![7]);
}

#[test]
fn zero_and_the_maximum_never_fire() {
    let mut registry = Registry::default();
    add(&mut registry, G, 5, 0, A);
    add(&mut registry, G, 5, i64::MAX as u64 / 4096, A);
    assert_eq!(quiet(&mut registry, 0), vec![]);
    assert_eq!(quiet(&mut registry, 1 << 40), vec![]);
}

#[test]
fn a_direction_not_requested_is_not_signalled() {
    let mut registry = Registry::default();
    let only_down = Threshold { up: false, ..Threshold::plain(Pages(10)) };
    let trigger = Trigger::Threshold(only_down);
    registry.add(G, registration(USAGE, trigger, A, Account::User(0)), 0, ENDLESS);
    assert_eq!(quiet(&mut registry, 20), vec![]);
    assert_eq!(quiet(&mut registry, 5), vec![down(10, A)]);
}

#[test]
fn hysteresis_moves_the_way_back() {
    let mut registry = Registry::default();
    let trigger = Trigger::Threshold(Threshold { hysteresis: Pages(4), ..Threshold::plain(Pages(10)) });
    registry.add(G, registration(USAGE, trigger, A, Account::User(0)), 0, ENDLESS);
    assert_eq!(quiet(&mut registry, 10), vec![up(10, A)]);
    assert_eq!(registry.group(7).map(|group| group.scale(USAGE).band()), Some(Band { lo: 6, hi: ENDLESS }));
    assert_eq!(quiet(&mut registry, 6), vec![]);
    assert_eq!(quiet(&mut registry, 12), vec![]);
    assert_eq!(quiet(&mut registry, 5), vec![down(10, A)]);
    assert_eq!(quiet(&mut registry, 9), vec![]);
}

#[test]
fn percents_follow_the_limit() {
    let mut registry = Registry::default();
    let trigger = Trigger::Threshold(Threshold { at: At::Percent(8000), ..Threshold::plain(Pages(0)) });
    registry.add(G, registration(USAGE, trigger, A, Account::User(0)), 50, ENDLESS);
    assert_eq!(quiet(&mut registry, 1 << 50), vec![], "no limit, no crossing");
    assert_eq!(quiet(&mut registry, 50), vec![]);
    let mut follow = |limit| {
        let group = registry.group_mut(7);
        group.map(|group| signals_of(group.scale_mut(USAGE).follow(limit, NO_HOLDOFF).crossings))
    };
    assert_eq!(follow(100), Some(vec![]));
    assert_eq!(follow(60), Some(vec![up(48, A)]));
    assert_eq!(follow(60), Some(vec![]));
    assert_eq!(follow(70), Some(vec![down(56, A)]));
    assert_eq!(quiet(&mut registry, 56), vec![up(56, A)]);
}

#[test]
fn a_window_is_signalled_by_mode_and_level() {
    let mut registry = Registry::default();
    let mut listen = |level, mode, file| {
        let trigger = Trigger::Pressure(Pressure { level, mode });
        registry.add(G, registration(ControlFile::Pressure, trigger, file, Account::User(0)), 0, ENDLESS);
    };
    listen(Level::Low, PressureMode::Default, A);
    listen(Level::Critical, PressureMode::Local, B);
    let mut window = Propagation::new();
    let pressure_targets = |window, level| {
        let pressure_targets = registry.group(7).map(|group| group.pressure_targets(window, level));
        pressure_targets.map(|pressure_targets| Vec::from_iter(pressure_targets.iter().map(|to| to.file)))
    };
    assert_eq!(pressure_targets(window, Level::Medium), Some(vec![A]));
    assert_eq!(pressure_targets(window, Level::Critical), Some(vec![A, B]));
    window.next_group(true);
    assert_eq!(pressure_targets(window, Level::Critical), Some(vec![]));
}

/// The number of steps that cross 10 so often, up first, and last when it is odd.
fn flapping(crossings: u64) -> impl Iterator<Item = u64> {
    (0..crossings).map(|n| if n % 2 == 0 { 12 } else { 3 })
}

#[test]
fn a_threshold_that_flaps_is_held_off_and_signalled_where_it_ended() {
    let mut registry = Registry::default();
    add(&mut registry, G, 0, 10, A);
    add(&mut registry, G, 0, 50, B);
    let group = registry.group_mut(7).expect("just registered");
    let scale = group.scale_mut(USAGE);
    let mut count = 0;
    for now in flapping(BURST + 3) {
        count += scale.step(Excursion::NONE, now, Clock { now: 5, holdoff: 100 }).crossings.len() as u64;
    }
    assert_eq!(count, BURST, "later crossings are held off");
    assert_eq!(scale.band(), Band { lo: 0, hi: 50 }, "no charge rings for it");
    assert_eq!(scale.first_holdoff_end(), Some(105));
    assert_eq!((scale.len(), scale.thresholds().count()), (2, 2), "it is still registered");
    assert_eq!(signals_of(scale.wake(Clock { now: 104, holdoff: 100 }, false).crossings), vec![]);
    assert_eq!(signals_of(scale.wake(Clock { now: 105, holdoff: 100 }, false).crossings), vec![up(10, A)]);
    assert_eq!(scale.first_holdoff_end(), None);
    assert_eq!(scale.band(), Band { lo: 10, hi: 50 });
    // Slow crossings never begin a hold-off.
    for (step, now) in flapping(BURST + 3).map(|now| 15 - now).enumerate() {
        let clock = Clock { now: 1000 + 200 * step as u64, holdoff: 100 };
        assert_eq!(scale.step(Excursion::NONE, now, clock).crossings.len(), 1);
    }
}
