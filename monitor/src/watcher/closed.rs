//! Eventfds that clients have closed. The programs do not see a close; instead the references of
//! registered eventfds are counted. An eventfd that only the agent refers to ends: it has no
//! client to signal.
//!
//! All eventfds are counted in a sweep and before a list, in turns; some are counted at once, for
//! a registration that would be refused for want of room.

use std::collections::HashMap;

use monitor_common::protocol::query::Query;
use nix::errno::Errno;

use crate::{
    registry::{Account, Registry},
    source::{FileId, Source},
    watcher::{core::Core, fair_queue::Payer, turns::Task},
};

/// Eventfds that end in one turn: each costs a few system calls.
const ENDED_IN_A_TURN: usize = 64;

/// Eventfds that are counted for one registration: a bound on the cost of a refusal.
const COUNTED_FOR_ONE: usize = 4 * Query::FILES_AT_ONCE;

/// Eventfds counted for each millisecond between two searches for want of room: at well under a
/// microsecond each, a percent or two of the time.
const COUNTED_IN_A_MILLISECOND: usize = 50;

/// A search for closed eventfds among those that were registered when it began, in turns.
#[derive(Debug, Default)]
pub struct ClosedSearch {
    uncounted: Vec<FileId>,
    /// Eventfds found closed, and not yet ended.
    closed: Vec<FileId>,
}

impl ClosedSearch {
    /// Begins a search among all registered eventfds.
    pub(super) fn new(registry: &Registry) -> Self {
        Self { uncounted: registry.files(), closed: Vec::new() }
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.uncounted.is_empty() && self.closed.is_empty()
    }

    /// Runs one turn of a search; true while there is more to do. A turn counts the references of
    /// at most [`Query::FILES_AT_ONCE`] eventfds, or ends at most [`ENDED_IN_A_TURN`].
    pub(super) fn go_on<S: Source>(&mut self, core: &mut Core<S>) -> bool {
        if self.closed.is_empty() {
            let some = last_of(&mut self.uncounted, Query::FILES_AT_ONCE);
            self.closed = core.closed_among(some);
        } else {
            // Counted again: the address may belong to another eventfd by now.
            let some = last_of(&mut self.closed, ENDED_IN_A_TURN);
            let closed = core.closed_among(some);
            core.forget_files(&closed);
        }
        !self.is_done()
    }
}

/// The sweeps' search, and those for want of room.
#[derive(Debug, Default)]
pub(super) struct ClosedEventFds {
    /// The latest search of a sweep, and whether it is queued.
    search: ClosedSearch,
    queued: bool,
    /// The earliest time of the next search for want of room, by the host's clock.
    search_from: u64,
    /// The eventfd to continue at, for accounts with too many eventfds for one turn.
    resume_at: HashMap<Account, FileId>,
}

impl ClosedEventFds {
    /// Begins a sweep's search among all eventfds, unless one is under way.
    pub(super) fn sweep<S: Source>(&mut self, core: &mut Core<S>) {
        if self.search.is_done() {
            self.search = ClosedSearch::new(&core.registry);
            self.resume_at.clear();
        }
        self.queue(core);
    }

    /// Runs one turn of the sweep's search, and queues the next.
    pub(super) fn go_on<S: Source>(&mut self, core: &mut Core<S>) {
        self.queued = false;
        self.search.go_on(core);
        self.queue(core);
    }

    /// Queues the sweep's search, in turns, until it is done.
    fn queue<S>(&mut self, core: &mut Core<S>) {
        if !self.queued && !self.search.is_done() {
            self.queued = true;
            core.turns.push(Payer::House, Task::Search);
            core.turns.notify();
        }
    }

    /// Ends closed eventfds that an account has registrations on: of up to 8,192 all, of more
    /// some, beginning where the last call ended; at most 64 at once.
    pub(super) fn end_some_of<S: Source>(&mut self, core: &mut Core<S>, account: Account) {
        let first = self.resume_at.remove(&account).unwrap_or(FileId(0));
        let some: Vec<_> = core.registry.files_of(account, first).take(COUNTED_FOR_ONE).collect();
        if let (COUNTED_FOR_ONE, Some(FileId(last))) = (some.len(), some.last()) {
            self.resume_at.insert(account, FileId(last.saturating_add(1)));
        }
        let closed = core.closed_among(some);
        core.forget_files(&closed[..closed.len().min(ENDED_IN_A_TURN)]);
    }

    /// Makes room for one more registration of `account`, on an eventfd that `is_new` or not.
    /// Where there is none, closed eventfds give way.
    ///
    /// # Errors
    /// `EDQUOT`: the account has as many registrations as one may have. `ENOMEM`: there are
    /// as many registrations, or eventfds, as there may be in all.
    pub(super) fn find_room<S: Source>(
        &mut self,
        core: &mut Core<S>,
        account: Account,
        is_new: bool,
    ) -> Result<(), Errno> {
        if account == Account::Agent {
            return Ok(());
        }
        if core.limits.is_at_quota(account, &core.registry) {
            self.end_some_of(core, account);
            if core.limits.is_at_quota(account, &core.registry) {
                if self.resume_at.contains_key(&account) {
                    self.search_for_room(core);
                }
                return Err(Errno::EDQUOT);
            }
        }
        if is_full(core, account, is_new) {
            self.end_some_of(core, account);
            if is_full(core, account, is_new) {
                self.end_some_of_any(core, account, is_new);
            }
            if is_full(core, account, is_new) {
                return Err(Errno::ENOMEM);
            }
        }
        Ok(())
    }

    /// Ends closed eventfds of any account until there is room: of up to 8,192 all are counted;
    /// of more some, and the search among them continues in turns.
    fn end_some_of_any<S: Source>(&mut self, core: &mut Core<S>, account: Account, is_new: bool) {
        let few = core.registry.file_count() <= COUNTED_FOR_ONE as u64;
        let mut search = if few {
            ClosedSearch::new(&core.registry)
        } else {
            self.search_for_room(core);
            std::mem::take(&mut self.search)
        };
        for _ in 0..COUNTED_FOR_ONE / Query::FILES_AT_ONCE {
            if !is_full(core, account, is_new) || !search.go_on(core) {
                break;
            }
        }
        if is_full(core, account, is_new) && !search.closed.is_empty() {
            search.go_on(core);
        }
        if !few {
            self.search = search;
        }
    }

    /// Begins the next sweep's search, unless one is under way or was not long ago.
    fn search_for_room<S: Source>(&mut self, core: &mut Core<S>) {
        let now = core.host.clock();
        if self.search.is_done() && now >= self.search_from {
            self.search = ClosedSearch::new(&core.registry);
            self.search_from = now + (self.search.uncounted.len() / COUNTED_IN_A_MILLISECOND) as u64;
            self.queue(core);
        }
    }

    /// Ends the sweep's search, as if it had found nothing more.
    #[cfg(test)]
    pub(super) fn end_search(&mut self) {
        self.search = ClosedSearch::default();
    }
}

/// Ends all closed eventfds in one turn.
pub(super) fn end_all<S: Source>(core: &mut Core<S>) {
    let mut search = ClosedSearch::new(&core.registry);
    while search.go_on(core) {}
}

fn is_full<S>(core: &Core<S>, account: Account, is_new: bool) -> bool {
    core.limits.are_full(account, is_new, &core.registry, &core.delivery)
}

/// Takes the last `count` out of `files`.
fn last_of(files: &mut Vec<FileId>, count: usize) -> Vec<FileId> {
    let last = files.split_off(files.len().saturating_sub(count));
    if files.is_empty() {
        *files = Vec::new();
    }
    last
}
