//! Tests of deliveries over many turns, while registrations end and others begin.

use monitor_common::{grammar::control_file::ControlFile::Oom, protocol::word::Word as _};
use nix::errno::Errno;

use super::{
    Client, FakeKernel, LIMITS, Limits, RegistrationRequest, USAGE, Watcher, client, fake::FakeHost, request,
    taken,
};
use crate::{registry::Account, watcher::ReceivedEventFd};

const FEW: Account = Account::User(1001);
const OTHER: Account = Account::User(1002);

fn watcher(groups: usize) -> Watcher<FakeKernel> {
    let limits = Limits { quota: 1 << 20, ..LIMITS };
    Watcher::new(FakeKernel::with_groups(groups), Box::new(FakeHost::forever()), limits).expect("AIO")
}

fn wait(watcher: &mut Watcher<FakeKernel>, account: Account, slot: u32, client: &Client) {
    let request =
        RegistrationRequest { account, ..request(watcher.core.source.group(slot), Oom, "", client) };
    assert_eq!(watcher.register(request).map(drop), Ok::<(), Errno>(()));
}

/// Begins an OOM in 3 that is delivered to very many, and runs one piece of that.
fn begin_oom(watcher: &mut Watcher<FakeKernel>, client: &Client) {
    for _ in 0..3000 {
        wait(watcher, FEW, 3, client);
    }
    watcher.run();
    watcher.core.source.slots[3].ooms.add(1);
    watcher.ring(3, 0);
    watcher.turn();
    assert!(!watcher.is_idle());
}

/// The group's removal waits for deliveries above, for as long as they take.
#[test]
fn a_registration_on_a_group_that_is_going_is_refused_at_once() {
    let mut watcher = watcher(8);
    watcher.core.source.slots[4].parent.set(3);
    let [theirs, ours, next] = [client(), client(), client()];
    wait(&mut watcher, OTHER, 4, &ours);
    begin_oom(&mut watcher, &theirs);
    let gone = watcher.core.source.group(4);
    watcher.core.source.slots[4].leave(0, 0);
    watcher.core.source.counters[4].set(None);
    watcher.looks.look_now(&mut watcher.core, 4);
    assert!(watcher.goes_on_with(4), "it waits");
    let late = RegistrationRequest { account: OTHER, ..request(gone, USAGE, "10", &next) };
    assert_eq!(watcher.register(late), Err(Errno::EINVAL));
    // Its last registration ends, and the slot is the next group's, which has nothing to wait
    // for.
    let file = request(gone, Oom, "", &ours).eventfd.file;
    watcher.core.forget_files(&[file]);
    assert_eq!(watcher.core.source.recycled, [4]);
    watcher.core.source.slots[4].mark(monitor_common::protocol::slot::SlotState::ONLINE);
    watcher.core.source.counters[4].set(Some(0));
    wait(&mut watcher, OTHER, 4, &next);
    watcher.run();
    assert_eq!((taken(&theirs), taken(&ours), taken(&next)), (3000, 0, 0));
}

/// The kernel gives the address of an eventfd that was closed to the next one.
#[test]
fn an_eventfd_that_has_anothers_address_is_not_signalled_in_its_place() {
    let mut watcher = watcher(8);
    let [theirs, closed, ours] = [client(), client(), client()];
    wait(&mut watcher, FEW, 3, &closed);
    begin_oom(&mut watcher, &theirs);
    let ReceivedEventFd { file, .. } = request(watcher.core.source.group(3), Oom, "", &closed).eventfd;
    watcher.core.forget_files(&[file]);
    let request = request(watcher.core.source.group(5), USAGE, "10", &ours);
    let eventfd = ReceivedEventFd { file, ..request.eventfd };
    let reused = RegistrationRequest { account: OTHER, eventfd, ..request };
    assert_eq!(watcher.register(reused).map(drop), Ok(()));
    watcher.run();
    assert_eq!((taken(&theirs), taken(&closed), taken(&ours)), (3000, 0, 0));
    watcher.core.source.charge(5, 12);
    watcher.look(5);
    assert_eq!(taken(&ours), 1, "its own event is signalled");
}

#[test]
fn an_oom_not_looked_at_yet_is_not_for_later_registrations() {
    let mut watcher = watcher(8);
    watcher.core.source.slots[4].parent.set(3);
    let [at, below] = [client(), client()];
    wait(&mut watcher, FEW, 3, &at);
    watcher.run();
    watcher.core.source.slots[3].ooms.add(1);
    watcher.ring(3, 0);
    wait(&mut watcher, OTHER, 4, &below);
    watcher.run();
    assert_eq!((taken(&at), taken(&below)), (1, 0));
}

/// Each walk from a group so deep would take many turns.
#[test]
fn an_oom_costs_no_walk_for_each_of_very_many_deep_groups() {
    const DEPTH: usize = 500;
    const LEAVES: usize = 500;
    let mut watcher = watcher(DEPTH + LEAVES + 10);
    watcher.core.source.chain(5);
    let (theirs, near) = (client(), client());
    let bottom = 5 + DEPTH as u64;
    for slot in 0..LEAVES {
        let slot = 6 + DEPTH + slot;
        watcher.core.source.slots[slot].parent.set(bottom);
        wait(&mut watcher, FEW, slot as u32, &theirs);
    }
    let last = (DEPTH + LEAVES + 8) as u32;
    watcher.core.source.slots[last as usize].parent.set(3);
    wait(&mut watcher, OTHER, last, &near);
    watcher.run();
    for (slot, received) in [(3, (0, 1)), (5, (LEAVES as u64, 0))] {
        watcher.core.source.slots[slot].ooms.add(1);
        watcher.ring(slot as u32, 0);
        let turns = (1..).take_while(|_| watcher.turn()).count();
        // In pieces of eight levels, 256 to a turn: 122 where each climbs all the way.
        assert!(turns < 40, "{turns} turns");
        assert_eq!((taken(&theirs), taken(&near)), received, "in {slot}");
    }
}
