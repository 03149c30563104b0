//! The second front door: a line written to a `cgroup.event_control` of the
//! [`view`](crate::view), by an unmodified client of cgroup v1.
//!
//! The writer waits in the kernel meanwhile, so its thread and its descriptors
//! stay what they are.

use std::rc::Rc;

use tokio::sync::mpsc;

use crate::{
    door::{
        control_fd::Places,
        peer::Peer,
        request::{Client, Refusal, register, told},
    },
    source::Source,
    view::Written,
    watcher::{Receipt, Shared},
};

/// Answers writes until the view has gone.
pub async fn serve<S: Source>(mut writes: mpsc::Receiver<Written>, watcher: Shared<S>, places: Rc<Places>) {
    while let Some(written) = writes.recv().await {
        let outcome = handle(&written, &watcher, &places);
        match outcome {
            Ok(receipt) => {
                written.reply.accept();
                watcher.lock().confirm(receipt);
            }
            Err(refusal) => {
                watcher.lock().refused(refusal.errno);
                told(&refusal, written.uid, written.pid);
                written.reply.refuse(refusal.errno);
            }
        }
        tokio::task::yield_now().await;
    }
}

fn handle<S: Source>(written: &Written, watcher: &Shared<S>, places: &Places) -> Result<Receipt, Refusal> {
    let writer = Peer::writer(written.pid, written.uid, written.gid, places)?;
    let own = Some(written.group);
    let client = Client { line: &written.line, asker: &writer, follower: None, own };
    register(watcher, places, client)
}
