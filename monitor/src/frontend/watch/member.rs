//! The groups of a watch, and the queue of what is told of them.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use monitor_client::wire::NoteRow;
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::{
    frontend::{event_row, listing},
    source::GroupId,
    watcher::{Cause, Event, EventSink},
};

/// Items that wait for a slow reader; further ones are counted instead.
const BACKLOG: usize = 16_384;

/// The groups that a watch has registrations on, by `st_ino`.
#[derive(Clone, Debug, Default)]
pub(super) struct Members(Arc<Mutex<HashMap<u64, GroupId>>>);

impl Members {
    pub(super) fn all(&self) -> MutexGuard<'_, HashMap<u64, GroupId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has(&self, id: u64) -> bool {
        self.all().contains_key(&id)
    }

    /// Enters a group; false where it is there already. A directory whose controller went off and on again
    /// has another group, which takes the place of the one before.
    pub(super) fn enter(&self, id: u64, group: GroupId) -> bool {
        self.all().insert(id, group) != Some(group)
    }

    /// Takes a group out; one that has taken its place stays.
    pub(super) fn leave(&self, id: u64, group: GroupId) {
        let mut all = self.all();
        if all.get(&id) == Some(&group) {
            all.remove(&id);
        }
    }
}

/// A group that a watch finds.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) group: GroupId,
    /// `st_ino` of the directory.
    pub(super) id: u64,
    /// Path of the directory, as [`shown_path`] has it.
    pub(super) path: Arc<Path>,
}

/// The path of a group, to be shown: one that is too long for a list is `#` and the id here, too. Each
/// registration keeps it, and users choose the names.
pub(super) fn shown_path(path: &Path, id: u64) -> Arc<Path> {
    Arc::from(PathBuf::from(listing::shown(Some(path), id)))
}

/// Something that is to be told.
#[derive(Debug)]
pub(super) enum WatchItem {
    Event(Box<Happened>),
    Watching(u64),
    Note(NoteRow),
    Missed(u64, String),
}

/// An event in a group of a watch.
#[derive(Debug)]
pub(super) struct Happened {
    pub(super) time: f64,
    pub(super) member: Member,
    /// The place of the specification.
    pub(super) spec: usize,
    pub(super) event: Event,
    /// The highest usage and the limit, in pages, of what is told late.
    pub(super) late: Option<(u64, u64)>,
}

/// The sending end of a watch's queue.
#[derive(Clone, Debug)]
pub(super) struct WatchQueue {
    items: mpsc::Sender<WatchItem>,
    lost: Arc<AtomicU64>,
    /// Counts of things that are not watched, by the reason, which could not be told yet.
    missed: Arc<Mutex<BTreeMap<String, u64>>>,
}

/// The receiving end of a watch's queue.
#[derive(Debug)]
pub(in crate::frontend) struct Told {
    pub(super) items: mpsc::Receiver<WatchItem>,
    lost: Arc<AtomicU64>,
}

/// Makes the queue of a watch, by its two ends.
pub(super) fn queue() -> (WatchQueue, Told) {
    let (sender, items) = mpsc::channel(BACKLOG);
    let lost = Arc::<AtomicU64>::default();
    (WatchQueue { items: sender, lost: Arc::clone(&lost), missed: Arc::default() }, Told { items, lost })
}

impl Told {
    /// Takes the number of events that had no room.
    pub(super) fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

impl WatchQueue {
    /// Adds an event, or counts it as lost; false where nobody reads any more.
    pub(super) fn tell(&self, happened: Happened) -> bool {
        match self.items.try_send(WatchItem::Event(Box::new(happened))) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }

    /// Tells once that all groups that there are have been registered on, as soon as there is room.
    pub(super) async fn tell_watching(&self, groups: u64) {
        let _ = self.items.send(WatchItem::Watching(groups)).await;
    }

    /// Notes something about the watch itself; false where there is no room now.
    pub(super) fn note(&self, row: NoteRow) -> bool {
        self.items.try_send(WatchItem::Note(row)).is_ok()
    }

    /// Notes something about the watch itself, as soon as there is room.
    pub(super) async fn tell_note(&self, row: NoteRow) {
        let _ = self.items.send(WatchItem::Note(row)).await;
    }

    /// Counts something that is not watched; [`WatchQueue::tell_missed`] tells it.
    pub(super) fn miss(&self, why: String, count: u64) {
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        *missed.entry(why).or_default() += count;
    }

    /// Tells what was missed, as far as there is room; the rest stays counted.
    pub(super) fn tell_missed(&self) {
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        missed.retain(|why, count| self.items.try_send(WatchItem::Missed(*count, why.clone())).is_err());
    }

