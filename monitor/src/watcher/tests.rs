//! The watcher on a kernel of the tests' own: no root, no programs.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fs,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use monitor_common::{
    band::observe,
    slot::{Slot, State, Tally},
};
use nix::{
    errno::Errno,
    sys::eventfd::{EfdFlags, EventFd as Client},
};

use super::{Cause, Watcher};
use crate::{
    Error,
    error::Result,
    eventfd::EventFd,
    source::{FileId, GroupId, Located, Source},
    table::SharedSlot,
};

/// Slots with counters that tests move.
#[derive(Debug)]
struct FakeKernel {
    slots: Vec<SharedSlot>,
    counters: Vec<Cell<Option<u64>>>,
    references: RefCell<HashMap<FileId, u64>>,
    recycled: Vec<u32>,
    room_for_files: usize,
    broken: Cell<bool>,
    restless: Cell<bool>,
}

impl FakeKernel {
    fn new() -> Self {
        let word = || 0.into();
        let slot = || Slot {
            usage: word(),
            peak: word(),
            band: word(),
            parent: word(),
            counter: word(),
            state: word(),
            cgroup_id: word(),
            reserved: word(),
            max_seen: word(),
            min_seen: word(),
            pending: word(),
            spare: Default::default(),
        };
        let slots: Vec<SharedSlot> = (0..2).map(|_| slot()).collect();
        for slot in &slots {
            slot.recycle();
            slot.mark(State::ONLINE);
        }
        Self {
            slots,
            counters: vec![Cell::new(Some(0)), Cell::new(Some(0))],
            references: RefCell::default(),
            recycled: Vec::new(),
            room_for_files: 8,
            broken: Cell::new(false),
            restless: Cell::new(false),
        }
    }

    fn group(&self, slot: u32) -> GroupId {
        GroupId { slot, generation: self.slots[slot as usize].state().generation() }
    }

    /// A charge: the counter moves, then the hook looks.
    fn charge(&self, slot: usize, usage: u64) {
        self.counters[slot].set(Some(usage));
        observe(&self.slots[slot], usage, 0);
    }
}

impl Source for FakeKernel {
    fn slot(&self, index: u32) -> Option<&SharedSlot> {
        self.slots.get(index as usize)
    }

    fn locate(&self, _: BorrowedFd<'_>) -> Result<Located> {
        Ok(Located::Group(self.group(0)))
    }

    fn usage(&self, group: GroupId) -> Result<Option<u64>> {
        if self.broken.get() {
            return Err(Error::Host("broken on purpose".into()));
        }
        let counter = &self.counters[group.slot as usize];
        let usage = counter.get();
        if self.restless.get() {
            counter.set(usage.map(|usage| if usage < 10 { 12 } else { 3 }));
        }
        Ok(usage)
    }

    fn file_of(&self, fd: BorrowedFd<'_>) -> Result<FileId> {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap_or_default();
        let id = text.lines().find_map(|line| line.strip_prefix("eventfd-id:")?.trim().parse().ok());
        id.map(FileId).ok_or_else(|| Error::Host("no eventfd-id".into()))
    }

    fn file_refs(&self, file: FileId) -> Result<u64> {
        Ok(self.references.borrow().get(&file).copied().unwrap_or(2))
    }

    fn follow_file(&mut self, _: FileId) -> Result<()> {
        if self.room_for_files == 0 {
            return Err(Error::Host("full".into()));
        }
        self.room_for_files -= 1;
        Ok(())
    }

    fn unfollow_file(&mut self, _: FileId) {
        self.room_for_files += 1;
    }

    fn recycle(&mut self, slot: u32) {
        self.recycled.push(slot);
        self.slots[slot as usize].recycle();
    }

    fn tally(&self, _: Tally) -> u64 {
        0
    }

    fn skipped(&self) -> u64 {
        0
    }

    fn band_shift(&self) -> u32 {
        0
    }
}

fn client() -> Client {
    Client::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd can be made")
}

fn adopted(client: &Client) -> EventFd {
    EventFd::adopt(nix::unistd::dup(client).expect("dup")).expect("it is an eventfd")
}

fn taken(client: &Client) -> u64 {
    client.read().unwrap_or(0)
}

