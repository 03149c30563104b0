//! The cases, each with every order of steps, and what the model finds of the faults that
//! the code once had.

use super::*;

/// Two CPUs charge while the agent looks. At rest, with every rung doorbell
/// answered, each threshold's signals say where usage is.
#[test]
fn what_holds_at_rest_was_signalled() {
    bounded(2, || {
        const THRESHOLDS: [u64; 2] = [4, 6];
        let group = Arc::new(Group::<Fenced>::new(3, &THRESHOLDS));
        let cpus: Vec<_> = [2i64, 3]
            .into_iter()
            .map(|pages| {
                let group = Arc::clone(&group);
                thread::spawn(move || group.charge(pages, false))
            })
            .collect();
        let mut agent = Agent::new(3);
        // The agent is woken at some moment, perhaps for nothing.
        group.drain(&mut agent, &THRESHOLDS);
        for cpu in cpus {
            cpu.join().unwrap_or_default();
        }
        if group.slot.pending.get() != 0 {
            assert!(group.ring.load(Ordering::Acquire) > 0, "pending without a doorbell");
        }
        group.drain_again(&mut agent, &THRESHOLDS);
        for t in THRESHOLDS {
            assert!(is_above(3, t, &agent), "{t} was crossed and not signalled: {:?}", agent.signals);
        }
    });
}

/// Over a threshold and back while the agent may be anywhere: either both
/// crossings are signalled or the agent saw neither, never one of the two; and no more
/// than there were.
fn spike<W: Modelled>() {
    const THRESHOLDS: [u64; 1] = [4];
    let group = Arc::new(Group::<W>::new(3, &THRESHOLDS));
    let cpu = {
        let group = Arc::clone(&group);
        thread::spawn(move || {
            group.charge(2, false);
            group.charge(-2, false);
        })
    };
    let mut agent = Agent::new(3);
    group.drain(&mut agent, &THRESHOLDS);
    cpu.join().unwrap_or_default();
    group.drain_again(&mut agent, &THRESHOLDS);
    let signals = &agent.signals;
    assert!(!is_above(3, 4, &agent), "usage is below, signals say above: {signals:?}");
    assert!(!signals.is_empty(), "the charge returned with the threshold crossed");
    assert!(agent.count(4, Direction::Up) == 1, "signalled twice: {signals:?}");
}

#[test]
fn a_spike_is_signalled_whole() {
    bounded(4, spike::<Fenced>);
}

/// Two CPUs are over a threshold at once, and both record it, one of them late: after the
/// agent signalled the spike, and its end. Each is signalled once.
#[test]
fn what_two_have_seen_is_signalled_once() {
    bounded(2, || {
        const THRESHOLDS: [u64; 1] = [4];
        let group = Arc::new(Group::<Fenced>::new(3, &THRESHOLDS));
        let cpus: Vec<_> = [[1i64, -1], [1, -1]]
            .into_iter()
            .map(|steps| {
                let group = Arc::clone(&group);
                thread::spawn(move || steps.map(|pages| group.charge(pages, false)))
            })
            .collect();
        let mut agent = Agent::new(3);
        group.drain(&mut agent, &THRESHOLDS);
        group.drain_again(&mut agent, &THRESHOLDS);
        for cpu in cpus {
            cpu.join().expect("the model");
        }
        group.drain_again(&mut agent, &THRESHOLDS);
        group.drain_again(&mut agent, &THRESHOLDS);
        let signals = &agent.signals;
        assert!(!is_above(3, 4, &agent), "{signals:?}");
        assert!(!signals.is_empty(), "both returned with the threshold crossed");
        // There were two spikes at most, one after the other.
        assert!(agent.count(4, Direction::Up) <= 2, "signalled twice: {signals:?}");
    });
}

/// One excursion that two charges have seen, of which one may record it after the agent has
/// signalled all of it: whatever else happens, it is signalled once.
fn late(forgets_versions: bool) {
    const THRESHOLDS: [u64; 1] = [4];
    let group = Arc::new(Group::<Fenced>::new(3, &THRESHOLDS));
    // Up by one that looks late, and down by another, later in the kernel's order.
    group.move_counter(2);
    let late = {
        let group = Arc::clone(&group);
        thread::spawn(move || group.ring_for(group.look(), false))
    };
    let back = {
        let group = Arc::clone(&group);
        thread::spawn(move || {
            group.ring_for(group.look(), false);
            group.charge(-2, false);
        })
    };
    let mut agent = Agent { forgets_versions, ..Agent::new(3) };
    group.drain(&mut agent, &THRESHOLDS);
    group.drain_again(&mut agent, &THRESHOLDS);
    for cpu in [late, back] {
        cpu.join().expect("the model");
    }
    group.drain_again(&mut agent, &THRESHOLDS);
    group.drain_again(&mut agent, &THRESHOLDS);
    let (ups, downs) = (agent.count(4, Direction::Up), agent.count(4, Direction::Down));
    assert!(ups == downs && ups <= 1, "signalled twice: {:?}", agent.signals);
}

#[test]
fn what_is_late_is_signalled_once() {
    bounded(2, || late(false));
}

/// A charge goes below a threshold while another fails at the group's own limit, whose
/// passing value the agent may take for usage.
fn failed_charge(barrier: bool) {
    const THRESHOLDS: [u64; 1] = [4];
    let group = Arc::new(Group::<Fenced>::new(3, &THRESHOLDS));
    let cpu = {
        let group = Arc::clone(&group);
        thread::spawn(move || group.fail_to_charge(2, barrier))
    };
    let mut agent = Agent::new(3);
    group.drain(&mut agent, &THRESHOLDS);
    cpu.join().unwrap_or_default();
    group.drain_again(&mut agent, &THRESHOLDS);
    assert!(!is_above(3, 4, &agent), "usage is below, signals say above: {:?}", agent.signals);
}

