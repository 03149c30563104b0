//! Eventfds that clients have closed. The programs do not see a close; instead the references of
//! registered eventfds are counted. An eventfd that only the agent refers to ends: it has no
//! client to signal.
//!
//! All eventfds are counted in a sweep and before a list, in turns; some are counted at once, for
//! a registration that would be refused for want of room.

use monitor_common::protocol::query::Query;
use nix::errno::Errno;

use crate::{
    persist,
    registry::Account,
    source::{FileId, Source},
    watcher::{Watcher, fair_queue::Payer, turn::Task},
};

/// Eventfds that end in one turn: each costs a few system calls.
const ENDED_IN_A_TURN: usize = 64;

/// Eventfds that are counted for one registration: a bound on the cost of a refusal.
const COUNTED_FOR_ONE: usize = 4 * Query::FILES_AT_ONCE;

/// Eventfds counted for each millisecond between two searches for want of room: at well under a
/// microsecond each, a percent or two of the time.
const COUNTED_IN_A_MILLISECOND: usize = 50;

/// A search for closed eventfds among those that were registered when it began, in turns
/// ([`Watcher::search_on`]).
#[derive(Debug, Default)]
pub struct ClosedSearch {
    uncounted: Vec<FileId>,
    /// Eventfds found closed, and not yet ended.
    closed: Vec<FileId>,
}

impl ClosedSearch {
    /// Whether nothing is left to do.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.uncounted.is_empty() && self.closed.is_empty()
    }
}

impl<S: Source> Watcher<S> {
    /// Begins a search among all registered eventfds.
    #[must_use]
    pub fn search_closed(&self) -> ClosedSearch {
        ClosedSearch { uncounted: self.registry.files(), closed: Vec::new() }
    }

    /// Runs one turn of a search; true while there is more to do. A turn counts the references of
    /// at most [`Query::FILES_AT_ONCE`] eventfds, or ends at most 64.
    pub fn search_on(&mut self, search: &mut ClosedSearch) -> bool {
        if search.closed.is_empty() {
            let some = last_of(&mut search.uncounted, Query::FILES_AT_ONCE);
            search.closed = self.closed_among(some);
        } else {
            // Counted again: the address may belong to another eventfd by now.
            let some = last_of(&mut search.closed, ENDED_IN_A_TURN);
            let closed = self.closed_among(some);
            self.forget_files(&closed);
        }
        !search.is_done()
    }

    /// Ends all closed eventfds in one turn.
    pub fn end_closed(&mut self) {
        let mut search = self.search_closed();
        while self.search_on(&mut search) {}
    }

    /// Runs one turn of the sweep's own search.
    pub(super) fn search_again(&mut self) {
        let mut search = std::mem::take(&mut self.search);
        self.search_on(&mut search);
        self.search = search;
    }

    /// Queues the sweep's own search, in turns, until it is done.
    pub(super) fn queue_search(&mut self) {
        if !self.search_queued && !self.search.is_done() {
            self.search_queued = true;
            self.turns.push(Payer::House, Task::Search);
            self.work.notify_one();
        }
    }

    /// Ends closed eventfds that an account has registrations on: of up to 8,192 all, of more
    /// some, beginning where the last call ended; at most 64 at once.
    pub fn end_closed_of(&mut self, account: Account) {
        let first = self.resume_at.remove(&account).unwrap_or(FileId(0));
        let some: Vec<_> = self.registry.files_of(account, first).take(COUNTED_FOR_ONE).collect();
        if let (COUNTED_FOR_ONE, Some(FileId(last))) = (some.len(), some.last()) {
            self.resume_at.insert(account, FileId(last.saturating_add(1)));
        }
        let closed = self.closed_among(some);
        self.forget_files(&closed[..closed.len().min(ENDED_IN_A_TURN)]);
    }

