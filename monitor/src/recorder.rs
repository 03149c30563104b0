//! The recorder of the black box: which groups have a box, what is kept beside their curves, and
//! the files that are written of them. A thread of its own: nothing that signals waits for it.

mod files;
mod groups;
mod history;
mod kept;
mod need;
mod store;

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, SyncSender},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use self::{groups::Groups, kept::KeptNotes};
pub use self::{kept::taken as notes_taken, store::FileStore};
use crate::{
    backend::Backend,
    boxes::BoxTables,
    cgroup::{Hierarchy, handle::Directories},
    error::Result,
    fd_store::{FdStore, NOTES},
    metrics::Pattern,
    sandbox::{self, Sandbox},
    watcher::{RecorderTap, SharedWatcher, TapReceiver, Tapped},
};

/// Directory of the files, unless another is named.
pub const DIRECTORY: &str = "/var/lib/memcg-monitor/black-box";

/// Events that wait for the thread at most, and kills; further ones are counted.
const WAITING: usize = 4096;
/// Time between two looks at the recorded groups.
const TICK: Duration = Duration::from_secs(1);
/// Time between two samples where no program records, and between two passes where work is left.
const SAMPLE: Duration = Duration::from_millis(100);

/// Settings of the black box, as the operator gave them.
#[derive(Clone, Debug)]
pub struct BlackBoxOptions {
    /// Groups to record, by their paths below the hierarchy's root.
    pub patterns: Vec<Pattern>,
    /// Groups that are recorded at once.
    pub groups: u32,
    /// Directory of the files.
    pub directory: PathBuf,
    /// Files in it at most.
    pub files: usize,
}

/// Groups whose notes are kept in one pass; there are ten in a second.
const KEPT_AT_ONCE: usize = 16;

/// A request at the recorder's thread.
enum Order {
    /// Writes a file of a group now, by the id of its directory.
    Record { cgroup_id: u64, reply: oneshot::Sender<std::result::Result<PathBuf, String>> },
    /// Wakes the thread, which ends.
    Stop,
}

/// The frontends' end of the recorder.
#[derive(Clone)]
pub struct RecorderHandle {
    orders: SyncSender<Order>,
    thread: Thread,
}

impl std::fmt::Debug for RecorderHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecorderHandle").finish_non_exhaustive()
    }
}

impl RecorderHandle {
    /// Requests a file of a group.
    ///
    /// # Errors
    /// The reason why there is none.
    pub async fn record(&self, cgroup_id: u64) -> std::result::Result<PathBuf, String> {
        let (reply, answer) = oneshot::channel();
        if !self.order(Order::Record { cgroup_id, reply }) {
            return Err("the recorder has more requests than it can hold; try again".to_owned());
        }
        answer.await.unwrap_or_else(|_| Err("the agent is ending".to_owned()))
    }

    /// Gives the thread an order; false where too many wait.
    fn order(&self, order: Order) -> bool {
        let is_given = self.orders.try_send(order).is_ok();
        self.thread.unpark();
        is_given
    }
}

