//! Collects the numbers of a scrape, so that no scraper delays the frontends.
//!
//! The frontends' thread reads counters, a few groups in a turn ([`scrape`]). A thread that may
//! wait reads paths and the groups' files, and writes the text. There is one collection at a
//! time, and none within [`FRESH`] of the last, however many scrapers there are, and whether
//! they stay or leave.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use monitor_common::{grammar::control_file::ControlFile, protocol::slot::SCHEMA};
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
    time::Instant,
};

use crate::{
    backend::Backend,
    cgroup::{Hierarchy, handle::Directories, host::Host},
    frontend::{admin_socket, scrape},
    kernel::page_size,
    kills::{KillCount, KillLog},
    metrics::{AgentNumbers, Candidate, GroupNumbers, LeftOut, Selection, Snapshot, files, text},
    source::{GroupId, Slots as _},
    watcher::{CAUSES, SharedWatcher},
};

/// Time for which a collection is served again.
const FRESH: Duration = Duration::from_secs(1);

/// Scrapers that wait for the same collection; the frontend admits fewer.
const WAITING: usize = 64;

/// The text of a scrape, in both formats.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    pub(super) open_metrics: Bytes,
    pub(super) prometheus: Bytes,
}

/// The page that scrapers read: requests its texts from the collector.
#[derive(Debug)]
pub(super) struct Page(mpsc::Sender<oneshot::Sender<Texts>>);

impl Page {
    /// Returns the texts as of now, or of a moment ago.
    pub(super) async fn get(&self) -> Option<Texts> {
        let (sender, texts) = oneshot::channel();
        self.0.send(sender).await.ok()?;
        texts.await.ok()
    }
}

/// Collects the numbers from their sources.
pub struct Collector {
    watcher: SharedWatcher<Box<dyn Backend>>,
    directories: Arc<Directories>,
    hierarchy: Hierarchy,
    max_eventfds: u64,
    start: f64,
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector").field("hierarchy", &self.hierarchy).finish_non_exhaustive()
    }
}

impl Collector {
    /// Collects the numbers of this agent, which starts now.
    pub fn new(
        watcher: &SharedWatcher<Box<dyn Backend>>,
        directories: Arc<Directories>,
        hierarchy: &Hierarchy,
        max_eventfds: u64,
    ) -> Self {
        let start = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            watcher: watcher.clone(),
            directories,
            hierarchy: hierarchy.clone(),
            max_eventfds,
            start: start.as_secs_f64(),
        }
    }

    /// Returns the page, and the future that answers its requests as long as it is run.
    pub(super) fn start(self, selection: Selection) -> (Page, impl Future<Output = ()>) {
        let (sender, requests) = mpsc::channel(WAITING);
        (Page(sender), self.run(Arc::new(selection), requests))
    }

    async fn run(self, selection: Arc<Selection>, mut requests: mpsc::Receiver<oneshot::Sender<Texts>>) {
        let mut last: Option<(Instant, Texts)> = None;
        while let Some(first) = requests.recv().await {
            last = match last {
                Some((when, texts)) if when.elapsed() < FRESH => Some((when, texts)),
                _ => self.gather(&selection).await.map(|texts| (Instant::now(), texts)),
            };
            let mut next = Some(first);
            while let Some(sender) = next {
                // A requester whose channel is dropped gets no text.
                if let Some((_, texts)) = &last {
                    let _ = sender.send(texts.clone());
                }
                next = requests.try_recv().ok();
            }
        }
    }

    async fn gather(&self, selection: &Arc<Selection>) -> Option<Texts> {
        let (mut candidates, occupied) = scrape::candidates(&self.watcher).await;
        let (directories, root) = (Arc::clone(&self.directories), self.hierarchy.root.clone());
        let chosen_by = Arc::clone(selection);
        let (root_group, host) = {
            let watcher = self.watcher.lock();
            (watcher.source().root(), watcher.shared_host())
        };
        let choose = move || {
            // The programs see the whole host; groups beside a root that is a group are not this
            // agent's.
            if directories.host_root().is_none() {
                candidates.retain(|group| directories.open(group.cgroup_id).is_ok());
            }
            let is_root = |group: &Candidate| group.slot == root_group.slot;
            let live = candidates.iter().filter(|group| !is_root(group)).count() as u64;
            if let Some(id) = directories.host_root()
                && !candidates.iter().any(is_root)
            {
                candidates.extend(root_now(id, root_group, host.as_ref()));
            }
            (live, chosen_by.choose(candidates, |id| path_below(&root, &directories, id)))
        };
        let (live, (chosen, left_out)) = spawn_blocking(choose).await.inspect_err(report).ok()?;
        let groups = scrape::numbers(&self.watcher, &chosen).await;
        let agent = self.agent(live, occupied, selection);
        let directories = Arc::clone(&self.directories);
        spawn_blocking(move || render(&directories, agent, groups, left_out)).await.inspect_err(report).ok()
    }

    fn agent(&self, live: u64, occupied: u64, selection: &Selection) -> AgentNumbers {
        let watcher = self.watcher.lock();
        let kills = watcher.kills();
        let (registry, measures) = (watcher.registry(), watcher.measures());
        AgentNumbers {
            version: env!("CARGO_PKG_VERSION"),
            schema: SCHEMA,
            start: self.start,
            groups: live,
            slots: (occupied, u64::from(watcher.source().root().slot)),
            eventfds: (registry.file_count(), self.max_eventfds),
            registrations: ControlFile::ALL.map(|on| (on.name(), registry.len_on(on))).to_vec(),
            max_registrations: watcher.limits().registrations,
            signals: CAUSES.into_iter().zip(measures.signals).collect(),
            refusals: measures.refusals.clone(),
            latency: measures.latency.clone(),
            kills: kills
                .map_or_else(Vec::new, |kills| kills_of(kills.log(), &self.hierarchy.root, selection)),
            status: admin_socket::status(&watcher),
        }
    }
}

