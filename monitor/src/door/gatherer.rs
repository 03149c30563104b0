//! Gathers what a scrape tells, so that no scraper delays the agent's loop.
//!
//! The loop reads counters, a few groups in a turn. Paths, the groups' files and the
//! text are the business of a thread that may wait. One gathering at a time, and none
//! within [`FRESH`] of the last: however many ask, and whether they stay or leave.

use std::{
    cell::RefCell,
    path::Path,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use monitor_common::{control::ControlFile, slot::SCHEMA};
use tokio::{
    sync::{mpsc, oneshot},
    task::{spawn_blocking, yield_now},
    time::Instant,
};

use crate::{
    cgroup::Hierarchy,
    door::{control, rows},
    kernel::page_size,
    metrics::{AgentNumbers, Candidate, Chosen, GroupNumbers, LeftOut, Selection, Snapshot, files, text},
    programs::Programs,
    registry::Group,
    source::{GroupId, Source},
    view::tree::Tree,
    watcher::{CAUSES, Watcher},
};

/// Groups that are read in one turn of the agent's loop.
const IN_A_TURN: usize = 64;

/// Slots that are looked at in one turn; most of a big table may be free.
const SLOTS_IN_A_TURN: u32 = 4096;

/// For how long what was gathered is told again.
const FRESH: Duration = Duration::from_secs(1);

/// Scrapers that wait for the same gathering; the door lets in fewer.
const WAITING: usize = 64;

/// From where a limit is none, in bytes: v1 and v2 write "no limit" as big numbers.
const NO_LIMIT: u64 = 1 << 50;

/// What is told, in both formats.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    pub(super) open_metrics: Bytes,
    pub(super) prometheus: Bytes,
}

/// Where to ask for it.
#[derive(Debug)]
pub(super) struct Page(mpsc::Sender<oneshot::Sender<Texts>>);

impl Page {
    /// As it is now, or was a moment ago.
    pub(super) async fn get(&self) -> Option<Texts> {
        let (sender, texts) = oneshot::channel();
        self.0.send(sender).await.ok()?;
        texts.await.ok()
    }
}

/// What the numbers come from.
pub struct Gatherer {
    watcher: Rc<RefCell<Watcher<Programs>>>,
    tree: Arc<Tree>,
    hierarchy: Hierarchy,
    max_eventfds: u32,
    start: f64,
}

impl std::fmt::Debug for Gatherer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gatherer").field("hierarchy", &self.hierarchy).finish_non_exhaustive()
    }
}

