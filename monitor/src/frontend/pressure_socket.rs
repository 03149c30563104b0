//! The socket of systemd's memory-pressure protocol (`$MEMORY_PRESSURE_WATCH`): a program connects,
//! writes a text once ([`pressure_text`](super::pressure_text)), and is woken by bytes.
//!
//! Each line registers on the program's own group, by the checks of all frontends, with an eventfd
//! that the agent makes; the thread of the frontends forwards that one's signals. So the thread
//! that signals, and the order of its work, are the same for this client as for every other.
//!
//! No connection is closed while its program may wait on it: for sd-event a closed connection is
//! one that is readable for ever, or an error that ends the program's main loop. What is refused
//! is logged, and stays silent.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    rc::Rc,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::eventfd::{EfdFlags, EventFd},
    unistd::read,
};
use tokio::{
    io::unix::AsyncFd,
    sync::Notify,
    time::{sleep, timeout},
};

use crate::{
    async_fd::wait_on,
    error::{Error, Result},
    frontend::{
        accounting::{Accounting, Groups},
        control_file::FrontendContext,
        deferred_close::UntrustedFd,
        fair::Fair,
        inode::Inode,
        kept_connections::{ConnectionId, KeptConnections},
        peer::{Credentials, Peer, hand_over},
        pressure_text::{self, DESCRIPTORS, MAX_TEXT, TextError},
        refusal::{DescriptorRole, Refusal, RefusalReason, log_refusal, short_of},
        register::{Client, register},
        requester::Requester,
        sender::Sender,
        seqpacket::{Connection, Listener, StreamEvent},
    },
    registry::Account,
    source::{FileId, Identify, Source},
    watcher::{ReceivedEventFd, SharedWatcher},
};

/// Time after which a text that has begun, and not ended, is named in the log.
const SOON: Duration = Duration::from_secs(10);

/// The error of a connection without a text that ends for those of others.
const GIVES_WAY: Errno = Errno::EUSERS;

/// State that all connections share.
struct Shared<S> {
    watcher: SharedWatcher<S>,
    context: Rc<FrontendContext>,
    groups: Option<Groups>,
    keeper: Keeper,
}

/// The end of a text that is waited for, or served.
type Outcome<T> = io::Result<std::result::Result<T, TextError>>;

/// The connections of an earlier agent, and the place to keep them for the next.
#[derive(Debug, Default)]
pub struct Left {
    /// The kept connections; none without a descriptor store.
    pub kept: Option<KeptConnections>,
    /// Connections of an earlier agent.
    pub connections: Vec<OwnedFd>,
}

/// Serves programs until the task is dropped: those that an earlier agent has left first. `groups`
/// finds their groups; without, every text is refused.
pub async fn serve<S: Source + 'static>(
    listener: Listener,
    left: Left,
    groups: Option<Groups>,
    watcher: SharedWatcher<S>,
    context: Rc<FrontendContext>,
) {
    let keeper = Keeper::new(left.kept);
    let resumed = resume_all(&listener, left.connections, &keeper);
    let shared = Rc::new(Shared { watcher, context, groups, keeper });
    for (connection, peer) in resumed {
        tokio::task::spawn_local(converse(connection, peer, true, Rc::clone(&shared)));
    }
    tokio::select! {
        () = accept(&listener, &shared) => {}
        () = shared.keeper.clear() => {}
    }
}

/// Goes on with the connections of an earlier agent. One with which that is impossible is kept no more.
fn resume_all(listener: &Listener, connections: Vec<OwnedFd>, keeper: &Keeper) -> Vec<(Connection, Sender)> {
    let resume = |fd: OwnedFd| {
        let kept = keeper.keep(fd.as_fd());
        let lost = |error: &io::Error| {
            log::warn!("a kept connection at the pressure socket is lost: {error}");
            keeper.let_go(kept, Account::Unidentified, true);
        };
        listener.resume(fd).inspect_err(lost).ok()
    };
    connections.into_iter().filter_map(resume).collect()
}

async fn accept<S: Source + 'static>(listener: &Listener, shared: &Rc<Shared<S>>) {
    loop {
        let (connection, peer) = listener.accept_from().await;
        tokio::task::spawn_local(converse(connection, peer, false, Rc::clone(shared)));
    }
}

/// Time until a text that was refused for a shortage is tried again; twice as long each time, up to
/// [`RARELY`].
const RETRY: Duration = Duration::from_secs(2);
const RARELY: Duration = Duration::from_secs(60);

