//! Gathers the operator's `list`: once for all requests made meanwhile, in turns of a few
//! groups, so that however many requests there are, and however slowly they are read, neither
//! the thread that signals nor any other client waits for it.
//!
//! Names and the groups' files are read by a thread that may wait. A group's registrations
//! may be many, at its clients' choice: they are read when they are sent, a page at a time,
//! and kept nowhere.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use monitor_client::wire::OomRow;
use monitor_common::protocol::query::Query;
use tokio::{
    sync::{mpsc, oneshot},
    task::{spawn_blocking, yield_now},
};

use crate::{
    cgroup::handle::Directories,
    frontend::group_stats::{self, Reading},
    kernel::page_size,
    metrics::files::EventCounts,
    source::{GroupId, Source},
    watcher::SharedWatcher,
};

/// Slots that are read in one turn: one run of a program.
const SLOTS_IN_A_TURN: u32 = Query::AT_ONCE;

/// Longest time that a list waits until all that it shows is signalled.
const LOOKING: Duration = Duration::from_millis(250);

/// Requests that wait for the same snapshot; more wait on their connections.
const WAITING: usize = 64;

/// Groups that are looked up in one use of the watcher.
pub(super) const IN_A_LOOK: usize = 1024;

/// Longest path that is shown, in bytes: users who make groups choose the names, and a
/// snapshot holds them all.
const LONGEST_PATH: usize = 1024;

/// A group, without its registrations.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) group: GroupId,
    pub(super) id: u64,
    /// Directory, or `#` and the id when it has none any more, or a path beyond [`LONGEST_PATH`].
    pub(super) cgroup: String,
    /// Memory charged now, in bytes.
    pub(super) usage: u64,
    /// Most memory charged at once, in bytes.
    pub(super) peak: u64,
    pub(super) oom: Option<OomRow>,
    has_oom: bool,
}

/// All groups, sorted by name.
pub(super) type Snapshot = Arc<Vec<Listed>>;

/// Handle that requests snapshots.
#[derive(Clone, Debug)]
pub struct Listing(mpsc::Sender<oneshot::Sender<Snapshot>>);

impl Listing {
    /// Returns the groups as of now: gathered after this call, and after everything crossed
    /// before the call was signalled.
    pub(super) async fn get(&self) -> Option<Snapshot> {
        let (sender, snapshot) = oneshot::channel();
        self.0.send(sender).await.ok()?;
        snapshot.await.ok()
    }
}

/// Returns a handle for snapshots of this watcher's groups, and the future that gathers them
/// as long as it is run.
pub fn start<S: Source + 'static>(
    watcher: SharedWatcher<S>,
    directories: Arc<Directories>,
) -> (Listing, impl Future<Output = ()>) {
    let (sender, requests) = mpsc::channel(WAITING);
    (Listing(sender), run(watcher, directories, requests))
}

async fn run<S: Source>(
    watcher: SharedWatcher<S>,
    directories: Arc<Directories>,
    mut requests: mpsc::Receiver<oneshot::Sender<Snapshot>>,
) {
    while let Some(first) = requests.recv().await {
        // Requests made while this is gathered get the next snapshot.
        let mut requesters = vec![first];
        requesters.extend(std::iter::from_fn(|| requests.try_recv().ok()));
        // Requesters that left need no answer.
        requesters.retain(|requester| !requester.is_closed());
        if requesters.is_empty() {
            continue;
        }
        let Some(snapshot) = gather(&watcher, &directories).await else { continue };
        for requester in requesters {
            let _ = requester.send(Arc::clone(&snapshot));
        }
    }
}

async fn gather<S: Source>(watcher: &SharedWatcher<S>, directories: &Arc<Directories>) -> Option<Snapshot> {
    // The list has no registration whose eventfd was closed before the request, and all
    // crossings that it shows are signalled.
    let mut search = watcher.lock().search_closed();
    while watcher.lock().search_on(&mut search) {
        yield_now().await;
    }
    catch_up(watcher).await;
    let listed = read_groups(watcher).await;
    let directories = Arc::clone(directories);
    let named = spawn_blocking(move || name(&directories, listed)).await;
    named
        .inspect_err(|error| log::error!("the list could not be made, its thread failed: {error}"))
        .ok()
        .map(Arc::new)
}

