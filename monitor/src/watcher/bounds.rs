//! Bounds on what clients may register, and whether they are reached.

use crate::{
    registry::{Account, Registry, share},
    watcher::delivery::Delivery,
};

/// Bounds on what clients may register.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Registrations that each account may have, except `Account::Privileged` and the agent's
    /// own.
    pub quota: u64,
    /// Registrations that there may be in all, the agent's own not counted, divided as
    /// `registry::share` says.
    pub registrations: u64,
    /// Eventfds that can be registered at once, divided likewise.
    pub eventfds: u64,
    /// Milliseconds of hold-off for a threshold that was crossed sixteen times within that
    /// time; 0: none.
    pub holdoff_ms: u64,
}

impl Limits {
    /// Whether it matters that a requester is privileged, and uses `Account::Privileged`: its
    /// account has half of its quota or more, or finds no room.
    pub(super) fn is_near(&self, account: Account, registry: &Registry, delivery: &Delivery) -> bool {
        let is_near = registry.held_by(account).saturating_mul(2) >= self.quota
            || self.are_full(account, true, registry, delivery);
        !account.is_unlimited() && is_near
    }

    /// Whether an account has as many registrations as one may have.
    pub(super) fn is_at_quota(&self, account: Account, registry: &Registry) -> bool {
        !account.is_unlimited() && registry.held_by(account) >= self.quota
    }

    /// Whether an account has no room for one more registration, or, for a new eventfd, for one
    /// more of those.
    pub(super) fn are_full(
        &self,
        account: Account,
        is_new: bool,
        registry: &Registry,
        delivery: &Delivery,
    ) -> bool {
        !self.has_room(account, registry)
            || (is_new && !self.has_room_for_eventfd(account, registry, delivery))
    }

    /// Whether an account has room for one more registration.
    pub(super) fn has_room(&self, account: Account, registry: &Registry) -> bool {
        let used = registry.len() - registry.held_by(Account::Agent);
        let held = registry.held_by(account);
        account == Account::Agent || share::has_room(account, held, used, self.registrations)
    }

    /// Whether an account has room for one more eventfd; it has no more eventfds than
    /// registrations, except those with undelivered signals, or yet to be closed.
    pub(super) fn has_room_for_eventfd(
        &self,
        account: Account,
        registry: &Registry,
        delivery: &Delivery,
    ) -> bool {
        let (theirs, all) = delivery.counted(account);
        share::has_room(account, registry.held_by(account).max(theirs), all, self.eventfds)
    }
}
