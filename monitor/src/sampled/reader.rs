//! The thread that reads: usage when it is due, everything else once a second and whenever the
//! kernel notices a change.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use monitor_common::protocol::{query::Subscriptions, slot::SlotState};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::{
    error::{Error, Result},
    kernel::page_size,
    sampled::{files::GroupFiles, notices::Notices, pace::Pace, shared::Shared},
    source::GroupId,
};

/// Longest time between two readings of everything beside usage.
const EVENTS: Duration = Duration::from_secs(1);
/// Shortest time between two, however much the kernel notices.
const EVENTS_LEAST: Duration = Duration::from_millis(20);
/// Parts of its time that the thread sleeps for one part that it reads.
const REST: u32 = 9;

/// Orders of others for the thread.
struct Orders {
    wake: EventFd,
    /// Slots whose usage is to be read at once.
    soon: Mutex<HashSet<u32>>,
    events: AtomicBool,
    ends: AtomicBool,
}

impl Orders {
    fn wake(&self) {
        let _ = self.wake.write(1);
    }
}

/// The running thread. Drop ends it and waits for that.
pub(super) struct Reader {
    orders: Arc<Orders>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Reader {
    /// Starts the thread that reads.
    pub(super) fn start(shared: Arc<Shared>) -> Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::syscall("eventfd2", errno))?;
        let orders = Arc::new(Orders {
            wake,
            soon: Mutex::default(),
            events: AtomicBool::new(false),
            ends: AtomicBool::new(false),
        });
        let oom_notices = shared.v1_ooms.as_ref().map(|ooms| {
            let ooms = ooms.lock().unwrap_or_else(PoisonError::into_inner);
            ooms.as_fd().try_clone_to_owned().map_err(|error| Error::epoll("notices of OOM", error))
        });
        let oom_notices = oom_notices.transpose()?;
        let mut work = Work {
            shared,
            orders: Arc::clone(&orders),
            notices: Notices::new()?,
            oom_notices,
            groups: HashMap::new(),
            next_events: Instant::now(),
        };
        let thread = thread::Builder::new()
            .name("reader".into())
            .spawn(move || work.run())
            .map_err(|error| Error::start("the thread that reads the groups' files", error))?;
        Ok(Self { orders, thread: Some(thread) })
    }

    /// Has the usage of a slot's group read at once: its band may have changed.
    pub(super) fn look_soon(&self, slot: u32) {
        let mut soon = self.orders.soon.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = soon.is_empty();
        soon.insert(slot);
        if is_first {
            self.orders.wake();
        }
    }

    /// Has everything beside usage read: what is wanted of it has changed.
    pub(super) fn look_at_events(&self) {
        self.orders.events.store(true, Ordering::SeqCst);
        self.orders.wake();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.orders.ends.store(true, Ordering::SeqCst);
        self.orders.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Readings of one group so far.
struct Group {
    generation: u64,
    pace: Pace,
    due: Instant,
}

struct Work {
    shared: Arc<Shared>,
    orders: Arc<Orders>,
    notices: Notices,
    /// Readable once there are OOMs, on v1 only.
    oom_notices: Option<OwnedFd>,
    groups: HashMap<u32, Group>,
    next_events: Instant,
}

impl Work {
    fn run(&mut self) {
        while !self.orders.ends.load(Ordering::SeqCst) {
            let start = Instant::now();
            if self.orders.events.swap(false, Ordering::SeqCst) {
                self.next_events = start;
            }
            if self.next_events <= start {
                self.read_events();
                self.next_events = Instant::now() + EVENTS.max(start.elapsed() * REST);
            }
            let next = self.read_usages();
            // However many groups are near their thresholds, others get the processor.
            let rest = start.elapsed() * REST;
            let until = next.map_or(self.next_events, |next| next.min(self.next_events));
            self.wait(rest, until);
        }
    }

    /// Waits until something is due, or wanted, or noticed; at least for `rest`.
    fn wait(&mut self, rest: Duration, until: Instant) {
        thread::sleep(rest.min(EVENTS));
        let time = until.saturating_duration_since(Instant::now());
        // Rounded up: a wait of less than a millisecond would be none.
        let milliseconds = u16::try_from(time.as_millis() + 1).unwrap_or(u16::MAX);
        let mut waits = vec![
            PollFd::new(self.orders.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.notices.as_fd(), PollFlags::POLLIN),
        ];
        // The descriptor stays as long as the notices do, and the lock is not held while waiting.
        let ooms = self.oom_notices.as_ref().map(|ooms| PollFd::new(ooms.as_fd(), PollFlags::POLLIN));
        waits.extend(ooms);
        // EINTR is as good as a time that is over.
        let _ = poll(&mut waits, PollTimeout::from(milliseconds));
        let is_ready = |wait: &PollFd<'_>| wait.revents().is_some_and(|events| !events.is_empty());
        let has_oom = waits.get(2).is_some_and(is_ready);
        drop(waits);
        let _ = self.orders.wake.read();
        if self.notices.take() || has_oom {
            let soon = Instant::now() + EVENTS_LEAST;
            self.next_events = self.next_events.min(soon);
        }
        let soon = std::mem::take(&mut *self.orders.soon.lock().unwrap_or_else(PoisonError::into_inner));
        let now = Instant::now();
        for slot in soon {
            match self.groups.get_mut(&slot) {
                Some(group) => group.due = now,
                // It has not been read before: it is met with the events.
                None => self.next_events = now,
            }
        }
    }

    /// Reads everything beside usage, of all groups that have slots.
    fn read_events(&mut self) {
        let shared = Arc::clone(&self.shared);
        let tracked: HashMap<u32, Arc<GroupFiles>> = shared.table.tracked().into_iter().collect();
        for slot in self.notices.watched() {
            if slot != shared.table.root().slot && !tracked.contains_key(&slot) {
                self.forget(slot);
                self.groups.remove(&slot);
            }
        }
        if let Ok(root) = shared.table.directories().open(shared.table.directories().root_id()) {
            self.notices.watch(shared.table.root().slot, &root);
        }
        let mut in_order: Vec<_> = tracked.iter().collect();
        // Parents first: their notices of OOM come before those of the groups below.
        in_order.sort_by_key(|(index, _)| shared.table.above(**index).count());
        for (index, files) in in_order {
            let Some(slot) = shared.table.slot(*index) else { continue };
            let state = slot.state();
            let id = GroupId { slot: *index, generation: state.generation() };
            if files.is_gone() {
                shared.depart(id);
                continue;
            }
            let now = Instant::now();
            let is_known = self.groups.get(index).is_some_and(|group| group.generation == id.generation);
            if !is_known {
                self.forget(*index);
                let pace = Pace::new(now, bytes(files.usage().unwrap_or(0)));
                let group = Group { generation: id.generation, pace, due: now };
                self.groups.insert(*index, group);
            }
            self.notices.watch(*index, files.directory());
            let wanted = shared.wanted.load(Ordering::SeqCst);
            if wanted & Subscriptions::OOM != 0 {
                shared.see_ooms(*index, slot, files);
            }
            if wanted & Subscriptions::LIMITS != 0 {
                shared.see_limit(files);
            }
            if wanted & Subscriptions::EMPTY != 0 && state.has(SlotState::WATCHED) {
                shared.see_populated(*index, slot, files);
            }
        }
        shared.table.shed_where_crowded();
    }

    fn forget(&mut self, slot: u32) {
        self.notices.forget(slot);
        if let Some(ooms) = &self.shared.v1_ooms {
            ooms.lock().unwrap_or_else(PoisonError::into_inner).forget(slot);
        }
    }

    /// Reads the usage of those groups for which it is due; when the next is.
    fn read_usages(&mut self) -> Option<Instant> {
        let shared = Arc::clone(&self.shared);
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for (index, group) in &mut self.groups {
            let Some(slot) = shared.table.slot(*index).filter(|slot| slot.is_awaited()) else { continue };
            if group.due <= now {
                let Some(files) = shared.table.files(*index) else { continue };
                let Some((usage, distance)) = shared.see_usage(*index, slot, &files) else {
                    shared.depart(GroupId { slot: *index, generation: group.generation });
                    continue;
                };
                let read = Instant::now();
                group.due = read + group.pace.next(read, bytes(usage), bytes(distance));
            }
            next = Some(next.map_or(group.due, |next| next.min(group.due)));
        }
        next
    }
}

fn bytes(pages: u64) -> u64 {
    pages.saturating_mul(page_size())
}
