//! Model check: every interleaving of charges and the agent, for small cases.
//! `RUSTFLAGS="--cfg loom" cargo test --release -p monitor-common --lib loom`
//!
//! The words are those of the weakest machine that the code runs on: a read-modify-write
//! acquires and releases, with a fence after it (ours, on the agent's side; the `dmb` that
//! ends the kernel's and BPF's own), a compare-and-exchange that fails orders nothing, and
//! plain loads and stores are relaxed. There is no fence where the code has none. That this
//! finds what the code once had wrong is a test, too: see `cases::before`.
//!
//! What loom does not do: a load never returns a value that is stored after it in its own
//! thread's time (no load buffering), and what is relaxed reads one of a few last stores. So
//! a pass is no proof for arm64, while a failure is one against it.

use loom::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering, fence},
    },
    thread,
};

use crate::protocol::{
    band::{Band, Excursion, OPEN, Verdict, compare},
    crossing::{Direction, Look, Step, Stretches, band_around},
    epoch::Epoch,
    slot::{Slot, SlotState},
    usage::{UNKNOWN, keep},
    word::Word,
};

/// A word of the model.
#[derive(Debug)]
struct Fenced(AtomicU64);

/// A word whose read-modify-writes acquire and release, and no more: Rust's sequentially
/// consistent ones on ARMv8.0, when a plain load follows.
#[derive(Debug)]
struct Unfenced(AtomicU64);

/// A word of the model: what it has beside [`Word`].
trait Modelled: Word + Send + Sync + 'static {
    fn new(value: u64) -> Self;
}

macro_rules! modelled {
    ($name:ident, $after:expr) => {
        impl Modelled for $name {
            fn new(value: u64) -> Self {
                Self(AtomicU64::new(value))
            }
        }

        impl Word for $name {
            fn get(&self) -> u64 {
                self.0.load(Ordering::Relaxed)
            }

            fn set(&self, value: u64) {
                self.0.store(value, Ordering::Relaxed);
            }

            fn xchg(&self, value: u64) -> u64 {
                let held = self.0.swap(value, Ordering::AcqRel);
                $after;
                held
            }

            fn cas(&self, old: u64, new: u64) -> u64 {
                match self.0.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                    Ok(held) => {
                        $after;
                        held
                    }
                    Err(held) => held,
                }
            }

            fn or(&self, bits: u64) -> u64 {
                let held = self.0.fetch_or(bits, Ordering::AcqRel);
                $after;
                held
            }

            fn add(&self, value: u64) {
                self.0.fetch_add(value, Ordering::Relaxed);
            }
        }
    };
}

modelled!(Fenced, fence(Ordering::SeqCst));
modelled!(Unfenced, ());

/// One group: the kernel's counter, its slot, and the ring as a count.
struct Group<W> {
    counter: AtomicU64,
    slot: Slot<W>,
    ring: AtomicU64,
    epoch: W,
}

/// The agent's memory of a group, and the signals that it has given.
struct Agent {
    from: u64,
    signalled: Stretches,
    signals: Vec<(u64, Direction)>,
    /// Whether readings are signalled whatever band they were compared with.
    forgets_versions: bool,
}

impl Agent {
    fn new(from: u64) -> Self {
        Self { from, signalled: Stretches::NONE, signals: Vec::new(), forgets_versions: false }
    }

    fn count(&self, threshold: u64, direction: Direction) -> usize {
        self.signals.iter().filter(|s| **s == (threshold, direction)).count()
    }
}

impl<W: Modelled> Group<W> {
    fn new(usage: u64, thresholds: &[u64]) -> Self {
        let group = Self {
            counter: AtomicU64::new(usage),
            slot: Slot::new(W::new),
            ring: AtomicU64::new(0),
            epoch: W::new(0),
        };
        group.slot.state.set(SlotState::online(0).0);
        group.publish(usage, thresholds);
        group
    }

