//! The state that outlives an agent, in the descriptor store ([`FdStore`]): the registrations
//! (in the [`StateFile`]), and the clients' eventfds (in [`FdStash`]s).
//!
//! The order matters: an eventfd is in a stash before a registration names it; a registration
//! is recorded before its client has the answer; an event is recorded as owed before it is
//! cleared at its source, and as paid after it was signalled. So an agent may be killed
//! anywhere: the next one may repeat its last signals, but misses none.

pub mod error;
mod fd_stash;
mod record;
mod state_file;
mod unrecorded;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::errno::Errno;

pub use fd_stash::{FdStash, IN_A_MESSAGE};
pub use record::Record;
pub use state_file::{RecordId, StateFile, Unfinished};
pub use unrecorded::Unrecorded;

use crate::{
    error::{Error, Result},
    eventfd::EventFd,
    fd_store::{FdStore, STASH, STATE, StoredDescriptors},
    source::FileId,
};

/// References that the stashes have to an eventfd, beside the agent's own.
pub const REFERENCES: u64 = 1;

/// Eventfds without a registration that may lie in stashes before they are cleared out.
const WASTE: usize = 256;

/// The state file, the stashes, and the store that keeps them.
#[derive(Debug)]
pub struct Persistence {
    fd_store: FdStore,
    state: StateFile,
    /// Stashes with many descriptors to a message, the oldest first; repacking fills the last.
    stashes: VecDeque<FdStash>,
    /// The stash that is filled one by one, and repacked when it is full.
    latest: Option<FdStash>,
    /// Eventfds that lie in any stash.
    held: HashSet<FileId>,
    /// Eventfds among those that have no registration any more.
    waste: HashSet<FileId>,
    /// Eventfds among those that lie in two stashes: an agent was killed while it repacked.
    twice: HashSet<FileId>,
    named: u64,
    retry: RetryPause,
}

/// The pause after a failed repacking, which doubles with each failure.
#[derive(Debug, Default)]
struct RetryPause {
    pause: Duration,
    until: Option<Instant>,
}

impl RetryPause {
    const LONGEST: Duration = Duration::from_secs(64);

    fn is_over(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() >= until)
    }

    fn begin(&mut self) {
        self.pause = (self.pause * 2).clamp(Duration::from_secs(1), Self::LONGEST);
        self.until = Some(Instant::now() + self.pause);
    }
}

/// State recovered from an earlier agent.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Registrations of the earlier agent.
    pub records: Vec<(RecordId, Record)>,
    /// Eventfds of the earlier agent.
    pub files: Vec<(FileId, OwnedFd)>,
    /// Events that it had taken out of slots.
    pub unfinished: Vec<Unfinished>,
    /// Instance of the maps with its slots; 0: none.
    pub instance: u64,
    /// Number of corrupt records.
    pub flaws: u64,
}

impl Persistence {
    /// Takes over the state of an earlier agent from the descriptors `handed` over, or begins
    /// anew. The stashes stay as they were until [`Persistence::repack`].
    ///
    /// # Errors
    /// A new state file cannot be made, or not be stored in the descriptor store.
    pub fn open(fd_store: FdStore, handed: StoredDescriptors) -> Result<(Self, Recovered)> {
        let (mut states, mut stashes) = (Vec::new(), Vec::new());
        for (name, fd) in handed {
            if name == STATE {
                states.push(fd);
            } else if let Some(number) = name.strip_prefix(STASH) {
                stashes.push((number.parse().unwrap_or(0_u64), FdStash::adopt(name, fd)));
            }
        }
        stashes.sort_by_key(|(number, _)| *number);
        let named = stashes.last().map_or(0, |(number, _)| *number);
        let mut left = Recovered::default();
        let found = states.len();
        let adopted = states.into_iter().find_map(|file| StateFile::adopt(file).inspect_err(unread).ok());
        let state = match adopted {
            Some((state, records, flaws)) => {
                left = Recovered { records, flaws, unfinished: state.unfinished(), ..left };
                left.instance = state.instance();
                state
            }
            None => {
                if found > 0 {
                    // So that the next agent does not find it beside the new one.
                    fd_store.forget(STATE)?;
                }
                let state = StateFile::new()?;
                fd_store.store(STATE, state.file())?;
                state
            }
        };
        let stashes: VecDeque<_> = stashes.into_iter().map(|(_, stash)| stash).collect();
        let (mut held, mut twice) = (HashSet::new(), HashSet::new());
        for stash in &stashes {
            let found = stash
                .look()
                .map_err(|errno| Error::syscall(format!("recvmsg from {}", stash.name), errno))?;
            for (file, fd) in found.into_iter().map(|(number, fd)| (FileId(number), fd)) {
                if held.insert(file) {
                    left.files.push((file, fd));
                } else {
                    twice.insert(file);
                }
            }
        }
        let (waste, retry) = (HashSet::new(), RetryPause::default());
        Ok((Self { fd_store, state, stashes, latest: None, held, waste, twice, named, retry }, left))
    }

