//! The thread that signals: from the ring to the eventfds, apart from the requests of
//! clients, operators and scrapers. It takes records out of the ring, which only queue
//! work, and does the work and the sweeps in the watcher's bounded turns.

use std::{io, os::fd::OwnedFd, thread, time::Duration};

use monitor_common::protocol::ring::Doorbell;
use tokio::{
    io::unix::AsyncFd,
    runtime::{Builder, Runtime},
    sync::oneshot,
    time::{Instant, sleep_until},
};

use crate::{
    agent::sampler::Wake,
    async_fd::wait_on,
    backend::Backend,
    error::{Error, Result},
    malloc::Trim,
    source::{DoorbellQueue, RingRecord},
    watcher::{SharedWatcher, Watcher},
};

/// The thread's own runtime, made before rights are given up, since it needs an epoll
/// descriptor.
#[derive(Debug)]
pub(super) struct RuntimeGuard(Option<Runtime>);

impl RuntimeGuard {
    pub(super) fn new() -> Result<Self> {
        let made = Builder::new_current_thread().enable_io().enable_time().build();
        made.map(|runtime| Self(Some(runtime)))
            .map_err(|error| Error::start("the runtime of the thread that signals", error))
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.0.as_ref().map(|runtime| runtime.block_on(work))
    }

    /// Readiness of the ring, by this runtime.
    fn watch(&self, ring: &dyn DoorbellQueue) -> io::Result<AsyncFd<OwnedFd>> {
        let _entered = self.0.as_ref().map(Runtime::enter);
        ring.as_fd().try_clone_to_owned().and_then(wait_on)
    }
}

impl Drop for RuntimeGuard {
    fn drop(&mut self) {
        // A failed start drops it among the frontends' tasks, which may not block.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// The running thread. Drop ends it and waits for that.
#[derive(Debug)]
pub(super) struct Signals {
    stop: Option<oneshot::Sender<()>>,
    outcome: oneshot::Receiver<Result<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Signals {
    /// Starts the thread, with the rights of the calling thread; `sweep` is the time between
    /// two sweeps for lost records.
    ///
    /// # Errors
    /// The kernel has no thread or no descriptor left.
    pub(super) fn start(
        runtime: RuntimeGuard,
        ring: Box<dyn DoorbellQueue>,
        watcher: SharedWatcher<Box<dyn Backend>>,
        sweep: Duration,
        sampler: Option<Wake>,
    ) -> io::Result<Self> {
        let ((stop, stopped), (sender, outcome)) = (oneshot::channel(), oneshot::channel());
        // Here, not in the thread: an agent that says it is ready holds all its descriptors.
        let readiness = runtime.watch(&*ring)?;
        let work = async move {
            tokio::select! {
                outcome = answer_doorbells(ring, readiness, watcher, sweep, sampler) => outcome,
                _ = stopped => Ok(()),
            }
        };
        let thread = thread::Builder::new().name("signals".into()).spawn(move || {
            // Without a receiver the agent is ending.
            runtime.run(work).map(|outcome| sender.send(outcome));
        })?;
        Ok(Self { stop: Some(stop), outcome, thread: Some(thread) })
    }

    /// Waits for the thread to end by itself, which it does only after an error.
    pub(super) async fn ended(&mut self) -> Result<()> {
        let panicked = || Error::Panicked { thread: "the thread that signals" };
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

/// Records that are taken out of the ring between two turns. Each only queues work.
const RECORDS: usize = 256;

struct Loop {
    shared: SharedWatcher<Box<dyn Backend>>,
    next_sweep: Instant,
    pace: Duration,
    trim: Trim,
    sampler: Option<Wake>,
}

async fn answer_doorbells(
    mut ring: Box<dyn DoorbellQueue>,
    readiness: AsyncFd<OwnedFd>,
    shared: SharedWatcher<Box<dyn Backend>>,
    pace: Duration,
    sampler: Option<Wake>,
) -> Result<()> {
    let failed = |error| Error::epoll("the ring buffer", error);
    let work = shared.lock().work();
    let now = Instant::now();
    let trim = Trim::default();
    let mut this = Loop { shared, next_sweep: now + pace, pace, trim, sampler };
    loop {
        if this.once(&mut *ring) {
            // Others that wait for the watcher get it in between; and the end is noticed.
            tokio::task::yield_now().await;
            continue;
        }
        let until = this.due();
        tokio::select! {
            ready = readiness.readable() => {
                // Cleared before the records are taken: a later record wakes anew.
                ready.map_err(failed)?.clear_ready();
            }
            () = work.notified() => {}
            () = sleep_until(until.unwrap_or_else(|| Instant::now() + this.pace)), if until.is_some() => {}
        }
    }
}

impl Loop {
    /// Takes records from the ring, up to [`RECORDS`], and does one turn of work; false when
    /// all is done.
    fn once(&mut self, ring: &mut dyn DoorbellQueue) -> bool {
        let watcher = &mut *self.shared.lock();
        let mut taken = 0;
        for record in ring.take(RECORDS) {
            queue(watcher, record);
            taken += 1;
        }
        let now = Instant::now();
        self.trim.now_held(watcher.registry().len());
        watcher.sweep_after_loss();
        let is_more_due = watcher.wake(false);
        if now >= self.next_sweep {
            self.next_sweep = now + self.pace;
            // Without registrations there is nothing to lose.
            if !watcher.registry().is_empty() {
                watcher.sweep();
            }
        }
        let is_busy = watcher.turn() || taken == RECORDS || is_more_due;
        if watcher.samples_anew() {
            // A thread that is awake reads anyhow.
            self.sampler.as_ref().map(|wake| wake.try_send(()));
        }
        is_busy
    }

    /// The next time at which work is due by the clock; none while nothing is registered.
    fn due(&self) -> Option<Instant> {
        let watcher = self.shared.lock();
        let work = watcher.due_in().map(|time| Instant::now() + Duration::from_millis(time));
        let sweep = (!watcher.registry().is_empty()).then_some(self.next_sweep);
        [work, sweep].into_iter().flatten().min()
    }
}

/// Queues the work that a record announces.
fn queue(watcher: &mut Watcher<Box<dyn Backend>>, record: RingRecord) {
    let doorbell = match record {
        RingRecord::Bell(doorbell) => doorbell,
        RingRecord::Victim(victim) => return watcher.victim(&victim),
    };
    let Doorbell { kind, slot, value } = doorbell;
    match kind {
        Doorbell::SLOT => watcher.ring(slot, value),
        Doorbell::READING => {
            watcher.add_reading(slot, value);
            watcher.ring(slot, 0);
        }
        Doorbell::SUM_READING => {
            watcher.add_sum_reading(slot, value);
            watcher.ring(slot, 0);
        }
        Doorbell::LIMITS => watcher.limits_written(),
        Doorbell::MADE => watcher.made(slot),
        Doorbell::GROUP_KILL => watcher.group_kill(slot, value),
        kind => log::error!(
            "a record of unknown kind {kind} in the ring is ignored: programs and agent differ in version"
        ),
    }
}
