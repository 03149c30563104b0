//! Makes a recording of a group: its points, what was noted, and its registrations as they are.

use std::time::{SystemTime, UNIX_EPOCH};

use monitor_client::wire::RegistrationRow;
use nix::sys::utsname::uname;

use crate::{
    backend::Backend,
    black_box::{BlackBoxHeader, RecordReason, Recording, RegistrationEntry, UsagePoint},
    boxes::BoxTables,
    frontend::registrations_of,
    kernel::page_size,
    recorder::history::RecordedGroup,
    source::Source as _,
    watcher::{SharedWatcher, monotonic},
};

/// The host, as each file names it: asked for once, while the system call is allowed.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    kernel: Option<String>,
    host: Option<String>,
}

impl Origin {
    pub(super) fn of_this_host() -> Self {
        let names = uname().ok();
        let text = |name: &std::ffi::OsStr| name.to_string_lossy().into_owned();
        Self {
            kernel: names.as_ref().map(|names| text(names.release())),
            host: names.as_ref().map(|names| text(names.nodename())),
        }
    }
}

/// Registrations that a file has at most, those for the same as one.
const REGISTRATIONS: usize = 1000;

pub(super) fn recording(
    watcher: &SharedWatcher<Box<dyn Backend>>,
    boxes: &BoxTables,
    origin: &Origin,
    (number, group): (usize, &RecordedGroup),
    reason: RecordReason,
) -> Recording {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis());
    let (precision, has_windows, backend) = {
        let watcher = watcher.lock();
        let source = watcher.source();
        (source.precision().as_str(), source.features().pressure, source.kind())
    };
    let mut recording = group.recording(BlackBoxHeader {
        at: monotonic(),
        unix_ms: u64::try_from(now).unwrap_or(0),
        step: Some(boxes.step(number)),
        precision: Some(precision.to_owned()),
        agent: Some(env!("CARGO_PKG_VERSION").to_owned()),
        kernel: origin.kernel.clone(),
        host: origin.host.clone(),
        ..BlackBoxHeader::new(group.path.clone(), group.cgroup_id, reason)
    });
    (recording.usage, recording.lost) = boxes.read(number);
    end_curve(&mut recording.usage, usage_now(watcher, group));
    let rows = registrations_of(watcher, group.group, REGISTRATIONS);
    if rows.len() >= REGISTRATIONS {
        recording.notes.push(format!("there are more registrations than the {REGISTRATIONS} of this file"));
    }
    recording.registrations = (1..).zip(&rows).map(|(number, row)| entry(number, row)).collect();
    if !has_windows {
        recording.notes.push(format!("the backend {backend} sees no windows of reclaim here"));
    }
    recording.sort();
    recording
}

/// Usage at this moment; `None` when the group is gone.
fn usage_now(watcher: &SharedWatcher<Box<dyn Backend>>, group: &RecordedGroup) -> Option<UsagePoint> {
    let pages = watcher.lock().source().usage(group.group).ok().flatten()?;
    Some(UsagePoint { at: monotonic(), bytes: pages.saturating_mul(page_size()) })
}

/// Ends a curve with usage as it is now, which may be less than a step from the last point.
fn end_curve(usage: &mut Vec<UsagePoint>, now: Option<UsagePoint>) {
    let moved = now.filter(|now| usage.last().is_none_or(|last| last.bytes != now.bytes));
    usage.extend(moved);
}

/// A row of registrations in the words of `list`.
fn entry(number: u64, row: &RegistrationRow) -> RegistrationEntry {
    let mut trigger = row.on.clone();
    let level = row.percent.clone().or_else(|| row.threshold.map(|bytes| bytes.to_string()));
    for word in [level, row.direction.clone(), row.pressure.clone()].into_iter().flatten() {
        trigger.push(' ');
        trigger.push_str(&word);
    }
    if row.count > 1 {
        trigger.push_str(&format!(" ({} times)", row.count));
    }
    let is_on_usage = row.on == "memory.usage_in_bytes";
    RegistrationEntry {
        registration: number,
        trigger,
        bytes: row.threshold.filter(|_| is_on_usage),
        uid: None,
    }
}

#[cfg(test)]
mod tests {
    use monitor_client::wire::RegistrationRow;

    use super::{end_curve, entry};
    use crate::black_box::UsagePoint;

    #[test]
    fn a_curve_ends_with_usage_as_it_is() {
        let point = |at, bytes| UsagePoint { at, bytes };
        let mut curve = vec![point(1, 100)];
        end_curve(&mut curve, Some(point(2, 100)));
        assert_eq!(curve.len(), 1, "usage did not move");
        end_curve(&mut curve, None);
        assert_eq!(curve.len(), 1, "the group is gone");
        end_curve(&mut curve, Some(point(3, 107)));
        assert_eq!(
            curve.iter().map(|point| (point.at, point.bytes)).collect::<Vec<_>>(),
            [(1, 100), (3, 107)]
        );
    }

    #[test]
    fn a_registration_is_written_as_it_was_given() {
        let row = RegistrationRow {
            on: "memory.usage_in_bytes".to_owned(),
            threshold: Some(4096),
            percent: Some("80%".to_owned()),
            direction: Some("up".to_owned()),
            count: 3,
            ..RegistrationRow::default()
        };
        let entry = entry(2, &row);
        assert_eq!(entry.trigger, "memory.usage_in_bytes 80% up (3 times)");
        assert_eq!((entry.registration, entry.bytes), (2, Some(4096)));
        let other = RegistrationRow { on: "memory.memsw.usage_in_bytes".to_owned(), ..row };
        assert_eq!(super::entry(1, &other).bytes, None);
    }
}
