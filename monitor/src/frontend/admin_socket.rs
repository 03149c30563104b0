//! The operator's socket: what `list` shows, and registrations that are told the
//! cause behind each signal. JSON, one object per packet.

use std::{
    collections::BTreeMap,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use crate::{
    frontend::{
        control_file::FrontendContext,
        event_row,
        listing::{self, At, Listed, Listing},
        operator::{NO_OPERATOR, OperatorCheck},
        register::{Refusal, told},
        registration_socket::from_packet,
        seqpacket::{Connection, Listener, Packet},
    },
    programs::Programs,
    registry::Account,
    source::{Slots as _, Source as _},
    watcher::{self, Event, EventSink, Watcher},
};

/// Longest request, in bytes.
pub const MAX_REQUEST: usize = 4096;

/// Events that wait for a slow follower; further ones are counted instead.
const BACKLOG: usize = 1024;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminRequest {
    /// All groups: an [`Answer::Group`] each, or several where a packet would not
    /// hold all of a group's registrations; then [`Answer::Status`].
    List,
    /// How the agent fares: [`Answer::Status`]. Costs the same however many groups and
    /// registrations there are.
    Status,
    /// One registration line, as on the registration socket, with its two
    /// descriptors: [`Answer::Listening`], then an [`Answer::Event`] for each
    /// signal, from the first on.
    Listen(String),
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Answer {
    /// One group.
    Group(GroupRow),
    /// The agent's own state; ends a list.
    Status(AgentStatus),
    /// Registered.
    Listening,
    /// A signal's cause.
    Event(EventRow),
    /// The request failed.
    Error {
        /// Positive errno.
        errno: i32,
        /// One line.
        why: String,
    },
}

/// One group of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRow {
    /// Directory, or `#` and the id when it has none any more, or one longer than 1,024 bytes.
    pub cgroup: String,
    /// `st_ino` of the directory.
    pub id: u64,
    /// Bytes charged now.
    pub usage: u64,
    /// Most bytes charged at once.
    pub peak: u64,
    /// OOMs by its limit, processes and groups killed, by the kernel's counts; for
    /// groups on which somebody waits for OOM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom: Option<OomRow>,
    /// What is waited for here.
    pub registrations: Vec<RegistrationRow>,
}

/// What became of a group for lack of memory. Counts that this kernel does not keep
/// are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomRow {
    /// Charges that found no memory within the group's own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom: Option<u64>,
    /// Processes killed, in the group and below (v1: in the group).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kill: Option<u64>,
    /// Groups killed as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_group_kill: Option<u64>,
}

/// Registrations for the same on one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrationRow {
    /// The control file's name.
    pub on: String,
    /// Threshold in bytes, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<u64>,
    /// Level and mode, where it is reclaim pressure: `low,hierarchy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<String>,
    /// How many registrations.
    pub count: u64,
}

/// The agent's own state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Registrations in all.
    pub registrations: u64,
    /// Signals given so far.
    pub signals: u64,
    /// Signals that could not be given.
    pub failed_signals: u64,
    /// Times that everything watched was read again after a loss.
    pub resyncs: u64,
    /// How often an agent has taken over from another, without loss.
    #[serde(default)]
    pub restarts: u64,
    /// Calls that the kernel kept from a program (`recursion_misses`).
    pub skipped: u64,
    /// Losses by name, counted where they happen.
    pub losses: BTreeMap<String, u64>,
    /// Runs of the charge programs (while `kernel.bpf_stats_enabled` is set).
    pub runs: u64,
    /// Nanoseconds spent in them.
    pub run_ns: u64,
    /// Whether the kernel has no asynchronous reads for the agent (`fs.aio-max-nr`), so
    /// that threads signal by `write`.
    #[serde(default)]
    pub without_aio: bool,
    /// Users whose eventfds take so long to signal that a thread apart does.
    #[serde(default)]
    pub slow_users: u64,
}

pub use event_row::EventRow;

