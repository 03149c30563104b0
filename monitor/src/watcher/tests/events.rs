//! Tests of events that are no crossing of memory: memory+swap, OOM, pressure, emptiness, sampled
//! quantities, and quotas.

use monitor_common::{
    grammar::control_file::ControlFile::{self, Memsw, Oom, Pressure, Procs, WorkingSet},
    protocol::{band::OPEN, query::Subscriptions, word::Word as _},
};
use nix::errno::Errno;

use crate::registry::{Account, BURST};

use super::{
    Client, FakeHost, FakeKernel, LIMITS, Limits, Receipt, RegistrationRequest, USAGE, Watcher, client,
    request, taken, wait_for, watcher,
};

#[test]
fn memory_and_swap_count_together() {
    let (mut watcher, client) = (watcher(), client());
    assert_eq!(wait_for(&mut watcher, 0, Memsw, "10", &client), Ok(()));
    watcher.core.source.charge(0, 8);
    watcher.look(0);
    assert_eq!(taken(&client), 0);
    watcher.core.source.swap_out(0, 4);
    watcher.look(0);
    assert_eq!(taken(&client), 1);
    watcher.core.source.charge(0, 5);
    watcher.look(0);
    assert_eq!(taken(&client), 1);
    watcher.core.source.references.borrow_mut().clear();
    let file = watcher.registry().files()[0];
    watcher.core.source.references.borrow_mut().insert(file, 1);
    watcher.end_closed();
    watcher.run();
    assert_eq!(watcher.core.source.slots[0].sum_band.get(), OPEN, "no registration, charges do not look");
}

#[test]
fn an_oom_is_signalled_to_the_group_and_all_below() {
    let mut watcher = watcher();
    let (above, at, root) = (client(), client(), client());
    assert_eq!(wait_for(&mut watcher, 0, Oom, "", &above), Ok(()));
    assert_eq!(wait_for(&mut watcher, 1, Oom, "whatever", &at), Ok(()));
    assert_eq!(wait_for(&mut watcher, 2, Oom, "", &root), Ok(()));
    assert_eq!(watcher.core.source.wanted.get(), Subscriptions::OOM);
    watcher.core.source.slots[1].ooms.add(1);
    watcher.look(1);
    assert_eq!((taken(&above), taken(&at), taken(&root)), (0, 1, 0));
    watcher.core.source.slots[0].ooms.add(2);
    watcher.look(0);
    assert_eq!((taken(&above), taken(&at), taken(&root)), (2, 2, 0));
}

#[test]
fn registered_under_oom_is_signalled_at_once() {
    let (mut watcher, client) = (watcher(), client());
    watcher.core.source.under_oom.set(true);
    assert_eq!(wait_for(&mut watcher, 0, Oom, "", &client), Ok(()));
    assert_eq!(taken(&client), 1);
    assert_eq!(wait_for(&mut watcher, 0, USAGE, "10", &client), Ok(()));
    assert_eq!(taken(&client), 0);
}

#[test]
fn windows_go_up_by_their_modes() {
    let mut watcher = watcher();
    let listeners = ["low", "low,hierarchy", "low,local", "critical"].map(|args| {
        let client = client();
        assert_eq!(wait_for(&mut watcher, 0, Pressure, args, &client), Ok(()));
        client
    });
    let root = client();
    assert_eq!(wait_for(&mut watcher, 2, Pressure, "low,hierarchy", &root), Ok(()));
    let received = || (listeners.each_ref().map(taken), taken(&root));
    watcher.core.source.slots[0].windows[1].add(3);
    watcher.look(0);
    assert_eq!(received(), ([3, 3, 3, 0], 3));
    // From below, with no registration there: local is not signalled.
    watcher.core.source.slots[1].windows[2].add(1);
    watcher.look(1);
    assert_eq!(received(), ([1, 1, 0, 1], 1));
    let below = client();
    assert_eq!(wait_for(&mut watcher, 1, Pressure, "low", &below), Ok(()));
    watcher.core.source.slots[1].windows[2].add(1);
    watcher.look(1);
    assert_eq!(received(), ([0, 1, 0, 0], 1));
    assert_eq!(taken(&below), 1);
}

