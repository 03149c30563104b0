//! Threads that add to eventfds by `write`, and may wait for a moment. A user who makes signalling
//! slow (100,000 duplicates of an eventfd in an epoll set, say, which the kernel walks with
//! interrupts off for each signal) is signalled here; and so is everybody while the
//! kernel has no asynchronous reads for us.
//!
//! Each user's are given one after another, by one thread at most, and he has a tenth of a
//! processor at most. Many signals for an eventfd are one `write`. One that waits, for a client
//! that fills its counter just then, is interrupted, and its user has to wait in turn: so no
//! number of such users keeps all threads.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use monitor_sys::signals::{self, Thread};
use nix::{
    errno::Errno,
    time::{ClockId, clock_gettime},
};
use tokio::sync::Notify;

use crate::{eventfd::EventFd, registry::Account};

/// Threads at most.
const THREADS: usize = 16;
/// They call little.
const STACK: usize = 64 << 10;
/// A thread without work ends after this.
const IDLE: Duration = Duration::from_secs(10);
/// A signal that took less is no burden to anybody.
const FREE: Duration = Duration::from_micros(50);
/// After one that took longer, its user waits for this many times as long.
const PAUSE: u32 = 9;
/// A `write` that waits for its client is interrupted after this time, or twice that.
const WAIT: Duration = Duration::from_millis(10);
/// A counter beyond this is as good as full: adding to it could wait for the client.
const FULL: u64 = 1 << 62;

/// Signals that were given, or could not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// As in [`Lane::add`].
    pub serial: u64,
    /// How many.
    pub count: u64,
    /// The kernel's error, where it was one.
    pub outcome: Result<(), Errno>,
    /// Processor time that it took.
    pub cost: Duration,
}

#[derive(Debug)]
enum Job {
    Signal {
        serial: u64,
        eventfd: EventFd,
        count: u64,
    },
    /// The last reference may have as much to walk.
    Close(EventFd),
}

#[derive(Debug, Default)]
struct Users {
    /// Of those who have something to do, or a thread at it.
    jobs: HashMap<Account, VecDeque<Job>>,
    /// Those with something to do and no thread at it, by when they may go on.
    ready: BTreeSet<(Instant, Account)>,
    done: Vec<Done>,
    /// How many of each user's are yet to be closed.
    closing: HashMap<Account, u64>,
    all_closing: u64,
    threads: usize,
    idle: usize,
    /// Whether the last thread that was wanted could not be had.
    is_short: bool,
    /// Threads in a `write`, and since when.
    writing: HashMap<Thread, Instant>,
    guard: Guard,
}

/// The thread that interrupts the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Guard {
    #[default]
    None,
    /// Until somebody writes.
    Rests,
    Watches,
}

impl Users {
    fn closed(&mut self, user: Account) {
        if let Some(count) = self.closing.get_mut(&user) {
            (*count, self.all_closing) = (*count - 1, self.all_closing - 1);
            if *count == 0 {
                self.closing.remove(&user);
            }
        }
    }
}

#[derive(Debug)]
struct LaneState {
    users: Mutex<Users>,
    work: Condvar,
    /// The guard's: somebody writes.
    writes: Condvar,
    /// Told when something is done.
    told: Arc<Notify>,
}

/// The threads, as the one that signals sees them.
#[derive(Debug)]
pub struct Lane(Arc<LaneState>);

impl Lane {
    /// No thread yet: they come as they are needed, with the rights of whoever asks then.
    #[must_use]
    pub fn new(told: Arc<Notify>) -> Self {
        let (work, writes) = (Condvar::new(), Condvar::new());
        Self(Arc::new(LaneState { users: Mutex::default(), work, writes, told }))
    }

    /// Adds `count` to a user's `eventfd` some time; [`Lane::done`] says when.
    pub fn add(&self, user: Account, serial: u64, eventfd: &EventFd, count: u64) {
        self.push(user, Job::Signal { serial, eventfd: eventfd.clone(), count });
    }

