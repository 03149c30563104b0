//! The second frontend: a line written to a `cgroup.event_control` of the
//! [`view`](crate::view), by an unmodified client of cgroup v1.
//!
//! The writer waits in the kernel meanwhile, so its thread and its descriptors
//! stay what they are.

use std::rc::Rc;

use tokio::{
    sync::mpsc,
    task::{JoinSet, yield_now},
};

use crate::{
    frontend::{
        control_file::FrontendContext,
        peer::Peer,
        refusal::{Refusal, log_refusal},
        register::{Client, register},
    },
    source::Source,
    view::written::Written,
    watcher::{Receipt, SharedWatcher},
};

/// Answers writes until the view is unmounted. A write that has to wait for earlier work on
/// its group holds up no other; the queue's places bound how many wait.
pub async fn serve<S: Source + 'static>(
    mut writes: mpsc::Receiver<Written>,
    watcher: SharedWatcher<S>,
    context: Rc<FrontendContext>,
) {
    let mut answers = JoinSet::new();
    while let Some(written) = writes.recv().await {
        answers.spawn_local(answer(written, watcher.clone(), Rc::clone(&context)));
        while answers.try_join_next().is_some() {}
        yield_now().await;
    }
    while answers.join_next().await.is_some() {}
}

async fn answer<S: Source>(written: Written, watcher: SharedWatcher<S>, context: Rc<FrontendContext>) {
    match handle(&written, &watcher, &context).await {
        Ok(receipt) => {
            written.reply.accept();
            watcher.lock().confirm(receipt);
        }
        Err(refusal) => {
            watcher.lock().refused(refusal.errno);
            log_refusal(&refusal, written.uid, written.pid);
            written.reply.refuse(refusal.errno);
        }
    }
}

async fn handle<S: Source>(
    written: &Written,
    watcher: &SharedWatcher<S>,
    context: &FrontendContext,
) -> Result<Receipt, Refusal> {
    let writer = Peer::writer(written.pid, written.uid, written.gid, context)?;
    let own = Some(written.group);
    let client = Client { line: &written.line, requester: &writer, follower: None, own };
    register(watcher, context, client).await
}
