//! Closes clients' descriptors in threads of its own. A descriptor may lie on a file system
//! whose daemon never answers (FUSE sends it a request at each close), or linger over unsent
//! data: then the thread that closes it waits, and not the agent's loop.
//!
//! An account's descriptors are closed one after another, so an account holds up one thread at
//! most; and no more is taken from an account of which a message's worth waits. What waits of all
//! accounts together is divided among them, as registrations are.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::pin,
    sync::{Arc, Barrier, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use monitor_sys::message::MAX_DESCRIPTORS;
use tokio::sync::Notify;

use crate::{
    frontend::inode::Inode,
    registry::{Account, share},
    sandbox,
};

/// Threads that close. When accounts hold up all of them, others' descriptors wait, too;
/// eventfds and control files are not closed here.
const THREADS: usize = 4;
/// Bytes of stack of each thread, whose calls are shallow.
const STACK: usize = 64 << 10;

/// Descriptors of one account that wait, the one that is being closed among them.
#[derive(Debug, Default)]
struct Waiting {
    waiting: VecDeque<OwnedFd>,
    at_work: bool,
}

#[derive(Debug, Default)]
struct CloseQueues {
    by_id: HashMap<Account, Waiting>,
    /// Descriptors that wait, all accounts' together.
    all: usize,
    /// Accounts with descriptors to close, and no thread at work.
    ready: VecDeque<Account>,
}

#[derive(Debug, Default)]
struct CloseQueue {
    users: Mutex<CloseQueues>,
    work: Condvar,
    room: Notify,
    /// Devices of the file systems that close a file at once.
    quick: OnceLock<Vec<u64>>,
    /// Most descriptors that may wait, all accounts' together; any number where it is not set.
    most: OnceLock<u64>,
}

impl CloseQueues {
    /// Whether less than a message's worth of this account's descriptors waits.
    fn has_room(&self, account: Account) -> bool {
        self.by_id.get(&account).is_none_or(|user| user.waiting.len() < MAX_DESCRIPTORS)
    }
}

impl CloseQueue {
    fn users(&self) -> MutexGuard<'_, CloseQueues> {
        // No change under the lock can be left half done.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this account's descriptors have not their share of the places for all that wait.
    fn is_in_share(&self, users: &CloseQueues, account: Account) -> bool {
        let held = users.by_id.get(&account).map_or(0, |user| user.waiting.len()) as u64;
        let most = self.most.get().copied().unwrap_or(u64::MAX);
        share::has_room_beyond(MAX_DESCRIPTORS as u64, account, held, users.all as u64, most)
    }

    /// Takes the next descriptor to close. That makes room in its account's queue, however long
    /// closing it then takes.
    fn take(&self, users: &mut CloseQueues) -> Option<(Account, OwnedFd)> {
        let id = users.ready.pop_front()?;
        let user = users.by_id.get_mut(&id)?;
        user.at_work = true;
        let fd = user.waiting.pop_front()?;
        users.all -= 1;
        self.room.notify_waiters();
        Some((id, fd))
    }

    fn close_forever(&self) {
        let mut users = self.users();
        loop {
            let Some((id, fd)) = self.take(&mut users) else {
                if users.ready.is_empty() {
                    users = self.work.wait(users).unwrap_or_else(PoisonError::into_inner);
                }
                continue;
            };
            drop(users);
            // The call that may wait.
            drop(fd);
            users = self.users();
            if let Some(user) = users.by_id.get_mut(&id) {
                user.at_work = false;
                if user.waiting.is_empty() {
                    users.by_id.remove(&id);
                } else {
                    users.ready.push_back(id);
                }
            }
        }
    }
}

/// The threads that close, from the frontends' side.
#[derive(Clone, Debug)]
pub struct DeferredClose(Arc<CloseQueue>);

impl DeferredClose {
    /// Starts the threads; they need no rights, and have given them up when this returns: the
    /// later filter for the whole process permits no thread to do that any more.
    ///
    /// # Errors
    /// The error of a thread that could not be started.
    pub fn start(mode: sandbox::Sandbox) -> io::Result<Self> {
        let shared = Arc::<CloseQueue>::default();
        let confined = Arc::new(Barrier::new(THREADS + 1));
        for number in 0..THREADS {
            let (shared, confined) = (Arc::clone(&shared), Arc::clone(&confined));
            let work = move || {
                sandbox::deferred_close(mode);
                confined.wait();
                shared.close_forever();
            };
            thread::Builder::new().name(format!("closer-{number}")).stack_size(STACK).spawn(work)?;
        }
        confined.wait();
        Ok(Self(shared))
    }

    /// Makes files on these devices (`st_dev`), the hierarchy and the agent's own view, closed at
    /// once.
    pub fn trust(&self, devices: impl IntoIterator<Item = u64>) {
        // The first call counts.
        let _ = self.0.quick.set(devices.into_iter().collect());
    }

    /// Bounds what may wait, all accounts' descriptors together.
    pub fn bound(&self, most: u64) {
        // The first call counts.
        let _ = self.0.most.set(most);
    }

    fn is_quick(&self, fd: BorrowedFd<'_>) -> bool {
        let trusted = self.0.quick.get();
        trusted.is_some_and(|trusted| Inode::of(fd).is_ok_and(|inode| trusted.contains(&inode.device)))
    }

    /// Closes an account's descriptor later.
    pub fn close(&self, account: Account, fd: OwnedFd) {
        let mut users = self.0.users();
        let entry = users.by_id.entry(account).or_default();
        entry.waiting.push_back(fd);
        let is_ready = !entry.at_work && entry.waiting.len() == 1;
        users.all += 1;
        if is_ready {
            users.ready.push_back(account);
            self.0.work.notify_one();
        }
    }

    /// Whether less than a message's worth of this account's descriptors waits, and the places for all
    /// that wait are not taken.
    pub(super) fn has_room(&self, account: Account) -> bool {
        let users = self.0.users();
        users.has_room(account) && self.0.is_in_share(&users, account)
    }

    /// The account that one more descriptor counts against: its own, or, where that one has no
    /// room, the privileged account where the process is privileged. A container's root has the
    /// host's root's user id, and so its account, until then. `None` where there is no room.
    pub(super) fn payer(&self, account: Account, is_privileged: impl FnOnce() -> bool) -> Option<Account> {
        if self.has_room(account) {
            return Some(account);
        }
        Some(Account::Privileged).filter(|account| self.has_room(*account) && is_privileged())
    }

    /// Waits until less than a message's worth of this account's descriptors is to be closed, and there is a
    /// place for more.
    pub async fn room(&self, account: Account) {
        self.wait_until(|| self.has_room(account)).await;
    }

    /// Waits until there is a place for one more connection of this account that is refused, however many of
    /// the account's wait.
    pub(super) async fn room_in_share(&self, account: Account) {
        self.wait_until(|| self.0.is_in_share(&self.0.users(), account)).await;
    }

    async fn wait_until(&self, is_so: impl Fn() -> bool) {
        loop {
            let mut freed = pin!(self.0.room.notified());
            // From here on no notification is lost.
            freed.as_mut().enable();
            if is_so() {
                return;
            }
            freed.await;
        }
    }

    /// A queue without threads, in which all descriptors wait.
    #[cfg(test)]
    pub(super) fn idle() -> Self {
        Self(Arc::default())
    }

    /// Descriptors that wait, all accounts' together.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.0.users().by_id.values().map(|user| user.waiting.len()).sum()
    }

    /// Wraps a client's descriptor, whatever it may be.
    #[must_use]
    pub fn untrusted(&self, account: Account, fd: OwnedFd) -> UntrustedFd {
        UntrustedFd { fd: Some(fd), account, deferred_close: Some(self.clone()) }
    }
}