/// Kills by the victims' groups, those of the groups that `selection` denies left out.
fn kills_of(log: &KillLog, root: &Path, selection: &Selection) -> Vec<KillCount> {
    let mut counts = log.counts();
    for count in &mut counts {
        if let Ok(path) = Path::new(&count.cgroup).strip_prefix(root) {
            count.cgroup = format!("/{}", path.display());
        }
    }
    counts.retain(|count| selection.allows(&count.cgroup));
    counts
}

fn report(error: &tokio::task::JoinError) {
    log::error!("metrics could not be gathered: {error}");
}

/// The host's root as of now. The watcher samples it while there are registrations on it alone.
fn root_now(cgroup_id: u64, group: GroupId, host: &dyn Host) -> Option<Candidate> {
    let GroupId { slot, generation } = group;
    let usage = host.usage().inspect_err(|error| log::error!("the scrape lacks the root: {error}")).ok()?;
    Some(Candidate { slot, generation, cgroup_id, usage: usage * page_size() })
}

/// A group's path below the root; what is not UTF-8 is replaced.
fn path_below(root: &Path, directories: &Directories, id: u64) -> Option<String> {
    let path = directories.path_of(id)?;
    Some(format!("/{}", path.strip_prefix(root).ok()?.to_string_lossy()))
}

/// Adds the numbers from the groups' files, and writes the texts. Runs beside the frontends'
/// thread.
fn render(
    directories: &Directories,
    agent: AgentNumbers,
    mut groups: Vec<GroupNumbers>,
    left_out: LeftOut,
) -> Texts {
    let mut events = files::EventCounts::new(directories);
    for group in &mut groups {
        // A group that is removed meanwhile is written without them.
        if let Ok(directory) = directories.open(group.cgroup_id) {
            group.events = events.of(group.cgroup_id);
            group.stalls = files::stalls(&directory);
        }
    }
    let open_metrics = Snapshot { agent, groups, left_out }.open_metrics();
    let prometheus = text::prometheus(&open_metrics).into();
    Texts { open_metrics: open_metrics.into(), prometheus }
}
