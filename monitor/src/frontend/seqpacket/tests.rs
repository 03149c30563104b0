//! Packets of many connections, and the order in which they are received.

use std::{io::IoSlice, os::fd::AsRawFd as _, rc::Rc};

use monitor_client::connect;
use nix::{
    sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg},
    unistd::pipe,
};
use tokio::{
    runtime::Builder,
    task::{LocalSet, yield_now},
};

use super::{Access, DeferredClose, Listener, MAX_DESCRIPTORS};

/// Idle connections have passed the look at the room before the first one's packet comes.
#[test]
fn idle_connections_bring_no_more_than_one_message_in_all() {
    const CONNECTIONS: usize = 4;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let deferred_close = DeferredClose::idle();
    let set = LocalSet::new();
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let waiting = set.block_on(&runtime, async {
        let listener = Listener::bind(&path, &Access { mode: 0o600, group: None }, &deferred_close);
        let listener = listener.expect("a socket");
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(connect(&path).expect("a listener"));
            let connection = Rc::new(listener.accept().await);
            tokio::task::spawn_local(async move {
                while let Ok(Some(packet)) = connection.receive(16).await {
                    drop(packet);
                }
            });
        }
        // All wait for their first packet.
        for _ in 0..8 {
            yield_now().await;
        }
        let (foreign, _) = pipe().expect("a pipe");
        let descriptors = vec![foreign.as_raw_fd(); MAX_DESCRIPTORS];
        for client in &clients {
            let control = [ControlMessage::ScmRights(&descriptors)];
            let slices = [IoSlice::new(b"x")];
            let sent = sendmsg::<UnixAddr>(client.as_raw_fd(), &slices, &control, MsgFlags::empty(), None);
            assert_eq!(sent, Ok(1));
        }
        // The reactor reports all of them at once.
        while deferred_close.waiting() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        for _ in 0..8 {
            yield_now().await;
        }
        deferred_close.waiting()
    });
    assert_eq!(waiting, MAX_DESCRIPTORS);
}