    /// The sink of a registration of `member` for the specification at `spec`, which is for the removal
    /// alone or for anything but that.
    pub(super) fn sink(
        &self,
        member: &Member,
        spec: usize,
        of_removal: bool,
        members: &Members,
    ) -> EventSink {
        let (queue, member, members) = (self.clone(), member.clone(), members.clone());
        EventSink::new(move |event: &Event| {
            // It is told of the group whose limit it was, if that is watched: once.
            let is_of = |group: u64| !of_removal && (group == member.id || !members.has(group));
            let is_wanted = match &event.cause {
                Cause::Removed => {
                    members.leave(member.id, member.group);
                    of_removal
                }
                Cause::Oom { limit } => is_of(*limit),
                // A kill by the host is of no limit.
                Cause::OomKill(kill) => is_of(kill.limit.unwrap_or(kill.victim.bell.value)),
                Cause::GroupKill { limit, victim, .. } => is_of(limit.unwrap_or(*victim)),
                _ => !of_removal,
            };
            if !is_wanted {
                return !queue.items.is_closed();
            }
            let (time, event) = (event_row::now(), event.clone());
            queue.tell(Happened { time, member: member.clone(), spec, event, late: None })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::{BACKLOG, Member, Members, WatchItem, queue, shown_path};
    use crate::{
        source::GroupId,
        watcher::{Cause, Event},
    };

    fn member(id: u64) -> Member {
        Member { group: GroupId { slot: 0, generation: 0 }, id, path: Arc::from(Path::new("/g")) }
    }

    fn event(id: u64, cause: Cause) -> Event {
        Event { cgroup_id: id, cause, signals: 1 }
    }

    #[test]
    fn a_reader_that_is_too_slow_is_told_how_much_it_missed() {
        let (queue, mut told) = queue();
        let mut sink = queue.sink(&member(1), 0, false, &Members::default());
        for _ in 0..BACKLOG + 3 {
            assert!(sink.deliver(&event(1, Cause::Empty)));
        }
        assert_eq!((told.take_lost(), told.take_lost()), (3, 0));
        queue.miss("full".into(), 2);
        queue.tell_missed();
        let mut count = 0;
        while let Ok(item) = told.items.try_recv() {
            assert!(matches!(item, WatchItem::Event(_)), "there was no room for {item:?}");
            count += 1;
        }
        assert_eq!(count, BACKLOG);
        queue.miss("full".into(), 1);
        queue.tell_missed();
        assert!(matches!(told.items.try_recv(), Ok(WatchItem::Missed(3, why)) if why == "full"));
        drop(told);
        assert!(!sink.deliver(&event(1, Cause::Empty)), "nobody reads");
    }

    #[test]
    fn a_long_path_is_kept_by_the_groups_id() {
        let nested = "/sys/fs/cgroup".to_owned() + &format!("/{}", "x".repeat(255)).repeat(8);
        assert_eq!(*shown_path(Path::new(&nested), 7), *Path::new("#7"));
        assert_eq!(*shown_path(Path::new("/sys/fs/cgroup/a"), 7), *Path::new("/sys/fs/cgroup/a"));
    }

    #[test]
    fn an_oom_is_told_of_the_group_whose_limit_it_was_if_that_is_watched() {
        let (queue, mut told) = queue();
        let members = Members::default();
        let mut below = queue.sink(&member(2), 0, false, &members);
        let oom = || Cause::Oom { limit: 1 };
        assert!(below.deliver(&event(2, oom())));
        assert!(told.items.try_recv().is_ok(), "the group above is not watched");
        members.all().insert(1, member(1).group);
        assert!(below.deliver(&event(2, oom())));
        assert!(told.items.try_recv().is_err());
        let mut own = queue.sink(&member(1), 0, false, &members);
        assert!(own.deliver(&event(1, oom())));
        assert!(told.items.try_recv().is_ok());
    }

    #[test]
    fn a_group_that_took_the_place_of_another_is_not_removed_with_it() {
        let (before, after) = (GroupId { slot: 1, generation: 1 }, GroupId { slot: 2, generation: 1 });
        let members = Members::default();
        assert!(members.enter(7, before) && !members.enter(7, before));
        assert!(members.enter(7, after), "the controller went off and on");
        members.leave(7, before);
        assert!(members.has(7));
        members.leave(7, after);
        assert!(!members.has(7));
    }

    #[test]
    fn a_removal_is_told_to_those_who_want_it_and_ends_membership() {
        let (queue, mut told) = queue();
        let members = Members::default();
        members.all().insert(1, member(1).group);
        assert!(queue.sink(&member(1), 0, false, &members).deliver(&event(1, Cause::Removed)));
        assert!(told.items.try_recv().is_err() && !members.has(1));
        let mut removal = queue.sink(&member(1), 1, true, &members);
        assert!(removal.deliver(&event(1, Cause::Removed)) && removal.deliver(&event(1, Cause::Empty)));
        assert!(matches!(told.items.try_recv(), Ok(WatchItem::Event(happened)) if happened.spec == 1));
        assert!(told.items.try_recv().is_err());
    }
}