#[test]
fn a_failed_charge_leaves_no_passing_value() {
    loom::model(|| failed_charge(true));
}

/// A first threshold is registered while a group below charges, whose slot says that no group
/// above is watched: the charge looks above, or the agent sees it.
fn group_without_watcher(skips_above: bool, begin: fn(&Epoch<'_, Fenced>) -> u64) {
    const THRESHOLDS: [u64; 1] = [5];
    let group = Arc::new(Group::<Fenced>::new(3, &[]));
    let child = Arc::new(Slot::new(Fenced::new));
    if skips_above {
        child.set_unwatched_above(Epoch(&group.epoch).begin(), 0);
    }
    let cpu = {
        let (group, child) = (Arc::clone(&group), Arc::clone(&child));
        thread::spawn(move || {
            group.charge_below(&child, 1, begin);
            group.charge_below(&child, 1, begin);
        })
    };
    let mut agent = Agent::new(3);
    group.drain(&mut agent, &THRESHOLDS);
    cpu.join().unwrap_or_default();
    group.drain_again(&mut agent, &THRESHOLDS);
    assert!(is_above(3, 5, &agent), "not signalled: {:?}", agent.signals);
}

#[test]
fn an_unwatched_path_ends_with_its_epoch() {
    for skips_above in [true, false] {
        bounded(4, move || group_without_watcher(skips_above, |epoch| epoch.begin()));
    }
}

/// Two CPUs change the counter of a group that is followed: at rest the slot says what the
/// counter says, or that it does not know.
fn kept(keep_it: fn(&Group<Fenced>)) {
    let group = Arc::new(Group::<Fenced>::new(3, &[9]));
    let cpus: Vec<_> = [1i64, -2]
        .into_iter()
        .map(|pages| {
            let group = Arc::clone(&group);
            thread::spawn(move || {
                group.move_counter(pages);
                keep_it(&group);
            })
        })
        .collect();
    for cpu in cpus {
        cpu.join().expect("the model");
    }
    let usage = group.slot.usage.get();
    assert!(usage == 2 || usage == UNKNOWN, "kept {usage} of 2");
}

fn keep_usage(group: &Group<Fenced>) {
    keep(&group.slot.usage, || Some(group.usage()), |turns| turns);
}

#[test]
fn what_is_kept_is_exact_at_rest() {
    loom::model(|| kept(keep_usage));
}

/// The agent begins to follow a group that charges: a charge that still sees no band keeps
/// nothing, and then the agent, which keeps usage after publishing, sees the charge.
#[test]
fn what_is_kept_from_the_first_band_on_is_exact() {
    loom::model(|| {
        let group = Arc::new(Group::<Fenced>::new(3, &[]));
        let cpu = {
            let group = Arc::clone(&group);
            thread::spawn(move || {
                for _ in 0..2 {
                    group.move_counter(1);
                    if group.slot.is_awaited() {
                        keep_usage(&group);
                    }
                }
            })
        };
        group.slot.forget_kept();
        group.publish(3, &[9]);
        keep_usage(&group);
        cpu.join().expect("the model");
        let usage = group.slot.kept_usage();
        assert!(usage.is_none_or(|usage| usage == 5), "kept {usage:?} of 5");
    });
}

/// The model finds what was wrong before: an epoch begun by a compare-and-exchange that
/// fails, bands published without a fence, a failed charge without a barrier, readings
/// without versions, usage kept without looking again. Only the last two show on x86-64.
mod before {
    use super::*;

    #[test]
    #[should_panic(expected = "not signalled")]
    fn an_epoch_begun_by_a_failing_exchange() {
        loom::model(|| group_without_watcher(false, |epoch| epoch.0.cas(u64::MAX, u64::MAX).wrapping_add(1)));
    }

    #[test]
    #[should_panic(expected = "signals say above")]
    fn a_band_published_without_a_fence() {
        loom::model(spike::<Unfenced>);
    }

    #[test]
    #[should_panic(expected = "signals say above")]
    fn a_failed_charge_without_a_barrier() {
        loom::model(|| failed_charge(false));
    }

    #[test]
    #[should_panic(expected = "signalled twice")]
    fn readings_without_versions() {
        bounded(2, || late(true));
    }

    #[test]
    #[should_panic(expected = "kept")]
    fn usage_kept_without_looking_again() {
        loom::model(|| {
            kept(|group| {
                group.slot.usage.xchg(group.usage());
            });
        });
    }
}

/// A full ring loses the doorbell, never the state: the sweep finds `pending`.
#[test]
fn a_lost_doorbell_leaves_its_mark() {
    loom::model(|| {
        const THRESHOLDS: [u64; 1] = [4];
        let group = Arc::new(Group::<Fenced>::new(3, &THRESHOLDS));
        let cpu = {
            let group = Arc::clone(&group);
            thread::spawn(move || group.charge(2, true))
        };
        let mut agent = Agent::new(3);
        group.drain(&mut agent, &THRESHOLDS);
        cpu.join().unwrap_or_default();
        group.drain_again(&mut agent, &THRESHOLDS);
        assert!(is_above(3, 4, &agent), "not signalled: {:?}", agent.signals);
    });
}