    /// Lets go of a user's eventfd some time.
    pub fn close(&self, user: Account, eventfd: EventFd) {
        self.push(user, Job::Close(eventfd));
    }

    /// How many eventfds are yet to be closed: the user's, and all.
    #[must_use]
    pub fn closing(&self, user: Account) -> (u64, u64) {
        let users = self.0.users();
        (users.closing.get(&user).copied().unwrap_or(0), users.all_closing)
    }

    /// What was done since the last time.
    #[must_use]
    pub fn done(&self) -> Vec<Done> {
        std::mem::take(&mut self.0.users().done)
    }

    fn push(&self, user: Account, job: Job) {
        let mut users = self.0.users();
        if matches!(job, Job::Close(_)) {
            *users.closing.entry(user).or_default() += 1;
            users.all_closing += 1;
        }
        let is_first = !users.jobs.contains_key(&user);
        users.jobs.entry(user).or_default().push_back(job);
        if is_first {
            users.ready.insert((Instant::now(), user));
            self.0.work.notify_one();
        }
        self.have_threads(&mut users);
    }

    /// Has another thread come where one could not when it was needed.
    pub fn try_again(&self) {
        self.have_threads(&mut self.0.users());
    }

    fn have_threads(&self, users: &mut Users) {
        // One that is idle may have been woken for somebody else already.
        let now = Instant::now();
        let due = users.ready.iter().take_while(|(when, _)| *when <= now).take(users.idle + 1).count();
        if due <= users.idle || users.threads >= THREADS {
            return;
        }
        let spawned = self.have_guard(users).and_then(|()| self.spawn("slow-signals", LaneState::run));
        match spawned {
            Ok(()) => {
                users.threads += 1;
                users.is_short = false;
            }
            Err(error) => {
                if users.threads == 0 && !users.is_short {
                    log::error!("no thread for slow signals (clone): {error}; trying again with the next");
                }
                users.is_short = true;
            }
        }
    }

    /// Before anybody writes.
    fn have_guard(&self, users: &mut Users) -> io::Result<()> {
        if users.guard == Guard::None {
            // Nobody else has a handler for this signal.
            signals::handle_interrupts()?;
            self.spawn("slow-guard", LaneState::guard)?;
            users.guard = Guard::Watches;
        }
        Ok(())
    }

    fn spawn(&self, name: &str, work: impl FnOnce(&LaneState) + Send + 'static) -> io::Result<()> {
        let shared = Arc::clone(&self.0);
        thread::Builder::new().name(name.into()).stack_size(STACK).spawn(move || work(&shared)).map(drop)
    }
}

impl LaneState {
    fn users(&self) -> MutexGuard<'_, Users> {
        // Nothing in between is half done.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Interrupts those whose `write` waits. `O_NONBLOCK` would be the client's, too, and an
    /// eventfd takes no `RWF_NOWAIT` to write (`eventfd_fops` has no `write_iter`).
    fn guard(&self) {
        let mut users = self.users();
        loop {
            if users.writing.is_empty() {
                users.guard = Guard::Rests;
                let waited = self.writes.wait_timeout(users, IDLE).unwrap_or_else(PoisonError::into_inner);
                users = waited.0;
                if users.guard == Guard::Rests && users.threads == 0 {
                    users.guard = Guard::None;
                    return;
                }
                users.guard = Guard::Watches;
                continue;
            }
            users = self.writes.wait_timeout(users, WAIT).unwrap_or_else(PoisonError::into_inner).0;
            for (thread, _) in users.writing.iter().filter(|(_, since)| since.elapsed() >= WAIT) {
                // A thread that writes has not ended, for it would have to lock first.
                let _ = thread.interrupt();
            }
        }
    }

