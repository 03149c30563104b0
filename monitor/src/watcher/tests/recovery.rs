//! Tests that calls skipped by the recursion guard are made up for, and that limits are followed
//! at a pace.

use std::{sync::atomic::Ordering, time::Duration};

use monitor_common::{
    grammar::control_file::ControlFile::{self, Oom, Procs},
    protocol::{
        oom::{BY_LIMIT_WRITE, Hold, begin, hold_of},
        ring::LossKind,
        word::Word as _,
    },
};

use super::{
    Client, FakeHost, FakeKernel, LIMITS, Limits, USAGE, Watcher, client, taken, wait_for, watcher,
    with_limits,
};
use crate::source::{Misses, Slots as _, Source as _};

type Fake = Watcher<FakeKernel>;

fn skipped(watcher: &Fake, change: impl FnOnce(&mut Misses)) {
    let mut misses = watcher.core.source.misses.get();
    change(&mut misses);
    watcher.core.source.misses.set(misses);
}

#[test]
fn an_oom_that_was_skipped_is_signalled_once_in_the_next_sweep() {
    let (mut watcher, client) = (watcher(), client());
    assert_eq!(wait_for(&mut watcher, 1, Oom, "", &client), Ok(()));
    // By the limit of the group above; one more is about to be delivered.
    watcher.core.source.ooms.borrow_mut()[0] = 3;
    skipped(&watcher, |misses| misses.ooms = [2, 3]);
    watcher.sweep_all();
    assert_eq!(taken(&client), 0, "it may be on its way");
    watcher.core.source.slot(0).expect("a slot").oom_calls.add(1);
    watcher.sweep_all();
    assert_eq!(taken(&client), 2);
    watcher.sweep_all();
    watcher.sweep_all();
    assert_eq!(taken(&client), 0);
    // Without a skip nothing is compared.
    watcher.core.source.ooms.borrow_mut()[0] = 9;
    watcher.sweep_all();
    watcher.sweep_all();
    assert_eq!(taken(&client), 0);
}

/// Makes groups with a listener each, from slot 3 on, more than one sweep queries.
fn with_many(on: ControlFile, args: &str, host: &'static FakeHost) -> (Fake, Vec<Client>) {
    let limits = Limits { quota: 5000, ..LIMITS };
    let mut watcher = Watcher::new(FakeKernel::with_groups(1000), Box::new(host), limits).expect("AIO");
    *watcher.core.source.ooms.borrow_mut() = vec![0; 1001];
    let clients: Vec<_> = (3..1000).map(|_| client()).collect();
    for (slot, client) in (3..).zip(&clients) {
        assert_eq!(wait_for(&mut watcher, slot, on, args, client), Ok(()));
    }
    watcher.run();
    (watcher, clients)
}

#[test]
fn while_calls_are_skipped_in_each_sweep_all_groups_have_their_turn() {
    let (mut watcher, clients) = with_many(Oom, "", FakeHost::forever());
    for slot in 3..1000 {
        watcher.core.source.ooms.borrow_mut()[slot] = 1;
    }
    for _ in 0..10 {
        skipped(&watcher, |misses| misses.ooms = misses.ooms.map(|count| count + 1));
        watcher.sweep_all();
    }
    let signalled: u64 = clients.iter().map(taken).sum();
    assert_eq!(signalled, 997, "each once");
}

#[test]
fn while_removals_are_skipped_in_each_sweep_all_groups_are_looked_for() {
    for slot in [3, 500, 999] {
        let host = FakeHost::forever();
        let (mut watcher, clients) = with_many(USAGE, "9", host);
        watcher.core.source.slots[slot].cgroup_id.set(4711);
        host.gone_one.set(4711);
        for _ in 0..1000_usize.div_ceil(32) {
            skipped(&watcher, |misses| misses.removals += 1);
            watcher.sweep_all();
        }
        assert_eq!(taken(&clients[slot - 3]), 1, "{slot}");
    }
}

/// A thread whose end of an OOM was skipped keeps its mark, and no program runs for its next OOM
/// until the mark is taken away.
#[test]
fn an_oom_before_the_mark_is_taken_away_is_signalled() {
    let (mut watcher, client) = (watcher(), client());
    assert_eq!(wait_for(&mut watcher, 1, Oom, "", &client), Ok(()));
    skipped(&watcher, |misses| misses.oom_ends = [1, 1]);
    watcher.sweep_all();
    watcher.core.source.ooms.borrow_mut()[1] += 1;
    watcher.sweep_all();
    watcher.sweep_all();
    assert_eq!(taken(&client), 1);
}