fn watched(thresholds: &[u64]) -> (Watcher<FakeKernel>, Client) {
    let mut watcher = Watcher::new(FakeKernel::new());
    let client = client();
    let group = watcher.source.group(0);
    for threshold in thresholds {
        assert_eq!(watcher.register(group, *threshold, adopted(&client), None), Ok(()));
    }
    (watcher, client)
}

#[test]
fn a_crossing_is_signalled_once_each_way() {
    let (mut watcher, client) = watched(&[10, 20, 20]);
    assert_eq!(taken(&client), 0);
    watcher.source.charge(0, 25);
    watcher.look(0);
    assert!(!watcher.is_due());
    assert_eq!(taken(&client), 3);
    watcher.source.charge(0, 5);
    watcher.look(0);
    assert_eq!(taken(&client), 3);
    watcher.source.charge(0, 9);
    watcher.look(0);
    assert_eq!(taken(&client), 0);
}

#[test]
fn what_was_seen_is_not_lost_to_an_error() {
    let (mut watcher, client) = watched(&[10]);
    watcher.source.charge(0, 12);
    watcher.source.charge(0, 3);
    watcher.source.broken.set(true);
    watcher.look(0);
    assert_eq!(taken(&client), 0);
    watcher.source.broken.set(false);
    watcher.sweep();
    assert_eq!(taken(&client), 2);
}

#[test]
fn a_group_that_never_rests_is_looked_at_again() {
    let (mut watcher, client) = watched(&[10]);
    // Each reading lies on the other side: the band is always behind.
    watcher.source.restless.set(true);
    watcher.source.charge(0, 12);
    watcher.look(0);
    assert!(watcher.is_due());
    watcher.source.restless.set(false);
    watcher.source.counters[0].set(Some(12));
    taken(&client);
    let above_before = watcher.registry().group(0).is_some_and(|group| group.usage() >= 10);
    watcher.look_again();
    assert!(!watcher.is_due());
    assert_eq!(taken(&client), u64::from(!above_before));
}

#[test]
fn removal_signals_and_the_slot_comes_back_once() {
    let (mut watcher, client) = watched(&[10, 20]);
    watcher.source.slots[0].mark(State::OFFLINE);
    watcher.source.slots[0].mark(State::FREED);
    watcher.source.counters[0].set(None);
    watcher.look(0);
    watcher.look(0);
    assert_eq!(taken(&client), 2);
    assert_eq!(watcher.source.recycled, [0]);
    assert!(watcher.registry().is_empty());
    assert_eq!(watcher.source.room_for_files, 8);
    let stale = GroupId { slot: 0, generation: 0 };
    assert_eq!(watcher.register(stale, 1, adopted(&client), None), Err(Errno::EINVAL));
}

#[test]
fn the_last_close_ends_it_and_frees_the_group() {
    let (mut watcher, client) = watched(&[10]);
    let file = watcher.source.file_of(client.as_fd()).expect("known");
    assert!(watcher.file_closed(file), "two references: one may be on its way");
    watcher.source.references.borrow_mut().insert(file, 1);
    assert!(!watcher.file_closed(file));
    assert!(watcher.registry().is_empty());
    assert!(!watcher.source.slots[0].state().has(State::WATCHED));
    assert!(watcher.source.recycled.is_empty(), "the group lives on");
}

#[test]
fn a_full_table_of_files_refuses_and_leaves_nothing() {
    let (mut watcher, _client) = watched(&[]);
    watcher.source.room_for_files = 0;
    let group = watcher.source.group(0);
    assert_eq!(watcher.register(group, 10, adopted(&client()), None), Err(Errno::ENOMEM));
    assert!(!watcher.source.slots[0].state().has(State::WATCHED));
}

#[test]
fn followers_hear_causes_until_they_leave() {
    let (mut watcher, client) = (Watcher::new(FakeKernel::new()), client());
    let heard = std::rc::Rc::new(RefCell::new(Vec::new()));
    let sink = std::rc::Rc::clone(&heard);
    let follower = Box::new(move |event: &super::Event| {
        sink.borrow_mut().push(event.cause.clone());
        false
    });
    let group = watcher.source.group(0);
    assert_eq!(watcher.register(group, 10, adopted(&client), Some(follower)), Ok(()));
    watcher.source.charge(0, 15);
    watcher.look(0);
    watcher.source.charge(0, 5);
    watcher.look(0);
    assert!(matches!(heard.borrow().as_slice(), [Cause::Crossed { threshold: 10, usage: 15, .. }]));
    assert_eq!(taken(&client), 2);
}
