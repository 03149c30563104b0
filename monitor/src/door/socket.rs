//! The first front door: a unix `SOCK_SEQPACKET` socket on which a packet is
//! what a v1 client would have written to `cgroup.event_control`.
//!
//! The answer is `0`, or `-ERRNO NAME: why`. The numbers of the line name the
//! sender's own descriptors, unless exactly two descriptors come along.

use std::{cell::RefCell, rc::Rc};

use monitor_common::line::MAX_LINE;
use nix::errno::Errno;

use crate::{
    door::{
        control_fd::Places,
        peer::{Credentials, Peer, Sent},
        request::{Client, Refusal, register},
        seqpacket::{Connection, Listener, Packet},
    },
    source::{GroupId, Source},
    watcher::{Follower, Watcher},
};

/// Serves clients until the task is dropped.
pub async fn serve<S: Source + 'static>(
    listener: Rc<Listener>,
    watcher: Rc<RefCell<Watcher<S>>>,
    places: Rc<Places>,
) {
    loop {
        match listener.accept().await {
            Ok(connection) => {
                tokio::task::spawn_local(converse(connection, Rc::clone(&watcher), Rc::clone(&places)));
            }
            Err(error) => {
                // Out of descriptors, as a rule; connections wait in the backlog.
                log::warn!("accept: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse<S: Source>(connection: Connection, watcher: Rc<RefCell<Watcher<S>>>, places: Rc<Places>) {
    loop {
        let packet = match connection.receive(MAX_LINE).await {
            Ok(Some(packet)) => packet,
            Ok(None) => return,
            Err(error) => {
                log::debug!("recvmsg: {error}");
                return;
            }
        };
        let answer = match handle(packet, &mut watcher.borrow_mut(), &places) {
            Ok(_) => "0".to_owned(),
            Err(refusal) => {
                log::debug!("refused: {refusal}");
                format!("-{} {refusal}", refusal.errno as i32)
            }
        };
        // A client that left meanwhile is registered all the same, as after a
        // write whose return value nobody looks at.
        if let Err(error) = connection.send(answer.as_bytes()).await {
            log::debug!("send: {error}");
            return;
        }
    }
}

/// One packet, start to end; the group that it registered for.
///
/// # Errors
/// The kernel's errno for each failure.
fn handle<S: Source>(packet: Packet, watcher: &mut Watcher<S>, places: &Places) -> Result<GroupId, Refusal> {
    if packet.truncated {
        return Err(Refusal::new(Errno::E2BIG, format!("the line is longer than {MAX_LINE} bytes")));
    }
    let line = packet.bytes.clone();
    from_packet(packet, &line, watcher, places, None)
}

/// Registers `line` for the sender of `packet`: with the descriptors that came
/// along, or else with the sender's own.
///
/// # Errors
/// The kernel's errno for each failure.
pub fn from_packet<S: Source>(
    packet: Packet,
    line: &[u8],
    watcher: &mut Watcher<S>,
    places: &Places,
    follower: Option<Follower>,
) -> Result<GroupId, Refusal> {
    if packet.descriptors_cut {
        return Err(Refusal::new(Errno::EINVAL, "more descriptors came along than the agent can take in"));
    }
    let Some(sender) = packet.sender else {
        return Err(Refusal::new(Errno::EINVAL, "the sender is unknown (SCM_CREDENTIALS)"));
    };
    let peer = Peer::of(&sender);
    if packet.descriptors.is_empty() {
        let mut peer = peer?;
        let credentials = &peer.credentials.clone();
        let client = Client { line, descriptors: &mut peer, credentials, follower, own: None };
        return register(watcher, places, client);
    }
    let mut sent = Sent::new(packet.descriptors)?;
    // A sender that the agent cannot look at (another pid namespace, or gone
    // already) still asks as the user that the kernel says it is.
    let credentials = peer.map_or_else(
        |_| Credentials { uid: sender.uid(), gid: sender.gid(), ..Default::default() },
        |peer| peer.credentials,
    );
    let client = Client { line, descriptors: &mut sent, credentials: &credentials, follower, own: None };
    register(watcher, places, client)
}