#[test]
fn an_oom_that_joined_before_the_skip_was_seen_is_signalled() {
    let (mut watcher, client) = (watcher(), client());
    assert_eq!(wait_for(&mut watcher, 1, Oom, "", &client), Ok(()));
    assert!(begin(|index| watcher.core.source.slot(index), 1, 7, 1));
    // Its end is skipped, and one more is silent for it, before any sweep.
    watcher.core.source.count(LossKind::OomJoined, 1);
    skipped(&watcher, |misses| misses.oom_ends = [1, 1]);
    watcher.sweep_all();
    watcher.sweep_all();
    assert_eq!(taken(&client), 1);
}

#[test]
fn an_oom_that_was_skipped_among_limit_writes_is_counted() {
    let (mut watcher, client) = (watcher(), client());
    assert_eq!(wait_for(&mut watcher, 1, Oom, "", &client), Ok(()));
    watcher.core.source.slots[1].oom_calls.set(BY_LIMIT_WRITE | 5);
    watcher.core.source.ooms.borrow_mut()[1] = 7;
    // One twin alone has missed nothing.
    skipped(&watcher, |misses| misses.ooms = [9, 0]);
    watcher.sweep_all();
    watcher.sweep_all();
    assert_eq!(watcher.core.source.tally(LossKind::SkippedForGood), 0);
    skipped(&watcher, |misses| misses.ooms = [10, 1]);
    watcher.sweep_all();
    watcher.sweep_all();
    watcher.sweep_all();
    assert_eq!((taken(&client), watcher.core.source.tally(LossKind::SkippedForGood)), (0, 2));
}

#[test]
fn a_hold_whose_end_was_skipped_is_released() {
    for joined in [0, 1] {
        let (mut watcher, client) = (watcher(), client());
        assert_eq!(wait_for(&mut watcher, 1, Oom, "", &client), Ok(()));
        assert!(begin(|index| watcher.core.source.slot(index), 1, 7, 1));
        skipped(&watcher, |misses| misses.oom_ends = [1, 1]);
        watcher.sweep_all();
        assert!(hold_of(&watcher.core.source.slots[1]) != Hold::NONE, "it may go on");
        watcher.core.source.count(LossKind::OomJoined, joined);
        watcher.sweep_all();
        assert_eq!(hold_of(&watcher.core.source.slots[1]), Hold::NONE);
        assert_eq!(watcher.core.source.slots[0].oom_below.get(), 0);
        assert_eq!(taken(&client), joined, "what was silent for it is signalled");
    }
}

#[test]
fn an_emptying_that_was_skipped_is_signalled() {
    let (mut watcher, client) = (watcher(), client());
    assert_eq!(wait_for(&mut watcher, 1, Procs, "", &client), Ok(()));
    skipped(&watcher, |misses| misses.emptied += 1);
    watcher.sweep_all();
    watcher.sweep_all();
    assert_eq!(taken(&client), 0, "it has a task");
    watcher.core.source.populated.set(false);
    skipped(&watcher, |misses| misses.emptied += 1);
    watcher.sweep_all();
    assert_eq!(taken(&client), 0);
    watcher.sweep_all();
    watcher.sweep_all();
    assert_eq!(taken(&client), 1);
}

#[test]
fn a_removal_that_was_skipped_is_signalled() {
    let host = FakeHost::forever();
    let mut watcher = with_limits(host, LIMITS);
    let client = client();
    assert_eq!(wait_for(&mut watcher, 1, USAGE, "9", &client), Ok(()));
    skipped(&watcher, |misses| misses.removals += 1);
    watcher.sweep_all();
    assert_eq!(taken(&client), 0, "it is there");
    host.gone.store(true, Ordering::Relaxed);
    watcher.sweep_all();
    assert_eq!(taken(&client), 0, "no look without a skip");
    skipped(&watcher, |misses| misses.removals += 1);
    watcher.sweep_all();
    assert_eq!(taken(&client), 1);
    assert!(watcher.registry().is_empty());
    assert_eq!(watcher.core.source.recycled, [1]);
}

#[test]
fn groups_that_have_gone_unseen_give_their_slots_back() {
    let mut watcher = watcher();
    let client = client();
    watcher.core.source.charge(1, 12);
    assert_eq!(wait_for(&mut watcher, 1, USAGE, "9", &client), Ok(()));
    let [free, watched] = [0, 1].map(|slot| watcher.core.source.group(slot));
    // As a program leaves it: readings of a group that had the slot before.
    watcher.core.source.slots[1].last.set(3);
    watcher.core.source.counters[1].set(None);
    watcher.depart(&[free, watched]);
    watcher.run();
    assert_eq!(taken(&client), 1, "its removal, and no crossing");
    let recycled = &mut watcher.core.source.recycled;
    recycled.sort_unstable();
    assert_eq!(*recycled, [0, 1]);
    watcher.depart(&[free, watched]);
    watcher.run();
    assert_eq!(watcher.core.source.recycled, [0, 1], "the next groups of these slots stay");
}

