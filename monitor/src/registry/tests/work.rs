//! Tests of what the registry's work grows with: counted, by the entries that it touches.

use monitor_common::{
    grammar::{
        control_file::{ControlFile, Trigger},
        pressure::{Pressure, PressureMode, Propagation},
        threshold::{At, Pages, Threshold},
    },
    protocol::{band::Excursion, pressure::Level},
};

use super::{Account, BURST, Clock, FileId, G, NO_HOLDOFF, Registry, USAGE, flapping, registration};
use crate::registry::dense::work;

const MANY: u64 = 65_000;
/// Entries that one registration may touch on its way out: it is found, it goes, and another one
/// takes its place.
const EACH: u64 = 8;

/// Returns a trigger of each kind, with its control file.
fn all_kinds() -> [(ControlFile, Trigger); 5] {
    let percent = Threshold { at: At::Percent(5000), ..Threshold::plain(Pages(0)) };
    [
        (ControlFile::Oom, Trigger::Oom),
        (
            ControlFile::Pressure,
            Trigger::Pressure(Pressure { level: Level::Low, mode: PressureMode::Default }),
        ),
        (ControlFile::Procs, Trigger::Empty),
        (USAGE, Trigger::Threshold(Threshold::plain(Pages(10)))),
        (ControlFile::Memsw, Trigger::Threshold(percent)),
    ]
}

fn registry(kinds: &[(ControlFile, Trigger)]) -> Registry {
    let mut registry = Registry::default();
    for file in 0..MANY {
        for (on, trigger) in kinds {
            registry.add(G, registration(*on, *trigger, FileId(file), Account::User(1)), 0, u64::MAX);
        }
    }
    work::taken();
    registry
}

#[test]
fn a_client_that_exits_costs_what_it_had() {
    for kinds in all_kinds().chunks(1).chain([&all_kinds()[..]]) {
        let mut registry = registry(kinds);
        for file in 0..MANY {
            assert_eq!(registry.remove_file(FileId(file)).1.len(), kinds.len());
        }
        assert!(registry.is_empty());
        let (done, bound) = (work::taken(), EACH * MANY * kinds.len() as u64);
        assert!(done <= bound, "{done} entries touched for {} registrations", MANY * kinds.len() as u64);
    }
}

#[test]
fn a_group_is_taken_apart_by_pieces_that_cost_what_they_take() {
    let mut registry = registry(&all_kinds());
    let all = registry.len();
    let mut taken = 0;
    loop {
        let piece = registry.take_from_group(G.slot, 256).len() as u64;
        let done = work::taken();
        assert!(done <= EACH * 256, "{done} entries touched for a piece of {piece}");
        taken += piece;
        if piece < 256 {
            break;
        }
    }
    assert_eq!((taken, registry.len()), (all, 0));
}

#[test]
fn an_eventfd_of_many_is_taken_apart_by_pieces_that_cost_what_they_take() {
    let mut registry = Registry::default();
    for n in 0..MANY {
        let trigger = Trigger::Threshold(Threshold::plain(Pages(n)));
        registry.add(G, registration(USAGE, trigger, FileId(1), Account::User(1)), 0, u64::MAX);
    }
    work::taken();
    let mut taken = 0;
    while let Some((_, piece)) = registry.take_from_file(FileId(1), 256) {
        assert!(work::taken() <= EACH * 256);
        taken += piece.len() as u64;
    }
    assert_eq!(taken, MANY);
}

#[test]
fn the_rest_of_many_costs_each_once() {
    let mut registry = registry(&all_kinds()[3..4]);
    let group = registry.group_mut(G.slot).expect("just registered");
    let scale = group.scale_mut(USAGE);
    let clock = |now| Clock { now, holdoff: 100 };
    for now in flapping(BURST + 1) {
        scale.step(Excursion::NONE, now, clock(5));
    }
    work::taken();
    assert_eq!(scale.first_holdoff_end(), Some(105));
    assert_eq!(work::taken(), 0, "the first to wake is known");
    scale.wake(clock(104), false);
    assert_eq!(work::taken(), 0, "no hold-off is over");
    scale.wake(clock(105), false);
    assert_eq!(scale.first_holdoff_end(), None);
    assert!(work::taken() <= EACH * MANY);
    // A threshold in a hold-off costs no more to remove.
    for now in flapping(BURST + 1) {
        scale.step(Excursion::NONE, now, clock(1000));
    }
    work::taken();
    assert_eq!(scale.first_holdoff_end(), Some(1100));
    for file in 0..MANY {
        scale.take_file(FileId(file), usize::MAX);
    }
    assert!(work::taken() <= EACH * MANY);
}

#[test]
fn what_is_shown_of_registrations_for_events_costs_none_of_them() {
    let registry = registry(&all_kinds()[..3]);
    let group = registry.group(G.slot).expect("registered");
    let low = Pressure { level: Level::Low, mode: PressureMode::Default };
    assert_eq!(Vec::from_iter(group.pressures()), [(low, MANY as usize)]);
    assert_eq!((group.ooms(), group.empties()), (MANY as usize, MANY as usize));
    assert_eq!(work::taken(), 0);
    // A window that is for none of them.
    let mut window = Propagation::new();
    window.next_group(true);
    assert!(group.pressure_targets(window, Level::Low).is_empty());
    assert_eq!(work::taken(), 0);
}

#[test]
fn a_limit_costs_its_percentages() {
    let mut registry = registry(&all_kinds()[3..4]);
    let percent = Trigger::Threshold(Threshold { at: At::Percent(5000), ..Threshold::plain(Pages(0)) });
    registry.add(G, registration(USAGE, percent, FileId(1), Account::User(1)), 0, u64::MAX);
    work::taken();
    registry.group_mut(G.slot).expect("registered").scale_mut(USAGE).follow(100, NO_HOLDOFF);
    assert!(work::taken() <= EACH);
}