#[test]
fn emptiness_is_signalled_to_the_group_only() {
    let mut watcher = watcher();
    let (at, above) = (client(), client());
    assert_eq!(wait_for(&mut watcher, 1, Procs, "", &at), Ok(()));
    assert_eq!(wait_for(&mut watcher, 0, Procs, "", &above), Ok(()));
    watcher.core.source.slots[1].emptied.add(1);
    watcher.look(1);
    assert_eq!((taken(&at), taken(&above)), (1, 0));
}

#[test]
fn the_root_and_working_sets_are_sampled() {
    let host = FakeHost::forever();
    let mut watcher = Watcher::new(FakeKernel::new(), Box::new(host), LIMITS).expect("AIO");
    assert!(!watcher.samples());
    let (root, set) = (client(), client());
    assert_eq!(wait_for(&mut watcher, 2, USAGE, "50%", &root), Ok(()));
    assert_eq!(wait_for(&mut watcher, 0, WorkingSet, "10", &set), Ok(()));
    assert!(watcher.samples());
    host.usage.set(500);
    watcher.core.source.charge(0, 15);
    host.inactive.set(6);
    watcher.sample();
    assert_eq!((taken(&root), taken(&set)), (1, 0));
    host.inactive.set(5);
    watcher.sample();
    assert_eq!((taken(&root), taken(&set)), (0, 1));

    let anon = client();
    assert_eq!(wait_for(&mut watcher, 0, ControlFile::Anon, "10,up", &anon), Ok(()));
    for (pages, signals) in [(9, 0), (10, 1), (3, 0), (11, 1)] {
        host.unreclaimable.set(pages);
        watcher.sample();
        assert_eq!((taken(&anon), taken(&set)), (signals, 0), "{pages}");
    }
}

#[test]
fn percents_are_of_the_lowest_limit_above() {
    let (mut watcher, client) = (watcher(), client());
    *watcher.core.source.limits.borrow_mut() = vec![100, 200];
    watcher.core.source.charge(1, 85);
    assert_eq!(wait_for(&mut watcher, 1, USAGE, "90%", &client), Ok(()));
    watcher.core.source.limits.borrow_mut()[1] = 90;
    watcher.limits_written();
    watcher.run();
    assert_eq!(taken(&client), 1, "85 of 90");
    watcher.core.source.limits.borrow_mut()[0] = 1000;
    watcher.core.source.limits.borrow_mut()[1] = u64::MAX;
    watcher.limits_written();
    // No second round so soon, unless a look at all is requested.
    watcher.wake(true);
    watcher.run();
    assert_eq!(taken(&client), 1, "85 of 1000");
    watcher.core.source.charge(1, 900);
    watcher.look(1);
    assert_eq!(taken(&client), 1);
}

/// Makes one registration of `account`, on an eventfd that may be another account's.
fn by(watcher: &mut Watcher<FakeKernel>, account: Account, client: &Client) -> Result<Receipt, Errno> {
    let group = watcher.core.source.group(0);
    watcher.register(RegistrationRequest { account, ..request(group, USAGE, "7", client) })
}

#[test]
fn each_account_has_a_quota_whoever_the_eventfd_is_registered_by() {
    const USERS: [Account; 3] = [Account::User(1000), Account::User(0), Account::Group(1000)];
    let (mut watcher, client) = (watcher(), client());
    for turn in 0..5 {
        for account in USERS {
            assert_eq!(watcher.is_near_bound(account), turn >= 3, "{account}");
            assert!(by(&mut watcher, account, &client).is_ok(), "{account}");
        }
    }
    for account in USERS {
        assert_eq!(by(&mut watcher, account, &client), Err(Errno::EDQUOT), "{account}");
        assert_eq!(watcher.registry().held_by(account), 5);
    }
    for _ in 0..20 {
        assert!(by(&mut watcher, Account::Privileged, &client).is_ok());
    }
    assert!(!watcher.is_near_bound(Account::Privileged));
    assert_eq!(watcher.registry().len(), 35);
}

