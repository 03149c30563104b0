//! What outlives an agent, in the hands of a [`Keeper`]: who waits for what (the
//! [`State`]), and the clients' eventfds (in [`Bag`]s).
//!
//! Order is all: an eventfd is in a bag before a registration names it, a registration
//! is recorded before its client has the answer, a crossing is recorded after it was
//! signalled. So an agent may be killed anywhere: the next one may repeat its last
//! signal, but misses none.

mod bag;
mod record;
mod state;
mod unrecorded;

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use nix::errno::Errno;

pub use bag::Bag;
pub use record::{Flaw, Record};
pub use state::{State, Ticket, Unfinished};
pub use unrecorded::Unrecorded;

use crate::{
    error::{Error, Result},
    eventfd::EventFd,
    keeper::{BAG, Handed, Keeper, STATE},
    source::FileId,
    vault::bag::IN_A_MESSAGE,
};

/// References of its own to an eventfd, beside the agent's one.
pub const REFERENCES: u64 = 1;

/// Eventfds that may lie in bags without anybody waiting, before they are cleared out.
const WASTE: usize = 256;

/// The state, the bags, and who keeps them.
#[derive(Debug)]
pub struct Vault {
    keeper: Keeper,
    state: State,
    /// The last one is being filled, one by one; the others are packed.
    bags: Vec<Bag>,
    /// What lies in the last one.
    latest: Vec<FileId>,
    /// What lies in any; nothing lies in two.
    held: HashSet<FileId>,
    /// Of those, what nobody waits on any more.
    waste: HashSet<FileId>,
    named: u64,
}

/// What an agent before has left.
#[derive(Debug, Default)]
pub struct Left {
    /// Its registrations.
    pub records: Vec<(Ticket, Record)>,
    /// Its eventfds.
    pub files: Vec<(FileId, OwnedFd)>,
    /// What it had taken out of a slot.
    pub unfinished: Option<Unfinished>,
    /// Which maps its slots are in; 0: none.
    pub instance: u64,
    /// Records that made no sense.
    pub flaws: u64,
}

impl Vault {
    /// Takes over what an agent before has left among `handed`, or begins anew. The
    /// bags are as they were until [`Vault::repack`].
    ///
    /// # Errors
    /// A new state cannot be made, or not be given to the keeper.
    pub fn open(keeper: Keeper, handed: Handed) -> Result<(Self, Left)> {
        let (mut states, mut bags) = (Vec::new(), Vec::new());
        let mut named = 0;
        for (name, fd) in handed {
            if name == STATE {
                states.push(fd);
            } else if let Some(number) = name.strip_prefix(BAG) {
                named = number.parse().unwrap_or(0).max(named);
                bags.push(Bag::adopt(name, fd));
            }
        }
        let mut left = Left::default();
        let adopted = states.into_iter().find_map(|file| {
            State::adopt(file).inspect_err(|error| log::error!("{error}; beginning without")).ok()
        });
        let state = match adopted {
            Some((state, records, flaws)) => {
                left = Left { records, flaws, unfinished: state.unfinished(), ..left };
                left.instance = state.instance();
                state
            }
            None => {
                let state = State::new()?;
                keeper.store(STATE, state.file())?;
                state
            }
        };
        for bag in &bags {
            let found =
                bag.look().map_err(|errno| Error::syscall(format!("recvmsg from {}", bag.name), errno))?;
            left.files.extend(found.into_iter().map(|(number, fd)| (FileId(number), fd)));
        }
        let mut seen = HashSet::new();
        left.files.retain(|(file, _)| seen.insert(*file));
        let vault = Self {
            keeper,
            state,
            bags,
            latest: Vec::new(),
            held: HashSet::new(),
            waste: HashSet::new(),
            named,
        };
        Ok((vault, left))
    }

    /// The record of registrations.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The same, to be changed.
    pub const fn state_mut(&mut self) -> &mut State {
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
        match self.put(&[(file.0, fd.as_fd())]) {
            Err(Errno::EAGAIN) => {
                self.pack_latest(all)?;
                self.put(&[(file.0, fd.as_fd())])
            }
            outcome => outcome,
        }
        .map_err(|errno| Error::syscall("sendmsg of an eventfd into a bag", errno))?;
        self.latest.push(file);
        self.held.insert(file);
        Ok(())
    }

