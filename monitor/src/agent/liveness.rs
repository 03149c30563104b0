//! Notices that the attached programs do not run any more, though nothing fails: the kernel's
//! function tracing was turned off (`kernel.ftrace_enabled`), or another program detached them.
//!
//! Until they run again, everything that is watched is read in each round, as after a loss: a
//! crossing is signalled a little later, and one with its way back between two rounds is missed.
//! Groups that were made meanwhile are entered in the table once they run again, and those that have
//! gone are taken out of it all the while: the programs would read memory that is not theirs any more.

use std::{rc::Rc, sync::Arc, time::Duration};

use tokio::{
    task::{spawn_blocking, yield_now},
    time::{Instant, sleep},
};

use crate::{
    backend::Backend,
    frontend::control_file::FrontendContext,
    kernel::settings::is_ftrace_off,
    source::{GroupId, Slots},
    watcher::SharedWatcher,
};

/// Time between two looks while nothing is registered, watched or recorded.
const IDLE: Duration = Duration::from_secs(10);

/// Time between the two looks that both find that a group's directory is not there: it appears a moment
/// after the group.
const BEING_MADE: Duration = Duration::from_secs(1);

/// Parts of the time that looking for groups that have gone rests, for each that it takes.
const REST: u32 = 19;

/// Groups that are taken out of the table in one use of the watcher.
const IN_A_TURN: usize = 64;

/// Looks every `sweep`, and every `sample` while no program runs, until the task is dropped. The
/// programs answer the frontends' thread, so it is a task there.
pub(super) async fn watch(
    watcher: SharedWatcher<Box<dyn Backend>>,
    context: Rc<FrontendContext>,
    sweep: Duration,
    sample: Duration,
) {
    // No program was called while an earlier agent's were the only ones, and did not run.
    remove_gone(&watcher, &context).await;
    let (mut is_alive, mut next) = (true, Instant::now());
    loop {
        let pause = if !is_alive {
            sample
        } else if watcher.lock().is_awaited() {
            sweep
        } else {
            sweep.max(IDLE)
        };
        sleep(pause).await;
        let was_alive = std::mem::replace(&mut is_alive, context.is_source_alive());
        if is_alive && was_alive {
            continue;
        }
        match (was_alive, is_alive) {
            (true, false) => log::error!("{}", reason(is_ftrace_off())),
            (false, true) => log::warn!(
                "the programs run again: everything watched is read once more, and each crossing is seen from now on"
            ),
            _ => {}
        }
        {
            let watcher = &mut *watcher.lock();
            watcher.source().do_not_run(!is_alive);
            if !watcher.registry().is_empty() {
                watcher.sweep();
            }
        }
        if is_alive || Instant::now() >= next {
            let start = Instant::now();
            remove_gone(&watcher, &context).await;
            next = Instant::now() + start.elapsed().saturating_mul(REST);
        }
        if is_alive {
            enter_all(&context).await;
        }
    }
}

/// Takes the groups out of the table that have gone though no program was called for that.
async fn remove_gone(watcher: &SharedWatcher<Box<dyn Backend>>, context: &FrontendContext) {
    let mut left = live_groups(context.slots());
    for look in 0..2 {
        if look > 0 && !left.is_empty() {
            sleep(BEING_MADE).await;
        }
        let host = watcher.lock().shared_host();
        let found = spawn_blocking(move || {
            left.retain(|(id, _)| host.is_gone(*id));
            left
        });
        left = match found.await {
            Ok(gone) => gone,
            Err(error) => return log::error!("groups that have gone keep their places: {error}"),
        };
    }
    for some in left.chunks(IN_A_TURN) {
        let some: Vec<_> = some.iter().map(|(_, group)| *group).collect();
        watcher.lock().depart(&some);
        yield_now().await;
    }
}

/// Reads every group's usage file, so that each has its place in the table.
async fn enter_all(context: &FrontendContext) {
    let directories = Arc::clone(&context.directories);
    let read = spawn_blocking(move || directories.read_all_usage());
    if let Err(error) = read.await {
        log::error!("groups that were made while no program was called have no place: {error}");
    }
}

/// All groups in the table but the root, each with the id of its directory, where that is known.
fn live_groups(slots: &dyn Slots) -> Vec<(u64, GroupId)> {
    let root = slots.root().slot;
    let groups = slots.groups_by_id().into_iter();
    groups.filter(|(id, group)| *id != 0 && group.slot != root).collect()
}

/// The consequence and the remedy, for an operator.
fn reason(is_ftrace_off: bool) -> String {
    let cause = if is_ftrace_off {
        "kernel.ftrace_enabled is 0: sysctl kernel.ftrace_enabled=1 lets them run again"
    } else {
        "another program may have detached them (bpftool link): restart the agent if this stays"
    };
    format!(
        "the agent's programs do not run in the kernel any more; {cause}. Until then usage is read from time to \
         time, and pressure is not reported"
    )
}

#[cfg(test)]
mod tests {
    use super::{live_groups, reason};
    use crate::watcher::tests::fake::FakeKernel;

    #[test]
    fn the_switch_is_named_where_it_is_off() {
        assert!(reason(true).contains("sysctl kernel.ftrace_enabled=1"));
        assert!(!reason(false).contains("sysctl"));
    }

    #[test]
    fn the_root_and_groups_without_an_id_are_never_taken_for_gone() {
        let kernel = FakeKernel::with_groups(3);
        let mut ids: Vec<_> = live_groups(&kernel).into_iter().map(|(id, _)| id).collect();
        ids.sort_unstable();
        assert_eq!(ids, [100, 101]);
    }
}
