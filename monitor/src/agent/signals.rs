//! The thread that signals: from the ring to the eventfds, apart from whatever clients,
//! the operator or a scraper ask. What it is called for by the clock, sweeps and samples,
//! is its work, too.

use std::{io, thread, time::Duration};

use monitor_common::ring::Doorbell;
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    error::{Error, Result},
    heap::Trim,
    programs::{Doorbells, Programs, Record},
    ready::wait_on,
    watcher::{Shared, Watcher},
};

/// How often what comes by the clock is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Time between two sweeps for what was lost.
    pub(super) sweep: Duration,
    /// Time between two readings of what can only be sampled.
    pub(super) sample: Duration,
}

/// The thread's own runtime: made before rights are given up, since it needs an epoll
/// descriptor.
#[derive(Debug)]
pub(super) struct Own(Option<Runtime>);

impl Own {
    pub(super) fn new() -> Result<Self> {
        let made = Builder::new_current_thread().enable_io().enable_time().build();
        made.map(|runtime| Self(Some(runtime)))
            .map_err(|error| Error::file("start", "the runtime of the thread that signals", error))
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.0.as_ref().map(|runtime| runtime.block_on(work))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // A start that failed drops it among the doors' tasks, where none may wait.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// The thread, once it runs. Dropped, it is told to end, and waited for.
#[derive(Debug)]
pub(super) struct Signals {
    stop: Option<oneshot::Sender<()>>,
    outcome: oneshot::Receiver<Result<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Signals {
    /// Starts it, with the rights of the thread that calls.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn start(
        runtime: Own,
        ring: Doorbells,
        watcher: Shared<Programs>,
        pace: Pace,
    ) -> io::Result<Self> {
        let ((stop, stopped), (sender, outcome)) = (oneshot::channel(), oneshot::channel());
        let work = async move {
            tokio::select! {
                outcome = answer_doorbells(ring, &watcher, pace) => outcome,
                _ = stopped => Ok(()),
            }
        };
        let thread = thread::Builder::new().name("signals".into()).spawn(move || {
            // Without a receiver the agent is at its end.
            runtime.run(work).map(|outcome| sender.send(outcome));
        })?;
        Ok(Self { stop: Some(stop), outcome, thread: Some(thread) })
    }

    /// Waits for it to end by itself, which it does only for an error.
    pub(super) async fn ended(&mut self) -> Result<()> {
        let panicked = || Error::Host("the thread that signals has panicked; see the log".into());
        (&mut self.outcome).await.unwrap_or_else(|_| Err(panicked()))
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Records that are taken out of the ring before others may use the watcher.
const RECORDS: usize = 256;

async fn answer_doorbells(ring: Doorbells, shared: &Shared<Programs>, pace: Pace) -> Result<()> {
    let mut ring = wait_on(ring).map_err(|error| Error::file("epoll", "the ring buffer", error))?;
    let every = |time| {
        let mut ticks = tokio::time::interval_at(Instant::now() + time, time);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    };
    let (mut sweeps, mut samples) = (every(pace.sweep), every(pace.sample));
    let work = shared.lock().work();
    let mut trim = Trim::default();
    loop {
        let (waiting, due, sampled, rests) = {
            let watcher = shared.lock();
            trim.now_held(watcher.registry().len());
            (!watcher.registry().is_empty(), watcher.is_due(), watcher.samples(), watcher.rests())
        };
        let rested = tokio::time::sleep(Duration::from_millis(rests.unwrap_or(0)));
        tokio::select! {
            ready = ring.readable_mut() => {
                let mut ready = ready.map_err(|error| Error::file("epoll", "the ring buffer", error))?;
                // Cleared first: a doorbell that rings from here on wakes anew.
                ready.clear_ready();
                let ring = ready.get_inner_mut();
                loop {
                    let mut watcher = shared.lock();
                    let mut taken = 0;
                    for record in ring.take(RECORDS) {
                        answer(&mut watcher, record);
                        taken += 1;
                    }
                    if watcher.lost_doorbells() {
                        watcher.sweep();
                    }
                    if taken < RECORDS {
                        break;
                    }
                }
            }
            // Nothing registered: nothing to lose, no wake-ups, until something is.
            _ = sweeps.tick(), if waiting => shared.lock().sweep(),
            _ = samples.tick(), if sampled => shared.lock().sample(),
            () = rested, if rests.is_some() => shared.lock().wake(false),
            () = work.notified() => {}
            () = tokio::task::yield_now(), if due => shared.lock().look_again(),
        }
    }
}
fn answer(watcher: &mut Watcher<Programs>, record: Record) {
    let doorbell = match record {
        Record::Bell(doorbell) => doorbell,
        Record::Victim(victim) => return watcher.victim(&victim),
    };
    let Doorbell { kind, slot, value } = doorbell;
    match kind {
        Doorbell::SLOT => watcher.look_for(slot, value),
        Doorbell::READING => {
            watcher.add_reading(slot, value);
            watcher.look(slot);
        }
        Doorbell::SUM_READING => {
            watcher.add_sum_reading(slot, value);
            watcher.look(slot);
        }
        Doorbell::LIMITS => watcher.follow_limits(),
        Doorbell::GROUP_KILL => watcher.group_kill(slot, value),
        kind => log::error!("a doorbell of unknown kind {kind}"),
    }
}