    /// Nobody waits on it any more.
    pub fn let_go(&mut self, file: FileId, all: &HashMap<FileId, EventFd>) {
        if self.held.contains(&file) {
            self.waste.insert(file);
        }
        if self.waste.len() > WASTE.max(self.held.len() / 2)
            && let Err(error) = self.repack(all)
        {
            log::warn!("{error}");
        }
    }

    /// Puts all eventfds into new bags, and gives up the old ones.
    ///
    /// # Errors
    /// A new bag cannot be made, filled or kept: then the old ones stay.
    pub fn repack(&mut self, all: &HashMap<FileId, EventFd>) -> Result<()> {
        let old = std::mem::take(&mut self.bags);
        let latest = std::mem::take(&mut self.latest);
        let files: Vec<FileId> = all.keys().copied().collect();
        if let Err(error) = self.pack(&files, all).and_then(|()| self.begin_bag()) {
            let unfinished = std::mem::replace(&mut self.bags, old);
            self.give_up(unfinished);
            self.latest = latest;
            return Err(error);
        }
        self.give_up(old);
        self.held = files.into_iter().collect();
        self.waste.clear();
        Ok(())
    }

    /// What the next agent would be handed.
    #[cfg(test)]
    pub(crate) fn as_handed(&self) -> Handed {
        let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().expect("dup");
        let bags = self.bags.iter().map(|bag| (bag.name.clone(), duplicate(bag.end())));
        std::iter::once((STATE.to_owned(), duplicate(self.state.file()))).chain(bags).collect()
    }

    /// The last bag is full: packs what is in it, and begins another.
    fn pack_latest(&mut self, all: &HashMap<FileId, EventFd>) -> Result<()> {
        let Some(full) = self.bags.pop() else { return self.begin_bag() };
        let latest = std::mem::take(&mut self.latest);
        let (kept, gone): (Vec<_>, Vec<_>) = latest.into_iter().partition(|file| all.contains_key(file));
        let before = self.bags.len();
        if let Err(error) = self.pack(&kept, all).and_then(|()| self.begin_bag()) {
            let unfinished = self.bags.split_off(before);
            self.give_up(unfinished);
            self.bags.push(full);
            self.latest = kept.into_iter().chain(gone).collect();
            return Err(error);
        }
        self.give_up(vec![full]);
        for file in gone {
            self.held.remove(&file);
            self.waste.remove(&file);
        }
        Ok(())
    }

    /// Into new bags, many to a message.
    fn pack(&mut self, files: &[FileId], all: &HashMap<FileId, EventFd>) -> Result<()> {
        for chunk in files.chunks(IN_A_MESSAGE) {
            let some: Vec<_> =
                chunk.iter().filter_map(|file| Some((file.0, all.get(file)?.as_fd()))).collect();
            let mut outcome = self.put(&some);
            if outcome == Err(Errno::EAGAIN) {
                self.begin_bag()?;
                outcome = self.put(&some);
            }
            outcome.map_err(|errno| Error::syscall("sendmsg of eventfds into a bag", errno))?;
        }
        Ok(())
    }

    /// `EAGAIN`, too, where there is no bag yet.
    fn put(&self, some: &[(u64, BorrowedFd<'_>)]) -> nix::Result<()> {
        self.bags.last().map_or(Err(Errno::EAGAIN), |bag| bag.put(some))
    }

    fn begin_bag(&mut self) -> Result<()> {
        self.named += 1;
        let bag = Bag::new(format!("{BAG}{}", self.named))
            .map_err(|errno| Error::syscall("socketpair for a bag of eventfds", errno))?;
        self.keeper.store(&bag.name, bag.end())?;
        self.bags.push(bag);
        self.latest.clear();
        Ok(())
    }

    /// What is in them lies in others by now. Emptied here, so that it is known when the
    /// references go; the keeper takes its time.
    fn give_up(&self, bags: Vec<Bag>) {
        for bag in bags {
            if let Err(errno) = bag.empty() {
                log::error!("recvmsg from {}: {errno}", bag.name);
            }
            if let Err(error) = self.keeper.forget(&bag.name) {
                log::warn!("{error}");
            }
        }
    }
}
