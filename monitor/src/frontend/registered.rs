//! A group's registrations as the operator's `list` shows them: those for the same in one row, a
//! page at a time.

use std::collections::{BTreeMap, HashMap};

use monitor_client::wire::RegistrationRow;
use monitor_common::grammar::{
    control_file::ControlFile,
    threshold::{At as Level, Pages},
};

use crate::{
    kernel::page_size,
    registry::{Cursor, Group, Registered},
    source::{GroupId, Precision, Source},
    watcher::SharedWatcher,
};

/// Registrations in a page: as many as one packet holds.
const IN_A_PAGE: usize = 200;

/// Position in a group's registrations: the index in [`ControlFile::QUANTITIES`], and the last
/// threshold read. Registrations without a threshold come last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct At {
    quantity: usize,
    after: Option<Cursor>,
}

/// A part of a group's registrations.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) rows: Vec<RegistrationRow>,
    /// Lowest limit in bytes from the group up, if there is one and the page has thresholds.
    pub(super) limit: Option<u64>,
    /// Position to go on from; `None` at the end.
    pub(super) next: Option<At>,
}

/// The next page of a group's registrations.
pub(super) fn page<S: Source>(watcher: &SharedWatcher<S>, group: GroupId, at: At) -> Page {
    let watcher = watcher.lock();
    let registry = watcher.registry();
    let Some(found) = registry.group(group.slot).filter(|found| found.id == group) else {
        return Page::default();
    };
    let precision = watcher.source().precision();
    let At { quantity, after } = at;
    let Some(on) = ControlFile::QUANTITIES.get(quantity) else {
        return Page { rows: others(found, precision), ..Page::default() };
    };
    let (mut thresholds, after) = found.scale(*on).page(after, IN_A_PAGE);
    // The agent's own registrations are thresholds.
    thresholds.retain(|threshold| !registry.is_own(threshold.file));
    let quantity = if after.is_some() { quantity } else { quantity + 1 };
    let next = Some(At { quantity, after });
    if thresholds.is_empty() {
        return Page { next, ..Page::default() };
    }
    let limit = watcher.effective_limit(group.slot).inspect_err(|error| log::warn!("{error}"));
    let limit = limit.unwrap_or(u64::MAX);
    // No counter of the kernel has these.
    let by_files = group.slot == watcher.source().root().slot || *on == ControlFile::WorkingSet;
    let precision = if by_files { Precision::Sampled } else { precision };
    drop(watcher);
    let rows = thresholds.iter().map(|threshold| row(*on, threshold, limit, precision));
    let limit = (limit != u64::MAX).then(|| limit.saturating_mul(page_size()));
    Page { rows: together(rows), limit, next }
}

/// All registrations of a group, or so many rows of them.
pub fn registrations_of<S: Source>(
    watcher: &SharedWatcher<S>,
    group: GroupId,
    most: usize,
) -> Vec<RegistrationRow> {
    let (mut rows, mut next) = (Vec::new(), Some(At::default()));
    while let Some(at) = next.filter(|_| rows.len() < most) {
        let page = page(watcher, group, at);
        rows.extend(page.rows);
        next = page.next;
    }
    rows.truncate(most);
    rows
}

/// Takes registrations for the same together, in the order of the first of each.
fn together(rows: impl Iterator<Item = RegistrationRow>) -> Vec<RegistrationRow> {
    let mut places: HashMap<RegistrationRow, usize> = HashMap::new();
    let mut all: Vec<RegistrationRow> = Vec::new();
    for row in rows {
        match places.get(&row).and_then(|place| all.get_mut(*place)) {
            Some(known) => known.count += 1,
            None => {
                places.insert(row.clone(), all.len());
                all.push(row);
            }
        }
    }
    all
}

fn row(on: ControlFile, registered: &Registered, limit: u64, precision: Precision) -> RegistrationRow {
    let Registered { trigger, threshold, is_held_off, .. } = *registered;
    let bytes = |pages: u64| pages.saturating_mul(page_size());
    let direction = match (trigger.up, trigger.down) {
        (true, false) => Some("up"),
        (false, true) => Some("down"),
        _ => None,
    };
    RegistrationRow {
        on: on.name().into(),
        threshold: (threshold != u64::MAX).then(|| bytes(threshold)),
        percent: match trigger.at {
            Level::Percent(hundredths) => Some(percent(hundredths)),
            Level::Pages(_) => None,
        },
        direction: direction.map(Into::into),
        hysteresis: Some(bytes(trigger.hysteresis.0)).filter(|bytes| *bytes > 0),
        held_off: is_held_off,
        unreachable: unreachable(on, trigger.at, threshold, registered.above, limit).map(Into::into),
        pressure: None,
        precision: precision.as_str().into(),
        count: 1,
    }
}