/// Whether a refusal may be none a little later: a quota or a table was full, or the agent was short of
/// something.
const fn is_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::EDQUOT | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE | Errno::EIO)
}

/// Serves one program until it leaves.
async fn converse<S: Source>(connection: Connection, peer: Sender, is_resumed: bool, shared: Rc<Shared<S>>) {
    speak(&connection, &peer, is_resumed, &shared).await;
    // What it sent may be slow to close; until there is room for that, it counts as connected.
    shared.context.deferred_close.room(connection.account()).await;
}

async fn speak<S: Source>(connection: &Connection, peer: &Sender, is_resumed: bool, shared: &Shared<S>) {
    let text = text(connection, peer, &shared.context.fair);
    let serve = async |text: Vec<u8>| {
        connection.hold_little();
        serve_text(connection, peer, &text, is_resumed, shared).await
    };
    match shared.keeper.converse(connection, is_resumed, text, serve).await {
        Ok(Err(refused)) => log_text(refused, peer, shared),
        Ok(Ok(())) => {}
        Err(error) => log::debug!("a connection at the pressure socket: {error}"),
    }
}

/// Keeps connections for the next agent, where there is a descriptor store.
struct Keeper {
    kept: Option<RefCell<KeptConnections>>,
    /// Connections that ended are to be taken out of `kept`.
    have_ended: Notify,
}

impl Keeper {
    fn new(kept: Option<KeptConnections>) -> Self {
        Self { kept: kept.map(RefCell::new), have_ended: Notify::new() }
    }

    /// Waits for the text of a connection, and serves it. The connection is kept from its text on, one of an
    /// earlier agent from the beginning; either is let go whatever ends it.
    async fn converse(
        &self,
        connection: &Connection,
        is_resumed: bool,
        text: impl Future<Output = Outcome<Vec<u8>>>,
        serve: impl AsyncFnOnce(Vec<u8>) -> Outcome<()>,
    ) -> Outcome<()> {
        let keep = || self.keep(connection.socket().ok()?);
        let mut kept = if is_resumed { keep() } else { None };
        let outcome = match text.await {
            Ok(Ok(text)) => {
                kept = keep();
                serve(text).await
            }
            Ok(Err(refused)) => Ok(Err(refused)),
            Err(error) => Err(error),
        };
        // A client that is refused, or gives way, is there and waits for the end.
        let at_once = match &outcome {
            Ok(Ok(())) => false,
            Ok(Err(_)) => true,
            Err(error) => error.raw_os_error() == Some(GIVES_WAY as i32),
        };
        self.let_go(kept, connection.account(), at_once);
        outcome
    }

    /// Keeps a connection, unless it is kept already.
    fn keep(&self, socket: BorrowedFd<'_>) -> Option<ConnectionId> {
        let kept = self.kept.as_ref()?;
        let failed = |error: &Error| log::warn!("{error}; it ends with this agent");
        kept.borrow_mut().add(socket).inspect_err(failed).ok()
    }

    /// Keeps a connection of this account no more; `at_once` where its client waits for its end.
    fn let_go(&self, id: Option<ConnectionId>, account: Account, at_once: bool) {
        let (Some(id), Some(kept)) = (id, &self.kept) else { return };
        // Each of its descriptors is closed by a thread that may wait for what the client sent.
        if kept.borrow_mut().remove(id, account, at_once) {
            self.have_ended.notify_one();
        }
    }

    /// Takes connections that ended out of the kept ones, a message's worth at a time, and in a tenth of this
    /// thread's time at most: programs that have themselves sent away again and again cost no more.
    async fn clear(&self) {
        /// Pauses for each time that was worked.
        const PAUSES: u32 = 9;
        let Some(kept) = &self.kept else { return std::future::pending().await };
        let mut pause = RETRY;
        loop {
            self.have_ended.notified().await;
            loop {
                let begin = Instant::now();
                let outcome = kept.borrow_mut().clear_some();
                match outcome {
                    Ok(true) => {
                        pause = RETRY;
                        sleep(begin.elapsed() * PAUSES).await;
                    }
                    Ok(false) => break,
                    Err(error) => {
                        log::warn!(
                            "{error}; ended connections at the pressure socket stay in the descriptor store for {} s more",
                            pause.as_secs()
                        );
                        sleep(pause).await;
                        pause = (pause * 2).min(RARELY);
                    }
                }
            }
        }
    }
}

