//! The admin socket: what `list` shows, and registrations that report the cause behind each
//! signal. JSON, one value per packet: [`monitor_client::wire`].

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use monitor_client::wire::{AdminRequest, AgentStatus, Answer, GroupRow, MAX_REQUEST};
use nix::errno::Errno;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use crate::{
    backend::{Backend, BackendKind},
    frontend::{
        changes::{self, Changes},
        control_file::FrontendContext,
        event_row,
        listing::{self, Listed, Listing},
        operator::OperatorCheck,
        refusal::{Refusal, RefusalReason, log_refusal},
        registered::{self, At},
        registration_socket::from_packet,
        seqpacket::{Connection, Listener, Packet},
        watch::{self, Hub, Watch},
    },
    registry::Account,
    source::{Slots as _, Source as _},
    watcher::{self, Cause, Event, EventSink, Watcher},
};

/// Events that wait for a slow follower; further ones are counted instead.
const BACKLOG: usize = 1024;

/// The reason why an agent writes no file of the black box.
pub(super) const NO_BLACK_BOX: &str =
    "the agent runs without --black-box; start it with --black-box[=PATTERN]";

type SharedPrograms = watcher::SharedWatcher<Box<dyn Backend>>;

/// Lists that are sent at once; each may hold a snapshot of its own.
const LISTS: usize = 8;

/// How long a list waits for its reader to take a packet.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a list may take in all: so long it keeps a snapshot, and the place of another.
const WHOLE: Duration = Duration::from_secs(300);

/// The parts that all connections share.
struct Shared {
    watcher: SharedPrograms,
    context: Rc<FrontendContext>,
    listing: Listing,
    lists: Semaphore,
    followers: Arc<Semaphore>,
    hub: Rc<Hub>,
}

/// Serves until the task is dropped.
pub async fn serve(
    listener: Rc<Listener>,
    watcher: SharedPrograms,
    context: Rc<FrontendContext>,
    listing: Listing,
) {
    let shared = Rc::new(Shared {
        hub: Rc::new(Hub::new(watcher.clone(), Rc::clone(&context))),
        watcher,
        context,
        listing,
        lists: Semaphore::new(LISTS),
        followers: Arc::new(Semaphore::new(changes::FOLLOWERS)),
    });
    loop {
        let (connection, opener) = listener.accept_from().await;
        // Now, while the opener is most likely what it was when the kernel let it in.
        let gate = OperatorCheck::of(&opener, listener.path());
        let shared = Rc::clone(&shared);
        tokio::task::spawn_local(async move {
            if let Err(error) = converse((&connection, &gate), &shared).await {
                log::debug!("control connection: {error}");
            }
        });
    }
}

/// Sends all groups, each with its registrations as they are when it is sent.
async fn list(connection: &Connection, watcher: &SharedPrograms, snapshot: &[Listed]) -> std::io::Result<()> {
    let groups = snapshot.chunks(listing::IN_A_LOOK);
    for (listed, is_waited_for) in
        groups.flat_map(|some| some.iter().zip(listing::are_waited_for(watcher, some)))
    {
        let row = |registrations, limit| {
            let Listed { cgroup, id, usage, peak, oom, .. } = listed;
            let (cgroup, oom) = (cgroup.clone(), oom.clone());
            Answer::Group(GroupRow { cgroup, id: *id, usage: *usage, peak: *peak, oom, limit, registrations })
        };
        let mut next = is_waited_for.then_some(At::default());
        let mut is_sent = false;
        while let Some(at) = next {
            let page = registered::page(watcher, listed.group, at);
            next = page.next;
            if !page.rows.is_empty() {
                timeout(PATIENCE, answer(connection, &row(page.rows, page.limit))).await??;
                is_sent = true;
            }
        }
        if !is_sent {
            timeout(PATIENCE, answer(connection, &row(Vec::new(), None))).await??;
        }
    }
    let status = status(&watcher.lock());
    timeout(PATIENCE, answer(connection, &Answer::Status(status))).await?
}

/// Sends the last kills.
async fn kills(connection: &Connection, watcher: &SharedPrograms) -> std::io::Result<()> {
    let last = watcher.lock().kills().map(|kills| kills.log().last());
    for kill in last.unwrap_or_default() {
        // The last may still be.
        kill.looked_up().await;
        timeout(PATIENCE, answer(connection, &Answer::Event(event_row::kill(&kill)))).await??;
    }
    let status = status(&watcher.lock());
    timeout(PATIENCE, answer(connection, &Answer::Status(status))).await?
}

/// The groups that this connection knows: kept as long as it is there.
fn follow_changes<'a>(
    changes: &'a mut Option<Changes>,
    watcher: &SharedPrograms,
    followers: &Arc<Semaphore>,
) -> Result<&'a mut Changes, Refusal> {
    if watcher.lock().source().kind() == BackendKind::Sampled {
        return Err(Refusal::new(Errno::EOPNOTSUPP, RefusalReason::ChangesAreSampled));
    }
    match changes {
        Some(known) => Ok(known),
        none => {
            let limit = changes::FOLLOWERS;
            let permit = Arc::clone(followers)
                .try_acquire_owned()
                .map_err(|_| Refusal::new(Errno::EBUSY, RefusalReason::TooManyFollowChanges { limit }))?;
            Ok(none.insert(Changes::new(permit)))
        }
    }
}

/// Sends what has changed, then the agent's own state.
async fn send_changes(
    connection: &Connection,
    watcher: &SharedPrograms,
    context: &FrontendContext,
    changes: &mut Changes,
) -> std::io::Result<()> {
    changes.pace().await;
    let delta = changes.take(watcher).await;
    for row in changes::rows(changes, delta, &context.directories).await {
        timeout(PATIENCE, answer(connection, &Answer::Changes(row))).await??;
    }
    let status = status(&watcher.lock());
    timeout(PATIENCE, answer(connection, &Answer::Status(status))).await?
}

