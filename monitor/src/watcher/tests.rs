//! Tests of the watcher on a kernel of their own: no root, no programs.

mod arrivals;
mod closed;
mod crowd;
mod events;
pub(crate) mod fake;
mod groups;
mod late;
mod recorded;
mod recovery;
mod restart;

use std::{
    os::fd::AsFd as _,
    sync::{Arc, Mutex},
};

use monitor_common::{
    grammar::control_file::{self, ControlFile},
    protocol::{query::Subscriptions, ring::LossKind, word::Word as _},
};
use nix::{
    errno::Errno,
    sys::eventfd::{EfdFlags, EventFd as Client},
};

use super::{Cause, EventSink, Limits, Receipt, ReceivedEventFd, RegistrationRequest, Watcher};
use crate::{
    eventfd::EventFd,
    registry::Account,
    source::{GroupId, Identify as _, Source as _},
};
use fake::{FakeHost, FakeKernel};

const USAGE: ControlFile = ControlFile::Usage;
const LIMITS: Limits = Limits { quota: 5, registrations: 200_000, eventfds: 200_000, holdoff_ms: 0 };

impl Watcher<FakeKernel> {
    /// Runs turns until nothing is left to do.
    fn run(&mut self) {
        while self.turn() {}
    }

    /// Rings a doorbell, and answers it to the end.
    fn look(&mut self, slot: u32) {
        self.ring(slot, 0);
        self.run();
    }

    fn sweep_all(&mut self) {
        self.sweep();
        self.run();
    }

    fn sample(&mut self) {
        for one in self.to_be_sampled() {
            let read = one.read(self.core.host.as_ref()).expect("the host's own").expect("there");
            self.sampled(&read);
        }
        self.run();
    }
}

fn client() -> Client {
    Client::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd can be made")
}

fn adopted(client: &Client) -> EventFd {
    EventFd::known(nix::unistd::dup(client).expect("dup"))
}

fn handed(client: &Client) -> ReceivedEventFd {
    let file = FakeKernel::new().file_of(client.as_fd()).expect("it has an id");
    ReceivedEventFd { eventfd: adopted(client), file }
}

fn taken(client: &Client) -> u64 {
    client.read().unwrap_or(0)
}

pub(crate) fn watcher() -> Watcher<FakeKernel> {
    with_limits(FakeHost::forever(), LIMITS)
}

fn with_limits(host: &'static FakeHost, limits: Limits) -> Watcher<FakeKernel> {
    Watcher::new(FakeKernel::new(), Box::new(host), limits).expect("AIO")
}

fn request(group: GroupId, on: ControlFile, args: &str, client: &Client) -> RegistrationRequest {
    // Pages of one byte: arguments are in pages.
    let trigger = control_file::parse(on, args.as_bytes(), 1).expect("good arguments");
    let eventfd = handed(client);
    RegistrationRequest {
        group,
        on,
        trigger,
        eventfd,
        follower: None,
        account: Account::Privileged,
        sampled: None,
    }
}

fn wait_for(
    watcher: &mut Watcher<FakeKernel>,
    slot: u32,
    on: ControlFile,
    args: &str,
    client: &Client,
) -> Result<(), Errno> {
    let group = watcher.core.source.group(slot);
    watcher.register(request(group, on, args, client)).map(drop)
}

fn watched(thresholds: &[u64]) -> (Watcher<FakeKernel>, Client) {
    let mut watcher = watcher();
    let client = client();
    for threshold in thresholds {
        assert_eq!(wait_for(&mut watcher, 0, USAGE, &threshold.to_string(), &client), Ok(()));
    }
    (watcher, client)
}

#[test]
fn a_crossing_is_signalled_once_each_way() {
    let (mut watcher, client) = watched(&[10, 20, 20]);
    assert_eq!(taken(&client), 0);
    watcher.core.source.charge(0, 25);
    watcher.look(0);
    assert_eq!(taken(&client), 3);
    watcher.core.source.charge(0, 5);
    watcher.look(0);
    assert_eq!(taken(&client), 3);
    watcher.core.source.charge(0, 9);
    watcher.look(0);
    assert_eq!(taken(&client), 0);
}

#[test]
fn the_agents_own_registrations_work_and_are_not_counted() {
    let mut watcher = watcher();
    watcher.core.limits.quota = 0;
    let (group, client) = (watcher.core.source.group(0), client());
    let own = RegistrationRequest { account: Account::Agent, ..request(group, USAGE, "10", &client) };
    assert!(watcher.register(own).is_ok());
    watcher.core.source.charge(0, 12);
    watcher.look(0);
    assert_eq!((taken(&client), watcher.counts().signals), (1, 0));
    assert_eq!(watcher.registry().held_by(Account::Agent), watcher.registry().len());
}

#[test]
fn only_a_first_band_ends_the_epoch() {
    let (mut watcher, client) = watched(&[10]);
    assert_eq!(watcher.core.source.epochs.get(), 1);
    assert_eq!(wait_for(&mut watcher, 0, USAGE, "20", &client), Ok(()));
    watcher.core.source.charge(0, 15);
    watcher.look(0);
    assert_eq!(watcher.core.source.epochs.get(), 1);
    assert_eq!(wait_for(&mut watcher, 1, USAGE, "20", &client), Ok(()));
    assert_eq!(watcher.core.source.epochs.get(), 2);
}

#[test]
fn what_was_seen_is_not_lost_to_an_error() {
    let (mut watcher, client) = watched(&[10]);
    watcher.core.source.charge(0, 12);
    watcher.core.source.charge(0, 3);
    watcher.core.source.broken.set(true);
    watcher.look(0);
    assert_eq!(taken(&client), 0);
    watcher.core.source.broken.set(false);
    watcher.sweep();
    watcher.run();
    assert_eq!(taken(&client), 2);
}

