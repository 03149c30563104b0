//! Changes of the groups since a connection last requested it: for a view that is renewed
//! again and again, of which most stays as it was.
//!
//! The table's numbers are read a thousand slots in a turn, as for a list. A group is named once, by
//! a thread that may wait, and not looked up again. One that has no path yet, since the kernel shows its
//! directory a moment after it is there, is new once more in the next answer.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use monitor_client::wire::ChangesRow;
use monitor_common::protocol::query::Query;
use monitor_sys::table::SharedSlot;
use tokio::{
    sync::OwnedSemaphorePermit,
    task::{spawn_blocking, yield_now},
    time::{Instant, sleep_until},
};

use crate::{
    cgroup::handle::Directories,
    error::Result,
    frontend::{group_stats, listing::shown},
    kernel::page_size,
    source::Source,
    watcher::{SharedWatcher, Watcher},
};

/// Connections that follow changes at once: each keeps 40 bytes for a slot that was ever used.
pub(super) const FOLLOWERS: usize = 8;

/// Least time between two answers on a connection: what a follower can make the agent do.
const PACE: Duration = Duration::from_millis(200);

/// Groups in one packet.
const IN_A_PACKET: usize = 1024;

/// Slots of the table that are gone through in a turn; groups are read in at most [`Query::AT_ONCE`].
const SLOTS_IN_A_TURN: u32 = 8 * Query::AT_ONCE;

/// Bytes of names in one packet; each may become six in JSON.
const NAMES_IN_A_PACKET: usize = 16 * 1024;

/// Bytes from which a limit counts as none: v1 and v2 write "no limit" as big numbers.
const NO_LIMIT: u64 = 1 << 50;

/// Answers for which a group without a path is looked up, before it is told without one.
const LOOKS: u8 = 3;

/// The numbers of a slot's group that the follower has.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// Generation of the group plus one; 0 where none is known.
    group: u64,
    id: u64,
    usage: u64,
    limit: u64,
    registrations: u32,
    /// Whether the group is not told of: it is not this agent's.
    is_hidden: bool,
}

/// The name of a group, as far as it has one.
#[derive(Clone, Debug)]
enum FoundName {
    Path(PathBuf),
    /// None yet, or none any more.
    Nameless,
    /// The group is beside a root that is a group, and not this agent's.
    Outside,
}

/// The state of a connection that follows changes.
#[derive(Debug)]
pub(super) struct Changes {
    known: Vec<Known>,
    /// The slots that had groups at the last answer, in their order.
    slots: Vec<u32>,
    /// Groups that had no path so far, and how many answers ago they were new.
    unnamed: HashMap<u64, u8>,
    last: Option<Instant>,
    _permit: Option<OwnedSemaphorePermit>,
}

/// Changes of a moment, before the new groups have names.
#[derive(Debug, Default)]
pub(super) struct Delta {
    numbers: ChangesRow,
    new: Vec<u64>,
}

impl Changes {
    pub(super) fn new(permit: OwnedSemaphorePermit) -> Self {
        Self {
            known: Vec::new(),
            slots: Vec::new(),
            unnamed: HashMap::new(),
            last: None,
            _permit: Some(permit),
        }
    }

    /// Waits until this connection may have its next answer.
    pub(super) async fn pace(&mut self) {
        if let Some(last) = self.last {
            sleep_until(last + PACE).await;
        }
        self.last = Some(Instant::now());
    }

    /// Reads all groups, a few in a turn, and keeps what is told now.
    pub(super) async fn take<S: Source>(&mut self, watcher: &SharedWatcher<S>) -> Delta {
        let (mut delta, mut live, mut index) = (Delta::default(), Vec::new(), 0);
        while watcher.lock().source().slot(index).is_some() {
            let taken = self.take_some(&watcher.lock(), index, &mut delta);
            match taken {
                Ok((some, next)) => {
                    live.extend(some);
                    index = next;
                }
                Err(error) => {
                    log::error!("changes are cut short: {error}");
                    // What was not come to is compared the next time.
                    self.slots.retain(|slot| *slot >= index);
                    live.append(&mut self.slots);
                    self.slots = live;
                    return delta;
                }
            }
            yield_now().await;
        }
        let gone = missing(&self.slots, &live);
        self.slots = live;
        for some in gone.chunks(Query::AT_ONCE as usize) {
            {
                let watcher = watcher.lock();
                some.iter().for_each(|slot| self.compare(&watcher, *slot, &mut delta));
            }
            yield_now().await;
        }
        delta
    }

