//! Threads that add to eventfds by `write`, and may wait for a moment. They signal a user who
//! makes signalling slow (for example by 100,000 duplicates of an eventfd in an epoll set, which
//! the kernel walks with interrupts off for each signal); and every user while the kernel grants
//! no asynchronous reads.
//!
//! A user's signals are given one after another, by one thread at most, in a tenth of a
//! processor's time at most. Many signals for an eventfd are one `write`. A `write` that waits,
//! for a client that fills its counter just then, is interrupted, and its user has to wait in
//! turn: so no number of such users keeps all threads.

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

/// Most threads at once.
const THREADS: usize = 16;
/// Bytes of stack of each thread, whose calls are shallow.
const STACK: usize = 64 << 10;
/// Time without work after which a thread ends.
const IDLE: Duration = Duration::from_secs(10);
/// Processor time of a signal up to which its user need not pause.
const FREE: Duration = Duration::from_micros(50);
/// Factor of the pause after a longer signal: its user waits for this many times as long.
const PAUSE: u32 = 9;
/// Time after which a `write` that waits for its client is interrupted, or twice that.
const WAIT: Duration = Duration::from_millis(10);
/// Value beyond which a counter counts as full: adding to it could wait for the client.
const FULL: u64 = 1 << 62;

/// Signals that were given, or that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The serial passed to [`Lane::add`].
    pub serial: u64,
    /// The number of signals.
    pub count: u64,
    /// The kernel's error, if there was one.
    pub outcome: Result<(), Errno>,
    /// Processor time of the addition.
    pub cost: Duration,
}

#[derive(Debug)]
enum Job {
    Signal {
        serial: u64,
        eventfd: EventFd,
        count: u64,
    },
    /// Closes an eventfd: for the last reference the kernel may walk as much as for a signal.
    Close(EventFd),
}

#[derive(Debug, Default)]
struct Users {
    /// Jobs of the users that have some, or a thread at work on one.
    jobs: HashMap<Account, VecDeque<Job>>,
    /// Users with jobs and no thread at work, by the time at which they may go on.
    ready: BTreeSet<(Instant, Account)>,
    done: Vec<Done>,
    /// Number of each user's eventfds that are yet to be closed.
    closing: HashMap<Account, u64>,
    all_closing: u64,
    threads: usize,
    idle: usize,
    /// Whether the last attempt to start a thread failed.
    is_short: bool,
    /// Threads in a `write`, each with its start.
    writing: HashMap<Thread, Instant>,
    guard: Guard,
}

/// The thread that interrupts the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Guard {
    #[default]
    None,
    /// Sleeps until a thread writes.
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
    /// Wakes the guard: a thread writes.
    writes: Condvar,
    /// Notified when a job is done.
    finished: Arc<Notify>,
}

/// The threads, from the side of the thread that signals.
#[derive(Debug)]
pub struct Lane(Arc<LaneState>);

impl Lane {
    /// Starts no thread yet: each is started when it is needed, with the rights of the thread
    /// that needs it. `finished` is notified when a job is done.
    #[must_use]
    pub fn new(finished: Arc<Notify>) -> Self {
        let (work, writes) = (Condvar::new(), Condvar::new());
        Self(Arc::new(LaneState { users: Mutex::default(), work, writes, finished }))
    }

    /// Adds `count` to a user's `eventfd` later; [`Lane::done`] reports it.
    pub fn add(&self, user: Account, serial: u64, eventfd: &EventFd, count: u64) {
        self.push(user, Job::Signal { serial, eventfd: eventfd.clone(), count });
    }

    /// Closes a user's eventfd later.
    pub fn close(&self, user: Account, eventfd: EventFd) {
        self.push(user, Job::Close(eventfd));
    }

    /// The numbers of eventfds yet to be closed: the user's, and all.
    #[must_use]
    pub fn closing(&self, user: Account) -> (u64, u64) {
        let users = self.0.users();
        (users.closing.get(&user).copied().unwrap_or(0), users.all_closing)
    }

    /// The signals that were given or failed since the last call.
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

    /// Starts a thread where one was needed and could not be started.
    pub fn try_again(&self) {
        self.have_threads(&mut self.0.users());
    }

    fn have_threads(&self, users: &mut Users) {
        // An idle thread may have been woken for another user already.
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
                    log::error!(
                        "cannot start a thread for slow signals (clone): {error}; trying again with the next signal"
                    );
                }
                users.is_short = true;
            }
        }
    }

    /// Starts the guard, before any thread writes.
    fn have_guard(&self, users: &mut Users) -> io::Result<()> {
        if users.guard == Guard::None {
            // The process has no other handler for this signal.
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
        // No change under the lock can be left half done.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Interrupts threads whose `write` waits. `O_NONBLOCK` would change the client's descriptor,
    /// too, and a write to an eventfd takes no `RWF_NOWAIT` (`eventfd_fops` has no `write_iter`).
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
            // The call that may wait; a last reference is dropped here, too.
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
                self.finished.notify_one();
            }
            let pause = if burden > FREE { burden * PAUSE } else { Duration::ZERO };
            if pause.is_zero() && users.jobs.get(&user).is_some_and(VecDeque::is_empty) {
                users.jobs.remove(&user);
            } else {
                // A pause is kept even without further jobs.
                users.ready.insert((Instant::now() + pause, user));
            }
        }
    }
}

/// Adds to the counter as `count` signals would. Where the client fills it meanwhile, waits
/// until it is interrupted: `EINTR`.
fn add(eventfd: &EventFd, count: u64) -> Result<(), Errno> {
    // v1's counter stayed at the highest value then, without an error.
    if held(eventfd).is_ok_and(|held| held >= FULL) {
        return Ok(());
    }
    let bytes = count.min(FULL).to_ne_bytes();
    match nix::unistd::write(eventfd, &bytes) {
        Ok(_) | Err(Errno::EAGAIN) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Reads the counter of an eventfd.
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

    /// A full counter is not written to, since no event reports its being read.
    #[test]
    fn a_full_counter_holds_up_no_other_eventfd() {
        let lane = Lane::new(Arc::new(Notify::new()));
        let (full, ours) = pair(EfdFlags::empty());
        full.write(FULL).expect("room");
        lane.add(USER, 1, &ours, 5);
        assert_eq!(wait_for(&lane, 1).outcome, Ok(()));
        assert_eq!(full.read(), Ok(FULL));
    }

    /// A full pipe stands in for the eventfd, for which the client would have to be quick.
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

    /// An idle thread that is woken for one of them may be slow to run.
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

    /// Stands in for a process that may have no more threads.
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
