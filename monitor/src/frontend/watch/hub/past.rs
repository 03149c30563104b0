//! The past of groups, told as soon as it is known: of one that is leaving the kernel's programs write it
//! only at the end, and none waits for another's.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use monitor_common::grammar::{control_file::Trigger, spec::Spec};

use super::Hub;
use crate::{
    frontend::{
        event_row,
        watch::{
            late::{self, Since},
            member::{Happened, Member},
            request::{SharedPrograms, Watch},
        },
    },
    source::GroupId,
    watcher::{Early, Event, Lived},
};

/// Time between two looks at groups whose past is not known yet, and of those that take longer.
const PAST_AGAIN: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(50)];
/// Time after which a group takes longer.
const SOON: Duration = Duration::from_millis(20);
/// Groups that are looked at in a turn.
const IN_A_TURN: usize = 256;
/// Longest time for that: the programs that write it are at work.
const LEAVING: Duration = Duration::from_secs(1);

/// The reason why nothing is told of a new group that is gone.
const PAST_UNKNOWN: &str = "groups were gone before what they had done could be read";
/// The reason why nothing is told of a group whose name would have decided.
const NAME_UNKNOWN: &str = "groups with something to tell were gone before their names could be read";
/// The reason why a group's first pressure and emptying are not told.
const FOUND_LATE: &str =
    "groups were found late; whether they had pressure, or became empty, before that is not known";

/// The slot of a new group, kept as long as this is there.
pub(super) struct KeptSlot {
    pub(super) watcher: SharedPrograms,
    pub(super) group: GroupId,
}

impl Drop for KeptSlot {
    fn drop(&mut self) {
        self.watcher.lock().let_arrival_go(self.group);
    }
}

/// The slot of a group where it is a new one.
pub(super) type KeptIfNew = Option<Rc<KeptSlot>>;

/// The past of a group, which a watch is to be told.
pub(super) struct Past {
    pub(super) watch: Rc<Watch>,
    pub(super) what: Untold,
    pub(super) kept: KeptIfNew,
    /// The time of the first attempt.
    pub(super) first: Instant,
}

/// The group whose past it is.
pub(super) enum Untold {
    /// A group that may match: it is gone, and its name was not read.
    Nameless { group: GroupId, id: u64 },
    /// A group that matches, and the specifications that were registered, each with what the group had done
    /// by then.
    Member { member: Member, is_there: bool, since: Since, registered: Vec<(usize, Option<Early>)> },
}

/// The progress of finding out what a group did.
enum Found {
    NotYet,
    /// It is known, or (`None`) never will be.
    Known(Option<Lived>),
}

impl Hub {
    /// Tells the past of a group, now or later.
    pub(super) fn tell(&self, past: Past) {
        if !self.is_told(&past) {
            self.untold.borrow_mut().push(past);
        }
    }

    /// The time until the next look at those whose past is not known yet.
    pub(super) fn past_again(&self) -> Duration {
        let [soon, later] = PAST_AGAIN;
        let is_soon = self.untold.borrow().iter().any(|past| past.first.elapsed() < SOON);
        if is_soon { soon } else { later }
    }

    /// Tells what could not be told before, of some groups in a turn.
    pub(super) fn tell_untold(&self) {
        let mut untold = self.untold.take();
        let later = untold.split_off(untold.len().min(IN_A_TURN));
        self.untold.replace(later);
        for past in untold {
            if !self.is_over(&past.watch) {
                self.tell(past);
            }
        }
    }

    /// Tells the past of a group; false where it is not known yet.
    fn is_told(&self, past: &Past) -> bool {
        let group = match &past.what {
            Untold::Nameless { group, .. } => *group,
            Untold::Member { member, .. } => member.group,
        };
        let lived = match self.find(group, past.kept.is_some()) {
            Found::Known(lived) => lived,
            Found::NotYet if past.first.elapsed() < LEAVING => return false,
            Found::NotYet => None,
        };
        match &past.what {
            Untold::Nameless { group, id } => self.count_nameless(&past.watch, (*group, *id), lived),
            Untold::Member { member, is_there, since, registered } => {
                self.tell_member(&past.watch, member, (*is_there, *since), registered, lived);
            }
        }
        true
    }

    /// The past of a group; `None` where that is not known any more, and for the root.
    fn find(&self, group: GroupId, is_kept: bool) -> Found {
        let watcher = self.watcher.lock();
        let is_there = watcher.is_there(group);
        if is_kept && !is_there && watcher.awaits_look(group) {
            return Found::NotYet;
        }
        let lived = watcher.lived(group).inspect_err(|error| log::error!("{error}")).ok().flatten();
        let is_root = group.slot == watcher.source().root().slot;
        if lived.is_some() || is_root || !is_there { Found::Known(lived) } else { Found::NotYet }
    }

    fn count_nameless(&self, watch: &Watch, (group, id): (GroupId, u64), lived: Option<Lived>) {
        let lived = lived.map(|lived| Lived { is_there: false, ..lived });
        let Some(lived) = lived.filter(|lived| lived.is_whole) else {
            return watch.queue.miss(PAST_UNKNOWN.into(), 1);
        };
        let early = self.watcher.lock().early(group);
        let is_told =
            |spec: &Spec| !late::causes(spec, (&lived, early), Since::Made, id, |_| None).is_empty();
        if watch.specs.iter().any(|(_, spec)| is_told(spec)) {
            watch.queue.miss(NAME_UNKNOWN.into(), 1);
        }
    }

    fn tell_member(
        &self,
        watch: &Watch,
        member: &Member,
        (is_there, since): (bool, Since),
        registered: &[(usize, Option<Early>)],
        lived: Option<Lived>,
    ) {
        if !lived.is_some_and(|lived| lived.is_whole) && registered.len() < watch.specs.len() {
            watch.queue.miss(PAST_UNKNOWN.into(), 1);
        }
        log::debug!(memcg_cgroup_id = member.id; "a watch found a new group #{}: there {is_there}, registered {registered:?}, {lived:?}", member.id);
        let early = self.watcher.lock().early(member.group);
        let leaves_no_trace =
            |spec: &Spec| matches!(spec, Spec::Event { trigger: Trigger::Pressure(_) | Trigger::Empty, .. });
        if since == Since::Made
            && early.is_none()
            && watch.specs.iter().any(|(_, spec)| leaves_no_trace(spec))
        {
            watch.queue.miss(FOUND_LATE.into(), 1);
        }
        let Some(lived) = lived else { return };
        for (at, (_, spec)) in watch.specs.iter().enumerate() {
            // A registration tells what follows it, and of the removal itself. A directory is gone before its
            // group is.
            let by_registration = registered.iter().find(|(registered, _)| *registered == at);
            let early = by_registration.map_or(early, |(_, early)| *early);
            let lived =
                Lived { is_there: (is_there && lived.is_there) || by_registration.is_some(), ..lived };
            let quantity = |on| self.quantity(member.group, on);
            for cause in late::causes(spec, (&lived, early), since, member.id, quantity) {
                let event = Event { cgroup_id: member.id, cause, signals: 0 };
                let late = Some((lived.peak, lived.limit));
                let (time, member) = (event_row::now(), member.clone());
                watch.queue.tell(Happened { time, member, spec: at, event, late });
            }
        }
    }
}
