//! Lines instead of a screen, for files and programs.

use std::{
    io::{self, Write},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use memcg_monitor::printable;
use serde::Serialize;

use super::{app::App, cells, model::Place};

/// One group as JSON. Bytes, bytes a second, seconds, percent.
#[derive(Debug, Serialize)]
struct GroupLine<'a> {
    /// Seconds since 1970, UTC.
    time: f64,
    cgroup: String,
    id: u64,
    usage: Option<u64>,
    /// Limit of the group itself.
    limit: Option<u64>,
    /// Bytes left to the nearest limit, and the group whose it is.
    room: Option<u64>,
    room_of: Option<String>,
    growth: Option<f64>,
    seconds_left: Option<f64>,
    pressure: Option<f64>,
    registrations: Option<u64>,
    oom: Option<u64>,
    oom_kill: Option<u64>,
    source: &'a str,
}

/// Writes all rows as JSON, an object on a line.
pub fn json(out: &mut impl Write, app: &App, source: &str) -> io::Result<()> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    for place in app.arranged.rows.iter().map(|row| row.place) {
        let (model, node) = (&app.model, app.model.node(place));
        let Some(id) = node.id else { continue };
        let distance = app.arranged.distance(&app.model, place);
        let line = GroupLine {
            time,
            cgroup: model.full_path(place),
            id,
            usage: node.usage,
            limit: node.limit,
            room: distance.room.map(|(bytes, _)| bytes),
            room_of: distance.room.map(|(_, of)| model.full_path(of)),
            growth: distance.growth,
            seconds_left: distance.left,
            pressure: node.pressure,
            registrations: app.known.registrations.then_some(node.registrations),
            oom: node.counts.filter(|_| app.known.ooms).map(|counts| counts.oom),
            oom_kill: node.counts.filter(|_| app.known.kills).map(|counts| counts.oom_kill),
            source,
        };
        serde_json::to_writer(&mut *out, &line)?;
        writeln!(out)?;
    }
    out.flush()
}

/// Writes all rows as a table, below a line that says where the numbers come from.
pub fn text(out: &mut impl Write, app: &App, source: &str) -> io::Result<()> {
    let model = &app.model;
    writeln!(out, "{} groups, {source}", model.len())?;
    writeln!(
        out,
        "{:>6} {:>7} {:>6} {:>8} {:>5} {:>5} {:>5} GROUP",
        "USAGE", "LIMIT", "ROOM", "GROWTH/s", "LEFT", "PSI%", "REG"
    )?;
    for row in &app.arranged.rows {
        let (place, node): (Place, _) = (row.place, model.node(row.place));
        if node.id.is_none() {
            continue;
        }
        let distance = app.arranged.distance(&app.model, place);
        writeln!(
            out,
            "{:>6} {:>7} {:>6} {:>8} {:>5} {:>5} {:>5} {}",
            cells::usage(node),
            cells::limit(model, place, &distance),
            cells::room(&distance),
            cells::growth(&distance),
            cells::left(&distance),
            cells::pressure(node),
            cells::registrations(node, app.known),
            printable(&Path::new(&model.full_path(place)).to_string_lossy())
        )?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{json, text};
    use crate::commands::top::{app::tests::app, model::OomCounts, source::KnownNumbers};

    #[test]
    fn lines_have_what_the_screen_has() {
        let mut app = app();
        app.filter("/b");
        let mut out = Vec::new();
        text(&mut out, &app, "agent: fentry").expect("memory");
        let out = String::from_utf8(out).expect("text");
        let lines: Vec<_> = out.lines().collect();
        assert_eq!(lines.len(), 3, "{out}");
        assert_eq!(lines[2], "    8M       -      -        0     -     -     - /sys/fs/cgroup/b");
    }

    #[test]
    fn json_has_bytes_and_whose_limit_it_is() {
        let mut app = app();
        app.filter("child03");
        let mut out = Vec::new();
        json(&mut out, &app, "agent: fentry").expect("memory");
        let lines: Vec<Value> =
            out.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        let child = lines.last().expect("a line");
        assert_eq!(child["cgroup"], "/sys/fs/cgroup/a/child03");
        assert_eq!((child["usage"].as_u64(), child["room"].as_u64()), (Some(17 << 20), Some(62 << 20)));
        assert_eq!((&child["limit"], &child["room_of"]), (&Value::Null, &"/sys/fs/cgroup/a".into()));
    }

    #[test]
    fn unknown_numbers_are_null_and_known_ones_may_be_0() {
        let mut app = app();
        app.filter("/b");
        let place = app.arranged.rows.last().expect("a row").place;
        app.model.set_counts(place, OomCounts { oom: 0, oom_kill: 2 });
        let mut numbers = |known| {
            app.known = known;
            let mut out = Vec::new();
            json(&mut out, &app, "no agent: from files").expect("memory");
            let line = out.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).expect("a line");
            let value: Value = serde_json::from_slice(line).expect("JSON");
            ["registrations", "oom", "oom_kill"].map(|name| value[name].as_u64())
        };
        assert_eq!(numbers(KnownNumbers::ALL), [Some(0), Some(0), Some(2)]);
        // From the files of v1.
        let v1 = KnownNumbers { registrations: false, ooms: false, kills: true };
        assert_eq!(numbers(v1), [None, None, Some(2)]);
        assert_eq!(numbers(KnownNumbers { kills: false, ..v1 }), [None; 3]);
    }
}
