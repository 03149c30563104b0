//! The first frontend: a unix `SOCK_SEQPACKET` socket on which a packet is the line that a
//! v1 client would have written to `cgroup.event_control`.
//!
//! The answer is `0`, or `-ERRNO NAME: why`. The numbers of the line name the
//! sender's own descriptors, unless exactly two descriptors come along.

use std::rc::Rc;

use monitor_common::grammar::line::MAX_LINE;
use nix::errno::Errno;

use crate::{
    frontend::{
        control_file::FrontendContext,
        peer::Peer,
        refusal::{Refusal, RefusalReason, log_refusal},
        register::{Client, register},
        sent_descriptors::SentDescriptors,
        seqpacket::{Connection, Listener, Packet},
    },
    source::Source,
    watcher::{EventSink, Receipt, SharedWatcher},
};

/// Serves clients until the task is dropped.
pub async fn serve<S: Source + 'static>(
    listener: Rc<Listener>,
    watcher: SharedWatcher<S>,
    context: Rc<FrontendContext>,
) {
    loop {
        let connection = listener.accept().await;
        tokio::task::spawn_local(converse(connection, watcher.clone(), Rc::clone(&context)));
    }
}

async fn converse<S: Source>(
    connection: Connection,
    watcher: SharedWatcher<S>,
    context: Rc<FrontendContext>,
) {
    let mut last = None;
    loop {
        if let Err(error) = connection.ready().await {
            log::debug!("epoll: {error}");
            return;
        }
        // Before anything is received: packets wait for their turn in the kernel.
        let turn = context.fair.turn(connection.account()).await;
        let packet = match connection.receive_now(MAX_LINE) {
            Ok(Some(Some(packet))) => packet,
            Ok(Some(None)) => return,
            Ok(None) => continue,
            Err(error) => {
                log::debug!("recvmsg: {error}");
                return;
            }
        };
        let who = packet.sender.as_ref().map(|sender| (sender.uid(), sender.pid()));
        let outcome = handle(packet, &mut last, &watcher, &context).await;
        turn.end().await;
        let answer = match &outcome {
            Ok(_) => "0".to_owned(),
            Err(refusal) => {
                let (uid, pid) = who.unwrap_or((connection.user(), 0));
                log_refusal(refusal, uid, pid);
                format!("-{} {refusal}", refusal.errno as i32)
            }
        };
        // A client that left meanwhile is registered all the same, as after a
        // write whose return value is ignored.
        if let Err(error) = connection.send(answer.as_bytes()).await {
            log::debug!("send: {error}");
            return;
        }
        if let Ok(receipt) = outcome {
            watcher.lock().confirm(receipt);
        }
    }
}

/// Handles one packet, from start to end.
///
/// # Errors
/// The kernel's errno for each failure.
async fn handle<S: Source>(
    packet: Packet,
    last: &mut Option<Peer>,
    watcher: &SharedWatcher<S>,
    context: &FrontendContext,
) -> Result<Receipt, Refusal> {
    let line = packet.bytes.clone();
    let outcome = if packet.truncated {
        Err(Refusal::new(Errno::E2BIG, RefusalReason::LineTooLong))
    } else {
        from_packet(packet, &line, last, watcher, context, None).await
    };
    outcome.inspect_err(|refusal| watcher.lock().refused(refusal.errno))
}

/// Registers `line` for the sender of `packet`: with the descriptors that came along, or else
/// with the sender's own. `last` is the sender of the packet before, and is set to that of
/// this one.
///
/// # Errors
/// The kernel's errno for each failure.
pub async fn from_packet<S: Source>(
    packet: Packet,
    line: &[u8],
    last: &mut Option<Peer>,
    watcher: &SharedWatcher<S>,
    context: &FrontendContext,
    follower: Option<EventSink>,
) -> Result<Receipt, Refusal> {
    if packet.descriptors_cut {
        // There is room for all that a message can carry: the agent is out of descriptors.
        return Err(Refusal::new(Errno::ENOMEM, RefusalReason::OutOfDescriptors));
    }
    let Some(sender) = packet.sender else {
        return Err(Refusal::new(Errno::EINVAL, RefusalReason::SenderUnknown));
    };
    if packet.descriptors.is_empty() {
        let again = last.take().and_then(|peer| peer.again(&sender));
        let requester: &Peer =
            last.insert(again.map_or_else(|| Peer::of(sender, packet.account, &context.deferred_close), Ok)?);
        return register(watcher, context, Client { line, requester, follower, own: None }).await;
    }
    let requester = &SentDescriptors::new(packet.descriptors, sender, packet.account)?;
    register(watcher, context, Client { line, requester, follower, own: None }).await
}