#[test]
fn a_mark_of_a_writer_that_stays_is_taken_away() {
    let mut watcher = watcher();
    *watcher.core.source.thread_marks.borrow_mut() = [(3, 0b11), (9, 1)].into();
    watcher.sweep_all();
    watcher.sweep_all();
    assert_eq!(watcher.core.source.thread_marks().len(), 2, "nothing was skipped");
    skipped(&watcher, |misses| misses.limit_writes = [1, 1]);
    watcher.sweep_all();
    *watcher.core.source.thread_marks.borrow_mut() = [(3, 0b110), (5, 1)].into();
    watcher.sweep_all();
    assert_eq!(watcher.core.source.thread_marks(), [(3, 0b100), (5, 1)], "others have come since");
}

#[test]
fn what_nothing_makes_up_for_is_counted() {
    let mut watcher = watcher();
    skipped(&watcher, |misses| misses.for_good += 3);
    watcher.sweep_all();
    watcher.sweep_all();
    assert_eq!(watcher.core.source.tally(LossKind::SkippedForGood), 3);
}

#[test]
fn a_storm_of_written_limits_is_followed_at_a_pace() {
    let host = FakeHost::forever();
    let mut watcher = with_limits(host, LIMITS);
    let client = client();
    *watcher.core.source.limits.borrow_mut() = vec![100, 200];
    watcher.core.source.charge(1, 85);
    assert_eq!(wait_for(&mut watcher, 1, USAGE, "90%", &client), Ok(()));
    host.clock.set(1000);
    let before = watcher.core.source.limit_reads.get();
    for _ in 0..1000 {
        watcher.limits_written();
        watcher.run();
    }
    assert_eq!(watcher.core.source.limit_reads.get() - before, 1, "rung a thousand times, looked at once");
    watcher.core.source.limits.borrow_mut()[1] = 90;
    watcher.limits_written();
    watcher.run();
    let later = watcher.due_in().expect("it is looked at later");
    assert!(later >= 5, "{later}");
    assert_eq!(taken(&client), 0);
    host.clock.set(999 + later);
    watcher.wake(false);
    watcher.run();
    assert_eq!(taken(&client), 0);
    host.clock.set(1000 + later);
    watcher.wake(false);
    watcher.run();
    assert_eq!((taken(&client), watcher.due_in()), (1, None));
    // A look at all need not wait; a lost doorbell is found by its word.
    watcher.core.source.limits.borrow_mut()[1] = 200;
    watcher.core.source.limits_rung.set(true);
    watcher.look_at_all();
    watcher.run();
    assert_eq!(taken(&client), 1);
}

#[test]
fn limits_are_followed_a_few_groups_in_a_turn() {
    let host = FakeHost::forever();
    let limits = Limits { quota: 500, ..LIMITS };
    let mut watcher = Watcher::new(FakeKernel::with_groups(300), Box::new(host), limits).expect("AIO");
    // Slot 2 is the root.
    let clients: Vec<_> = (3..=200).map(|slot| (slot, client())).collect();
    for (slot, client) in &clients {
        assert_eq!(wait_for(&mut watcher, *slot, USAGE, "90%", client), Ok(()));
    }
    watcher.run();
    let before = watcher.core.source.limit_reads.get();
    let reads = |watcher: &Fake| watcher.core.source.limit_reads.get() - before;
    watcher.limits_written();
    assert!(watcher.turn());
    assert!((1..=64).contains(&reads(&watcher)), "{}", reads(&watcher));
    // One that is written meanwhile is looked at in another round.
    watcher.limits_written();
    watcher.run();
    assert_eq!(reads(&watcher), clients.len());
    assert!(watcher.due_in().is_some_and(|later| later >= 5));
    // Without a change no thresholds are touched, and none is in a hold-off.
    watcher.wake(true);
    watcher.run();
    assert_eq!((reads(&watcher), watcher.due_in()), (2 * clients.len(), None));
}

#[test]
fn limits_that_take_long_are_followed_fewer_in_a_turn() {
    let mut watcher = watcher();
    watcher.core.limits.quota = 100;
    let clients: Vec<_> = [0, 1].map(|slot| (slot, client())).into();
    for (slot, client) in &clients {
        assert_eq!(wait_for(&mut watcher, *slot, USAGE, "90%", client), Ok(()));
    }
    watcher.run();
    let before = watcher.core.source.limit_reads.get();
    watcher.core.source.limit_takes.set(Duration::from_millis(1));
    watcher.limits_written();
    for reads in 1..=2 {
        watcher.turn();
        assert_eq!(watcher.core.source.limit_reads.get() - before, reads);
    }
    watcher.run();
    assert_eq!(watcher.core.source.limit_reads.get() - before, 2);
}

#[test]
fn a_doorbell_for_limits_without_registrations_is_answered() {
    let mut watcher = watcher();
    watcher.core.source.limits_rung.set(true);
    watcher.limits_written();
    assert!(watcher.is_idle() && !watcher.core.source.limits_rung.get(), "the next one rings again");
}
