//! Connections at the pressure socket, kept in the descriptor store over the agent's end.
//!
//! sd-event's programs are not made for an end of theirs: a closed one is readable for ever, which
//! is a busy loop, and one that ends in an error ends their main loop. The text that was written
//! lies in the socket's queue, so a connection is all that the next agent needs.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use nix::{errno::Errno, sys::stat::fstat};

use crate::{
    error::{Error, Result},
    fd_store::{FdStore, PRESSURE, StoredDescriptors},
    frontend::deferred_close::DeferredClose,
    persist::{FdStash, IN_A_MESSAGE},
    registry::Account,
};

/// Connections that ended, and may lie in the stashes before they are looked for.
const WASTE: usize = 64;

/// Name of a kept connection: the number of its socket's inode, which no other socket has while it
/// is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId(u64);

/// The stashes with the connections, and which of them are still there.
#[derive(Debug)]
pub struct KeptConnections {
    fd_store: FdStore,
    /// The stash that is filled one by one.
    latest: FdStash,
    /// Connections out of that one, many to a message.
    packed: FdStash,
    there: HashSet<ConnectionId>,
    /// Connections that ended and lie in a stash, with the accounts of their clients.
    ended: HashMap<ConnectionId, Account>,
    /// Connections among those that the present pass looks for.
    sought: HashMap<ConnectionId, Account>,
    /// Messages of `packed` that the present pass has not looked at.
    unseen: usize,
    is_due: bool,
    deferred_close: DeferredClose,
}

/// The two stashes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WhichStash {
    Latest,
    Packed,
}

/// Takes the stashes of earlier agents out of the descriptors handed over.
#[must_use]
pub fn taken(handed: &mut StoredDescriptors) -> StoredDescriptors {
    handed.extract_if(.., |(name, _)| name.starts_with(PRESSURE)).collect()
}

impl KeptConnections {
    /// Goes on with what earlier agents have `left`. Returns a duplicate of each connection.
    ///
    /// # Errors
    /// A stash cannot be made, read or stored.
    pub fn open(
        fd_store: FdStore,
        left: StoredDescriptors,
        deferred_close: DeferredClose,
    ) -> Result<(Self, Vec<OwnedFd>)> {
        let number =
            |name: &str| name.strip_prefix(PRESSURE).and_then(|number| number.parse().ok()).unwrap_or(0_u64);
        let named = left.iter().map(|(name, _)| number(name)).max().unwrap_or(0);
        let (mut there, mut connections) = (HashSet::new(), Vec::new());
        let left: Vec<_> = left.into_iter().map(|(name, end)| FdStash::adopt(name, end)).collect();
        // Looked at first: where that fails, nothing was stored.
        for old in &left {
            let found = old
                .look()
                .map_err(|errno| unread(old, errno))?
                .into_iter()
                .map(|(number, fd)| (ConnectionId(number), fd));
            connections.extend(found.filter(|(id, _)| there.insert(*id)));
        }
        let (latest, packed) = (fresh(&fd_store, named + 1)?, fresh(&fd_store, named + 2)?);
        let (ended, sought, unseen, is_due) = Default::default();
        let mut kept =
            Self { fd_store, latest, packed, there, ended, sought, unseen, is_due, deferred_close };
        for some in connections.chunks(IN_A_MESSAGE) {
            if let Err(errno) = kept.put(some) {
                log::warn!(
                    "sendmsg of {} connections to be kept: {errno}; they end with this agent",
                    some.len()
                );
                some.iter().for_each(|(id, _)| _ = kept.there.remove(id));
            }
        }
        left.iter().for_each(|old| kept.give_up(old));
        Ok((kept, connections.into_iter().map(|(_, fd)| fd).collect()))
    }

    /// Keeps a connection for the next agent.
    ///
    /// # Errors
    /// It cannot be sent into the stash.
    pub fn add(&mut self, socket: BorrowedFd<'_>) -> Result<ConnectionId> {
        let id = identity(socket)?;
        if !self.there.contains(&id) {
            let mut outcome = self.latest.put(&[(id.0, socket)]);
            if outcome == Err(Errno::EAGAIN) {
                self.move_front_of(WhichStash::Latest)?;
                outcome = self.latest.put(&[(id.0, socket)]);
            }
            outcome.map_err(|errno| Error::syscall("sendmsg of a connection to be kept", errno))?;
            self.there.insert(id);
        }
        Ok(id)
    }

    /// Keeps a connection of this account no more; `at_once` where its client waits for its end. Returns
    /// whether [`KeptConnections::clear_some`] is due.
    pub fn remove(&mut self, id: ConnectionId, account: Account, at_once: bool) -> bool {
        if self.there.remove(&id) {
            self.ended.insert(id, account);
            self.is_due |= at_once || self.ended.len() > WASTE.max(self.there.len());
        }
        self.is_due
    }