    /// The file with the records of registrations.
    #[must_use]
    pub const fn state(&self) -> &StateFile {
        &self.state
    }

    /// The file with the records of registrations, to be changed.
    pub const fn state_mut(&mut self) -> &mut StateFile {
        &mut self.state
    }

    /// Keeps a client's eventfd, before a registration on it is recorded. `all` are the agent's
    /// eventfds.
    ///
    /// # Errors
    /// The eventfd cannot be sent into a stash.
    pub fn keep(&mut self, file: FileId, fd: &EventFd, all: &HashMap<FileId, EventFd>) -> Result<()> {
        if self.held.contains(&file) {
            self.waste.remove(&file);
            return Ok(());
        }
        let one = [(file.0, fd.as_fd())];
        let mut outcome = self.put_one(&one)?;
        if outcome == Err(Errno::EAGAIN) {
            self.pack_latest(all)?;
            outcome = self.put_one(&one)?;
        }
        outcome.map_err(|errno| not_sent(1, errno))?;
        self.held.insert(file);
        Ok(())
    }

    /// Notes that an eventfd has no registration any more. While there are many such, each call
    /// repacks one message, so that no one call has all the work.
    pub fn let_go(&mut self, file: FileId, all: &HashMap<FileId, EventFd>) {
        if self.held.contains(&file) {
            self.waste.insert(file);
        }
        if self.waste.len() <= WASTE.max(self.held.len() / 2) || !self.retry.is_over() {
            return;
        }
        match self.pack_some(all) {
            Ok(()) => self.retry = RetryPause::default(),
            Err(error) => {
                self.retry.begin();
                log::warn!("{error}; tried again in {} s", self.retry.pause.as_secs());
            }
        }
    }

    /// Moves all eventfds into new stashes, and gives up the old ones, message by message: so
    /// hardly more are in flight than before. Where that fails, the rest stays where it is.
    pub fn repack(&mut self, all: &HashMap<FileId, EventFd>) {
        let mut old = std::mem::take(&mut self.stashes);
        old.extend(self.latest.take());
        while let Some(stash) = old.pop_front() {
            if let Err(error) = self.pack_all_of(&stash, all) {
                self.retry.begin();
                log::warn!(
                    "{error}; the kept eventfds stay in {} further descriptors for now",
                    old.len() + 1
                );
                old.push_front(stash);
                old.append(&mut self.stashes);
                self.stashes = old;
                return;
            }
            self.give_up(&stash);
        }
        // Made, and in the descriptor store, before the first client registers.
        match self.new_stash() {
            Ok(stash) => self.latest = Some(stash),
            Err(error) => log::warn!("{error}; tried again when a client comes"),
        }
    }

    /// Removes everything from the descriptor store: there is to be no next agent.
    pub fn give_up_all(&self) {
        let names = self.stashes.iter().chain(&self.latest).map(|stash| stash.name.as_str());
        for name in names.chain([STATE]) {
            if let Err(error) = self.fd_store.forget(name) {
                log::warn!("{error}");
            }
        }
    }