/// A client's descriptor that may be slow to close: dropping it leaves that to the threads.
#[derive(Debug)]
pub struct UntrustedFd {
    /// The descriptor, until it is known or dropped.
    fd: Option<OwnedFd>,
    account: Account,
    deferred_close: Option<DeferredClose>,
}

impl UntrustedFd {
    /// Wraps a descriptor that closes at once.
    #[must_use]
    pub const fn harmless(fd: OwnedFd) -> Self {
        Self { fd: Some(fd), account: Account::Agent, deferred_close: None }
    }

    /// Unwraps a descriptor that turned out to close at once.
    ///
    /// # Errors
    /// None in practice: the descriptor is there until now.
    pub fn into_inner(mut self) -> Result<OwnedFd, nix::errno::Errno> {
        self.fd.take().ok_or(nix::errno::Errno::EBADF)
    }

    /// Borrows the descriptor, to inspect it.
    ///
    /// # Errors
    /// None in practice, for the reason given at [`UntrustedFd::into_inner`].
    pub fn descriptor(&self) -> Result<BorrowedFd<'_>, nix::errno::Errno> {
        self.fd.as_ref().map(AsFd::as_fd).ok_or(nix::errno::Errno::EBADF)
    }
}

impl Drop for UntrustedFd {
    fn drop(&mut self) {
        if let (Some(fd), Some(deferred_close)) = (self.fd.take(), &self.deferred_close)
            && !deferred_close.is_quick(fd.as_fd())
        {
            deferred_close.close(self.account, fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future as _,
        io::Read as _,
        os::unix::net::UnixStream,
        pin::pin,
        task::{Context, Waker},
    };

    use super::{Account, DeferredClose, MAX_DESCRIPTORS};
    use crate::sandbox;

    #[test]
    fn what_is_dropped_is_closed_and_users_do_not_wait_for_each_other() {
        let deferred_close = DeferredClose::start(sandbox::Sandbox::Off).expect("threads");
        let mut ends = Vec::new();
        for user in [1, 2, 3].map(Account::User).repeat(100) {
            let (ours, theirs) = UnixStream::pair().expect("a pair");
            drop(deferred_close.untrusted(user, theirs.into()));
            ends.push(ours);
        }
        for mut end in ends {
            assert_eq!(end.read(&mut [0]).expect("the end"), 0);
        }
    }

    #[test]
    fn a_user_of_whom_much_waits_is_not_read_from() {
        let seven = Account::User(7);
        let deferred_close = DeferredClose::idle();
        for _ in 0..MAX_DESCRIPTORS {
            assert!(deferred_close.has_room(seven));
            drop(deferred_close.untrusted(seven, UnixStream::pair().expect("a pair").0.into()));
        }
        assert!(!deferred_close.has_room(seven) && deferred_close.has_room(Account::User(8)));
    }

    #[test]
    fn what_waits_of_all_accounts_is_bounded() {
        const MOST: usize = 300;
        let deferred_close = DeferredClose::idle();
        deferred_close.bound(MOST as u64);
        let null = std::fs::File::open("/dev/null").expect("a file");
        let wait = |account| drop(deferred_close.untrusted(account, null.try_clone().expect("dup").into()));
        let is_in_share = |account| {
            let room = pin!(deferred_close.room_in_share(account));
            room.poll(&mut Context::from_waker(Waker::noop())).is_ready()
        };
        let [first, second, third] = [1, 2, 3].map(Account::User);
        while is_in_share(first) {
            wait(first);
        }
        assert_eq!(deferred_close.waiting(), MAX_DESCRIPTORS, "the first leaves some to others");
        while deferred_close.has_room(second) {
            wait(second);
        }
        assert_eq!(deferred_close.waiting(), MOST);
        assert!(!deferred_close.has_room(third) && !is_in_share(third));
        drop(deferred_close.0.take(&mut deferred_close.0.users()));
        assert!(deferred_close.has_room(third) && is_in_share(third));
    }

    #[test]
    fn a_descriptor_that_is_being_closed_makes_room_at_once() {
        let seven = Account::User(7);
        let deferred_close = DeferredClose::idle();
        for _ in 0..MAX_DESCRIPTORS {
            drop(deferred_close.untrusted(seven, UnixStream::pair().expect("a pair").0.into()));
        }
        let mut room = pin!(deferred_close.room(seven));
        let mut context = Context::from_waker(Waker::noop());
        assert!(room.as_mut().poll(&mut context).is_pending());
        let (account, being_closed) =
            deferred_close.0.take(&mut deferred_close.0.users()).expect("one waits");
        assert_eq!(account, seven);
        assert!(room.as_mut().poll(&mut context).is_ready());
        drop(being_closed);
    }

    #[test]
    fn a_privileged_process_has_room_where_its_user_id_has_none() {
        let deferred_close = DeferredClose::idle();
        let root = Account::User(0);
        assert_eq!(deferred_close.payer(root, || panic!("looked up without need")), Some(root));
        let fill = |account| {
            for _ in 0..MAX_DESCRIPTORS {
                drop(deferred_close.untrusted(account, UnixStream::pair().expect("a pair").0.into()));
            }
        };
        fill(root);
        assert_eq!(deferred_close.payer(root, || false), None, "a container's root");
        assert_eq!(deferred_close.payer(root, || true), Some(Account::Privileged));
        fill(Account::Privileged);
        assert_eq!(deferred_close.payer(root, || true), None);
    }
}
