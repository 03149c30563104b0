//! Groups that the black box records: whatever is registered on them, charges look at them.

use monitor_common::protocol::{
    band::{OPEN, compare},
    ring::{Doorbell, LossKind, Victim},
    word::Word as _,
};

use super::{Cause, USAGE, client, taken, wait_for, watched, watcher};
use crate::{
    kills::KillTeller,
    source::{GroupId, Source as _},
    watcher::{RecorderTap, Tapped},
};

#[test]
fn a_recorded_group_is_looked_at_without_registrations_and_with() {
    let mut watcher = watcher();
    let group = watcher.core.source.group(0);
    assert!(watcher.set_recorded(group, 1, true).expect("queried"));
    let band = |watcher: &super::Watcher<super::FakeKernel>| watcher.core.source.slots[0].band.get();
    assert_ne!(band(&watcher), OPEN);
    assert!(
        compare(band(&watcher), 1 << 20, watcher.core.source.band_shift()).is_none(),
        "it rings for nothing"
    );
    let client = client();
    assert_eq!(wait_for(&mut watcher, 0, USAGE, "10", &client), Ok(()));
    watcher.core.source.charge(0, 12);
    watcher.look(0);
    assert_eq!(taken(&client), 1, "thresholds work as before");
    let file = super::handed(&client).file;
    watcher.core.forget_files(&[file]);
    watcher.run();
    assert!(watcher.registry().is_empty());
    assert_ne!(band(&watcher), OPEN, "it is recorded when its last registration has ended");
    assert!(watcher.set_recorded(group, 1, false).expect("queried"));
    assert_eq!(band(&watcher), OPEN);
}

#[test]
fn a_registered_group_is_recorded_with_its_thresholds_until_it_is_not() {
    let (mut watcher, client) = watched(&[10]);
    let group = watcher.core.source.group(0);
    assert!(watcher.set_recorded(group, 1, true).expect("queried"));
    watcher.run();
    assert!(watcher.set_recorded(group, 1, false).expect("queried"));
    watcher.run();
    watcher.core.source.charge(0, 12);
    watcher.look(0);
    assert_eq!(taken(&client), 1);
}

#[test]
fn a_group_that_is_gone_is_not_recorded_nor_takes_the_next_one_of_its_slot_with_it() {
    let mut watcher = watcher();
    let group = watcher.core.source.group(0);
    let before = GroupId { generation: group.generation + 1, ..group };
    assert!(!watcher.set_recorded(before, 1, true).expect("queried"));
    assert_eq!(watcher.core.source.slots[0].band.get(), OPEN);
    assert!(watcher.set_recorded(group, 2, true).expect("queried"));
    assert!(!watcher.set_recorded(before, 1, false).expect("queried"));
    assert_ne!(watcher.core.source.slots[0].band.get(), OPEN);
}

#[test]
fn the_recorder_hears_of_kills_once_and_of_signals_of_recorded_groups_alone() {
    let mut watcher = watcher();
    let (tap, told) = RecorderTap::new(3, std::thread::current());
    watcher.set_tap(tap);
    let group = watcher.core.source.group(0);
    let cgroup_id = watcher.core.source.slots[0].cgroup_id.get();
    let (recorded, other) = (client(), client());
    for (slot, client) in [(0, &recorded), (1, &other)] {
        assert_eq!(wait_for(&mut watcher, slot, USAGE, "10", client), Ok(()));
    }
    let cross = |watcher: &mut super::Watcher<super::FakeKernel>| {
        for slot in [0, 1] {
            watcher.core.source.charge(slot, 12);
            watcher.look(slot as u32);
            watcher.core.source.charge(slot, 2);
            watcher.look(slot as u32);
        }
    };
    cross(&mut watcher);
    assert_eq!(told.take().count(), 0, "neither is recorded");
    assert!(watcher.set_recorded(group, cgroup_id, true).expect("queried"));
    cross(&mut watcher);
    watcher.victim(&victim());
    watcher.run();
    let heard: Vec<Tapped> = told.take().collect();
    assert_eq!(heard.len(), 3, "two crossings of the recorded group, and the kill: {heard:?}");
    assert!(matches!(&heard[2], Tapped::Event { event, .. }
        if matches!(&event.cause, Cause::OomKill(kill)
            if (kill.victim.bell.value, kill.victim.pid, kill.name().as_str()) == (77, 5, "a"))));
    for slot in 0..5 {
        watcher.made(slot);
    }
    assert_eq!(told.lost(), (2, 0), "for these there was no room");
    // However many others' signals wait, there is room for kills, whose own loss is counted apart.
    for _ in 0..4 {
        watcher.victim(&victim());
    }
    watcher.run();
    assert_eq!(told.lost(), (2, 1));
    let is_kill = |told: &Tapped| matches!(told, Tapped::Event { .. });
    let heard: Vec<bool> = told.take().map(|one| is_kill(&one)).collect();
    assert_eq!(heard, [false, false, false, true, true, true]);
}

/// A kill may be another's where the root is a group, and is not to be told then.
#[test]
fn a_kill_that_is_not_kept_is_counted() {
    for (is_of_host, kept) in [(true, 1), (false, 0)] {
        let mut watcher = watcher();
        watcher.keep_kills(KillTeller::full(is_of_host));
        watcher.victim(&victim());
        let dropped = watcher.core.source.tally(LossKind::VictimsDropped);
        let total = watcher.kills().map(|kills| kills.log().total());
        assert_eq!((total, dropped), (Some(kept), 1 - kept), "host: {is_of_host}");
    }
}

fn victim() -> Victim {
    let bell = Doorbell { kind: Doorbell::VICTIM, slot: 0, value: 77 };
    let mut bytes = [0; 40];
    bytes[16] = 5;
    bytes[24] = b'a';
    let victim = Victim::from_bytes(&bytes).expect("a record's first part");
    Victim { bell, ..victim }
}
