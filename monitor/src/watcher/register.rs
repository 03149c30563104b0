//! A registration begins.

use monitor_common::{
    band::Excursion,
    control::{ControlFile, Wish},
    threshold::{At, Threshold},
    word::Word as _,
};
use nix::errno::Errno;

use crate::{
    eventfd::EventFd,
    registry::Registration,
    source::{FileId, GroupId, Source},
    watcher::{Cause, Event, Follower, Watcher},
};

/// A client's eventfd, as a door hands it over.
#[derive(Debug)]
pub enum Handed {
    /// One that is registered already; the watcher holds a duplicate.
    Known(FileId),
    /// A duplicate, and which file it is.
    New(EventFd, FileId),
}

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
    pub eventfd: Handed,
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
        let (Handed::Known(file) | Handed::New(_, file)) = eventfd;
        let slot = self.source.slot(group.slot).ok_or(Errno::EINVAL)?;
        if !slot.watch(group.generation) {
            return Err(Errno::EINVAL);
        }
        // Those already registered may hear something now, as in the kernel.
        self.catch_up(group.slot);
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
            // Known, and gone since: no door hands that over.
            let Handed::New(eventfd, _) = eventfd else { return Err(Errno::EBADF) };
            self.eventfds.insert(file, eventfd);
        }
        if let Some(follower) = follower {
            self.followers.entry(file).or_default().push(follower);
        }
        let before = self.paces();
        self.registry.add(group, Registration { on, wish, file, owner }, now, limit);
        self.source.want(self.registry.wanted());
        if self.paces() != before {
            self.work.notify_one();
        }
        // Publishes the new band, then reads usage again: a charge that still
        // went by the old band is caught here.
        let is_root = group.slot == self.source.root().slot;
        if is_root || self.publish(group.slot).is_none() || !self.is_quiet(group.slot) {
            self.look(group.slot);
        }
        if wish == Wish::Oom && self.is_under_oom(group) {
            let id = self.id_of(group.slot);
            self.signal(file, &Event { cgroup_id: id, cause: Cause::Oom { limit: id }, signals: 1 });
        }
        Ok(())
    }

    /// Looks at a group where there is something to see.
    fn catch_up(&mut self, index: u32) {
        if self.registry.group(index).is_some() && !self.is_quiet(index) {
            self.look(index);
        }
    }

    /// Whether a group's quantities, asked for now, are in the bands published last,
    /// and no doorbell waits for an answer: then a look would tell nothing. What was
    /// read counts as the last look's.
    fn is_quiet(&mut self, index: u32) -> bool {
        let root = self.source.root().slot;
        let Some((group, slot)) = self.registry.group(index).zip(self.source.slot(index)) else {
            return false;
        };
        let state = slot.state();
        let is_same = state.is_live() && state.generation() == group.id.generation;
        if index == root || slot.pending.get() != 0 || !is_same {
            return false;
        }
        let sum_too = !group.scale(ControlFile::Memsw).is_empty();
        let bands = [ControlFile::Usage, ControlFile::Memsw].map(|file| group.scale(file).band());
        let Ok(Some((memory, sum))) = self.measure(group.id, sum_too) else { return false };
        if !bands[0].holds(memory) || sum.is_some_and(|sum| !bands[1].holds(sum)) {
            return false;
        }
        self.step(index, ControlFile::Usage, Excursion::NONE, memory);
        if let Some(sum) = sum {
            self.step(index, ControlFile::Memsw, Excursion::NONE, sum);
        }
        true
    }

    /// What the agent's loop has to do by the clock: sweep, sample.
    fn paces(&self) -> (bool, bool) {
        (!self.registry.is_empty(), self.samples())
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