/// Why a threshold at this place, in pages, cannot be crossed as things are. One that usage is above can be:
/// downwards.
pub(super) fn unreachable(
    on: ControlFile,
    at: Level,
    threshold: u64,
    above: bool,
    limit: u64,
) -> Option<&'static str> {
    let is_never = threshold == 0 || threshold == Pages::counter_max(page_size()).0;
    match at {
        Level::Percent(_) if limit == u64::MAX => Some("no_limit"),
        _ if is_never => Some("never"),
        // Memory and swap together may be more than the limit of memory.
        _ if on != ControlFile::Memsw && !above && threshold > limit => Some("above_limit"),
        _ => None,
    }
}

/// A percentage as it is registered: at most two decimals.
fn percent(hundredths: u32) -> String {
    let (whole, part) = (hundredths / 100, hundredths % 100);
    match (part, part % 10) {
        (0, _) => format!("{whole}%"),
        (_, 0) => format!("{whole}.{}%", part / 10),
        _ => format!("{whole}.{part:02}%"),
    }
}

fn others(group: &Group, precision: Precision) -> Vec<RegistrationRow> {
    let row = |on: ControlFile, pressure, count| RegistrationRow {
        on: on.name().into(),
        pressure,
        precision: precision.as_str().into(),
        count,
        ..RegistrationRow::default()
    };
    let mut pressures: BTreeMap<String, u64> = BTreeMap::new();
    for (listener, count) in group.pressures() {
        let text = format!("{},{}", listener.level.as_str(), listener.mode.as_str());
        pressures.insert(text, count as u64);
    }
    let ooms = [(ControlFile::Oom, group.ooms())];
    let empty = [(ControlFile::Procs, group.empties())];
    let plain = |(on, count): (ControlFile, usize)| (count > 0).then(|| row(on, None, count as u64));
    let pressures = pressures.into_iter().map(|(text, count)| row(ControlFile::Pressure, Some(text), count));
    ooms.into_iter().filter_map(plain).chain(pressures).chain(empty.into_iter().filter_map(plain)).collect()
}

#[cfg(test)]
mod tests {
    use monitor_common::grammar::{control_file::ControlFile, threshold};

    use super::{percent, row, together};
    use crate::{
        kernel::page_size,
        registry::Registered,
        source::{FileId, Precision},
    };

    fn registered(args: &str, threshold: u64, above: bool) -> Registered {
        let trigger = threshold::parse(args.as_bytes(), page_size()).expect("a threshold");
        Registered { file: FileId(1), trigger, threshold, above, is_held_off: false }
    }

    #[test]
    fn options_and_percents_are_shown_as_given() {
        let given = ["80%", "0.5%", "99.99%", "12.05%", "100%"];
        let shown = [8000, 50, 9999, 1205, 10_000].map(percent);
        assert_eq!(shown, given);
        let registered = registered("80%,down,hysteresis=64K", 800, false);
        let row = row(ControlFile::Usage, &registered, 1000, Precision::Exact);
        let page = page_size();
        assert_eq!((row.threshold, row.percent.as_deref()), (Some(800 * page), Some("80%")));
        assert_eq!((row.direction.as_deref(), row.hysteresis), (Some("down"), Some(65_536)));
        assert_eq!((row.precision.as_str(), row.unreachable, row.count), ("exact", None, 1));
    }

    #[test]
    fn what_cannot_be_crossed_is_marked_with_the_reason() {
        let reason = |on, args, threshold, above, limit| {
            row(on, &registered(args, threshold, above), limit, Precision::Exact).unreachable
        };
        let usage = ControlFile::Usage;
        assert_eq!(reason(usage, "80%", u64::MAX, false, u64::MAX).as_deref(), Some("no_limit"));
        assert_eq!(reason(usage, "8M", 2048, false, 1024).as_deref(), Some("above_limit"));
        assert_eq!(reason(usage, "8M", 2048, true, 1024), None, "usage may still fall below it");
        assert_eq!(reason(usage, "8M", 1024, false, 1024), None, "usage may reach its limit");
        assert_eq!(reason(ControlFile::Memsw, "8M", 2048, false, 1024), None, "with swap");
        assert_eq!(reason(usage, "0", 0, false, 1024).as_deref(), Some("never"));
        let last = super::Pages::counter_max(page_size()).0;
        assert_eq!(reason(usage, "-1", last, false, u64::MAX).as_deref(), Some("never"));
    }

    #[test]
    fn registrations_for_the_same_are_one_row() {
        let rows = [("1M", 256), ("1M,up", 256), ("1M", 256), ("2M", 512)].map(|(args, threshold)| {
            row(ControlFile::Usage, &registered(args, threshold, false), u64::MAX, Precision::Sampled)
        });
        let shown: Vec<_> = together(rows.into_iter())
            .into_iter()
            .map(|row| (row.threshold.map(|bytes| bytes / page_size()), row.direction, row.count))
            .collect();
        assert_eq!(shown, [(Some(256), None, 2), (Some(256), Some("up".into()), 1), (Some(512), None, 1)]);
    }
}