    fn run(&self) {
        let this = Thread::interruptible();
        let mut users = self.users();
        loop {
            let now = Instant::now();
            let first = users.ready.first().copied();
            let Some((_, user)) = first.filter(|(when, _)| *when <= now) else {
                let time = first.map_or(IDLE, |(when, _)| when - now);
                users.idle += 1;
                let waited = self.work.wait_timeout(users, time).unwrap_or_else(PoisonError::into_inner);
                users = waited.0;
                users.idle -= 1;
                if users.ready.is_empty() && waited.1.timed_out() {
                    users.threads -= 1;
                    return;
                }
                continue;
            };
            users.ready.pop_first();
            let Some(job) = users.jobs.get_mut(&user).and_then(VecDeque::pop_front) else {
                users.jobs.remove(&user);
                continue;
            };
            let begun = Instant::now();
            if matches!(job, Job::Signal { .. }) {
                users.writing.insert(this, begun);
                if users.guard == Guard::Rests {
                    users.guard = Guard::Watches;
                    self.writes.notify_one();
                }
            }
            drop(users);
            let before = busy();
            // Here it may wait; and a last reference goes here, too.
            let given = match job {
                Job::Signal { serial, eventfd, count } => Some((serial, count, add(&eventfd, count))),
                Job::Close(eventfd) => {
                    drop(eventfd);
                    None
                }
            };
            let is_closed = given.is_none();
            let cost = busy().saturating_sub(before);
            let mut burden = cost;
            users = self.users();
            users.writing.remove(&this);
            if is_closed {
                users.closed(user);
            }
            if let Some((serial, count, mut outcome)) = given {
                if outcome == Err(Errno::EINTR) {
                    // A write waits only where the counter is full, as in `add`.
                    outcome = Ok(());
                    burden = begun.elapsed();
                }
                users.done.push(Done { serial, count, outcome, cost });
                self.told.notify_one();
            }
            let pause = if burden > FREE { burden * PAUSE } else { Duration::ZERO };
            if pause.is_zero() && users.jobs.get(&user).is_some_and(VecDeque::is_empty) {
                users.jobs.remove(&user);
            } else {
                // A pause is kept even where there is nothing to do.
                users.ready.insert((Instant::now() + pause, user));
            }
        }
    }
}

