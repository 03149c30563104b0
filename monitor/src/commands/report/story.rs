//! A report in words: who was killed by whose limit, what happened in which order, and what the
//! file says of itself. Every form of a report has these.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
};

use memcg_monitor::black_box::{KillEntry, LimitEntry, RecordReason, Recording};

use super::scale::{bytes, date, duration};

/// Moments that a table shows at most, the latest ones.
const SHOWN: usize = 500;

/// One line of what happened.
#[derive(Debug, PartialEq, Eq)]
pub struct Moment {
    pub at: u64,
    /// The word by which it is found, such as `limit`.
    pub what: &'static str,
    pub text: String,
}

/// The moment that the axis calls 0: the last kill, or OOM, or when the file was written.
pub fn zero(recording: &Recording) -> u64 {
    let kill = recording.kills.last().map(|kill| kill.at);
    kill.or_else(|| recording.ooms.last().map(|oom| oom.at)).unwrap_or(recording.header.at)
}

/// Nanoseconds from `zero` to `at`.
pub fn since(zero: u64, at: u64) -> f64 {
    (i128::from(at) - i128::from(zero)) as f64
}

/// The words for the axis's 0.
pub fn zero_name(recording: &Recording) -> &'static str {
    match (recording.kills.is_empty(), recording.ooms.is_empty()) {
        (false, _) => "kill",
        (true, false) => "OOM",
        (true, true) => "end",
    }
}

/// The date of a moment of the file.
pub fn date_of(recording: &Recording, at: u64) -> String {
    let before = i128::from(recording.header.at) - i128::from(at);
    let unix_ms = i128::from(recording.header.unix_ms) - before / 1_000_000;
    date(u64::try_from(unix_ms).unwrap_or(0))
}

/// Limits as they are said in the order of time: a file may have millions of them.
#[derive(Debug, Default)]
pub struct LimitsInForce<'a> {
    /// The limit that was said last of each group.
    last: HashMap<Option<&'a str>, Option<u64>>,
    /// Limits in force, each with the number of groups that have it.
    groups: BTreeMap<u64, usize>,
}

impl<'a> LimitsInForce<'a> {
    /// Takes the next limit, which replaces the one before of this group.
    pub fn say(&mut self, limit: &'a LimitEntry) {
        let before = self.last.insert(limit.of.as_deref(), limit.bytes).flatten();
        if let Some(before) = before {
            let groups = self.groups.entry(before).or_insert(0);
            *groups = groups.saturating_sub(1);
            if *groups == 0 {
                self.groups.remove(&before);
            }
        }
        if let Some(bytes) = limit.bytes {
            *self.groups.entry(bytes).or_insert(0) += 1;
        }
    }

    /// The limit in force: the lowest one that was said last of each group.
    pub fn lowest(&self) -> Option<u64> {
        self.groups.keys().next().copied()
    }
}

/// The limit in force at a moment.
pub fn limit_at(recording: &Recording, at: u64) -> Option<u64> {
    let mut in_force = LimitsInForce::default();
    recording.limits.iter().take_while(|limit| limit.at <= at).for_each(|limit| in_force.say(limit));
    in_force.lowest()
}

/// The first sentence of a report.
pub fn headline(recording: &Recording) -> String {
    let header = &recording.header;
    let Some(last) = recording.kills.last() else {
        return match (recording.ooms.last(), header.reason) {
            (Some(oom), _) => format!("OOM in {} at {}", header.group, date_of(recording, oom.at)),
            (None, _) => format!("{} at {}", header.group, date_of(recording, header.at)),
        };
    };
    let others = match recording.kills.len() - 1 {
        0 => String::new(),
        1 => " and one more".to_owned(),
        more => format!(" and {more} more"),
    };
    let limit_of = last.limit_of.as_ref().or_else(|| recording.ooms.last()?.limit_of.as_ref());
    let limit =
        limit_at(recording, last.at).map_or_else(String::new, |limit| format!(" of {}", bytes(limit)));
    let why = match limit_of {
        Some(group) if *group == header.group => format!(": {group} had reached its limit{limit}"),
        Some(group) => format!(": {group}, above it, had reached its limit{limit}"),
        None => String::new(),
    };
    let were = if recording.kills.len() == 1 { "was" } else { "were" };
    format!("{}{others} {were} OOM-killed at {}{why}", last.name(), date_of(recording, last.at))
}

/// A number with the word for one, or for more.
fn counted(number: impl Display, one: &str, more: &str) -> String {
    let number = number.to_string();
    let word = if number == "1" { one } else { more };
    format!("{number} {word}")
}

/// The words for moments before those of a table.
pub fn earlier(number: usize) -> String {
    counted(number, "earlier one is", "earlier ones are")
}

