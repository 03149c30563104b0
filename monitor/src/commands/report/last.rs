//! The end of a recording, as if it had begun so late: what every form of a report shows with `--last`.

use std::{collections::HashSet, time::Duration};

use memcg_monitor::black_box::Recording;

use super::{scale::duration, story::zero};

/// The recording without what is more than `last` before its end. The usage and the limits at its
/// beginning are those of before.
pub fn only_last(mut recording: Recording, last: Duration) -> Recording {
    let length = u64::try_from(last.as_nanos()).unwrap_or(u64::MAX);
    let begin = zero(&recording).saturating_sub(length);
    let Recording { usage, limits, signals, pressure, ooms, kills, .. } = &mut recording;
    let before = usage.partition_point(|point| point.at < begin);
    usage.drain(..before.saturating_sub(1));
    if before > 0 {
        usage[0].at = begin;
    }
    let mut later = HashSet::new();
    let mut in_force = Vec::new();
    for mut limit in std::mem::take(limits).into_iter().rev() {
        if limit.at >= begin {
            in_force.push(limit);
        } else if later.insert(limit.of.clone()) {
            limit.at = begin;
            in_force.push(limit);
        }
    }
    in_force.reverse();
    *limits = in_force;
    signals.retain(|signal| signal.at >= begin);
    pressure.retain(|window| window.at >= begin);
    ooms.retain(|oom| oom.at >= begin);
    kills.retain(|kill| kill.at >= begin);
    recording.notes.push(format!("shows the last {} alone", duration(length as f64)));
    recording
}