    /// Takes connections that ended out of one message's worth. A pass over all messages finds all that
    /// ended before it, whoever's they were, so it costs the same for one and for many. Returns whether there
    /// is more to do.
    ///
    /// # Errors
    /// A message cannot be read, as the agent has too few descriptors for one, or not be sent. It stays
    /// as it is.
    pub fn clear_some(&mut self) -> Result<bool> {
        if self.move_front_of(WhichStash::Latest)? > 0 {
            return Ok(true);
        }
        if self.sought.is_empty() {
            if !self.is_due {
                return Ok(false);
            }
            let counted = self.packed.front(usize::MAX);
            (self.unseen, _) = counted.map_err(|errno| unread(&self.packed, errno))?;
            self.is_due = false;
            self.sought = std::mem::take(&mut self.ended);
        }
        let moved = self.move_front_of(WhichStash::Packed)?;
        self.unseen = self.unseen.saturating_sub(moved);
        if moved == 0 || self.unseen == 0 {
            self.sought.clear();
        }
        Ok(!self.sought.is_empty() || self.is_due)
    }

    /// Moves the messages in front that make up one to the end of `packed`, without what ended. The last
    /// descriptor of a connection that ended may be slow to close, whatever its client has sent, so a
    /// thread that may wait has it. Returns how many messages these were.
    fn move_front_of(&mut self, stash: WhichStash) -> Result<usize> {
        let from = if stash == WhichStash::Latest { &self.latest } else { &self.packed };
        let (messages, found) = from.look_front(IN_A_MESSAGE).map_err(|errno| unread(from, errno))?;
        let found = found.into_iter().map(|(number, fd)| (ConnectionId(number), fd));
        let (there, ended): (Vec<_>, Vec<_>) = found.partition(|(id, _)| self.there.contains(id));
        if !there.is_empty() {
            self.put(&there).map_err(|errno| Error::syscall("sendmsg of connections to be kept", errno))?;
        }
        let from = if stash == WhichStash::Latest { &self.latest } else { &self.packed };
        from.drop_front(messages).map_err(|errno| unread(from, errno))?;
        for (id, fd) in ended {
            let account = self.sought.remove(&id).or_else(|| self.ended.remove(&id));
            self.deferred_close.close(account.unwrap_or(Account::Unidentified), fd);
        }
        Ok(messages)
    }

    /// Puts connections into `packed`, all in one message. One that the kernel refuses, as it has too many
    /// sockets in flight within each other, is left out.
    ///
    /// # Errors
    /// As of [`FdStash::put`], where none could be put.
    fn put(&mut self, connections: &[(ConnectionId, OwnedFd)]) -> nix::Result<()> {
        let held: Vec<_> = connections.iter().map(|(id, fd)| (id.0, fd.as_fd())).collect();
        let Err(errno) = self.packed.put(&held) else { return Ok(()) };
        if errno == Errno::EAGAIN {
            return Err(errno);
        }
        let (put, refused): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|one| self.packed.put(&[*one]).is_ok());
        if put.is_empty() {
            return Err(errno);
        }
        for (number, _) in refused {
            log::warn!("sendmsg of a connection to be kept: {errno}; it ends with this agent");
            self.there.remove(&ConnectionId(number));
        }
        Ok(())
    }

    /// Empties a stash, and removes it from the descriptor store, which does that later.
    fn give_up(&self, stash: &FdStash) {
        let emptied = stash.front(usize::MAX).and_then(|(messages, _)| stash.drop_front(messages));
        if let Err(errno) = emptied {
            log::debug!("recvmsg from {}: {errno}", stash.name);
        }
        if let Err(error) = self.fd_store.forget(&stash.name) {
            log::warn!("{error}");
        }
    }

    /// The descriptors that the next agent would be handed.
    #[cfg(test)]
    pub(super) fn as_handed(&self) -> StoredDescriptors {
        let of = |stash: &FdStash| (stash.name.clone(), stash.end().try_clone_to_owned().expect("dup"));
        vec![of(&self.latest), of(&self.packed)]
    }

    /// The number of connections that are kept.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.there.len()
    }

    /// Takes all connections that ended out.
    #[cfg(test)]
    pub(super) fn clear(&mut self) -> Result<()> {
        while self.clear_some()? {}
        Ok(())
    }
}

fn fresh(fd_store: &FdStore, number: u64) -> Result<FdStash> {
    let stash = FdStash::new(format!("{PRESSURE}{number}"))
        .map_err(|errno| Error::syscall("socketpair for a stash of connections", errno))?;
    fd_store.store(&stash.name, stash.end())?;
    Ok(stash)
}

fn unread(stash: &FdStash, errno: Errno) -> Error {
    Error::syscall(format!("recvmsg from {}", stash.name), errno)
}

