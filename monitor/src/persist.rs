//! What outlives an agent, in the hands of a [`FdStore`]: who waits for what (the
//! [`State`]), and the clients' eventfds (in [`FdStash`]s).
//!
//! Order is all: an eventfd is in a bag before a registration names it, a registration
//! is recorded before its client has the answer, what happened is recorded as owed before
//! it is forgotten where it was taken from, and as paid after it was signalled. So an
//! agent may be killed anywhere: the next one may repeat its last signals, but misses none.

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

pub use fd_stash::FdStash;
pub use record::{CorruptRecord, Record};
pub use state_file::{RecordId, StateFile, Unfinished};
pub use unrecorded::Unrecorded;

use crate::{
    error::{Error, Result},
    eventfd::EventFd,
    fd_store::{BAG, FdStore, STATE, StoredDescriptors},
    persist::fd_stash::IN_A_MESSAGE,
    source::FileId,
};

/// References of its own to an eventfd, beside the agent's one.
pub const REFERENCES: u64 = 1;

/// Eventfds that may lie in bags without anybody waiting, before they are cleared out.
const WASTE: usize = 256;

/// The state, the bags, and who keeps them.
#[derive(Debug)]
pub struct Persistence {
    keeper: FdStore,
    state: StateFile,
    /// Many to a message, the oldest first; what is packed anew goes into the last one.
    bags: VecDeque<FdStash>,
    /// Filled one by one; packed when it is full.
    latest: Option<FdStash>,
    /// What lies in any.
    held: HashSet<FileId>,
    /// Of those, what nobody waits on any more.
    waste: HashSet<FileId>,
    /// Of those, what lies in two: an agent was killed while it packed.
    twice: HashSet<FileId>,
    named: u64,
    rest: DiscardedRecord,
}

/// How long nothing is packed anew after that has failed.
#[derive(Debug, Default)]
struct DiscardedRecord {
    pause: Duration,
    until: Option<Instant>,
}

impl DiscardedRecord {
    const LONGEST: Duration = Duration::from_secs(64);

    fn is_over(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() >= until)
    }

    fn begin(&mut self) {
        self.pause = (self.pause * 2).clamp(Duration::from_secs(1), Self::LONGEST);
        self.until = Some(Instant::now() + self.pause);
    }
}

/// What an agent before has left.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Its registrations.
    pub records: Vec<(RecordId, Record)>,
    /// Its eventfds.
    pub files: Vec<(FileId, OwnedFd)>,
    /// What it had taken out of slots.
    pub unfinished: Vec<Unfinished>,
    /// Which maps its slots are in; 0: none.
    pub instance: u64,
    /// Records that made no sense.
    pub flaws: u64,
}

