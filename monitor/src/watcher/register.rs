//! A registration begins.

use std::os::fd::AsFd as _;

use monitor_common::{
    control::{ControlFile, Wish},
    threshold::{At, Threshold},
};
use nix::errno::Errno;

use crate::{
    eventfd::EventFd,
    registry::Registration,
    source::{GroupId, Source},
    watcher::{Cause, Event, Follower, Watcher},
};

/// What a client asks for, once it is known for whom.
#[derive(Debug)]
pub struct Request {
    /// On which group.
    pub group: GroupId,
    /// On which of its control files.
    pub on: ControlFile,
    /// What for.
    pub wish: Wish,
    /// To be signalled.
    pub eventfd: EventFd,
    /// Told why, from the first signal on, until it answers `false`.
    pub follower: Option<Follower>,
    /// The user whose quota it counts against.
    pub owner: u32,
}

impl<S: Source> Watcher<S> {
    /// Registers a wish.
    ///
    /// # Errors
    /// `EINVAL` when the group is going or gone, as the kernel's
    /// `css_tryget_online`; `EDQUOT` when the user has as many as one may have;
    /// `ENOMEM` when no further eventfd can be followed; `EOPNOTSUPP` when this
    /// kernel cannot tell that.
    pub fn register(&mut self, request: Request) -> Result<(), Errno> {
        let internal = |error: crate::Error| {
            log::error!("registration failed: {error}");
            Errno::EIO
        };
        let Request { group, on, wish, eventfd, follower, owner } = request;
        let offers = self.source.offers();
        let offered = match wish {
            Wish::Threshold(_) => true,
            Wish::Oom => offers.oom,
            Wish::Pressure(_) => offers.pressure,
            Wish::Empty => offers.empty,
        };
        if !offered {
            return Err(Errno::EOPNOTSUPP);
        }
        if owner != 0 && self.registry.held_by(owner) >= self.limits.quota {
            return Err(Errno::EDQUOT);
        }
        let file = self.source.file_of(eventfd.as_fd()).map_err(internal)?;
        let slot = self.source.slot(group.slot).ok_or(Errno::EINVAL)?;
        if !slot.watch(group.generation) {
            return Err(Errno::EINVAL);
        }
        // Those already registered may hear something now, as in the kernel.
        if self.registry.group(group.slot).is_some() {
            self.look(group.slot);
        }
        let known = self.registry.group(group.slot).map(|known| known.scale(on));
        let now = match known.filter(|scale| !scale.is_empty()) {
            Some(scale) => Ok(Some(scale.now())),
            None => self.quantity(group, on),
        };
        // Asked for where it matters: a question for each level.
        let in_percent = matches!(wish, Wish::Threshold(Threshold { at: At::Percent(_), .. }));
        let limit = if in_percent { self.effective_limit(group.slot) } else { Ok(u64::MAX) };
        let (Some(now), limit) = (now.map_err(internal)?, limit.map_err(internal)?) else {
            self.settle(group.slot);
            return Err(Errno::EINVAL);
        };
        if !self.registry.has_file(file) {
            if let Err(error) = self.source.follow_file(file) {
                log::warn!("{error}");
                self.settle(group.slot);
                return Err(Errno::ENOMEM);
            }
            self.eventfds.insert(file, eventfd);
        }
        if let Some(follower) = follower {
            self.followers.entry(file).or_default().push(follower);
        }
        self.registry.add(group, Registration { on, wish, file, owner }, now, limit);
        self.registrations_changed();
        // Publishes the new band, then reads usage again: a charge that still
        // went by the old band is caught here.
        self.look(group.slot);
        if wish == Wish::Oom && self.is_under_oom(group) {
            let id = self.id_of(group.slot);
            self.signal(file, &Event { cgroup_id: id, cause: Cause::Oom { limit: id }, signals: 1 });
        }
        Ok(())
    }

    /// Never the root: it has no limit, and no counter to ask about. An error does
    /// not undo a registration that is made.
    fn is_under_oom(&self, group: GroupId) -> bool {
        group.slot != self.source.root().slot
            && self.source.is_under_oom(group).unwrap_or_else(|error| {
                log::error!("{error}");
                false
            })
    }

    /// Tells the programs what to count, and the agent's loop that it may have to
    /// sweep and sample.
    pub(super) fn registrations_changed(&self) {
        self.source.want(self.registry.wanted());
        self.work.notify_one();
    }
}