type SharedPrograms = watcher::SharedWatcher<Programs>;

/// Lists that are sent at once; each may hold a snapshot of its own.
const LISTS: usize = 8;

/// How long a list waits for its reader to take a packet.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a list may take in all: so long it keeps a snapshot, and the place of another.
const WHOLE: Duration = Duration::from_secs(300);

/// Serves until the task is dropped.
pub async fn serve(
    listener: Rc<Listener>,
    watcher: SharedPrograms,
    places: Rc<FrontendContext>,
    listing: Listing,
) {
    let lists = Rc::new(Semaphore::new(LISTS));
    loop {
        match listener.accept_from().await {
            Ok((connection, opener)) => {
                // Now, while the opener is most likely what it was when the kernel let it in.
                let gate = OperatorCheck::of(&opener, listener.path());
                let (watcher, listing) = (watcher.clone(), listing.clone());
                let (places, lists) = (Rc::clone(&places), Rc::clone(&lists));
                tokio::task::spawn_local(async move {
                    let lists = (&listing, &*lists);
                    if let Err(error) = converse((&connection, &gate), &watcher, &places, lists).await {
                        log::debug!("control connection: {error}");
                    }
                });
            }
            Err(error) => {
                log::warn!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Sends all groups, each with its registrations as they are when it is sent.
async fn list(connection: &Connection, watcher: &SharedPrograms, snapshot: &[Listed]) -> std::io::Result<()> {
    let groups = snapshot.chunks(listing::IN_A_LOOK);
    for (listed, is_waited_for) in
        groups.flat_map(|some| some.iter().zip(listing::are_waited_for(watcher, some)))
    {
        let row = |registrations| {
            let Listed { cgroup, id, usage, peak, oom, .. } = listed;
            let (cgroup, oom) = (cgroup.clone(), oom.clone());
            Answer::Group(GroupRow { cgroup, id: *id, usage: *usage, peak: *peak, oom, registrations })
        };
        let mut next = is_waited_for.then_some(At::default());
        let mut is_sent = false;
        while let Some(at) = next {
            let (registrations, after) = listing::page(watcher, listed.group, at);
            next = after;
            if !registrations.is_empty() {
                timeout(PATIENCE, answer(connection, &row(registrations))).await??;
                is_sent = true;
            }
        }
        if !is_sent {
            timeout(PATIENCE, answer(connection, &row(Vec::new()))).await??;
        }
    }
    let status = status(&watcher.lock());
    timeout(PATIENCE, answer(connection, &Answer::Status(status))).await?
}

async fn answer(connection: &Connection, answer: &Answer) -> std::io::Result<()> {
    connection.send(&serde_json::to_vec(answer)?).await
}

async fn converse(
    (connection, gate): (&Connection, &OperatorCheck),
    watcher: &SharedPrograms,
    places: &FrontendContext,
    (listing, lists): (&Listing, &Semaphore),
) -> std::io::Result<()> {
    while let Some(packet) = connection.receive(MAX_REQUEST).await? {
        let who = packet.sender.as_ref().map(|sender| (sender.uid(), sender.pid()));
        let is_operator = packet.sender.as_ref().is_some_and(|sender| gate.lets(sender));
        let request = match serde_json::from_slice(&packet.bytes) {
            _ if !is_operator => Err(Refusal::new(Errno::EPERM, NO_OPERATOR)),
            _ if packet.truncated => Err(Refusal::new(Errno::E2BIG, "the request is too long")),
            Err(error) => Err(Refusal::new(Errno::EINVAL, format!("not a request: {error}"))),
            Ok(request) => Ok(request),
        };
        let outcome = match request {
            Ok(AdminRequest::Listen(line)) => match begin(packet, &line, watcher, places).await {
                Ok(events) => return follow(connection, events, places).await,
                Err(refusal) => Err(refusal),
            },
            other => {
                // Whoever has the answer finds nothing of the question any more; and who does
                // not read it keeps no descriptors here.
                drop(packet);
                match other {
                    Err(refusal) => Err(refusal),
                    Ok(AdminRequest::List) => {
                        // Never closed, so there is one, some time.
                        let _permit = lists.acquire().await;
                        if let Some(snapshot) = listing.get().await {
                            timeout(WHOLE, list(connection, watcher, &snapshot)).await??;
                            Ok(())
                        } else {
                            Err(Refusal::new(Errno::EIO, "the list could not be made; see the agent's log"))
                        }
                    }
                    Ok(_) => {
                        let status = status(&watcher.lock());
                        answer(connection, &Answer::Status(status)).await?;
                        Ok(())
                    }
                }
            }
        };
        if let Err(refusal) = outcome {
            let (uid, pid) = who.unwrap_or((connection.user(), 0));
            told(&refusal, uid, pid);
            answer(connection, &Answer::Error { errno: refusal.errno as i32, why: refusal.to_string() })
                .await?;
        }
    }
    Ok(())
}

/// The agent's own state.
pub(super) fn status(watcher: &Watcher<Programs>) -> AgentStatus {
    let (counts, source) = (watcher.counts(), watcher.source());
    let (runs, run_ns) = source.runs();
    AgentStatus {
        registrations: watcher.registry().len() - watcher.registry().held_by(Account::Agent),
        signals: counts.signals,
        failed_signals: counts.failed_signals,
        resyncs: counts.resyncs,
        skipped: source.skipped(),
        restarts: watcher.restarts(),
        losses: source.tallies().into_iter().collect(),
        runs,
        run_ns,
        without_aio: watcher.signaller().is_without_aio(),
        slow_users: watcher.signaller().slow_users(),
    }
}

/// Events on their way to a follower, and how many had no room.
struct Stream {
    group: u64,
    events: mpsc::Receiver<(f64, Event)>,
    lost: Arc<AtomicU64>,
}

async fn begin(
    packet: Packet,
    line: &str,
    watcher: &SharedPrograms,
    places: &FrontendContext,
) -> Result<Stream, Refusal> {
    let (sender, events) = mpsc::channel(BACKLOG);
    let lost = Arc::new(AtomicU64::new(0));
    let overflow = Arc::clone(&lost);
    let follower =
        EventSink::new(move |event: &Event| match sender.try_send((event_row::now(), event.clone())) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                overflow.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
    let receipt = from_packet(packet, line.as_bytes(), &mut None, watcher, places, Some(follower))
        .await
        .inspect_err(|refusal| watcher.lock().refused(refusal.errno))?;
    let watcher = watcher.lock();
    // A follower that hears nothing of it begins anew: it has lost its connection.
    watcher.confirm(receipt);
    let group = receipt.group;
    let id = watcher.source().slot(group.slot).map(|slot| slot.cgroup_id.load(Ordering::Relaxed));
    Ok(Stream { group: id.unwrap_or(0), events, lost })
}

async fn follow(
    connection: &Connection,
    mut stream: Stream,
    places: &FrontendContext,
) -> std::io::Result<()> {
    answer(connection, &Answer::Listening).await?;
    // Looked up now: at removal there is no name any more.
    let name = name_of(places, stream.group);
    loop {
        let next = tokio::select! {
            next = stream.events.recv() => next,
            // A follower says nothing more; this ends when it leaves.
            _ = connection.receive(1) => return Ok(()),
        };
        let Some((time, event)) = next else {
            return Ok(());
        };
        let lost = stream.lost.swap(0, Ordering::Relaxed);
        let row = EventRow::new(time, &event, lost, |id| {
            if id == stream.group { name.clone() } else { name_of(places, id) }
        });
        answer(connection, &Answer::Event(row)).await?;
    }
}

fn name_of(places: &FrontendContext, id: u64) -> String {
    let path = places.tree.directories().path_of(id);
    path.map_or_else(|| format!("#{id}"), |path| path.to_string_lossy().into_owned())
}