#[test]
fn a_group_that_never_rests_is_looked_at_again() {
    let (mut watcher, client) = watched(&[10]);
    // Each reading lies on the other side: the band is always behind.
    watcher.core.source.restless.set(true);
    watcher.core.source.charge(0, 12);
    watcher.ring(0, 0);
    for _ in 0..100 {
        assert!(watcher.turn(), "there is more to do");
    }
    watcher.core.source.restless.set(false);
    watcher.core.source.counters[0].set(Some(12));
    watcher.run();
    assert_eq!(taken(&client) % 2, 1, "it began below, and ends above");
}

#[test]
fn removal_signals_and_the_slot_comes_back_once() {
    let (mut watcher, client) = watched(&[10, 20]);
    assert!(watcher.core.source.slots[0].leave(0, 0));
    watcher.core.source.counters[0].set(None);
    watcher.look(0);
    watcher.look(0);
    assert_eq!(taken(&client), 2);
    assert_eq!(watcher.core.source.recycled, [0]);
    assert!(watcher.registry().is_empty());
    let stale = GroupId { slot: 0, generation: 0 };
    assert_eq!(watcher.register(request(stale, USAGE, "1", &client)).err(), Some(Errno::EINVAL));
}

/// Events that a follower received.
type Received = Arc<Mutex<Vec<super::Event>>>;

/// Makes a follower that records its events, and wants more.
fn follower(received: &Received) -> EventSink {
    let sink = Arc::clone(received);
    EventSink::new(move |event: &super::Event| {
        sink.lock().expect("no panic").push(event.clone());
        true
    })
}

#[test]
fn a_follower_receives_the_events_of_its_own_registration_alone() {
    let (mut watcher, client) = (watcher(), client());
    watcher.core.source.slots[1].parent.set(monitor_common::protocol::slot::PARENT_ROOT);
    let [mine, theirs] = [Received::default(), Received::default()];
    // One eventfd: a threshold and OOMs of one group, and the same of another's.
    for (slot, received) in [(0, &mine), (1, &theirs)] {
        let group = watcher.core.source.group(slot);
        for (on, args) in [(USAGE, "10"), (ControlFile::Oom, "")] {
            let request = RegistrationRequest {
                follower: Some(follower(received)),
                ..request(group, on, args, &client)
            };
            assert!(watcher.register(request).is_ok());
        }
    }
    assert_eq!(watcher.core.delivery.followers(), 4);
    watcher.core.source.charge(1, 15);
    watcher.core.source.slots[1].ooms.add(2);
    watcher.look(1);
    watcher.group_kill(1, 4711);
    watcher.run();
    assert_eq!(taken(&client), 3);
    assert!(mine.lock().expect("no panic").is_empty(), "signalled of another's: {:?}", mine.lock());
    let signals = |received: &Received| -> Vec<u64> {
        received.lock().expect("no panic").drain(..).map(|event| event.signals).collect()
    };
    assert_eq!(signals(&theirs), [2, 1, 0], "OOMs, the crossing, and the kill");
    watcher.core.source.counters[1].set(None);
    watcher.look(1);
    assert_eq!(signals(&theirs), [1, 1], "each registration's end");
    assert!(mine.lock().expect("no panic").is_empty());
    assert_eq!(watcher.core.delivery.followers(), 2);
    let file = watcher.core.source.file_of(client.as_fd()).expect("known");
    watcher.core.source.references.borrow_mut().insert(file, 1);
    watcher.end_closed();
    assert!(watcher.core.delivery.followers() == 0);
}

#[test]
fn followers_receive_causes_until_they_leave() {
    let (mut watcher, client) = (watcher(), client());
    let received = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&received);
    let follower = EventSink::new(move |event: &super::Event| {
        sink.lock().expect("whole").push(event.cause.clone());
        false
    });
    let group = watcher.core.source.group(0);
    let request = RegistrationRequest { follower: Some(follower), ..request(group, USAGE, "10", &client) };
    assert!(watcher.register(request).is_ok());
    watcher.core.source.charge(0, 15);
    watcher.look(0);
    watcher.core.source.charge(0, 5);
    watcher.look(0);
    assert!(matches!(
        received.lock().expect("whole").as_slice(),
        [Cause::Crossed { threshold: 10, usage: 15, .. }]
    ));
    assert_eq!(taken(&client), 2);
}

#[test]
fn kills_are_delivered_while_there_are_followers_and_before_the_removal() {
    let (mut watcher, client, received) = (watcher(), client(), Received::default());
    let is_wanted =
        |watcher: &Watcher<FakeKernel>| watcher.core.source.wanted.get() & Subscriptions::VICTIMS != 0;
    assert_eq!(wait_for(&mut watcher, 0, ControlFile::Oom, "", &client), Ok(()));
    assert!(!is_wanted(&watcher));
    let group = watcher.core.source.group(0);
    let request = RegistrationRequest {
        follower: Some(follower(&received)),
        ..request(group, ControlFile::Oom, "", &client)
    };
    assert!(watcher.register(request).is_ok() && is_wanted(&watcher));
    for _ in 0..65 {
        watcher.group_kill(0, 4711);
    }
    watcher.core.source.counters[0].set(None);
    watcher.run();
    let received: Vec<u64> = received.lock().expect("no panic").iter().map(|event| event.signals).collect();
    assert_eq!((received.len(), received.last()), (65, Some(&1)), "64 kills, and the removal last");
    assert_eq!(watcher.core.source.tally(LossKind::VictimsDropped), 1, "one too many at once");
    assert!(!is_wanted(&watcher));
}
