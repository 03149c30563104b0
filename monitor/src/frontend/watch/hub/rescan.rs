//! Looking through all directories for groups of a watch: at its beginning, and where new groups may
//! not have been reported.

use std::{
    collections::HashSet,
    path::Path,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use monitor_common::protocol::ring::LossKind;
use nix::errno::Errno;
use tokio::{
    task::{spawn_blocking, spawn_local, yield_now},
    time::sleep,
};

use super::{Hub, TICK};
use crate::{
    backend::BackendKind,
    cgroup::handle::{Directories, Reached},
    frontend::{
        control_file::group_of,
        refusal::DescriptorRole,
        watch::{
            choice::Choice,
            late::Since,
            member::{Member, shown_path},
            request::Watch,
        },
    },
    source::Source as _,
};

/// Directories between two turns of this thread's other clients.
const IN_A_TURN: usize = 16;

/// Parts of the time that looking through all directories rests, for each that it takes.
const REST: u32 = 19;

/// Shortest time between two looks through all directories where new groups are reported.
const SELDOM: Duration = Duration::from_secs(10);

/// The reason why new groups were not kept until they were met.
const TOO_MANY: &str = "groups came faster than they could be met; those that stay are found within seconds";

/// The reason why new groups were let go of before they could be named.
const NAMELESS: &str =
    "groups had no name that could be read for 10 seconds; those that stay are found within seconds";

/// The reason why groups that may match are not watched: `PATH_MAX`.
pub(super) const TOO_DEEP: &str =
    "groups are nested so deep that their paths cannot be read (4096 bytes at most)";

/// The groups of a watch that a look through all directories finds.
#[derive(Default)]
struct Matching {
    /// Ids, and the paths to be shown.
    groups: Vec<(u64, Arc<Path>)>,
    /// Ids of those that may be among them: their paths are too long.
    too_deep: Vec<u64>,
}

impl Matching {
    /// Looks through all directories. The paths of those that match are kept, and no others: users make
    /// as many as they like. This thread may take its time.
    fn find(directories: &Directories, choice: &Choice) -> Self {
        let root = directories.path_of(directories.root_id()).unwrap_or_default();
        let mut found = Self::default();
        directories.each(|id, reached| match reached {
            Reached::At(path) if choice.has(path) => {
                let path = root.join(path.strip_prefix("/").unwrap_or(path));
                found.groups.push((id, shown_path(&path, id)));
            }
            Reached::Below(above) if choice.may_have_below(Some(above)) => found.too_deep.push(id),
            Reached::At(_) | Reached::Below(_) => {}
        });
        found
    }
}

/// When to look through all directories again.
pub(super) struct Rescan {
    /// The counts of groups that were not met, by reason, when it was last done.
    pub(super) seen: [u64; 4],
    /// These counts when they were last told.
    pub(super) told: [u64; 4],
}

impl Hub {
    /// Looks through all directories for groups of one watch.
    pub(super) async fn scan(&self, watch: &Rc<Watch>, since: Since) {
        let (directories, choice) = (Arc::clone(&self.context.directories), Arc::clone(&watch.choice));
        let found = spawn_blocking(move || Matching::find(&directories, &choice));
        let Matching { groups, too_deep } = match found.await {
            Ok(found) => found,
            Err(error) => return log::error!("the groups of a watch are not found: {error}"),
        };
        if !watch.refusals.borrow().is_empty() {
            let ids = groups.iter().map(|(id, _)| *id);
            let there: HashSet<u64> = ids.chain(too_deep.iter().copied()).collect();
            watch.refusals.borrow_mut().keep(|id, group| group.is_some() || there.contains(&id));
        }
        let known = self.context.identity().groups_by_id();
        for id in &too_deep {
            watch.miss_group(*id, known.get(id).copied(), since, TOO_DEEP);
        }
        for some in groups.chunks(IN_A_TURN) {
            for (id, path) in some {
                let known = known.get(id);
                let is_member = match known {
                    Some(group) => watch.members.all().get(id) == Some(group),
                    None => watch.members.has(*id),
                };
                if is_member || self.is_over(watch) {
                    continue;
                }
                let group = match known {
                    Some(group) => *group,
                    None => match group_of(&self.context, None, *id, DescriptorRole::Matching) {
                        Ok(group) => group,
                        // Without the controller, or gone.
                        Err(refusal) if refusal.errno == Errno::EINVAL => continue,
                        Err(refusal) => {
                            watch.miss_group(*id, None, since, &refusal.to_string());
                            continue;
                        }
                    },
                };
                let member = Member { group, id: *id, path: Arc::clone(path) };
                // One that was made since the watch began may be found here first.
                let is_new = since != Since::Made && self.watcher.lock().is_arrival(group);
                self.take_in(watch, &member, true, if is_new { Since::Made } else { since }, None).await;
            }
            yield_now().await;
        }
    }

    /// Looks through all directories where new groups may not have been reported: the files alone are
    /// read here, or a program was not called, or the table was full.
    pub(super) fn look_again(self: &Rc<Self>, rescan: &mut Rescan) {
        let counts = self.counts();
        let watches = self.watches.borrow().clone();
        let reasons = [
            "groups were made while the kernel called no program; those that stay are found within seconds",
            "new groups found no place in the agent's table; start it with a larger --max-groups",
            TOO_MANY,
            NAMELESS,
        ];
        for (why, (now, before)) in reasons.into_iter().zip(counts.into_iter().zip(rescan.told)) {
            let count = now.saturating_sub(before);
            if count > 0 {
                watches.iter().for_each(|watch| watch.queue.miss(why.into(), count));
            }
        }
        rescan.told = counts;
        let is_sampled = self.watcher.lock().source().kind() == BackendKind::Sampled;
        if self.is_scanning.get() || !(is_sampled || counts != rescan.seen) {
            return;
        }
        rescan.seen = counts;
        self.is_scanning.set(true);
        let hub = Rc::clone(self);
        // Beside this task, which goes on to meet new groups.
        spawn_local(async move {
            let start = Instant::now();
            for watch in &watches {
                hub.scan(watch, Since::Made).await;
            }
            let rest = start.elapsed().saturating_mul(REST);
            sleep(rest.max(if is_sampled { TICK } else { SELDOM })).await;
            hub.is_scanning.set(false);
        });
    }

    /// Groups that no program was called for when they were made, that found no place, that were too many
    /// to be kept, and that had no name for too long.
    pub(super) fn counts(&self) -> [u64; 4] {
        let watcher = self.watcher.lock();
        let (unseen, refused) =
            (watcher.source().unseen_groups(), watcher.source().tally(LossKind::SlotsExhausted));
        [unseen, refused, watcher.arrivals_not_kept(), self.nameless.get()]
    }
}
