//! Tests of the registry against a plain list of registrations.

use std::collections::BTreeMap;

use monitor_common::{
    grammar::{
        control_file::{ControlFile, Trigger},
        pressure::{Pressure, PressureMode},
        threshold::{At, Pages, Threshold},
    },
    protocol::pressure::Level,
};
use proptest::prelude::*;

use super::{Account, FileId, GroupId, RecordId, Registry, Subscription, registration};

#[derive(Clone, Debug)]
enum Act {
    Add(Subscription),
    RemoveGroup,
    TakeFromGroup(usize),
    RemoveFile(FileId),
    TakeFromFile(FileId, usize),
}

/// One registration, and its slot.
struct Plain {
    slot: u32,
    registered: Subscription,
}

fn act() -> impl Strategy<Value = Act> {
    let threshold = |at| Trigger::Threshold(Threshold { at, ..Threshold::plain(Pages(0)) });
    let registered = prop_oneof![
        3 => (5..10_u64).prop_map(move |at| (ControlFile::Usage, threshold(At::Pages(Pages(at))))),
        1 => Just((ControlFile::Memsw, threshold(At::Percent(50)))),
        1 => Just((ControlFile::WorkingSet, threshold(At::Pages(Pages(3))))),
        2 => Just((ControlFile::Oom, Trigger::Oom)),
        1 => Just((ControlFile::Procs, Trigger::Empty)),
        2 => (0..3_usize, 0..3_usize).prop_map(|(level, mode)| {
            let pressure = Pressure { level: Level::ALL[level], mode: PressureMode::ALL[mode] };
            (ControlFile::Pressure, Trigger::Pressure(pressure))
        }),
    ];
    let file = || (0..4_u64).prop_map(FileId);
    prop_oneof![
        12 => (registered, file(), 0..3_u32).prop_map(|((on, trigger), file, user)| {
            Act::Add(registration(on, trigger, file, Account::User(user)))
        }),
        1 => Just(Act::RemoveGroup),
        1 => (1..30_usize).prop_map(Act::TakeFromGroup),
        1 => file().prop_map(Act::RemoveFile),
        1 => (file(), 1..30_usize).prop_map(|(file, most)| Act::TakeFromFile(file, most)),
    ]
}

fn place(of: Pressure) -> (Level, usize) {
    (of.level, of.mode as usize)
}

/// Takes out of the list what the registry has taken; false where the list had no such entry.
fn is_taken(list: &mut Vec<Plain>, record_ids: impl IntoIterator<Item = RecordId>) -> bool {
    record_ids.into_iter().all(|record_id| {
        let at = list.iter().position(|held| held.registered.record_id == record_id);
        at.map(|at| list.swap_remove(at)).is_some()
    })
}

fn by_file<'a>(held: impl Iterator<Item = &'a Plain>) -> Vec<(FileId, usize)> {
    let mut counts = BTreeMap::new();
    held.for_each(|held| *counts.entry(held.registered.file).or_insert(0) += 1);
    counts.into_iter().collect()
}