    /// Makes room for one more registration of `account`, on an eventfd that `is_new` or not.
    /// Where there is none, closed eventfds give way.
    ///
    /// # Errors
    /// `EDQUOT`: the account has as many registrations as one may have. `ENOMEM`: there are
    /// as many registrations, or eventfds, as there may be in all.
    pub(super) fn find_room(&mut self, account: Account, is_new: bool) -> Result<(), Errno> {
        if account == Account::Agent {
            return Ok(());
        }
        if self.is_at_quota(account) {
            self.end_closed_of(account);
            if self.is_at_quota(account) {
                if self.resume_at.contains_key(&account) {
                    self.search_for_room();
                }
                return Err(Errno::EDQUOT);
            }
        }
        if self.is_full(account, is_new) {
            self.end_closed_of(account);
            if self.is_full(account, is_new) {
                self.end_some_closed(account, is_new);
            }
            if self.is_full(account, is_new) {
                return Err(Errno::ENOMEM);
            }
        }
        Ok(())
    }

    fn is_at_quota(&self, account: Account) -> bool {
        !account.is_unlimited() && self.registry.held_by(account) >= self.limits.quota
    }

    /// Whether an account has no room for one more registration, or, for a new eventfd, for one
    /// more of those.
    fn is_full(&self, account: Account, is_new: bool) -> bool {
        !self.has_room(account) || (is_new && !self.has_room_for_eventfd(account))
    }

    /// Ends closed eventfds of any account until there is room: of up to 8,192 all are counted;
    /// of more some, and the search among them continues in turns.
    fn end_some_closed(&mut self, account: Account, is_new: bool) {
        let few = self.registry.file_count() <= COUNTED_FOR_ONE as u64;
        let mut search = if few {
            self.search_closed()
        } else {
            self.search_for_room();
            std::mem::take(&mut self.search)
        };
        for _ in 0..COUNTED_FOR_ONE / Query::FILES_AT_ONCE {
            if !self.is_full(account, is_new) || !self.search_on(&mut search) {
                break;
            }
        }
        if self.is_full(account, is_new) && !search.closed.is_empty() {
            self.search_on(&mut search);
        }
        if !few {
            self.search = search;
        }
    }

    /// Begins the next sweep's search, unless one is under way or was not long ago.
    fn search_for_room(&mut self) {
        let now = self.host.clock();
        if self.search.is_done() && now >= self.search_from {
            self.search = self.search_closed();
            self.search_from = now + (self.search.uncounted.len() / COUNTED_IN_A_MILLISECOND) as u64;
            self.queue_search();
        }
    }

    /// The eventfds of `files` to which only the agent has references.
    pub(super) fn closed_among(&self, files: Vec<FileId>) -> Vec<FileId> {
        if files.is_empty() {
            return files;
        }
        let counted = match self.source.file_refs(&files) {
            Ok(counted) => counted,
            Err(error) => {
                log::error!("{error}");
                return Vec::new();
            }
        };
        // This first filter lets few through, so that a sweep looks few up. One that ended since
        // it was listed is no file any more, and its count means nothing.
        let most = 1 + if self.persistence.is_some() { persist::REFERENCES } else { 0 };
        let few = files.into_iter().zip(counted).filter(|(_, count)| *count <= most);
        let few = few.filter(|(file, _)| self.registry.has_file(*file));
        few.filter(|(file, count)| {
            if *count == 0 {
                log::error!("the references of an eventfd cannot be read: it stays registered");
            }
            (1..=self.own_references(*file)).contains(count)
        })
        .map(|(file, _)| file)
        .collect()
    }

    /// Whether only the agent has references to an eventfd that it holds; false where they cannot
    /// be counted.
    pub(super) fn is_closed(&self, file: FileId) -> bool {
        let counted = self.source.file_refs(&[file]).unwrap_or_default();
        counted.first().is_some_and(|count| (1..=self.own_references(file)).contains(count))
    }

    /// The agent's own references to a registered eventfd: one, and for a client's those of the
    /// descriptor stash.
    fn own_references(&self, file: FileId) -> u64 {
        let stash = self.persistence.is_some() && !self.own.contains_key(&file);
        1 + if stash { persist::REFERENCES } else { 0 }
    }
}

/// Takes the last `count` out of `files`.
fn last_of(files: &mut Vec<FileId>, count: usize) -> Vec<FileId> {
    let last = files.split_off(files.len().saturating_sub(count));
    if files.is_empty() {
        *files = Vec::new();
    }
    last
}