    fn publish(&self, usage: u64, thresholds: &[u64]) -> Band {
        let below = thresholds.iter().copied().filter(|t| *t <= usage).max();
        let above = thresholds.iter().copied().filter(|t| *t > usage).min();
        let band = band_around(below, above);
        if self.slot.memory().publish(band, 0) {
            Epoch(&self.epoch).end();
        }
        band
    }

    /// The kernel's `atomic_long_add_return` or `sub_return`: a full barrier.
    fn move_counter(&self, pages: i64) {
        fence(Ordering::SeqCst);
        self.counter.fetch_add(pages as u64, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// A plain load inside the kernel.
    fn usage(&self) -> u64 {
        self.counter.load(Ordering::Relaxed)
    }

    /// A charge in a group below this one, whose slot is `child`: it looks at this one
    /// only if it has to.
    fn charge_below(&self, child: &Slot<W>, pages: i64, begin: fn(&Epoch<'_, W>) -> u64) {
        self.move_counter(pages);
        let epoch = Epoch(&self.epoch);
        if epoch.is_unwatched_above(child) {
            return;
        }
        if self.slot.is_awaited() {
            self.look();
            return;
        }
        let begun = begin(&epoch);
        if !self.slot.is_awaited() {
            child.set_unwatched_above(begun, 0);
        }
    }

    /// A program's look at a counter.
    fn look(&self) -> Verdict {
        let band = self.slot.band.get();
        if band == OPEN {
            return Verdict::Quiet;
        }
        // In between usage is kept, a full barrier.
        fence(Ordering::SeqCst);
        compare(band, self.usage(), 0).map_or(Verdict::Quiet, |outside| self.slot.memory().flag(outside))
    }

    /// A charge on some CPU. A failed doorbell (ring full) rings nothing.
    fn charge(&self, pages: i64, ring_is_full: bool) {
        self.move_counter(pages);
        self.ring_for(self.look(), ring_is_full);
    }

    fn ring_for(&self, verdict: Verdict, ring_is_full: bool) {
        if verdict != Verdict::Quiet && !ring_is_full {
            self.ring.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// A charge that meets its own limit: what it added is taken back by an atomic that
    /// orders nothing, and the program adds a barrier, or does not.
    fn fail_to_charge(&self, pages: u64, barrier: bool) {
        self.move_counter(pages as i64);
        self.counter.fetch_sub(pages, Ordering::Relaxed);
        if barrier {
            fence(Ordering::SeqCst);
        }
        self.ring_for(self.look(), false);
    }

    /// The agent's look: the loop of `monitor::watcher`.
    fn drain(&self, agent: &mut Agent, thresholds: &[u64]) {
        loop {
            // `band::take`, of the words that a charge writes: the others would
            // only multiply the interleavings.
            self.slot.pending.xchg(0);
            let (mut seen, mut late) = self.slot.memory().take();
            if agent.forgets_versions {
                (seen, late) = (seen.and(late), Excursion::NONE);
            }
            let now = self.usage();
            let look = Look { step: Step { from: agent.from, seen, now }, late, signalled: agent.signalled };
            for &t in thresholds {
                agent.signals.extend(look.crossings(t).into_iter().flatten().map(|d| (t, d)));
            }
            (agent.from, agent.signalled) = (now, look.to_signal());
            self.slot.next_version();
            let band = self.publish(now, thresholds);
            if !self.slot.memory().leaves(band, self.usage()) {
                return;
            }
        }
    }

    /// Looks once more, if a doorbell was rung.
    fn drain_again(&self, agent: &mut Agent, thresholds: &[u64]) {
        if self.slot.pending.get() != 0 {
            self.drain(agent, thresholds);
        }
    }
}

fn is_above(start: u64, threshold: u64, agent: &Agent) -> bool {
    let ups = agent.count(threshold, Direction::Up) as i64;
    let downs = agent.count(threshold, Direction::Down) as i64;
    i64::from(threshold <= start) + ups - downs == 1
}

/// Checks with so many preemptions, in seconds, what takes hours unbounded. The other cases
/// are exhaustive.
fn bounded(preemptions: usize, check: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(check);
}

mod cases;
mod life;
mod oom;
