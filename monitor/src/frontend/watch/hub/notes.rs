//! Thresholds that cannot be crossed as things are: a watch is told of each once, those alike in one row.

use monitor_client::wire::NoteRow;
use monitor_common::grammar::{
    control_file::Trigger,
    spec::Spec,
    threshold::{At, Pages},
};

use super::Hub;
use crate::{
    frontend::{registered::unreachable, watch::request::Watch},
    kernel::page_size,
    registry::place_of,
    source::GroupId,
};

/// Groups that are looked at in a tick, of all watches together; a query each.
const IN_A_TICK: usize = 256;

/// A threshold of a group that cannot be crossed.
struct Unreachable {
    spec: usize,
    reason: &'static str,
    /// Pages that usage cannot exceed.
    limit: u64,
}

impl Hub {
    /// Tells each watch of thresholds that cannot be crossed, of some groups in a turn.
    pub(super) fn note_unreachable(&self) {
        let watches = self.watches.borrow().clone();
        let each = (IN_A_TICK / watches.len().max(1)).max(1);
        for watch in watches.iter().filter(|watch| watch.has_thresholds() && watch.is_begun.get()) {
            let members = watch.members.all().iter().map(|(id, group)| (*id, *group)).collect();
            let some = watch.noted.borrow_mut().next(members, each);
            self.note_of(watch, &some);
        }
    }

    fn note_of(&self, watch: &Watch, groups: &[(u64, GroupId)]) {
        let ram = self.watcher.lock().ram().unwrap_or(u64::MAX);
        let mut found: Vec<(Unreachable, Vec<u64>)> = Vec::new();
        for (id, group) in groups {
            for one in self.unreachable_of(watch, *group, ram) {
                if watch.noted.borrow().has(*id, one.spec) {
                    continue;
                }
                match found.iter_mut().find(|(two, _)| (two.spec, two.reason) == (one.spec, one.reason)) {
                    Some((_, ids)) => ids.push(*id),
                    None => found.push((one, vec![*id])),
                }
            }
        }
        for (Unreachable { spec, reason, limit }, ids) in found {
            let first = ids.first().map(|id| self.name_of(*id));
            let is_told = watch.queue.note(NoteRow {
                reason: reason.into(),
                spec: watch.specs.get(spec).map(|(text, _)| text.as_ref().to_owned()),
                cgroup: first,
                limit: (limit != u64::MAX).then(|| limit.saturating_mul(page_size())),
                groups: ids.len() as u64,
            });
            if is_told {
                ids.iter().for_each(|id| watch.noted.borrow_mut().add(*id, spec));
            }
        }
    }

    fn unreachable_of(&self, watch: &Watch, group: GroupId, ram: u64) -> Vec<Unreachable> {
        let watcher = self.watcher.lock();
        let registered = watcher.registry().group(group.slot).filter(|found| found.id == group);
        let Some(registered) = registered.filter(|_| watcher.is_there(group)) else { return Vec::new() };
        let Ok(limit) = watcher.effective_limit(group.slot) else { return Vec::new() };
        let is_root = group.slot == watcher.source().root().slot;
        let thresholds = watch.specs.iter().enumerate().filter_map(|(at, (_, spec))| match spec {
            Spec::Event { on, trigger: Trigger::Threshold(threshold), .. } => Some((at, *on, threshold)),
            _ => None,
        });
        let found = thresholds.filter_map(|(spec, on, threshold)| {
            // The kernel's way to wait for the removal alone.
            if threshold.at == At::Pages(Pages::counter_max(page_size())) {
                return None;
            }
            let place = place_of(threshold.at, limit);
            let is_above = registered.scale(on).now() >= place;
            let reason = |limit| unreachable(on, threshold.at, place, is_above, limit);
            let by_limit = reason(limit).filter(|reason| !(is_root && *reason == "above_limit"));
            let (reason, limit) = match by_limit {
                Some(reason) => (reason, limit),
                None => (reason(ram).map(|_| "above_host")?, ram),
            };
            Some(Unreachable { spec, reason, limit })
        });
        found.collect()
    }
}