impl Gatherer {
    /// Of this agent, which starts now.
    pub fn new(
        watcher: &Rc<RefCell<Watcher<Programs>>>,
        tree: Arc<Tree>,
        hierarchy: &Hierarchy,
        max_eventfds: u32,
    ) -> Self {
        let start = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            watcher: Rc::clone(watcher),
            tree,
            hierarchy: hierarchy.clone(),
            max_eventfds,
            start: start.as_secs_f64(),
        }
    }

    /// Where to ask, and what answers as long as it is run.
    pub(super) fn start(self, selection: Selection) -> (Page, impl Future<Output = ()>) {
        let (sender, asked) = mpsc::channel(WAITING);
        (Page(sender), self.run(Arc::new(selection), asked))
    }

    async fn run(self, selection: Arc<Selection>, mut asked: mpsc::Receiver<oneshot::Sender<Texts>>) {
        let mut last: Option<(Instant, Texts)> = None;
        while let Some(first) = asked.recv().await {
            last = match last {
                Some((when, texts)) if when.elapsed() < FRESH => Some((when, texts)),
                _ => self.gather(&selection).await.map(|texts| (Instant::now(), texts)),
            };
            let mut next = Some(first);
            while let Some(sender) = next {
                // Without an answer the asker hears that there is none.
                if let Some((_, texts)) = &last {
                    let _ = sender.send(texts.clone());
                }
                next = asked.try_recv().ok();
            }
        }
    }

    async fn gather(&self, selection: &Arc<Selection>) -> Option<Texts> {
        let candidates = self.candidates().await;
        let live = candidates.len() as u64;
        let (tree, root) = (Arc::clone(&self.tree), self.hierarchy.root.clone());
        let selection = Arc::clone(selection);
        let choose = move || selection.choose(candidates, |id| path_below(&root, &tree, id));
        let (chosen, left_out) = spawn_blocking(choose).await.inspect_err(report).ok()?;
        let mut groups = Vec::with_capacity(chosen.len());
        for some in chosen.chunks(IN_A_TURN) {
            {
                let watcher = self.watcher.borrow();
                groups.extend(some.iter().filter_map(|chosen| numbers(&watcher, chosen)));
            }
            yield_now().await;
        }
        let agent = self.agent(live);
        let tree = Arc::clone(&self.tree);
        spawn_blocking(move || render(&tree, agent, groups, left_out)).await.inspect_err(report).ok()
    }

    /// All groups that are watched, with their usage.
    async fn candidates(&self) -> Vec<Candidate> {
        let (mut candidates, mut index) = (Vec::new(), 0);
        loop {
            {
                let watcher = self.watcher.borrow();
                let (mut read, end) = (0, index + SLOTS_IN_A_TURN);
                while read < IN_A_TURN && index < end {
                    if watcher.source().slot(index).is_none() {
                        return candidates;
                    }
                    if let Some(rows::Reading { group, cgroup_id, usage }) = rows::read(&watcher, index) {
                        let usage = usage * page_size();
                        candidates.push(Candidate {
                            slot: group.slot,
                            generation: group.generation,
                            cgroup_id,
                            usage,
                        });
                        read += 1;
                    }
                    index += 1;
                }
            }
            yield_now().await;
        }
    }

    fn agent(&self, live: u64) -> AgentNumbers {
        let watcher = self.watcher.borrow();
        let (registry, measures) = (watcher.registry(), watcher.measures());
        let count = |on: ControlFile| {
            let counts = registry.groups().map(|group| match on {
                ControlFile::Oom => group.oom().count(),
                ControlFile::Pressure => group.pressure().count(),
                ControlFile::Procs => group.empty().count(),
                quantity => group.scale(quantity).len(),
            });
            counts.sum::<usize>() as u64
        };
        AgentNumbers {
            version: env!("CARGO_PKG_VERSION"),
            schema: SCHEMA,
            start: self.start,
            groups: (live, u64::from(watcher.source().root().slot)),
            eventfds: (registry.file_count(), self.max_eventfds.into()),
            registrations: ControlFile::ALL.map(|on| (on.name(), count(on))).to_vec(),
            signals: CAUSES.into_iter().zip(measures.signals).collect(),
            refusals: measures.refusals.clone(),
            latency: measures.latency.clone(),
            status: control::status(&watcher),
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

/// What the programs tell of a group; `None` once it has gone.
fn numbers<S: Source>(watcher: &Watcher<S>, chosen: &Chosen) -> Option<GroupNumbers> {
    let Candidate { slot, generation, usage, .. } = chosen.group;
    let (group, page) = (GroupId { slot, generation }, page_size());
    let is_root = slot == watcher.source().root().slot;
    let peak = rows::peak(watcher, group, usage / page)?;
    let limit = if is_root { None } else { watcher.source().limit(group).ok()? };
    let limit = limit.map(|pages| pages.saturating_mul(page));
    let waited_for = watcher.registry().group(slot).filter(|found| found.id == group);
    Some(GroupNumbers {
        id: chosen.id.clone(),
        cgroup_id: chosen.group.cgroup_id,
        usage,
        peak: (!is_root).then_some(peak * page),
        limit: limit.map(|bytes| if bytes >= NO_LIMIT { 0 } else { bytes }),
        registrations: waited_for.map_or(0, Group::len),
        ..GroupNumbers::default()
    })
}

/// Adds what the groups' files tell, and writes it all out. Runs beside the loop.
fn render(tree: &Tree, agent: AgentNumbers, mut groups: Vec<GroupNumbers>, left_out: LeftOut) -> Texts {
    let directories = tree.directories();
    for group in &mut groups {
        // One that goes meanwhile is told without.
        if let Ok(directory) = directories.open(group.cgroup_id) {
            group.events = files::events(&directory, directories.version());
            group.stalls = files::stalls(&directory);
        }
    }
    let open_metrics = Snapshot { agent, groups, left_out }.open_metrics();
    let prometheus = text::prometheus(&open_metrics).into();
    Texts { open_metrics: open_metrics.into(), prometheus }
}