fn identity(socket: BorrowedFd<'_>) -> Result<ConnectionId> {
    let stat = fstat(socket).map_err(|errno| Error::syscall("fstat of a connection", errno))?;
    Ok(ConnectionId(stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::{fd::AsFd as _, unix::net::UnixStream},
    };

    use super::{KeptConnections, taken};
    use crate::{
        error::Result, fd_store::FdStore, frontend::deferred_close::DeferredClose, registry::Account, sandbox,
    };

    const ACCOUNT: Account = Account::User(1);

    fn closer() -> DeferredClose {
        DeferredClose::start(sandbox::Sandbox::Off).expect("threads")
    }

    fn open(left: crate::fd_store::StoredDescriptors) -> Result<(KeptConnections, Vec<UnixStream>)> {
        let (kept, connections) = KeptConnections::open(FdStore::of_tests(), left, closer())?;
        Ok((kept, connections.into_iter().map(UnixStream::from).collect()))
    }

    #[test]
    fn connections_go_on_with_what_was_written() -> Result<()> {
        let (mut kept, none) = open(Vec::new())?;
        assert!(none.is_empty());
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(b"text").expect("room");
        let id = kept.add(ours.as_fd())?;
        assert_eq!(kept.add(ours.as_fd())?, id, "it is there once");
        let handed = kept.as_handed();
        drop((kept, ours));
        let (mut kept, mut again) = open(handed)?;
        let mut ours = again.pop().expect("kept");
        assert!(again.is_empty());
        let mut text = [0; 4];
        ours.read_exact(&mut text).expect("still there");
        assert_eq!(&text, b"text");
        let id = kept.add(ours.as_fd())?;
        assert!(kept.remove(id, ACCOUNT, true), "at once");
        drop(ours);
        kept.clear()?;
        assert_eq!(theirs.read(&mut text).expect("the end"), 0, "nothing holds it any more");
        Ok(())
    }

    #[test]
    fn what_ended_is_closed_by_the_threads_that_may_wait() -> Result<()> {
        // Without threads, to see what waits for them.
        let closer = DeferredClose::idle();
        let (mut kept, _) = KeptConnections::open(FdStore::of_tests(), Vec::new(), closer.clone())?;
        let (stays, _peer) = UnixStream::pair().expect("a pair");
        kept.add(stays.as_fd())?;
        for number in 1..=3 {
            let (ours, _theirs) = UnixStream::pair().expect("a pair");
            let id = kept.add(ours.as_fd())?;
            drop(ours);
            kept.remove(id, ACCOUNT, true);
            kept.clear()?;
            assert_eq!(closer.waiting(), number, "the last descriptor of each, and of no other");
        }
        Ok(())
    }

    #[test]
    fn any_number_comes_and_goes() -> Result<()> {
        let (mut kept, _) = open(Vec::new())?;
        let mut ends = Vec::new();
        for number in 0..600 {
            let (ours, theirs) = UnixStream::pair().expect("a pair");
            let id = kept.add(ours.as_fd())?;
            if number % 3 == 0 {
                ends.push((ours, theirs));
            } else if kept.remove(id, ACCOUNT, false) {
                kept.clear()?;
            }
        }
        let (kept, again) = open(kept.as_handed())?;
        assert!((ends.len()..=ends.len() * 2 + 65).contains(&again.len()), "{} connections", again.len());
        drop(kept);
        Ok(())
    }

    #[test]
    fn a_pass_finds_all_that_ended_and_stores_nothing() -> Result<()> {
        let (mut kept, _) = open(Vec::new())?;
        let mut ids = Vec::new();
        for _ in 0..300 {
            let (ours, _theirs) = UnixStream::pair().expect("a pair");
            ids.push(kept.add(ours.as_fd())?);
        }
        // Into messages of many.
        while kept.clear_some()? {}
        let names = |kept: &KeptConnections| kept.as_handed().into_iter().map(|(name, _)| name);
        let before: Vec<_> = names(&kept).collect();
        for id in ids.iter().step_by(3) {
            kept.remove(*id, ACCOUNT, true);
        }
        let mut turns = 0;
        while kept.clear_some()? {
            turns += 1;
        }
        assert!(turns < 4, "{turns} turns for {} ends in two messages", ids.len() / 3);
        assert!(kept.ended.is_empty() && kept.sought.is_empty());
        assert!(names(&kept).eq(before));
        let (_, again) = open(kept.as_handed())?;
        assert_eq!(again.len(), 200);
        Ok(())
    }

    #[test]
    fn what_a_killed_agent_was_packing_is_there_once() -> Result<()> {
        let (mut first, _) = open(Vec::new())?;
        let (mut second, _) = open(Vec::new())?;
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        first.add(ours.as_fd())?;
        second.add(ours.as_fd())?;
        let mut handed = first.as_handed();
        handed.extend(second.as_handed());
        handed.push(("state".to_owned(), ours.as_fd().try_clone_to_owned().expect("dup")));
        let stashes = taken(&mut handed);
        assert_eq!((stashes.len(), handed.len()), (4, 1), "others' descriptors stay");
        let (_, again) = open(stashes)?;
        assert_eq!(again.len(), 1);
        Ok(())
    }
}
