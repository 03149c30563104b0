//! The thread that samples what no program reports: the root's usage, and the inactive file
//! pages of working sets. Files are read here, where no other thread waits for it, and only
//! as often as it matters: never more than a twentieth of a processor, shared by the payers.

use std::{
    collections::HashMap,
    io,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    backend::Backend,
    kernel::page_size,
    watcher::{Payer, Sampled, SharedWatcher},
};

/// Parts of its time that the thread sleeps for one part that it reads.
const REST: u32 = 19;
/// Longest time between two readings of the root, however far it is from all thresholds.
const MOST: Duration = Duration::from_secs(2);
/// Bytes per second by which a host's memory is filled or freed at most.
const GROWTH: u64 = 4 << 30;
/// Readings that are handed to the watcher at once.
const BATCH: usize = 64;

/// Wakes the thread, which sleeps while there is nothing to read.
pub(super) type Wake = mpsc::SyncSender<()>;

/// The running thread. Drop ends it and waits for that: no [`Wake`] may be left by then.
#[derive(Debug)]
pub(super) struct Sampler {
    wake: Option<Wake>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Sampler {
    /// Starts the thread, with the rights of the calling thread; it reads every `pace` at most.
    ///
    /// # Errors
    /// The kernel has no thread left.
    pub(super) fn start(watcher: SharedWatcher<Box<dyn Backend>>, pace: Duration) -> io::Result<Self> {
        let (wake, woken) = mpsc::sync_channel(1);
        let work = move || {
            let mut paces = Paces::new(pace);
            let mut pause = None;
            loop {
                let next = match pause {
                    Some(pause) => woken.recv_timeout(pause),
                    None => woken.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                };
                if next == Err(mpsc::RecvTimeoutError::Disconnected) {
                    return;
                }
                pause = sample(&watcher, &mut paces);
            }
        };
        let thread = thread::Builder::new().name("sampler".into()).spawn(work)?;
        Ok(Self { wake: Some(wake), thread: Some(thread) })
    }

    /// The sender that wakes the thread.
    pub(super) fn wake(&self) -> Option<Wake> {
        self.wake.clone()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        drop(self.wake.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads what is due, and returns when to read again, if there is anything.
fn sample(watcher: &SharedWatcher<Box<dyn Backend>>, paces: &mut Paces) -> Option<Duration> {
    let (all, host, distance) = {
        let watcher = watcher.lock();
        (watcher.to_be_sampled(), watcher.shared_host(), watcher.root_distance())
    };
    if all.is_empty() {
        return None;
    }
    let due = paces.due(all, Instant::now());
    for (payer, some) in due {
        let start = Instant::now();
        for batch in some.chunks(BATCH) {
            let read: Vec<Sampled> = batch
                .iter()
                .filter_map(|one| {
                    one.read(host.as_ref())
                        .inspect_err(|error| log::warn!("a sample is missing: {error}"))
                        .ok()
                        .flatten()
                })
                .collect();
            let mut watcher = watcher.lock();
            read.iter().for_each(|one| watcher.sampled(one));
        }
        paces.spent(payer, start.elapsed(), distance);
    }
    Some(paces.pause(Instant::now()))
}

/// The payer of readings; `None` for the root's, which are for all.
type Whose = Option<Payer>;

/// When each payer's readings are due next.
#[derive(Debug)]
struct Paces {
    pace: Duration,
    next: HashMap<Whose, Instant>,
}

impl Paces {
    fn new(pace: Duration) -> Self {
        Self { pace, next: HashMap::new() }
    }

    /// The readings that are due, by payer.
    fn due(&mut self, all: Vec<Sampled>, now: Instant) -> HashMap<Whose, Vec<Sampled>> {
        let mut due: HashMap<Whose, Vec<Sampled>> = HashMap::new();
        for one in all {
            due.entry((!one.is_root).then_some(one.payer)).or_default().push(one);
        }
        self.next.retain(|payer, _| due.contains_key(payer));
        for payer in due.keys() {
            self.next.entry(*payer).or_insert(now);
        }
        due.retain(|payer, _| self.next.get(payer).is_some_and(|next| *next <= now));
        due
    }

    /// Notes that a payer's readings took `time`: the more of them there are, the longer each
    /// waits. `distance`: pages by which the root is from its nearest threshold.
    fn spent(&mut self, payer: Whose, time: Duration, distance: Option<u64>) {
        let payers = u32::try_from(self.next.len()).unwrap_or(u32::MAX).max(1);
        let mut pause = self.pace.max(time.saturating_mul(REST).saturating_mul(payers));
        if payer.is_none() {
            pause = pause.max(far(distance.unwrap_or(0)).min(MOST));
        }
        self.next.insert(payer, Instant::now() + pause);
    }

    fn pause(&self, now: Instant) -> Duration {
        let next = self.next.values().min().map_or(self.pace, |next| next.saturating_duration_since(now));
        // New registrations are found within `pace`.
        next.min(self.pace)
    }
}

/// The shortest time in which the root's usage can change by so many pages.
fn far(pages: u64) -> Duration {
    Duration::from_millis(pages.saturating_mul(page_size()).saturating_mul(1000) / GROWTH)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use monitor_common::grammar::control_file::ControlFile;

    use super::{MOST, Paces, Payer, Sampled};
    use crate::{kernel::page_size, registry::Account, source::GroupId};

    const PACE: Duration = Duration::from_millis(100);

    fn of(owner: u32, is_root: bool) -> Sampled {
        let group = GroupId { slot: owner, generation: 1 };
        Sampled {
            group,
            cgroup_id: 1,
            on: ControlFile::WorkingSet,
            is_root,
            payer: Payer::Account(Account::User(owner)),
            read: 0,
        }
    }

    #[test]
    fn a_costly_account_waits_and_others_do_not() {
        let (mut paces, now) = (Paces::new(PACE), Instant::now());
        assert_eq!(paces.due(vec![of(1, false), of(2, false)], now).len(), 2);
        paces.spent(Some(Payer::Account(Account::User(1))), Duration::from_millis(50), None);
        paces.spent(Some(Payer::Account(Account::User(2))), Duration::from_micros(10), None);
        let later = Instant::now() + PACE;
        let due = paces.due(vec![of(1, false), of(2, false)], later);
        assert_eq!(due.into_keys().collect::<Vec<_>>(), [Some(Payer::Account(Account::User(2)))]);
    }

    #[test]
    fn far_from_its_thresholds_the_root_is_read_seldom() {
        let gib = (1 << 30) / page_size();
        for (distance, at_least, at_most) in
            [(1, PACE, PACE), (gib, PACE * 2, PACE * 3), (u64::MAX, MOST, MOST)]
        {
            let mut paces = Paces::new(PACE);
            let now = Instant::now();
            assert_eq!(paces.due(vec![of(0, true)], now).len(), 1);
            paces.spent(None, Duration::ZERO, Some(distance));
            let pause = paces.next[&None] - now;
            assert!(pause >= at_least && pause < at_most + PACE, "{distance} pages: {pause:?}");
            assert!(paces.pause(now) <= PACE, "a new registration is found");
        }
    }
}