async fn answer(connection: &Connection, answer: &Answer) -> std::io::Result<()> {
    connection.send(&serde_json::to_vec(answer)?).await
}

async fn converse((connection, gate): (&Connection, &OperatorCheck), shared: &Shared) -> std::io::Result<()> {
    let Shared { watcher, context, listing, lists, followers, hub } = shared;
    let mut changes = None;
    while let Some(packet) = connection.receive(MAX_REQUEST).await? {
        let who = packet.sender.as_ref().map(|sender| (sender.uid(), sender.pid()));
        let request = match gate.check(packet.sender.as_ref()) {
            Err(refusal) => Err(refusal),
            Ok(()) if packet.truncated => Err(Refusal::new(Errno::E2BIG, RefusalReason::RequestTooLong)),
            Ok(()) => serde_json::from_slice(&packet.bytes)
                .map_err(|error| Refusal::new(Errno::EINVAL, RefusalReason::NotARequest(error))),
        };
        let outcome = match request {
            Ok(AdminRequest::Listen(line)) => match begin(packet, &line, watcher, context).await {
                Ok(events) => return follow(connection, events, context).await,
                Err(refusal) => Err(refusal),
            },
            Ok(AdminRequest::Watch(request)) => match Watch::of(&request, packet, watcher, context) {
                Ok((watch, told)) => return watch::follow(connection, hub, watch, told).await,
                Err(refusal) => Err(refusal),
            },
            other => {
                // A client that has the answer finds nothing of its request any more; one that does
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
                            Err(Refusal::new(Errno::EIO, RefusalReason::NoList))
                        }
                    }
                    Ok(AdminRequest::Kills) => {
                        let _permit = lists.acquire().await;
                        timeout(WHOLE, kills(connection, watcher)).await??;
                        Ok(())
                    }
                    Ok(AdminRequest::Changes) => match follow_changes(&mut changes, watcher, followers) {
                        Ok(changes) => {
                            timeout(WHOLE, send_changes(connection, watcher, context, changes)).await??;
                            Ok(())
                        }
                        Err(refusal) => Err(refusal),
                    },
                    Ok(AdminRequest::Record(group)) => match record(context, group).await {
                        Ok(path) => {
                            answer(connection, &Answer::Recorded { path }).await?;
                            Ok(())
                        }
                        Err(refusal) => Err(refusal),
                    },
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
            log_refusal(&refusal, uid, pid);
            answer(connection, &Answer::Error { errno: refusal.errno as i32, why: refusal.to_string() })
                .await?;
        }
    }
    Ok(())
}

/// Has a file of the black box written; returns its path.
async fn record(context: &FrontendContext, group: u64) -> Result<String, Refusal> {
    let Some(recorder) = &context.recorder else {
        return Err(Refusal::new(Errno::EOPNOTSUPP, RefusalReason::NotRecorded(NO_BLACK_BOX.into())));
    };
    let refused = |why| Refusal::new(Errno::ENOENT, RefusalReason::NotRecorded(why));
    recorder.record(group).await.map(|path| path.to_string_lossy().into_owned()).map_err(refused)
}

/// The agent's own state.
pub(super) fn status(watcher: &Watcher<Box<dyn Backend>>) -> AgentStatus {
    let (counts, source) = (watcher.counts(), watcher.source());
    let (runs, run_ns) = source.runs();
    AgentStatus {
        backend: source.kind().as_str().to_owned(),
        precision: source.precision().as_str().to_owned(),
        registrations: watcher.registry().len() - watcher.registry().held_by(Account::Agent),
        signals: counts.signals,
        failed_signals: counts.failed_signals,
        kills: watcher.kills().map_or(0, |kills| kills.log().total()),
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
    context: &FrontendContext,
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
    let receipt = from_packet(packet, line.as_bytes(), &mut None, watcher, context, Some(follower))
        .await
        .inspect_err(|refusal| watcher.lock().refused(refusal.errno))?;
    let watcher = watcher.lock();
    // A follower that receives nothing begins anew: it has lost its connection.
    watcher.confirm(receipt);
    let group = receipt.group;
    let id = watcher.source().slot(group.slot).map(|slot| slot.cgroup_id.load(Ordering::Relaxed));
    Ok(Stream { group: id.unwrap_or(0), events, lost })
}

async fn follow(
    connection: &Connection,
    mut stream: Stream,
    context: &FrontendContext,
) -> std::io::Result<()> {
    answer(connection, &Answer::Listening).await?;
    // Looked up now: at removal there is no name any more.
    let name = name_of(context, stream.group);
    loop {
        let next = tokio::select! {
            next = stream.events.recv() => next,
            // A follower says nothing more; this ends when it leaves.
            _ = connection.receive(1) => return Ok(()),
        };
        let Some((time, event)) = next else {
            return Ok(());
        };
        if let Cause::OomKill(kill) = &event.cause {
            kill.looked_up().await;
        }
        let lost = stream.lost.swap(0, Ordering::Relaxed);
        let row = event_row::row(time, &event, lost, |id| {
            if id == stream.group { name.clone() } else { name_of(context, id) }
        });
        answer(connection, &Answer::Event(row)).await?;
    }
}

fn name_of(context: &FrontendContext, id: u64) -> String {
    let path = context.directories.path_of(id);
    path.map_or_else(|| format!("#{id}"), |path| path.to_string_lossy().into_owned())
}
