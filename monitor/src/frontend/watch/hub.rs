//! The watches of all operators: finds the groups of each, those that there are and those that come,
//! and registers on them.
//!
//! A new group's slot is kept by the watcher until this has met it, even if the group is gone by then.
//! So what it did is told, whether a registration was in time for it or not.

mod notes;
mod past;
mod rescan;

use std::{
    cell::{Cell, RefCell},
    fmt,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use monitor_client::wire::NoteRow;
use monitor_common::grammar::{
    control_file::{self, ControlFile, Trigger},
    spec::Spec,
};
use monitor_sys::table::SharedSlot;
use nix::errno::Errno;
use tokio::{
    sync::Notify,
    task::{AbortHandle, spawn_blocking, spawn_local, yield_now},
    time::{MissedTickBehavior, interval, sleep},
};

use self::{
    past::{KeptIfNew, KeptSlot, Past, Untold},
    rescan::{Rescan, TOO_DEEP},
};
use crate::{
    cgroup::handle::Directories,
    frontend::{
        cache::ResolvedControlFile,
        control_file::FrontendContext,
        listing,
        refusal::Refusal,
        register::on_group,
        watch::{
            choice::Membership,
            growth::{self, Growth},
            late::Since,
            member::{Member, shown_path},
            request::{SharedPrograms, Watch},
        },
    },
    kernel::page_size,
    source::{GroupId, Slots as _, Source as _},
    watcher::{Arrival, Early, ReceivedEventFd},
};

/// Time between two readings of usage, for growth, and between two looks for what was missed.
const TICK: Duration = Duration::from_secs(1);

/// New groups that are named at once.
const NAMED_AT_ONCE: usize = 64;

/// Time between two attempts to name a group that is being made: the kernel shows its directory only
/// after the programs were called (`kernfs_activate` in `cgroup_mkdir`).
const NAME_AGAIN: Duration = Duration::from_millis(2);
/// Time for which that goes on; then a group is tried once a second.
const BEING_MADE: Duration = Duration::from_secs(1);
/// Time after which a group without a name is let go of. On a busy host one takes seconds to go.
const GIVEN_UP: Duration = Duration::from_secs(10);

/// All watches, and the task that serves them while there are any.
pub(in crate::frontend) struct Hub {
    watcher: SharedPrograms,
    context: Rc<FrontendContext>,
    watches: RefCell<Vec<Rc<Watch>>>,
    growth: RefCell<Growth>,
    /// New groups that are there and have no name yet; their slots are kept.
    unnamed: RefCell<Vec<Unmet>>,
    /// The number of those that were let go of without one.
    nameless: Cell<u64>,
    /// Groups whose past is not known yet, or not told.
    untold: RefCell<Vec<Past>>,
    is_running: Cell<bool>,
    is_scanning: Cell<bool>,
}

/// A new group that was not met yet.
#[derive(Clone, Copy)]
struct Unmet {
    arrival: Arrival,
    since: Instant,
}

impl Unmet {
    /// Whether others need its place by now: only so many new groups are kept, of all users together.
    fn is_given_up(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= GIVEN_UP
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("watches", &self.watches).finish_non_exhaustive()
    }
}

/// A watch that is served until this is dropped.
pub(super) struct Served {
    hub: Rc<Hub>,
    watch: Rc<Watch>,
    scan: AbortHandle,
}

impl Served {
    pub(super) fn watch(&self) -> &Watch {
        &self.watch
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.scan.abort();
        self.hub.watches.borrow_mut().retain(|watch| !Rc::ptr_eq(watch, &self.watch));
        let mut watcher = self.hub.watcher.lock();
        let _ = watcher.watch_arrivals(self.watch.kinds(), false);
        watcher.end_file(self.watch.eventfd.file);
    }
}

/// The path of a new group, as far as it is known.
enum ArrivalName {
    Known {
        below: PathBuf,
        shown: Arc<Path>,
    },
    Gone {
        above: Option<PathBuf>,
        below: PathBuf,
        shown: Arc<Path>,
    },
    /// It is there, and will have no path that can be read; that of the one it is in may be known.
    TooDeep {
        above: Option<PathBuf>,
    },
    /// It is beside a root that is a group: none of the agent's.
    Outside,
}

impl ArrivalName {
    fn of(directories: &Directories, arrival: &Arrival) -> Self {
        let id = arrival.cgroup_id;
        let root = directories.path_of(directories.root_id()).unwrap_or_default();
        let below = |path: &Path| Path::new("/").join(path.strip_prefix(&root).unwrap_or(path));
        if let Some(path) = directories.path_of(id) {
            return Self::Known { below: below(&path), shown: shown_path(&path, id) };
        }
        let above = directories.path_of(arrival.above);
        // Before the next, for which a path that cannot be read is not below the root.
        if directories.is_too_deep(id) {
            return Self::TooDeep { above: above.as_deref().map(below) };
        }
        if directories.is_outside(id) || directories.is_outside(arrival.above) {
            return Self::Outside;
        }
        let name = format!("#{id}");
        let path = above.as_ref().map_or_else(|| name.clone().into(), |above| above.join(&name));
        Self::Gone { above: above.as_deref().map(below), below: below(&path), shown: shown_path(&path, id) }
    }
}

impl Hub {
    pub(in crate::frontend) fn new(watcher: SharedPrograms, context: Rc<FrontendContext>) -> Self {
        let (watches, growth, unnamed, nameless, untold) = Default::default();
        let (is_running, is_scanning) = Default::default();
        Self { watcher, context, watches, growth, unnamed, nameless, untold, is_running, is_scanning }
    }

    /// Begins to serve a watch.
    pub(super) fn begin(self: &Rc<Self>, watch: Watch) -> Served {
        let watch = Rc::new(watch);
        self.watches.borrow_mut().push(Rc::clone(&watch));
        // Before the groups that there are are looked for: none is between the two.
        let arrivals = self.watcher.lock().watch_arrivals(watch.kinds(), true);
        if !self.is_running.replace(true) {
            spawn_local(Rc::clone(self).run(arrivals));
        }
        let (hub, scanned) = (Rc::clone(self), Rc::clone(&watch));
        let scan = spawn_local(async move {
            let since = if scanned.again { Since::Before } else { Since::Now };
            hub.scan(&scanned, since).await;
            let groups = scanned.members.all().len() as u64;
            if scanned.again && scanned.has_more_than_thresholds() {
                let row = NoteRow { reason: "again".into(), groups, ..NoteRow::default() };
                scanned.queue.tell_note(row).await;
            }
            scanned.queue.tell_watching(groups).await;
            scanned.is_begun.set(true);
        });
        Served { hub: Rc::clone(self), watch, scan: scan.abort_handle() }
    }

    fn is_over(&self, watch: &Rc<Watch>) -> bool {
        !self.watches.borrow().iter().any(|served| Rc::ptr_eq(served, watch))
    }

    async fn run(self: Rc<Self>, arrivals: Arc<Notify>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let counts = self.counts();
        let mut rescan = Rescan { seen: counts, told: counts };
        loop {
            while !self.watches.borrow().is_empty() {
                let is_one_being_made = self.is_one_being_made();
                let is_one_untold = !self.untold.borrow().is_empty();
                tokio::select! {
                    () = arrivals.notified() => {}
                    () = sleep(NAME_AGAIN), if is_one_being_made => {}
                    () = sleep(self.past_again()), if is_one_untold => {}
                    _ = tick.tick() => {
                        self.read_usage();
                        self.forget_refused();
                        self.look_again(&mut rescan);
                        self.note_unreachable();
                    }
                }
                self.meet_all().await;
                self.tell_untold();
                let watches = self.watches.borrow().clone();
                watches.iter().for_each(|watch| watch.queue.tell_missed());
            }
            self.meet_all().await;
            self.tell_untold();
            // A watch may have begun meanwhile, and relies on this task.
            if self.watches.borrow().is_empty() {
                self.growth.replace(Growth::default());
                return self.is_running.set(false);
            }
        }
    }

    fn is_one_being_made(&self) -> bool {
        self.unnamed.borrow().iter().any(|unmet| unmet.since.elapsed() < BEING_MADE)
    }

    /// Meets all new groups, and lets go of each that has a name, or has gone.
    async fn meet_all(&self) {
        let now = Instant::now();
        let unnamed = self.unnamed.take();
        for some in unnamed.chunks(NAMED_AT_ONCE) {
            self.meet_some(some).await;
        }
        loop {
            let some = self.watcher.lock().take_arrivals(NAMED_AT_ONCE);
            if some.is_empty() {
                return;
            }
            let unmet = |arrival| Unmet { arrival, since: now };
            self.meet_some(&some.into_iter().map(unmet).collect::<Vec<_>>()).await;
        }
    }

    async fn meet_some(&self, some: &[Unmet]) {
        let arrivals: Vec<Arrival> = some.iter().map(|unmet| unmet.arrival).collect();
        let directories = Arc::clone(&self.context.directories);
        let name =
            move || arrivals.iter().map(|arrival| ArrivalName::of(&directories, arrival)).collect::<Vec<_>>();
        let names =
            if self.watches.borrow().is_empty() { Ok(Vec::new()) } else { spawn_blocking(name).await };
        let names = names.inspect_err(|error| log::error!("new groups are not watched: {error}"));
        let mut names = names.unwrap_or_default().into_iter();
        for unmet in some {
            let group = unmet.arrival.group;
            if let Some(name) = names.next() {
                let watches = self.watches.borrow().clone();
                if matches!(name, ArrivalName::Gone { .. }) && self.watcher.lock().is_there(group) {
                    self.wait_for_name(*unmet);
                    continue;
                }
                let kept = Rc::new(KeptSlot { watcher: self.watcher.clone(), group });
                for watch in &watches {
                    self.meet(watch, unmet.arrival.cgroup_id, &kept, &name).await;
                }
            } else {
                self.watcher.lock().let_arrival_go(group);
            }
        }
        yield_now().await;
    }

    /// Keeps a group that is being made, or is about to go: its directory is not shown yet, or no more.
    fn wait_for_name(&self, unmet: Unmet) {
        if unmet.is_given_up(Instant::now()) {
            // Told with the next look for what was missed, which finds it if it stays.
            self.nameless.set(self.nameless.get() + 1);
            self.watcher.lock().let_arrival_go(unmet.arrival.group);
        } else {
            self.unnamed.borrow_mut().push(unmet);
        }
    }

    async fn meet(&self, watch: &Rc<Watch>, id: u64, kept: &Rc<KeptSlot>, name: &ArrivalName) {
        let group = kept.group;
        let (is_there, shown) = match name {
            ArrivalName::Known { below, .. } if !watch.choice.has(below) => return,
            ArrivalName::Known { shown, .. } => (true, shown),
            ArrivalName::TooDeep { above } => {
                if watch.choice.may_have_below(above.as_deref()) {
                    watch.miss_group(id, Some(group), Since::Made, TOO_DEEP);
                }
                return;
            }
            ArrivalName::Outside => return,
            ArrivalName::Gone { above, below, shown } => match watch.choice.may_have(above.as_deref(), below)
            {
                Membership::No => return,
                Membership::Yes => (false, shown),
                Membership::Perhaps => {
                    let (watch, kept) = (Rc::clone(watch), Some(Rc::clone(kept)));
                    let what = Untold::Nameless { group, id };
                    return self.tell(Past { watch, what, kept, first: Instant::now() });
                }
            },
        };
        let member = Member { group, id, path: Arc::clone(shown) };
        self.take_in(watch, &member, is_there, Since::Made, Some(Rc::clone(kept))).await;
    }

    /// Registers on a group, if it is there and not known yet, and tells what it did before, now or as soon
    /// as that is known.
    async fn take_in(
        &self,
        watch: &Rc<Watch>,
        member: &Member,
        is_there: bool,
        since: Since,
        kept: KeptIfNew,
    ) {
        if !watch.members.enter(member.id, member.group) {
            return;
        }
        let refused = watch.refusals.borrow().since(member.id, member.group);
        let since = refused.unwrap_or(since);
        let mut registered = Vec::new();
        for at in 0..if is_there { watch.specs.len() } else { 0 } {
            if self.is_over(watch) {
                return;
            }
            match self.register(watch, member, at).await {
                Ok(early) => registered.push((at, early)),
                // It is going.
                Err(refusal) if refusal.errno == Errno::EINVAL => break,
                // It was counted at the first attempt.
                Err(_) if refused.is_some() => {}
                Err(refusal) => watch.queue.miss(refusal.to_string(), 1),
            }
        }
        if self.is_over(watch) {
            // Its end came while it was registered.
            return self.watcher.lock().end_file(watch.eventfd.file);
        }
        let is_registered = !registered.is_empty();
        if !is_registered {
            watch.members.leave(member.id, member.group);
        }
        let is_told =
            !is_there || watch.refusals.borrow_mut().tried(member.id, member.group, since, is_registered);
        if is_told && since != Since::Now {
            let what = Untold::Member { member: member.clone(), is_there, since, registered };
            self.tell(Past { watch: Rc::clone(watch), what, kept, first: Instant::now() });
        }
    }

    /// Forgets the groups that were refused and are gone. Of those without a place in the table a look
    /// through all directories tells it.
    fn forget_refused(&self) {
        let slots = self.context.slots();
        let is_online = |group: GroupId| {
            let state = slots.slot(group.slot).map(SharedSlot::state);
            state.is_some_and(|state| state.is_live() && state.generation() == group.generation)
        };
        let is_there = |group: GroupId| group == slots.root() || is_online(group);
        for watch in self.watches.borrow().iter() {
            watch.refusals.borrow_mut().keep(|_, group| group.is_none_or(is_there));
        }
    }

    /// Registers a specification on a group; returns what that has done before, where it is kept.
    async fn register(&self, watch: &Watch, member: &Member, at: usize) -> Result<Option<Early>, Refusal> {
        let Some((_, spec)) = watch.specs.get(at) else { return Ok(None) };
        let (file, trigger, is_exact) = match *spec {
            Spec::Event { on, trigger, is_exact } => (on, trigger, is_exact),
            Spec::Removed => (ControlFile::Usage, never()?, false),
        };
        let control = ResolvedControlFile { group: member.group, cgroup_id: member.id, file };
        let sink = watch.queue.sink(member, at, *spec == Spec::Removed, &watch.members);
        let ReceivedEventFd { eventfd, file } = &watch.eventfd;
        let eventfd = ReceivedEventFd { eventfd: eventfd.clone(), file: *file };
        let account = || watch.account;
        let made = on_group(
            &self.watcher,
            &self.context,
            &control,
            (trigger, is_exact),
            (eventfd, Some(sink)),
            account,
        );
        let receipt = made.await?;
        let watcher = self.watcher.lock();
        watcher.confirm(receipt);
        Ok(watcher.early(member.group))
    }

    /// Reads usage of all groups with thresholds, as it is kept in the table, for watches that tell growth.
    fn read_usage(&self) {
        let mut growth = self.growth.borrow_mut();
        growth.begin_pass(Instant::now());
        for watch in self.watches.borrow().iter().filter(|watch| watch.tells_growth()) {
            // Copied, since the thread that signals waits for this lock.
            let groups: Vec<GroupId> = watch.members.all().values().copied().collect();
            for group in groups {
                let slot = self.context.identity().slot(group.slot);
                if let Some(usage) = slot.and_then(|slot| growth::kept_usage(slot, group)) {
                    growth.add(group, usage);
                }
            }
        }
    }

    /// A quantity of a group as it was at the last look.
    fn quantity(&self, group: GroupId, on: ControlFile) -> Option<u64> {
        let watcher = self.watcher.lock();
        let known = watcher.registry().group(group.slot).filter(|known| known.id == group);
        known.map(|known| known.scale(on).now())
    }

    /// Usage, where it is not known, and the limit of a group, in pages.
    pub(super) fn numbers(&self, group: GroupId, usage: Option<u64>) -> (Option<u64>, Option<u64>) {
        let watcher = self.watcher.lock();
        if !watcher.is_there(group) {
            return (usage, None);
        }
        let limit = watcher.effective_limit(group.slot).ok();
        let is_root = group.slot == watcher.source().root().slot;
        let read = || if is_root { None } else { watcher.source().usage(group).ok().flatten() };
        (usage.or_else(read), limit)
    }

    /// Bytes per second by which usage has grown, where that is known.
    pub(super) fn growth(&self, group: GroupId, usage: u64) -> Option<i64> {
        self.growth.borrow().of(group, usage, Instant::now())
    }

    /// The directory of the group with this id, or `#` and the id.
    pub(super) fn name_of(&self, id: u64) -> String {
        listing::shown(self.context.directories.path_of(id).as_deref(), id)
    }
}

/// A trigger that nothing fires, for a registration that waits for the removal alone.
fn never() -> Result<Trigger, Refusal> {
    control_file::parse(ControlFile::Usage, b"-1", page_size())
        .map_err(|error| Refusal::new(Errno::from_raw(error.errno()), error.into()))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{Arrival, BEING_MADE, GIVEN_UP, GroupId, Unmet};

    #[test]
    fn a_group_that_stays_without_a_name_is_let_go_of() {
        let group = GroupId { slot: 1, generation: 1 };
        let since = Instant::now();
        let unmet = Unmet { arrival: Arrival { group, cgroup_id: 7, above: 1 }, since };
        assert!(!unmet.is_given_up(since) && !unmet.is_given_up(since + BEING_MADE), "it may be leaving");
        assert!(unmet.is_given_up(since + GIVEN_UP), "or else nobody's new groups are kept");
    }
}
