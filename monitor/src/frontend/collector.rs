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
    cgroup::Hierarchy,
    frontend::{admin_socket, scrape},
    metrics::{AgentNumbers, GroupNumbers, LeftOut, Selection, Snapshot, files, text},
    programs::Programs,
    source::Slots as _,
    view::tree::Tree,
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
    watcher: SharedWatcher<Programs>,
    tree: Arc<Tree>,
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
        watcher: &SharedWatcher<Programs>,
        tree: Arc<Tree>,
        hierarchy: &Hierarchy,
        max_eventfds: u64,
    ) -> Self {
        let start = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            watcher: watcher.clone(),
            tree,
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
        let (candidates, occupied) = scrape::candidates(&self.watcher).await;
        let live = candidates.len() as u64;
        let (tree, root) = (Arc::clone(&self.tree), self.hierarchy.root.clone());
        let selection = Arc::clone(selection);
        let choose = move || selection.choose(candidates, |id| path_below(&root, &tree, id));
        let (chosen, left_out) = spawn_blocking(choose).await.inspect_err(report).ok()?;
        let groups = scrape::numbers(&self.watcher, &chosen).await;
        let agent = self.agent(live, occupied);
        let tree = Arc::clone(&self.tree);
        spawn_blocking(move || render(&tree, agent, groups, left_out)).await.inspect_err(report).ok()
    }

    fn agent(&self, live: u64, occupied: u64) -> AgentNumbers {
        let watcher = self.watcher.lock();
        let (registry, measures) = (watcher.registry(), watcher.measures());
        AgentNumbers {
            version: env!("CARGO_PKG_VERSION"),
            schema: SCHEMA,
            start: self.start,
            groups: live,
            places: (occupied, u64::from(watcher.source().root().slot)),
            eventfds: (registry.file_count(), self.max_eventfds),
            registrations: ControlFile::ALL.map(|on| (on.name(), registry.len_on(on))).to_vec(),
            max_registrations: watcher.limits().registrations,
            signals: CAUSES.into_iter().zip(measures.signals).collect(),
            refusals: measures.refusals.clone(),
            latency: measures.latency.clone(),
            status: admin_socket::status(&watcher),
        }
    }
}

fn report(error: &tokio::task::JoinError) {
    log::error!("metrics could not be gathered: {error}");
}

/// A group's path below the root; what is not UTF-8 is replaced.
fn path_below(root: &Path, tree: &Tree, id: u64) -> Option<String> {
    let path = tree.directories().path_of(id)?;
    Some(format!("/{}", path.strip_prefix(root).ok()?.to_string_lossy()))
}

/// Adds the numbers from the groups' files, and writes the texts. Runs beside the frontends'
/// thread.
fn render(tree: &Tree, agent: AgentNumbers, mut groups: Vec<GroupNumbers>, left_out: LeftOut) -> Texts {
    let directories = tree.directories();
    for group in &mut groups {
        // A group that is removed meanwhile is written without them.
        if let Ok(directory) = directories.open(group.cgroup_id) {
            group.events = files::events(&directory, directories.version());
            group.stalls = files::stalls(&directory);
        }
    }
    let open_metrics = Snapshot { agent, groups, left_out }.open_metrics();
    let prometheus = text::prometheus(&open_metrics).into();
    Texts { open_metrics: open_metrics.into(), prometheus }
}