fn remove(registry: &mut Registry, list: &mut Vec<Plain>, slot: u32, act: &Act) -> Result<(), TestCaseError> {
    match *act {
        Act::Add(registered) => {
            registry.add(GroupId { slot, generation: 1 }, registered, 0, u64::MAX);
            list.push(Plain { slot, registered });
        }
        Act::RemoveGroup => {
            let expected = by_file(list.iter().filter(|held| held.slot == slot));
            prop_assert_eq!(super::counts(registry.remove_group(slot)), expected);
            list.retain(|held| held.slot != slot);
            prop_assert!(registry.group(slot).is_none());
        }
        Act::TakeFromGroup(most) => {
            let taken = registry.take_from_group(slot, most);
            let there = list.iter().filter(|held| held.slot == slot).count();
            prop_assert_eq!(taken.len(), most.min(there));
            prop_assert!(is_taken(list, taken.iter().map(|to| to.record_id)));
            prop_assert_eq!(registry.group(slot).is_some(), there > most);
        }
        Act::RemoveFile(file) => {
            let gone = list.iter().filter(|held| held.registered.file == file);
            let mut slots: Vec<_> = gone.map(|held| held.slot).collect();
            slots.sort_unstable();
            slots.dedup();
            let (found, record_ids) = registry.remove_file(file);
            prop_assert_eq!(&found, &slots);
            slots.into_iter().for_each(|slot| registry.forget_group(slot));
            prop_assert!(is_taken(list, record_ids));
            prop_assert!(list.iter().all(|held| held.registered.file != file));
        }
        Act::TakeFromFile(file, most) => {
            let slots = list.iter().filter(|held| held.registered.file == file).map(|held| held.slot);
            let slot = slots.min();
            let there =
                list.iter().filter(|held| held.registered.file == file && Some(held.slot) == slot).count();
            let taken = registry.take_from_file(file, most);
            prop_assert_eq!(taken.as_ref().map(|(slot, _)| *slot), slot);
            let (slot, taken) = taken.unwrap_or_default();
            prop_assert_eq!(taken.len(), most.min(there));
            prop_assert!(taken.iter().all(|to| to.file == file));
            prop_assert!(is_taken(list, taken.iter().map(|to| to.record_id)));
            registry.forget_group(slot);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn it_holds_what_a_plain_list_holds(acts in prop::collection::vec((act(), 0..4_u32), 1..120)) {
        let (mut registry, mut list) = (Registry::default(), Vec::new());
        for (act, slot) in acts {
            remove(&mut registry, &mut list, slot, &act)?;
            prop_assert_eq!(registry.len(), list.len() as u64);
            prop_assert_eq!(registry.file_count(), by_file(list.iter()).len() as u64);
            for number in 0..4 {
                let file = FileId(number);
                prop_assert_eq!(registry.has_file(file), list.iter().any(|held| held.registered.file == file));
                let account = Account::User(u32::try_from(number).expect("small"));
                let held = list.iter().filter(|held| held.registered.account == account).count() as u64;
                prop_assert_eq!(registry.held_by(account), held);
            }
            let ooms: Vec<_> = registry.oom_groups().map(|group| group.id.slot).collect();
            let waits = |slot: &u32| list.iter().any(|held| held.slot == *slot && held.registered.trigger == Trigger::Oom);
            prop_assert_eq!(ooms, Vec::from_iter((0..4).filter(waits)));
            // Each registration keeps its own account, whatever has moved meanwhile.
            let groups = registry.groups().flat_map(|group| {
                let others = group.oom().chain(group.empty()).chain(group.pressure().map(|(_, to)| to));
                let scales = ControlFile::QUANTITIES.into_iter().flat_map(|on| group.scale(on).thresholds());
                others.chain(scales.map(|(_, to)| to)).map(|to| (group.id.slot, to))
            });
            let mut held: Vec<_> =
                groups.map(|(slot, to)| (to.record_id, slot, to.file, registry.account(to.payer))).collect();
            let mut expected: Vec<_> = list
                .iter()
                .map(|held| (held.registered.record_id, held.slot, held.registered.file, Some(held.registered.account)))
                .collect();
            held.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(held, expected);
            for group in registry.groups() {
                let mut listed: Vec<_> = group.pressures().map(|(of, count)| (place(of), count)).collect();
                let mut counts = BTreeMap::new();
                group.pressure().for_each(|(of, _)| *counts.entry(place(of)).or_insert(0) += 1);
                listed.sort_unstable();
                prop_assert_eq!(listed, Vec::from_iter(counts));
                prop_assert_eq!((group.ooms(), group.empties()), (group.oom().count(), group.empty().count()));
            }
            for on in ControlFile::ALL {
                let expected = list.iter().filter(|held| held.registered.on == on).count();
                prop_assert_eq!(registry.len_on(on), expected as u64);
            }
            prop_assert_eq!(registry.wanted() == 0, list.iter().all(|held| {
                matches!(held.registered.trigger, Trigger::Threshold(Threshold { at: At::Pages(_), .. }))
            }));
        }
    }
}