    /// Reads the next groups from a slot on, as many as a turn may; returns their slots, and that to go
    /// on from.
    fn take_some<S: Source>(
        &mut self,
        watcher: &Watcher<S>,
        from: u32,
        delta: &mut Delta,
    ) -> Result<(Vec<u32>, u32)> {
        let mut live = watcher.source().live_slots(from..from + SLOTS_IN_A_TURN);
        let next = live.get(Query::AT_ONCE as usize).copied().unwrap_or(from + SLOTS_IN_A_TURN);
        live.truncate(Query::AT_ONCE as usize);
        if let (Some(first), Some(last)) = (live.first(), live.last()) {
            group_stats::refresh(watcher, *first..last + 1)?;
        }
        live.iter().for_each(|slot| self.compare(watcher, *slot, delta));
        Ok((live, next))
    }

    /// Returns the names of new groups by their paths. Those without one are forgotten with their numbers,
    /// a few times, so that they are new again; then they are told without where the root is the host's, and
    /// else never, as those outside.
    fn name(
        &mut self,
        found: Vec<(u64, FoundName)>,
        is_of_host: bool,
        numbers: &mut ChangesRow,
    ) -> Vec<(u64, String)> {
        let (before, mut named, mut hidden) = (std::mem::take(&mut self.unnamed), Vec::new(), HashSet::new());
        for (id, name) in found {
            let looks = before.get(&id).map_or(1, |looks| looks + 1);
            match name {
                FoundName::Path(path) => named.push((id, shown(Some(&path), id))),
                FoundName::Nameless if looks < LOOKS => _ = self.unnamed.insert(id, looks),
                FoundName::Nameless if is_of_host => named.push((id, shown(None, id))),
                FoundName::Nameless | FoundName::Outside => _ = hidden.insert(id),
            }
        }
        if !(self.unnamed.is_empty() && hidden.is_empty()) {
            for known in &mut self.known {
                if self.unnamed.contains_key(&known.id) {
                    *known = Known::default();
                } else if hidden.contains(&known.id) {
                    known.is_hidden = true;
                }
            }
            let is_told = |id: &u64| !self.unnamed.contains_key(id) && !hidden.contains(id);
            numbers.usage.retain(|(id, _)| is_told(id));
            numbers.limits.retain(|(id, _)| is_told(id));
            numbers.registrations.retain(|(id, _)| is_told(id));
        }
        named
    }

    /// Compares a slot with what is known of it.
    fn compare<S: Source>(&mut self, watcher: &Watcher<S>, index: u32, delta: &mut Delta) {
        let at = index as usize;
        let known = self.known.get(at).copied().unwrap_or_default();
        let state = watcher.source().slot(index).map(SharedSlot::state).filter(|state| state.is_live());
        if state.is_none() && known.group == 0 {
            return;
        }
        let is_there = state.is_some_and(|state| state.generation() + 1 == known.group);
        let mut now = known;
        if known.group != 0 && !is_there {
            if !known.is_hidden {
                delta.numbers.gone.push(known.id);
            }
            now = Known::default();
        }
        if now.is_hidden {
            return;
        }
        // Not read just now, or without a counter: it stays as it was.
        if let Some(reading) = group_stats::read(watcher, index) {
            let (id, page) = (reading.cgroup_id, page_size());
            let is_new = now.group == 0;
            let found = watcher.registry().group(index).filter(|found| found.id == reading.group);
            let registrations = found.map_or(0, |group| u32::try_from(group.len()).unwrap_or(u32::MAX));
            let limit = reading.limit.unwrap_or(u64::MAX);
            let numbers = &mut delta.numbers;
            if is_new {
                delta.new.push(id);
            }
            if is_new || now.usage != reading.usage {
                numbers.usage.push((id, reading.usage.saturating_mul(page)));
            }
            if is_new || now.limit != limit {
                let bytes = limit.saturating_mul(page);
                numbers.limits.push((id, Some(bytes).filter(|bytes| *bytes < NO_LIMIT)));
            }
            if now.registrations != registrations {
                numbers.registrations.push((id, registrations.into()));
            }
            let group = reading.group.generation + 1;
            now = Known { group, id, usage: reading.usage, limit, registrations, is_hidden: false };
        }
        if now.group != 0 && at >= self.known.len() {
            self.known.resize(at + 1, Known::default());
        }
        if let Some(known) = self.known.get_mut(at) {
            *known = now;
        }
    }
}