/// Adds as `count` signals would. Where the client fills its counter meanwhile, waits to be
/// interrupted: `EINTR`.
fn add(eventfd: &EventFd, count: u64) -> Result<(), Errno> {
    // v1's signals stayed at the highest number, and told nobody.
    if held(eventfd).is_ok_and(|held| held >= FULL) {
        return Ok(());
    }
    let bytes = count.min(FULL).to_ne_bytes();
    match nix::unistd::write(eventfd, &bytes) {
        Ok(_) | Err(Errno::EAGAIN) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// What is in its counter.
fn held(eventfd: &EventFd) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", eventfd.as_fd().as_raw_fd()))?;
    let count = text.lines().find_map(|line| line.strip_prefix("eventfd-count:"));
    count
        .and_then(|count| u64::from_str_radix(count.trim(), 16).ok())
        .ok_or_else(|| io::Error::other("no eventfd-count"))
}

/// Processor time of this thread so far.
pub(super) fn busy() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Into::into)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread, time::Duration};

    use nix::sys::eventfd::{EfdFlags, EventFd as Client};
    use tokio::sync::Notify;

    use super::{Account, Done, FULL, Lane, THREADS};
    use crate::eventfd::EventFd;

    fn pair(flags: EfdFlags) -> (Client, EventFd) {
        let client = Client::from_flags(flags).expect("an eventfd");
        let ours = EventFd::known(nix::unistd::dup(&client).expect("dup"));
        (client, ours)
    }

    fn wait_for(lane: &Lane, serial: u64) -> Done {
        loop {
            if let Some(done) = lane.done().into_iter().find(|done| done.serial == serial) {
                return done;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    const USER: Account = Account::User(1);

    #[test]
    fn many_signals_are_one_addition() {
        let lane = Lane::new(Arc::new(Notify::new()));
        let (client, ours) = pair(EfdFlags::EFD_NONBLOCK);
        lane.add(USER, 7, &ours, 65_536);
        let done = wait_for(&lane, 7);
        assert_eq!((done.count, done.outcome, client.read()), (65_536, Ok(()), Ok(65_536)));
    }

    /// Nothing says when a full one is read: so it is not written to.
    #[test]
    fn a_full_counter_holds_up_nobody() {
        let lane = Lane::new(Arc::new(Notify::new()));
        let (full, ours) = pair(EfdFlags::empty());
        full.write(FULL).expect("room");
        lane.add(USER, 1, &ours, 5);
        assert_eq!(wait_for(&lane, 1).outcome, Ok(()));
        assert_eq!(full.read(), Ok(FULL));
    }

    /// A pipe that is full, since for an eventfd the client would have to be quick.
    #[test]
    fn clients_that_have_a_write_wait_hold_up_themselves() {
        let lane = Lane::new(Arc::new(Notify::new()));
        let mut readers = Vec::new();
        for user in 0..=THREADS {
            let (reader, writer) = nix::unistd::pipe().expect("a pipe");
            nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).expect("a page");
            assert_eq!(nix::unistd::write(&writer, &[0; 4096]), Ok(4096));
            lane.add(Account::User(user as u32), 1, &EventFd::known(writer), 1);
            readers.push(reader);
        }
        let (client, ours) = pair(EfdFlags::EFD_NONBLOCK);
        lane.add(Account::Agent, 2, &ours, 1);
        let mut done = Vec::new();
        while done.len() < THREADS + 2 {
            done.extend(lane.done());
            thread::sleep(Duration::from_millis(1));
        }
        assert!(done.iter().all(|done| done.outcome == Ok(())), "{done:?}");
        assert_eq!(client.read(), Ok(1));
    }

    /// An idle thread that is woken for one of them may be long about it.
    #[test]
    fn two_users_at_once_have_two_threads() {
        let lane = Lane::new(Arc::new(Notify::new()));
        // Slow to wake.
        (lane.0.users().threads, lane.0.users().idle) = (1, 1);
        let pairs = [(); 2].map(|()| pair(EfdFlags::EFD_NONBLOCK));
        for (user, (_, ours)) in (0..2).zip(&pairs) {
            assert_eq!(lane.0.users().threads, 1);
            lane.add(Account::User(user), 1, ours, 1);
        }
        assert_eq!(lane.0.users().threads, 2);
        for (client, _) in &pairs {
            while client.read().is_err() {
                thread::yield_now();
            }
        }
    }

    /// As where a process may have no more of them.
    #[test]
    fn a_thread_that_could_not_be_had_is_tried_again() {
        let lane = Lane::new(Arc::new(Notify::new()));
        let (client, ours) = pair(EfdFlags::EFD_NONBLOCK);
        lane.0.users().threads = THREADS;
        lane.add(USER, 1, &ours, 1);
        lane.0.users().threads = 0;
        lane.add(USER, 2, &ours, 1);
        wait_for(&lane, 2);
        assert_eq!(client.read(), Ok(2));
    }

    #[test]
    fn what_is_yet_to_be_closed_is_counted() {
        let lane = Lane::new(Arc::new(Notify::new()));
        lane.0.users().threads = THREADS;
        for user in [USER, USER, Account::User(2)] {
            lane.close(user, pair(EfdFlags::empty()).1);
        }
        assert_eq!(lane.closing(USER), (2, 3));
        lane.0.users().threads = 0;
        lane.try_again();
        while lane.closing(USER) != (0, 0) {
            thread::yield_now();
        }
    }

    #[test]
    fn what_is_closed_is_closed_after_its_signals() {
        let lane = Lane::new(Arc::new(Notify::new()));
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        lane.close(USER, EventFd::known(ours.into()));
        assert_eq!(std::io::Read::read(&mut &theirs, &mut [0]).expect("the end"), 0);
    }
}