#[test]
fn there_is_a_bound_for_all_together() {
    let (mut watcher, client) = (watcher(), client());
    watcher.core.limits.registrations = 3;
    assert!(by(&mut watcher, Account::Agent, &self::client()).is_ok(), "the agent's own are not counted");
    for user in 1..4 {
        assert!(watcher.has_room(Account::User(user)) && !watcher.is_near_bound(Account::User(user)));
        assert!(by(&mut watcher, Account::User(user), &client).is_ok());
    }
    for account in [Account::User(9), Account::Privileged] {
        assert!(!watcher.has_room(account));
        assert_eq!(by(&mut watcher, account, &client), Err(Errno::ENOMEM));
    }
    assert!(watcher.is_near_bound(Account::User(9)), "it might be privileged");
    assert!(by(&mut watcher, Account::Agent, &self::client()).is_ok());
    // For eventfds, too: one more registration needs no further one.
    (watcher.core.limits.registrations, watcher.core.limits.eventfds) =
        (100, watcher.core.delivery.eventfds() as u64);
    assert_eq!(by(&mut watcher, Account::User(9), &self::client()), Err(Errno::ENOMEM));
    assert!(by(&mut watcher, Account::User(9), &client).is_ok());
}

#[test]
fn registrations_without_a_hook_for_them_are_refused() {
    let (mut watcher, client) = (watcher(), client());
    watcher.core.source.features = crate::kernel::Features::default();
    for (on, args) in [(Oom, ""), (Pressure, "low"), (Procs, "")] {
        assert_eq!(wait_for(&mut watcher, 0, on, args, &client), Err(Errno::EOPNOTSUPP));
    }
    assert_eq!(wait_for(&mut watcher, 0, ControlFile::Usage, "1", &client), Ok(()));
    assert_eq!(watcher.registry().len(), 1);
}

#[test]
fn a_storm_is_signalled_by_its_end() {
    let host = FakeHost::forever();
    let limits = Limits { holdoff_ms: 100, ..LIMITS };
    let mut watcher = Watcher::new(FakeKernel::new(), Box::new(host), limits).expect("AIO");
    let client = client();
    assert_eq!(wait_for(&mut watcher, 0, USAGE, "10", &client), Ok(()));
    for n in 0..BURST + 3 {
        watcher.core.source.charge(0, if n % 2 == 0 { 12 } else { 3 });
        watcher.look(0);
    }
    assert_eq!(taken(&client), BURST);
    assert_eq!(watcher.due_in(), Some(100));
    watcher.wake(false);
    watcher.run();
    assert_eq!(taken(&client), 0);
    host.clock.set(100);
    watcher.wake(false);
    watcher.run();
    assert_eq!((taken(&client), watcher.due_in()), (1, None), "above, at the end");
    watcher.core.source.charge(0, 3);
    watcher.look(0);
    assert_eq!(taken(&client), 1, "the band has it again");
}

#[test]
fn a_hundred_thousand_registrations_are_as_good_as_one() {
    let (mut watcher, client) = (watcher(), client());
    for n in 0..100_000 {
        assert_eq!(wait_for(&mut watcher, 0, USAGE, &(10 + n % 7).to_string(), &client), Ok(()));
    }
    watcher.core.source.charge(0, 10);
    watcher.look(0);
    assert_eq!(taken(&client), 100_000_u64.div_ceil(7), "each of those on the first threshold");
    watcher.core.source.counters[0].set(None);
    watcher.look(0);
    assert_eq!(taken(&client), 100_000, "and one each at the removal");
    assert!(watcher.registry().is_empty());
}