/// Finds the slots before that are not among those now; both are in their order.
fn missing(before: &[u32], now: &[u32]) -> Vec<u32> {
    let mut now = now.iter().copied().peekable();
    let is_missing = |slot: &u32| {
        while now.next_if(|next| next < slot).is_some() {}
        now.peek() != Some(slot)
    };
    before.iter().copied().filter(is_missing).collect()
}

/// Names the new groups, and divides all into packets, in the order in which they are to be applied.
/// Groups beside a root that is a group have no name, and are not this agent's: their numbers are left
/// out.
pub(super) async fn rows(
    changes: &mut Changes,
    mut delta: Delta,
    directories: &Arc<Directories>,
) -> Vec<ChangesRow> {
    let mut names = Vec::new();
    if !delta.new.is_empty() {
        let (new, directories) = (std::mem::take(&mut delta.new), Arc::clone(directories));
        let found = spawn_blocking(move || {
            let name = |id| match directories.path_of(id) {
                Some(path) => FoundName::Path(path),
                None if directories.is_outside(id) => FoundName::Outside,
                None => FoundName::Nameless,
            };
            let found = new.into_iter().map(|id| (id, name(id)));
            (found.collect(), directories.host_root().is_some())
        });
        let found = found.await.inspect_err(|error| log::error!("new groups have no names: {error}"));
        let (found, is_of_host) = found.unwrap_or_default();
        names = packets_of_names(changes.name(found, is_of_host, &mut delta.numbers));
    }
    let ChangesRow { gone, usage, limits, registrations, .. } = delta.numbers;
    let row = ChangesRow::default;
    let mut rows = Vec::new();
    rows.extend(gone.chunks(IN_A_PACKET).map(|some| ChangesRow { gone: some.to_vec(), ..row() }));
    rows.extend(names);
    rows.extend(usage.chunks(IN_A_PACKET).map(|some| ChangesRow { usage: some.to_vec(), ..row() }));
    rows.extend(limits.chunks(IN_A_PACKET).map(|some| ChangesRow { limits: some.to_vec(), ..row() }));
    rows.extend(
        registrations.chunks(IN_A_PACKET).map(|some| ChangesRow { registrations: some.to_vec(), ..row() }),
    );
    rows
}