    /// The descriptors that the next agent would be handed.
    #[cfg(test)]
    pub(crate) fn as_handed(&self) -> StoredDescriptors {
        let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().expect("dup");
        let stashes = self.stashes.iter().chain(&self.latest);
        let stashes = stashes.map(|stash| (stash.name.clone(), duplicate(stash.end())));
        std::iter::once((STATE.to_owned(), duplicate(self.state.file()))).chain(stashes).collect()
    }

    /// Repacks the descriptors put in one by one, and then some of the oldest stash.
    fn pack_some(&mut self, all: &HashMap<FileId, EventFd>) -> Result<()> {
        self.pack_latest(all)?;
        let Some(oldest) = self.stashes.pop_front() else { return Ok(()) };
        let outcome = self.pack_front_of(&oldest, all);
        if matches!(outcome, Ok(false)) {
            self.give_up(&oldest);
        } else {
            self.stashes.push_front(oldest);
        }
        outcome.map(drop)
    }

    /// Repacks the descriptors put in one by one, many to a message, which makes room.
    fn pack_latest(&mut self, all: &HashMap<FileId, EventFd>) -> Result<()> {
        let Some(latest) = self.latest.take() else { return Ok(()) };
        let outcome = self.pack_all_of(&latest, all);
        self.latest = Some(latest);
        outcome
    }

    fn pack_all_of(&mut self, stash: &FdStash, all: &HashMap<FileId, EventFd>) -> Result<()> {
        while self.pack_front_of(stash, all)? {}
        Ok(())
    }

    /// Moves the descriptors in front of `stash`, which is none of `stashes`, into the last of
    /// those, and drops those without a registration. False where there were none.
    fn pack_front_of(&mut self, stash: &FdStash, all: &HashMap<FileId, EventFd>) -> Result<bool> {
        let failed = |errno| Error::syscall(format!("recvmsg from {}", stash.name), errno);
        let (messages, numbers) = stash.front(IN_A_MESSAGE).map_err(failed)?;
        if messages == 0 {
            return Ok(false);
        }
        let files: Vec<_> = numbers.into_iter().map(FileId).collect();
        let moved: Vec<_> = files.iter().copied().filter(|file| !self.twice.contains(file)).collect();
        let moved: Vec<_> = moved.iter().filter_map(|file| Some((file.0, all.get(file)?.as_fd()))).collect();
        if !moved.is_empty() {
            let mut outcome = self.put_many(&moved);
            if outcome == Err(Errno::EAGAIN) {
                let fresh = self.new_stash()?;
                self.stashes.push_back(fresh);
                outcome = self.put_many(&moved);
            }
            outcome.map_err(|errno| not_sent(moved.len(), errno))?;
        }
        if let Err(errno) = stash.drop_front(messages) {
            self.twice.extend(moved.iter().map(|(number, _)| FileId(*number)));
            return Err(failed(errno));
        }
        for file in files {
            if !self.twice.remove(&file) && !all.contains_key(&file) {
                self.held.remove(&file);
                self.waste.remove(&file);
            }
        }
        Ok(true)
    }