/// Waits for the whole text, and looks at it. Fails where the client leaves, or has to give way to others.
async fn text(connection: &Connection, peer: &Sender, fair: &Rc<Fair>) -> Outcome<Vec<u8>> {
    let (mut has_begun, mut is_named) = (false, false);
    let idle = connection.idle();
    let next = async || {
        tokio::select! {
            event = connection.stream_event() => event,
            () = idle.gives_way() => Err(GIVES_WAY.into()),
        }
    };
    loop {
        let event = if has_begun && !is_named {
            let Ok(event) = timeout(SOON, next()).await else {
                is_named = true;
                let (uid, pid) = (peer.uid(), peer.pid());
                log::warn!(
                    "uid {uid}, process {pid} waits at the pressure socket, and its text has no end; $MEMORY_PRESSURE_WRITE stands for lines that end with a newline or a NUL (memcg-monitor drop-in)"
                );
                continue;
            };
            event?
        } else {
            next().await?
        };
        if event == StreamEvent::Left {
            return Err(Errno::EPIPE.into());
        }
        let turn = fair.turn(connection.account()).await;
        let peeked = connection.peek(MAX_TEXT + 1);
        turn.end().await;
        let peeked = peeked?;
        if peeked.with_descriptors {
            return Ok(Err(TextError::Descriptors));
        }
        has_begun = !peeked.bytes.is_empty();
        match pressure_text::length(&peeked.bytes) {
            Ok(None) => {}
            Ok(Some(_)) => return Ok(Ok(peeked.bytes)),
            Err(error) => return Ok(Err(error)),
        }
    }
}

/// Registers what the text says, and forwards signals until the client leaves. A client that
/// writes on is refused.
async fn serve_text<S: Source>(
    connection: &Connection,
    peer: &Sender,
    text: &[u8],
    is_resumed: bool,
    shared: &Shared<S>,
) -> Outcome<()> {
    let mut outcome = shared.register_all(connection, peer, text).await;
    // What happened while there was no agent is not known.
    if is_resumed && outcome.is_ok() {
        connection.wake()?;
    }
    let mut pause = RETRY;
    loop {
        let event = match &outcome {
            // The program is told nothing of a refusal, and tries no second time by itself.
            Err(errno) if is_shortage(*errno) => match timeout(pause, connection.stream_event()).await {
                Ok(event) => event?,
                Err(_) => {
                    pause = (pause * 2).min(RARELY);
                    outcome = shared.register_all(connection, peer, text).await;
                    if outcome.is_ok() {
                        connection.wake()?;
                    }
                    continue;
                }
            },
            Err(_) => connection.stream_event().await?,
            Ok(signals) => tokio::select! {
                event = connection.stream_event() => event?,
                forwarded = signals.forward(connection) => {
                    forwarded?;
                    continue;
                }
            },
        };
        if event == StreamEvent::Left {
            return Ok(Ok(()));
        }
        let turn = shared.context.fair.turn(connection.account()).await;
        let peeked = connection.peek(text.len() + 1);
        turn.end().await;
        let peeked = peeked?;
        if peeked.with_descriptors {
            return Ok(Err(TextError::Descriptors));
        }
        if peeked.bytes.len() > text.len() {
            return Ok(Err(TextError::WrittenAgain));
        }
    }
}

impl<S: Source> Shared<S> {
    /// Registers each line of the text, or none of them: what was registered until a refusal ends
    /// with the eventfd. Logs the refusal.
    async fn register_all(
        &self,
        connection: &Connection,
        peer: &Sender,
        text: &[u8],
    ) -> std::result::Result<Signals<'_>, Errno> {
        let turn = self.context.fair.turn(connection.account()).await;
        let outcome = self.register_lines(connection, peer, text).await;
        turn.end().await;
        outcome.map_err(|refusal| {
            let Some(refusal) = refusal else { return Errno::EINVAL };
            self.watcher.lock().refused(refusal.errno);
            log_refusal(&refusal, peer.uid(), peer.pid());
            refusal.errno
        })
    }

    async fn register_lines(
        &self,
        connection: &Connection,
        peer: &Sender,
        text: &[u8],
    ) -> std::result::Result<Signals<'_>, Option<Refusal>> {
        let lines = match pressure_text::lines(text) {
            Ok(lines) => lines,
            Err(error) => {
                log_text(error, peer, self);
                return Err(None);
            }
        };
        let signals = Signals::new(&self.context).map_err(|error| {
            log::error!("{error}; process {} at the pressure socket is not served", peer.pid());
            Refusal::new(Errno::ENOMEM, RefusalReason::OutOfDescriptors)
        })?;
        let peer = Peer::of(peer.clone(), connection.account(), &self.context.deferred_close)?;
        let gone = |errno| {
            let gone = || Refusal::new(Errno::EINVAL, RefusalReason::GroupGone(DescriptorRole::OwnGroup));
            short_of(errno).unwrap_or_else(gone)
        };
        let groups = self.groups.as_ref().ok_or_else(|| gone(Errno::ENOENT))?;
        let group = groups.named_by(&peer.cgroup()?, || peer.is_ending()).map_err(gone)?;
        let group = group.as_fd().try_clone_to_owned().map_err(out_of)?;
        let mut receipts = Vec::with_capacity(lines.len());
        for line in lines {
            let requester = &OwnGroup { peer: &peer, group: &group, signals: &signals };
            let line = [DESCRIPTORS, line].concat();
            let client = Client { line: &line, requester, follower: None, own: None };
            receipts.push(register(&self.watcher, &self.context, client).await?);
        }
        let watcher = self.watcher.lock();
        receipts.into_iter().for_each(|receipt| watcher.confirm(receipt));
        Ok(signals)
    }
}