fn packets_of_names(named: Vec<(u64, String)>) -> Vec<ChangesRow> {
    let mut rows = Vec::new();
    let (mut row, mut bytes) = (ChangesRow::default(), 0);
    for (id, name) in named {
        if bytes + name.len() > NAMES_IN_A_PACKET || row.named.len() >= IN_A_PACKET {
            rows.push(std::mem::take(&mut row));
            bytes = 0;
        }
        bytes += name.len();
        row.named.push((id, name));
    }
    rows.push(row);
    rows
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use monitor_client::wire::{Answer, ChangesRow};
    use tokio::runtime::Builder;

    use super::{Changes, Delta, FoundName, IN_A_PACKET, NAMES_IN_A_PACKET, missing, packets_of_names};
    use crate::{
        kernel::page_size,
        watcher::{SharedWatcher, tests::fake::FakeKernel, tests::watcher},
    };

    fn changes() -> Changes {
        Changes { known: Vec::new(), slots: Vec::new(), unnamed: HashMap::new(), last: None, _permit: None }
    }

    fn take(changes: &mut Changes, watcher: &SharedWatcher<FakeKernel>) -> Delta {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(changes.take(watcher))
    }

    #[test]
    fn what_stays_the_same_is_told_once() {
        let watcher = SharedWatcher::new(watcher());
        let mut changes = changes();
        let page = page_size();
        let first = take(&mut changes, &watcher);
        assert_eq!(first.new, [100, 101]);
        assert_eq!(first.numbers.usage, [(100, 0), (101, 0)]);
        assert_eq!(first.numbers.limits, [(100, None), (101, None)]);
        assert!(first.numbers.registrations.is_empty());
        let again = take(&mut changes, &watcher);
        assert!(again.new.is_empty() && again.numbers == ChangesRow::default(), "{again:?}");
        watcher.lock().source().set_usage(1, 7);
        let moved = take(&mut changes, &watcher);
        assert_eq!(moved.numbers, ChangesRow { usage: vec![(101, 7 * page)], ..ChangesRow::default() });
    }

    #[test]
    fn a_group_in_the_slot_of_another_is_new() {
        let watcher = SharedWatcher::new(watcher());
        let mut changes = changes();
        take(&mut changes, &watcher);
        watcher.lock().source().replace(1, 555);
        let delta = take(&mut changes, &watcher);
        assert_eq!((delta.new, delta.numbers.gone), (vec![555], vec![101]));
        assert_eq!(delta.numbers.usage, [(555, 0)]);
    }

    #[test]
    fn a_group_that_is_still_being_made_is_named_in_a_later_answer() {
        let watcher = SharedWatcher::new(watcher());
        let mut changes = changes();
        let path = |id: u64| FoundName::Path(format!("/{id}").into());
        let mut delta = take(&mut changes, &watcher);
        let named =
            changes.name(vec![(100, path(100)), (101, FoundName::Nameless)], true, &mut delta.numbers);
        assert_eq!(named, [(100, "/100".to_owned())]);
        assert_eq!(delta.numbers.usage, [(100, 0)], "no numbers without a name");
        let mut delta = take(&mut changes, &watcher);
        assert_eq!((&delta.new, &delta.numbers.usage), (&vec![101], &vec![(101, 0)]));
        let named = changes.name(vec![(101, path(101))], true, &mut delta.numbers);
        assert_eq!((named, delta.numbers.usage), (vec![(101, "/101".to_owned())], vec![(101, 0)]));
        assert!(take(&mut changes, &watcher).new.is_empty());
    }

    #[test]
    fn a_group_that_never_has_a_path_is_told_without_one() {
        let watcher = SharedWatcher::new(watcher());
        let mut changes = changes();
        let mut told = Vec::new();
        for _ in 0..5 {
            let mut delta = take(&mut changes, &watcher);
            let found = delta.new.iter().map(|id| (*id, FoundName::Nameless)).collect();
            told.push(changes.name(found, true, &mut delta.numbers).len());
        }
        assert_eq!(told, [0, 0, 2, 0, 0]);
    }

    /// Beside a root that is a group the programs see groups that are not the agent's.
    #[test]
    fn nothing_is_told_of_groups_outside_however_often_they_change() {
        let watcher = SharedWatcher::new(watcher());
        let mut changes = changes();
        for round in 0..5 {
            watcher.lock().source().set_usage(0, round);
            watcher.lock().source().set_usage(1, round);
            let mut delta = take(&mut changes, &watcher);
            let name = |id| if id == 100 { FoundName::Outside } else { FoundName::Nameless };
            let found = delta.new.iter().map(|id| (*id, name(*id))).collect();
            assert_eq!(changes.name(found, false, &mut delta.numbers), []);
            assert_eq!(delta.numbers, ChangesRow::default(), "round {round}");
        }
        watcher.lock().source().replace(0, 555);
        let delta = take(&mut changes, &watcher);
        assert_eq!((delta.new, delta.numbers.gone), (vec![555], vec![]));
    }

    #[test]
    fn slots_that_have_no_group_any_more_are_found() {
        assert_eq!(missing(&[1, 2, 5, 9], &[2, 3, 5, 7]), [1, 9]);
        assert_eq!(missing(&[3], &[]), [3]);
        assert!(missing(&[], &[1]).is_empty() && missing(&[4, 6], &[4, 6]).is_empty());
    }

    #[test]
    fn names_of_any_length_fit_into_packets() {
        let named: Vec<_> =
            (0..3000).map(|id| (id, "\u{1}".repeat(usize::from(id % 7 == 0) * 1000 + 9))).collect();
        let rows = packets_of_names(named.clone());
        let largest =
            rows.iter().map(|row| serde_json::to_vec(&Answer::Changes(row.clone())).expect("JSON").len());
        assert!(largest.max() <= Some(6 * NAMES_IN_A_PACKET + 32 * IN_A_PACKET));
        let all: Vec<_> = rows.into_iter().flat_map(|row| row.named).collect();
        assert_eq!(all, named);
    }
}