/// Properties of the file and of its curve, by name.
pub fn facts(recording: &Recording) -> Vec<(&'static str, String)> {
    let header = &recording.header;
    let mut facts = vec![("group", header.group.clone())];
    facts.extend(header.host.clone().map(|host| ("host", host)));
    facts.extend(header.kernel.clone().map(|kernel| ("kernel", kernel)));
    let reason = match header.reason {
        RecordReason::Oom => "a process was OOM-killed",
        RecordReason::Request => "somebody requested it",
        RecordReason::Other => "not known to this version",
    };
    facts.push(("written", format!("{}, because {reason}", date_of(recording, header.at))));
    facts.extend(header.agent.clone().map(|agent| ("by memcg-monitor", agent)));
    let (points, span) = (recording.usage.len(), span(recording));
    let step = header.step.map_or_else(String::new, |step| format!(", one for each step of {}", bytes(step)));
    let precision = header.precision.as_ref().map_or_else(String::new, |how| format!(", {how}"));
    facts.push((
        "curve",
        format!("{} in {}{step}{precision}", counted(points, "point", "points"), duration(span)),
    ));
    if let Some(highest) = recording.usage.iter().map(|point| point.bytes).max() {
        facts.push(("highest usage", bytes(highest)));
    }
    if let Some(growth) = growth(recording) {
        facts.push(("growth", growth));
    }
    let windows = |level: &str| recording.pressure.iter().filter(|window| window.level == level).count();
    let counts = ["low", "medium", "critical"].map(|level| format!("{} {level}", windows(level)));
    if !recording.pressure.is_empty() {
        facts.push(("windows of reclaim", counts.join(", ")));
    }
    if recording.lost > 0 {
        facts.push(("lost points", recording.lost.to_string()));
    }
    if recording.unknown > 0 {
        facts.push((
            "left out",
            format!("{} of a newer version", counted(recording.unknown, "entry", "entries")),
        ));
    }
    if !recording.is_complete {
        facts.push(("cut off", "the file's end is missing".to_owned()));
    }
    facts.extend(recording.notes.iter().map(|note| ("note", note.clone())));
    facts
}

/// Nanoseconds from the curve's first point to the end.
fn span(recording: &Recording) -> f64 {
    let first = recording.usage.first().map_or(recording.header.at, |point| point.at);
    since(first, zero(recording)).max(0.0)
}

/// The words for how usage grew up to the end: from the first point of its last second on, or from the last
/// but one; where usage has rested, for how long.
fn growth(recording: &Recording) -> Option<String> {
    const SECOND: u64 = 1_000_000_000;
    // The points that are missing may be the last ones.
    if !recording.is_complete {
        return None;
    }
    let end = zero(recording);
    let until_end = &recording.usage[..recording.usage.partition_point(|point| point.at <= end)];
    let (last, earlier) = until_end.split_last()?;
    let rest = end - last.at;
    let interval = earlier.last().map_or(0, |before| last.at - before.at);
    // Had usage grown on as before, there would be another point.
    let (grown, time) = if rest > interval.max(SECOND) {
        let step = recording.header.step.map(|step| format!("less than {}", bytes(step)));
        (step.unwrap_or_else(|| "none".to_owned()), rest)
    } else {
        let before = earlier.partition_point(|point| end - point.at > SECOND);
        let first = earlier.get(before).or(earlier.last())?;
        let (more, time) = (last.bytes.checked_sub(first.bytes)?, end - first.at);
        let rate = (more > 0 && time > 0).then(|| more as f64 / (time as f64 / 1e9))?;
        (format!("{}/s", bytes(rate as u64)), time)
    };
    Some(format!("{grown} in the last {} before the {}", duration(time as f64), zero_name(recording)))
}

/// Events in the order of time, and how many earlier moments are left out.
pub fn moments(recording: &Recording) -> (Vec<Moment>, usize) {
    let mut moments = Vec::new();
    let mut add = |at, what, text| moments.push(Moment { at, what, text });
    for limit in &recording.limits {
        let of = limit.of.as_ref().map_or_else(String::new, |of| format!(" of {of}"));
        let value = limit.bytes.map_or_else(|| "none".to_owned(), bytes);
        add(limit.at, "limit", format!("limit{of}: {value}"));
    }
    for signal in &recording.signals {
        let usage = signal.bytes.map_or_else(String::new, |usage| format!(", at {}", bytes(usage)));
        let to = signal.registration.map_or_else(String::new, |number| format!(" (registration {number})"));
        add(signal.at, "signal", format!("{}{usage}{to}", signal.cause));
    }
    for oom in &recording.ooms {
        let of = oom.limit_of.as_ref().map_or_else(String::new, |of| format!(" by the limit of {of}"));
        add(oom.at, "OOM", format!("out of memory{of}"));
    }
    for kill in &recording.kills {
        add(kill.at, "kill", format!("killed {}", kill.name()));
    }
    moments.sort_by_key(|moment| moment.at);
    let left_out = moments.len().saturating_sub(SHOWN);
    (moments.split_off(left_out), left_out)
}

/// Properties of a victim that are known, by name.
pub fn victim(kill: &KillEntry) -> Vec<(&'static str, String)> {
    let text = |name, value: &Option<String>| value.clone().map(|value| (name, value));
    let number = |name, value: Option<u32>| value.map(|value| (name, value.to_string()));
    let size = |name, value: Option<u64>| value.map(|value| (name, bytes(value)));
    let rows = [
        text("command", &kill.comm),
        number("pid", kill.pid),
        number("pid in its namespace", kill.ns_pid),
        text("command line", &kill.cmdline),
        text("executable", &kill.exe),
        number("user id", kill.uid),
        size("anonymous memory", kill.anon_rss),
        size("mapped files", kill.file_rss),
        size("shared memory", kill.shmem_rss),
        size("swap", kill.swap),
        kill.oom_score_adj.map(|score| ("oom_score_adj", score.to_string())),
        text("unit", &kill.unit),
        text("container", &kill.container),
        text("group", &kill.victim_group),
        text("limit of", &kill.limit_of),
        kill.whole_group.filter(|whole| *whole).map(|_| ("killed", "with its whole group".to_owned())),
    ];
    rows.into_iter().flatten().collect()
}