impl Persistence {
    /// Takes over what an agent before has left among `socket_activation`, or begins anew. The
    /// bags are as they were until [`Persistence::repack`].
    ///
    /// # Errors
    /// A new state cannot be made, or not be given to the keeper.
    pub fn open(keeper: FdStore, handed: StoredDescriptors) -> Result<(Self, Recovered)> {
        let (mut states, mut bags) = (Vec::new(), Vec::new());
        for (name, fd) in handed {
            if name == STATE {
                states.push(fd);
            } else if let Some(number) = name.strip_prefix(BAG) {
                bags.push((number.parse().unwrap_or(0_u64), FdStash::adopt(name, fd)));
            }
        }
        bags.sort_by_key(|(number, _)| *number);
        let named = bags.last().map_or(0, |(number, _)| *number);
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
                    // The next agent is not to find it beside the new one.
                    keeper.forget(STATE)?;
                }
                let state = StateFile::new()?;
                keeper.store(STATE, state.file())?;
                state
            }
        };
        let bags: VecDeque<_> = bags.into_iter().map(|(_, bag)| bag).collect();
        let (mut held, mut twice) = (HashSet::new(), HashSet::new());
        for bag in &bags {
            let found =
                bag.look().map_err(|errno| Error::syscall(format!("recvmsg from {}", bag.name), errno))?;
            for (file, fd) in found.into_iter().map(|(number, fd)| (FileId(number), fd)) {
                if held.insert(file) {
                    left.files.push((file, fd));
                } else {
                    twice.insert(file);
                }
            }
        }
        let (waste, rest) = (HashSet::new(), DiscardedRecord::default());
        Ok((Self { keeper, state, bags, latest: None, held, waste, twice, named, rest }, left))
    }

    /// The record of registrations.
    #[must_use]
    pub const fn state(&self) -> &StateFile {
        &self.state
    }

    /// The same, to be changed.
    pub const fn state_mut(&mut self) -> &mut StateFile {
        &mut self.state
    }

    /// Keeps a client's eventfd, before a registration on it is recorded. `all` are
    /// those that the agent has.
    ///
    /// # Errors
    /// It cannot be kept.
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

    /// Nobody waits on it any more. While there is much of that, each call packs one message
    /// anew, so that no one call has all the work.
    pub fn let_go(&mut self, file: FileId, all: &HashMap<FileId, EventFd>) {
        if self.held.contains(&file) {
            self.waste.insert(file);
        }
        if self.waste.len() <= WASTE.max(self.held.len() / 2) || !self.rest.is_over() {
            return;
        }
        match self.pack_some(all) {
            Ok(()) => self.rest = DiscardedRecord::default(),
            Err(error) => {
                self.rest.begin();
                log::warn!("{error}; tried again in {} s", self.rest.pause.as_secs());
            }
        }
    }

    /// Puts all eventfds into new bags, and gives up the old ones, message by message: so
    /// hardly more are in flight than before. Where that fails, the rest stays where it is.
    pub fn repack(&mut self, all: &HashMap<FileId, EventFd>) {
        let mut old = std::mem::take(&mut self.bags);
        old.extend(self.latest.take());
        while let Some(bag) = old.pop_front() {
            if let Err(error) = self.pack_all_of(&bag, all) {
                self.rest.begin();
                log::warn!("{error}; what is kept stays in {} descriptors more", old.len() + 1);
                old.push_front(bag);
                old.append(&mut self.bags);
                self.bags = old;
                return;
            }
            self.give_up(&bag);
        }
        // At hand, and with the keeper, before the first client comes.
        match self.new_bag() {
            Ok(bag) => self.latest = Some(bag),
            Err(error) => log::warn!("{error}; tried again when a client comes"),
        }
    }

    /// Lets the keeper forget everything: there is to be no next agent.
    pub fn give_up_all(&self) {
        let names = self.bags.iter().chain(&self.latest).map(|bag| bag.name.as_str());
        for name in names.chain([STATE]) {
            if let Err(error) = self.keeper.forget(name) {
                log::warn!("{error}");
            }
        }
    }

    /// What the next agent would be handed.
    #[cfg(test)]
    pub(crate) fn as_handed(&self) -> StoredDescriptors {
        let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().expect("dup");
        let bags = self.bags.iter().chain(&self.latest);
        let bags = bags.map(|bag| (bag.name.clone(), duplicate(bag.end())));
        std::iter::once((STATE.to_owned(), duplicate(self.state.file()))).chain(bags).collect()
    }

    /// What was put in one by one, and then some of the oldest bag.
    fn pack_some(&mut self, all: &HashMap<FileId, EventFd>) -> Result<()> {
        self.pack_latest(all)?;
        let Some(oldest) = self.bags.pop_front() else { return Ok(()) };
        let outcome = self.pack_front_of(&oldest, all);
        if matches!(outcome, Ok(false)) {
            self.give_up(&oldest);
        } else {
            self.bags.push_front(oldest);
        }
        outcome.map(drop)
    }

    /// What was put in one by one, many to a message: there is room again.
    fn pack_latest(&mut self, all: &HashMap<FileId, EventFd>) -> Result<()> {
        let Some(latest) = self.latest.take() else { return Ok(()) };
        let outcome = self.pack_all_of(&latest, all);
        self.latest = Some(latest);
        outcome
    }

    fn pack_all_of(&mut self, bag: &FdStash, all: &HashMap<FileId, EventFd>) -> Result<()> {
        while self.pack_front_of(bag, all)? {}
        Ok(())
    }

    /// Moves what lies in front of `bag`, which is none of `bags`, into the last of those, and
    /// lets go what nobody waits on. False where there was nothing.
    fn pack_front_of(&mut self, bag: &FdStash, all: &HashMap<FileId, EventFd>) -> Result<bool> {
        let failed = |errno| Error::syscall(format!("recvmsg from {}", bag.name), errno);
        let (messages, numbers) = bag.front(IN_A_MESSAGE).map_err(failed)?;
        if messages == 0 {
            return Ok(false);
        }
        let files: Vec<_> = numbers.into_iter().map(FileId).collect();
        let moved: Vec<_> = files.iter().copied().filter(|file| !self.twice.contains(file)).collect();
        let moved: Vec<_> = moved.iter().filter_map(|file| Some((file.0, all.get(file)?.as_fd()))).collect();
        if !moved.is_empty() {
            let mut outcome = self.put_many(&moved);
            if outcome == Err(Errno::EAGAIN) {
                let fresh = self.new_bag()?;
                self.bags.push_back(fresh);
                outcome = self.put_many(&moved);
            }
            outcome.map_err(|errno| not_sent(moved.len(), errno))?;
        }
        if let Err(errno) = bag.drop_front(messages) {
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
        let bag = match self.latest.take() {
            Some(bag) => bag,
            None => self.new_bag()?,
        };
        Ok(self.latest.insert(bag).put(one))
    }

    /// `EAGAIN`, too, where there is no bag yet.
    fn put_many(&self, some: &[(u64, BorrowedFd<'_>)]) -> nix::Result<()> {
        self.bags.back().map_or(Err(Errno::EAGAIN), |bag| bag.put(some))
    }

    fn new_bag(&mut self) -> Result<FdStash> {
        self.named += 1;
        let bag = FdStash::new(format!("{BAG}{}", self.named))
            .map_err(|errno| Error::syscall("socketpair for a bag of eventfds", errno))?;
        self.keeper.store(&bag.name, bag.end())?;
        Ok(bag)
    }

    /// It is empty by now. The keeper takes its time.
    fn give_up(&self, bag: &FdStash) {
        if let Err(error) = self.keeper.forget(&bag.name) {
            log::warn!("{error}");
        }
    }
}

/// A record of registrations that is not understood.
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
        fd_store::{BAG, FdStore, StoredDescriptors},
        source::FileId,
    };

    fn bag(number: u64, files: &[u64], all: &HashMap<FileId, EventFd>) -> (String, OwnedFd) {
        let name = format!("{BAG}{number}");
        let bag = FdStash::new(name.clone()).expect("socketpair");
        for file in files {
            bag.put(&[(*file, all[&FileId(*file)].as_fd())]).expect("sendmsg");
        }
        (name, bag.end().try_clone_to_owned().expect("dup"))
    }

    fn some(count: u64) -> HashMap<FileId, EventFd> {
        let fresh = || EventFd::known(Client::new().expect("eventfd").into());
        (1..=count).map(|file| (FileId(file), fresh())).collect()
    }

    /// What each of the next agent's bags holds.
    fn next(vault: &Persistence) -> Vec<Vec<u64>> {
        let bags = vault.bags.iter().chain(&vault.latest).map(|bag| bag.look().expect("look"));
        let bags = bags.filter(|held| !held.is_empty());
        bags.map(|held| held.into_iter().map(|(number, _)| number).collect()).collect()
    }

    #[test]
    fn what_a_killed_agent_was_packing_lies_in_one_bag_again() -> Result<()> {
        let all = some(4);
        // 3 and 4 were moved, and the bag that they came from was not told.
        let handed: StoredDescriptors = vec![bag(10, &[3, 4], &all), bag(9, &[1, 2, 3, 4], &all)];
        let (mut vault, left) = Persistence::open(FdStore::of_tests(), handed)?;
        assert_eq!(left.files.len(), 4);
        vault.repack(&all);
        let mut bags = next(&vault);
        assert_eq!(bags.len(), 1, "{bags:?}");
        bags[0].sort_unstable();
        assert_eq!(bags[0], [1, 2, 3, 4]);
        assert!(vault.held.len() == 4 && vault.twice.is_empty() && vault.waste.is_empty());
        Ok(())
    }

    #[test]
    fn what_nobody_waits_on_goes_little_by_little() -> Result<()> {
        let mut all = some(3000);
        let (mut vault, _) = Persistence::open(FdStore::of_tests(), Vec::new())?;
        let mut kept = HashMap::new();
        for file in 1..=3000 {
            let file = FileId(file);
            let fd = all.remove(&file).expect("made");
            vault.keep(file, &fd, &kept)?;
            kept.insert(file, fd);
        }
        assert!(vault.bags.len() <= 2, "{} bags for 3000", vault.bags.len());
        for file in 1..3000 {
            kept.remove(&FileId(file));
            vault.let_go(FileId(file), &kept);
        }
        let left: Vec<u64> = next(&vault).concat();
        assert!(left.contains(&3000) && left.len() < 600, "{} of one", left.len());
        assert_eq!(left.len(), vault.held.len());
        Ok(())
    }
}
