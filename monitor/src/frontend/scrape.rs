//! Reads the counters for a scrape, in the frontends' thread: 1,024 slots in a use of the
//! watcher, so that others use it in between.

use monitor_common::protocol::slot::SlotState;
use tokio::task::yield_now;

use monitor_common::protocol::query::Query;

use crate::{
    frontend::group_stats,
    kernel::page_size,
    metrics::{Candidate, Chosen, GroupNumbers},
    registry::Group,
    source::{GroupId, Source},
    watcher::{SharedWatcher, Watcher},
};

/// Groups whose numbers are put together in one turn.
const IN_A_TURN: usize = 256;

/// Slots that are read in one turn: one run of a program.
const SLOTS_IN_A_TURN: u32 = Query::AT_ONCE;

/// Bytes from which a limit counts as none: v1 and v2 write "no limit" as big numbers.
const NO_LIMIT: u64 = 1 << 50;

/// All groups that are watched, with their usage; and the number of places of the table that
/// are taken, by those and by removed groups.
pub(super) async fn candidates<S: Source>(watcher: &SharedWatcher<S>) -> (Vec<Candidate>, u64) {
    let (mut candidates, mut occupied, mut index) = (Vec::new(), 0, 0);
    loop {
        {
            let watcher = watcher.lock();
            let end = index + SLOTS_IN_A_TURN;
            if let Err(error) = group_stats::refresh(&watcher, index..end) {
                log::error!("the scrape lacks groups: {error}");
                return (candidates, occupied);
            }
            while index < end {
                let Some(slot) = watcher.source().slot(index) else {
                    return (candidates, occupied);
                };
                let is_root = index == watcher.source().root().slot;
                occupied += u64::from(!is_root && slot.state().has(SlotState::ONLINE));
                if let Some(group_stats::Reading { group, cgroup_id, usage, .. }) =
                    group_stats::read(&watcher, index)
                {
                    let GroupId { slot, generation } = group;
                    let usage = usage * page_size();
                    candidates.push(Candidate { slot, generation, cgroup_id, usage });
                }
                index += 1;
            }
        }
        yield_now().await;
    }
}

/// The programs' numbers of the chosen groups that are still there.
pub(super) async fn numbers<S: Source>(watcher: &SharedWatcher<S>, chosen: &[Chosen]) -> Vec<GroupNumbers> {
    let mut groups = Vec::with_capacity(chosen.len());
    for some in chosen.chunks(IN_A_TURN) {
        {
            let watcher = watcher.lock();
            groups.extend(some.iter().filter_map(|chosen| numbers_of(&watcher, chosen)));
        }
        yield_now().await;
    }
    groups
}

/// The programs' numbers of a group; `None` once it is removed.
fn numbers_of<S: Source>(watcher: &Watcher<S>, chosen: &Chosen) -> Option<GroupNumbers> {
    let Candidate { slot, generation, usage, cgroup_id } = chosen.group;
    let (group, page) = (GroupId { slot, generation }, page_size());
    let (peak, limit) = if group == watcher.source().root() {
        // It has neither, and a place in the table whether it is read or not.
        (None, None)
    } else {
        let read = group_stats::read(watcher, slot).filter(|read| read.group == group)?;
        let limit = read.limit.map(|pages| pages.saturating_mul(page));
        (Some(read.peak.max(usage / page) * page), limit)
    };
    let waited_for = watcher.registry().group(slot).filter(|found| found.id == group);
    Some(GroupNumbers {
        id: chosen.id.clone(),
        cgroup_id,
        usage,
        peak,
        limit: limit.map(|bytes| if bytes >= NO_LIMIT { 0 } else { bytes }),
        registrations: waited_for.map_or(0, Group::len),
        ..GroupNumbers::default()
    })
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::{runtime::Builder, task::LocalSet};

    use super::*;
    use crate::{
        cgroup::host::Host,
        error::Result,
        watcher::{Limits, tests::fake::FakeKernel},
    };

    /// A host of which nothing may be read, since reading it means reading files.
    struct Unread;

    impl Host for Unread {
        fn clock(&self) -> u64 {
            0
        }

        fn usage(&self) -> Result<u64> {
            panic!("a read of usage")
        }

        fn sum(&self) -> Result<u64> {
            panic!("a read of the sum")
        }

        fn ram(&self) -> Result<u64> {
            panic!("a read of the memory")
        }

        fn inactive_file(&self, _: u64) -> Result<Option<u64>> {
            panic!("a read of inactive files")
        }

        fn unreclaimable(&self, _: u64) -> Result<Option<u64>> {
            panic!("a read of statistics")
        }

        fn is_gone(&self, _: u64) -> bool {
            false
        }
    }

    #[test]
    fn the_loop_reads_once_in_a_turn_and_no_file() {
        const GROUPS: usize = 3000;
        let kernel = FakeKernel::with_groups(GROUPS);
        let limits = Limits { quota: 5, registrations: 1000, eventfds: 8, holdoff_ms: 0 };
        let watcher = Watcher::new(kernel, Box::new(Unread), limits).expect("AIO");
        let watcher = SharedWatcher::new(watcher);
        let most = Rc::new(std::cell::Cell::new(0));
        let (beside, highest) = (watcher.clone(), Rc::clone(&most));
        // Other work of the thread gets a turn after each turn here.
        let others = async move {
            let mut last = 0;
            loop {
                let now = beside.lock().source().reads.get();
                highest.set(highest.get().max(now - last));
                last = now;
                yield_now().await;
            }
        };
        let scrape = async {
            let (candidates, occupied) = candidates(&watcher).await;
            assert_eq!(occupied, GROUPS as u64);
            // Another thread chooses meanwhile.
            yield_now().await;
            let chosen: Vec<_> =
                candidates.into_iter().map(|group| Chosen { group, id: String::new() }).collect();
            let shown = numbers(&watcher, &chosen).await.len();
            // The last turn is measured, too.
            yield_now().await;
            shown
        };
        let set = LocalSet::new();
        set.spawn_local(others);
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let shown = set.block_on(&runtime, scrape);
        assert_eq!(shown, GROUPS);
        assert_eq!(most.get(), 1);
        // A thousand slots at once, and no further reads of those that were chosen.
        assert_eq!(watcher.lock().source().reads.get(), GROUPS.div_ceil(SLOTS_IN_A_TURN as usize));
    }
}