/// The refusal where one of the agent's own descriptors could not be duplicated.
fn out_of(_: io::Error) -> Refusal {
    Refusal::new(Errno::ENOMEM, RefusalReason::OutOfDescriptors)
}

fn log_text<S: Source>(error: TextError, peer: &Sender, shared: &Shared<S>) {
    shared.watcher.lock().refused(Errno::EINVAL);
    let (uid, pid) = (peer.uid(), peer.pid());
    log::info!(
        memcg_errno = Errno::EINVAL as i32, memcg_uid = uid, memcg_pid = pid;
        "refused uid {uid}, process {pid}, at the pressure socket: {error}"
    );
}

/// The agent's eventfd that stands for a connection. Dropped, it ends the registrations.
struct Signals<'a> {
    eventfd: AsyncFd<OwnedFd>,
    context: &'a FrontendContext,
    file: Cell<Option<FileId>>,
}

impl<'a> Signals<'a> {
    fn new(context: &'a FrontendContext) -> Result<Self> {
        let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::syscall("eventfd2", errno))?;
        let eventfd =
            wait_on(eventfd.into()).map_err(|error| Error::epoll("a connection's eventfd", error))?;
        Ok(Self { eventfd, context, file: Cell::new(None) })
    }

    /// Waits for signals, and forwards them as one byte, in the user's turn. Whoever waits no more
    /// loses none: what was taken is forwarded before anything else is waited for.
    async fn forward(&self, connection: &Connection) -> io::Result<()> {
        let mut ready = self.eventfd.readable().await?;
        let turn = self.context.fair.turn(connection.account()).await;
        let mut count = [0; size_of::<u64>()];
        let taken =
            ready.try_io(|eventfd| read(eventfd.as_fd(), &mut count).map_err(io::Error::from).map(drop));
        let forwarded = match taken {
            Ok(taken) => taken.and_then(|()| connection.wake()),
            // Nothing is there any more.
            Err(_) => Ok(()),
        };
        turn.end().await;
        forwarded
    }
}

impl Drop for Signals<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.file.get() {
            self.context.identity().set_own(file, false);
        }
    }
}

/// A program as a client that registers on its own group with the agent's eventfd.
#[derive(Clone, Copy)]
struct OwnGroup<'a> {
    peer: &'a Peer,
    group: &'a OwnedFd,
    signals: &'a Signals<'a>,
}

impl Requester for OwnGroup<'_> {
    fn event(&self, number: u32, identity: &dyn Identify) -> std::result::Result<ReceivedEventFd, Refusal> {
        let theirs = self.signals.eventfd.get_ref().try_clone().map_err(out_of)?;
        let received = hand_over(UntrustedFd::harmless(theirs), DescriptorRole::Event(number), identity)?;
        identity.set_own(received.file, true);
        self.signals.file.set(Some(received.file));
        Ok(received)
    }

    fn peek(&self, _: u32) -> Option<Inode> {
        None
    }

    fn control(&self, _: u32) -> std::result::Result<UntrustedFd, Refusal> {
        self.group.try_clone().map(UntrustedFd::harmless).map_err(out_of)
    }

    fn control_role(&self, _: u32) -> DescriptorRole {
        DescriptorRole::OwnGroup
    }

    fn credentials(&self) -> std::result::Result<Credentials, Refusal> {
        self.peer.credentials()
    }

    fn account(&self, accounting: &Accounting) -> Account {
        self.peer.account(accounting)
    }
}

#[cfg(test)]
mod tests;