/// The running thread. Drop ends it, after the files that are due, and waits for that.
#[derive(Debug)]
pub struct Recorder {
    handle: RecorderHandle,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Recorder {
    /// Starts the thread, which restricts itself before it begins; `needs_bpf`: whether queries to
    /// the programs need that right.
    ///
    /// # Errors
    /// There is no thread, no memory, or no directory for the files.
    pub fn start(
        options: &BlackBoxOptions,
        watcher: &SharedWatcher<Box<dyn Backend>>,
        directories: &Arc<Directories>,
        hierarchy: &Hierarchy,
        (mode, needs_bpf): (Sandbox, bool),
        (fd_store, notes): (Option<FdStore>, Option<OwnedFd>),
    ) -> Result<Self> {
        let store = FileStore::open(&options.directory, options.files)?;
        let (boxes, samples, slots, kind, table) = {
            let watcher = watcher.lock();
            let source = watcher.source();
            let slots = source.root().slot + 1;
            (source.boxes(), source.boxes().is_none(), slots, source.kind(), source.identity())
        };
        let boxes = match boxes {
            Some(boxes) => boxes,
            None => Arc::new(BoxTables::in_memory(slots, options.groups)?),
        };
        if samples {
            log::warn!(
                "the backend {kind} has no programs: the black box samples usage every {} ms, and knows of kills what the kernel logs",
                SAMPLE.as_millis()
            );
        }
        // Without programs the boxes end with the agent, and so do the notes.
        let kept = match fd_store {
            Some(fd_store) if !samples => Some(KeptNotes::open(fd_store, notes, boxes.len())?),
            _ => {
                fd_store.iter().filter(|_| notes.is_some()).for_each(forget_notes);
                None
            }
        };
        let (orders, received) = mpsc::sync_channel(16);
        let stop = Arc::<AtomicBool>::default();
        let patterns = options.patterns.clone();
        let mut groups = Groups::new(
            (watcher.clone(), table),
            Arc::clone(directories),
            hierarchy.clone(),
            boxes,
            (store.clone(), patterns, samples, kept),
        );
        let (done, hierarchy) = (Arc::clone(&stop), hierarchy.root.clone());
        let tapping = watcher.clone();
        let begin = move || {
            let (tap, tapped) = RecorderTap::new(WAITING, thread::current());
            tapping.lock().set_tap(tap);
            sandbox::recorder(mode, &hierarchy, store.directory(), needs_bpf);
            groups.find();
            move || run(&mut groups, &received, &tapped, &done)
        };
        let thread = sandbox::start_thread("recorder", "the thread that records", begin)?;
        let handle = RecorderHandle { orders, thread: thread.thread().clone() };
        Ok(Self { handle, stop, thread: Some(thread) })
    }

    /// Another end for a frontend.
    #[must_use]
    pub fn handle(&self) -> RecorderHandle {
        self.handle.clone()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.handle.order(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's work, until it is stopped: orders wake it, each tick, and what the watcher tells.
fn run(groups: &mut Groups, orders: &mpsc::Receiver<Order>, tapped: &TapReceiver, stop: &AtomicBool) {
    let (mut next, mut unheard) = (Instant::now(), (0, 0));
    while !stop.load(Ordering::Relaxed) {
        let until = groups.due().map_or(next, |due| due.min(next));
        if let Some(Order::Record { cgroup_id, reply }) = wait(groups, orders, tapped, until) {
            take(groups, tapped);
            // Who requested it may have gone.
            let _ = reply.send(groups.record(cgroup_id));
        }
        take(groups, tapped);
        let lost = tapped.lost();
        if lost != unheard {
            let (events, kills) = (lost.0 - unheard.0, lost.1 - unheard.1);
            log::warn!(
                "the recorder missed {events} new groups and signals, and {kills} kills: too many at once"
            );
            unheard = lost;
            groups.find();
        }
        groups.keep_notes(KEPT_AT_ONCE);
        groups.name_new();
        groups.sample();
        groups.write_due(Some(Instant::now()));
        if Instant::now() >= next {
            next = Instant::now() + TICK;
            groups.refresh();
        }
    }
    take(groups, tapped);
    // Also what waits, so that a group has not too many files.
    groups.write_due(None);
    groups.keep_notes(usize::MAX);
}

/// Has the store hold no notes any more, at the end for good or where there is no black box.
pub fn forget_notes(fd_store: &FdStore) {
    let _ = fd_store.forget(NOTES).inspect_err(|error| log::warn!("{error}"));
}

/// Waits for an order until then; for a short time where work is left, else until anything is told.
fn wait(
    groups: &mut Groups,
    orders: &mpsc::Receiver<Order>,
    tapped: &TapReceiver,
    until: Instant,
) -> Option<Order> {
    let left = || until.saturating_duration_since(Instant::now());
    if groups.is_busy() {
        return orders.recv_timeout(left().min(SAMPLE)).ok();
    }
    tapped.set_idle(true);
    // After that: whatever comes from now on unparks the thread.
    let mut order = orders.try_recv().ok();
    if !take(groups, tapped) && order.is_none() {
        thread::park_timeout(left());
        order = orders.try_recv().ok();
    }
    tapped.set_idle(false);
    order
}

/// Takes what the watcher has told; false where that is nothing.
fn take(groups: &mut Groups, tapped: &TapReceiver) -> bool {
    let mut is_any = false;
    for what in tapped.take() {
        is_any = true;
        match what {
            Tapped::Made(slot) => groups.made(slot),
            Tapped::Event { at, event } => groups.heard(at, &event),
        }
    }
    is_any
}
