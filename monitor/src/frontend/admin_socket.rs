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
    frontend::{
        control_file::FrontendContext,
        event_row,
        listing::{self, At, Listed, Listing},
        operator::OperatorCheck,
        refusal::{Refusal, RefusalReason, log_refusal},
        registration_socket::from_packet,
        seqpacket::{Connection, Listener, Packet},
    },
    programs::Programs,
    registry::Account,
    source::{Slots as _, Source as _},
    watcher::{self, Event, EventSink, Watcher},
};

/// Events that wait for a slow follower; further ones are counted instead.
const BACKLOG: usize = 1024;

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
            _ if !is_operator => Err(Refusal::new(Errno::EPERM, RefusalReason::NotOperator)),
            _ if packet.truncated => Err(Refusal::new(Errno::E2BIG, RefusalReason::RequestTooLong)),
            Err(error) => Err(Refusal::new(Errno::EINVAL, RefusalReason::NotARequest(error))),
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
                            Err(Refusal::new(Errno::EIO, RefusalReason::NoList))
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
            log_refusal(&refusal, uid, pid);
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
        let row = event_row::row(time, &event, lost, |id| {
            if id == stream.group { name.clone() } else { name_of(places, id) }
        });
        answer(connection, &Answer::Event(row)).await?;
    }
}

fn name_of(places: &FrontendContext, id: u64) -> String {
    let path = places.tree.directories().path_of(id);
    path.map_or_else(|| format!("#{id}"), |path| path.to_string_lossy().into_owned())
}