/// Reads all that is watched and signals what was crossed, for [`LOOKING`] at most: beyond it
/// earlier signals are still being given.
async fn catch_up<S: Source>(watcher: &SharedWatcher<S>) {
    let (sampled, host) = {
        let watcher = watcher.lock();
        (watcher.to_be_sampled(), watcher.shared_host())
    };
    let read = move || {
        let roots = sampled.into_iter().filter(|one| one.is_root);
        roots.map(|one| one.read(host.as_ref())).collect::<Vec<_>>()
    };
    for read in spawn_blocking(read).await.unwrap_or_default() {
        match read {
            Ok(read) => read.iter().for_each(|read| watcher.lock().sampled(read)),
            Err(error) => log::warn!("the list shows an older sample of the root: {error}"),
        }
    }
    let (start, mut next) = (Instant::now(), Some(0));
    while let Some(first) = next {
        next = watcher.lock().look_at_some(first);
        yield_now().await;
    }
    while start.elapsed() < LOOKING && watcher.lock().wake(true) {
        yield_now().await;
    }
    // The thread that signals does the same meanwhile.
    while start.elapsed() < LOOKING && watcher.lock().turn() {
        yield_now().await;
    }
}

/// Reads the counters of all groups, a few in a turn.
async fn read_groups<S: Source>(watcher: &SharedWatcher<S>) -> Vec<Listed> {
    let (mut listed, mut index, page) = (Vec::new(), 0, page_size());
    loop {
        {
            let watcher = watcher.lock();
            let end = index + SLOTS_IN_A_TURN;
            if let Err(error) = group_stats::refresh(&watcher, index..end) {
                log::error!("the list is cut short: {error}");
                return listed;
            }
            while index < end {
                if watcher.source().slot(index).is_none() {
                    return listed;
                }
                if let Some(Reading { group, cgroup_id: id, usage, peak, .. }) =
                    group_stats::read(&watcher, index)
                {
                    let has_oom = watcher
                        .registry()
                        .group(index)
                        .is_some_and(|found| found.id == group && found.oom().next().is_some());
                    listed.push(Listed {
                        group,
                        id,
                        cgroup: String::new(),
                        usage: usage * page,
                        peak: peak * page,
                        oom: None,
                        has_oom,
                    });
                }
                index += 1;
            }
        }
        yield_now().await;
    }
}

/// Adds names, and counts from the groups' files; sorts by name.
fn name(directories: &Directories, mut listed: Vec<Listed>) -> Vec<Listed> {
    let mut events = EventCounts::new(directories);
    listed.retain_mut(|row| {
        let path = directories.path_of(row.id);
        // The programs see the whole host; groups beside a root that is a group are not this agent's.
        if path.is_none() && directories.host_root().is_none() {
            return false;
        }
        row.cgroup = shown(path.as_deref(), row.id);
        if row.has_oom {
            let [.., oom_kill, oom_group_kill] = events.of(row.id);
            row.oom = Some(OomRow { oom: events.own_ooms(row.id), oom_kill, oom_group_kill });
        }
        true
    });
    listed.sort_by(|a, b| a.cgroup.cmp(&b.cgroup));
    listed
}

pub(super) fn shown(path: Option<&Path>, id: u64) -> String {
    let path = path.filter(|path| path.as_os_str().len() <= LONGEST_PATH);
    path.map_or_else(|| format!("#{id}"), |path| path.to_string_lossy().into_owned())
}

/// Finds which of these groups, at most [`IN_A_LOOK`], have registrations: most have none, and
/// need no page.
pub(super) fn are_waited_for<S: Source>(watcher: &SharedWatcher<S>, groups: &[Listed]) -> Vec<bool> {
    let watcher = watcher.lock();
    let found = |group: GroupId| watcher.registry().group(group.slot).filter(|found| found.id == group);
    groups.iter().map(|listed| found(listed.group).is_some()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{LONGEST_PATH, shown};

    #[test]
    fn a_long_path_is_shown_by_the_groups_id() {
        let path = |length| "/".to_owned() + &"a".repeat(length - 1);
        assert_eq!(shown(Some(Path::new(&path(LONGEST_PATH))), 7), path(LONGEST_PATH));
        assert_eq!(shown(Some(Path::new(&path(LONGEST_PATH + 1))), 7), "#7");
        assert_eq!(shown(None, 7), "#7");
    }
}