    fn put_one(&mut self, one: &[(u64, BorrowedFd<'_>)]) -> Result<nix::Result<()>> {
        let stash = match self.latest.take() {
            Some(stash) => stash,
            None => self.new_stash()?,
        };
        Ok(self.latest.insert(stash).put(one))
    }

    /// Puts descriptors into the last stash; `EAGAIN`, too, where there is no stash yet.
    fn put_many(&self, some: &[(u64, BorrowedFd<'_>)]) -> nix::Result<()> {
        self.stashes.back().map_or(Err(Errno::EAGAIN), |stash| stash.put(some))
    }

    fn new_stash(&mut self) -> Result<FdStash> {
        self.named += 1;
        let stash = FdStash::new(format!("{STASH}{}", self.named))
            .map_err(|errno| Error::syscall("socketpair for a stash of eventfds", errno))?;
        self.fd_store.store(&stash.name, stash.end())?;
        Ok(stash)
    }

    /// Removes an empty stash from the descriptor store, which does that later.
    fn give_up(&self, stash: &FdStash) {
        if let Err(error) = self.fd_store.forget(&stash.name) {
            log::warn!("{error}");
        }
    }
}

/// Logs a state file that is not understood.
fn unread(error: &Error) {
    log::error!("{error}; its registrations are lost, clients have to register anew");
}

fn not_sent(eventfds: usize, errno: Errno) -> Error {
    let why = match errno {
        Errno::ETOOMANYREFS => {
            " (more descriptors are in flight for this user id than RLIMIT_NOFILE allows: give the agent one of its own by --in-flight-uid and CAP_SETUID)"
        }
        _ => "",
    };
    Error::syscall(format!("sendmsg of {eventfds} eventfds to be kept for the next agent{why}"), errno)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        os::fd::{AsFd as _, OwnedFd},
    };

    use nix::sys::eventfd::EventFd as Client;

    use super::{FdStash, Persistence};
    use crate::{
        error::Result,
        eventfd::EventFd,
        fd_store::{FdStore, STASH, StoredDescriptors},
        source::FileId,
    };

    fn stash(number: u64, files: &[u64], all: &HashMap<FileId, EventFd>) -> (String, OwnedFd) {
        let name = format!("{STASH}{number}");
        let stash = FdStash::new(name.clone()).expect("socketpair");
        for file in files {
            stash.put(&[(*file, all[&FileId(*file)].as_fd())]).expect("sendmsg");
        }
        (name, stash.end().try_clone_to_owned().expect("dup"))
    }

    fn some(count: u64) -> HashMap<FileId, EventFd> {
        let fresh = || EventFd::known(Client::new().expect("eventfd").into());
        (1..=count).map(|file| (FileId(file), fresh())).collect()
    }

    /// The contents of each of the next agent's stashes.
    fn next(persistence: &Persistence) -> Vec<Vec<u64>> {
        let stashes =
            persistence.stashes.iter().chain(&persistence.latest).map(|stash| stash.look().expect("look"));
        let stashes = stashes.filter(|held| !held.is_empty());
        stashes.map(|held| held.into_iter().map(|(number, _)| number).collect()).collect()
    }

    #[test]
    fn what_a_killed_agent_was_stashing_lies_in_one_stash_again() -> Result<()> {
        let all = some(4);
        // 3 and 4 were moved, and not yet removed from the stash that they were in.
        let handed: StoredDescriptors = vec![stash(10, &[3, 4], &all), stash(9, &[1, 2, 3, 4], &all)];
        let (mut persistence, left) = Persistence::open(FdStore::of_tests(), handed)?;
        assert_eq!(left.files.len(), 4);
        persistence.repack(&all);
        let mut stashes = next(&persistence);
        assert_eq!(stashes.len(), 1, "{stashes:?}");
        stashes[0].sort_unstable();
        assert_eq!(stashes[0], [1, 2, 3, 4]);
        assert!(persistence.held.len() == 4 && persistence.twice.is_empty() && persistence.waste.is_empty());
        Ok(())
    }

    #[test]
    fn what_has_no_waiter_goes_little_by_little() -> Result<()> {
        let mut all = some(3000);
        let (mut persistence, _) = Persistence::open(FdStore::of_tests(), Vec::new())?;
        let mut kept = HashMap::new();
        for file in 1..=3000 {
            let file = FileId(file);
            let fd = all.remove(&file).expect("made");
            persistence.keep(file, &fd, &kept)?;
            kept.insert(file, fd);
        }
        assert!(persistence.stashes.len() <= 2, "{} stashes for 3000", persistence.stashes.len());
        for file in 1..3000 {
            kept.remove(&FileId(file));
            persistence.let_go(FileId(file), &kept);
        }
        let left: Vec<u64> = next(&persistence).concat();
        assert!(left.contains(&3000) && left.len() < 600, "{} of one", left.len());
        assert_eq!(left.len(), persistence.held.len());
        Ok(())
    }
}
