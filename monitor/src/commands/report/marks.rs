//! Marks on the picture for what happened: thresholds and their signals, windows of reclaim, OOMs,
//! and who was killed.

use std::collections::BTreeMap;

use memcg_monitor::black_box::PressureEntry;

use super::{
    chart::{BOTTOM, Chart, LEFT, RIGHT, TOP, line, rect, shortened, text},
    element::Element,
    scale::bytes,
};

/// Marks of a kind that a picture has at most; the tables have more.
pub const MARKS: usize = 400;
/// Names that fit beside the picture.
const NAMES: usize = 16;
/// Victims that are named in the picture.
const VICTIMS: usize = 2;

/// The band of pressure, and the legend below it.
const BAND: f64 = BOTTOM + 50.0;
const BAND_HEIGHT: f64 = 18.0;
const LEGEND: f64 = BAND + 44.0;

pub fn all(chart: &Chart<'_>) -> Vec<Element> {
    let mut parts = levels(chart);
    parts.extend(signals(chart));
    parts.extend(pressure(chart));
    parts.extend(ooms(chart));
    parts.extend(kills(chart));
    parts.extend(legend());
    parts
}

/// Lines of the thresholds, and the names of these and of the limit at the right edge, moved apart
/// where they would lie upon each other.
fn levels(chart: &Chart<'_>) -> Vec<Element> {
    let mut by_level = BTreeMap::new();
    for registration in &chart.recording.registrations {
        if let Some(level) = registration.bytes {
            *by_level.entry(level).or_insert(0usize) += 1;
        }
    }
    let (mut parts, mut names) = (Vec::new(), Vec::new());
    let drawn = by_level.iter().filter_map(|(level, count)| Some((chart.y(*level)?, *level, *count)));
    for (y, level, count) in drawn.take(MARKS) {
        parts.push(line("threshold", (LEFT, y), (RIGHT, y)));
        let times = if count > 1 { format!(" ({count})") } else { String::new() };
        names.push((y, "threshold-name", format!("threshold {}{times}", bytes(level))));
    }
    names.extend(chart.limit_name().map(|(y, name)| (y, "limit-name", name)));
    names.sort_by(|(one, ..), (other, ..)| one.total_cmp(other));
    let mut free = TOP - 20.0;
    for (y, class, name) in names.into_iter().take(NAMES) {
        free = y.max(free + 14.0);
        parts.push(text(class, RIGHT + 8.0, free + 4.0, "start", &name));
    }
    parts
}

/// A triangle on the curve for each signal.
fn signals(chart: &Chart<'_>) -> Vec<Element> {
    let place =
        |at, usage: Option<u64>| Some((chart.x(at)?, chart.y(usage.or_else(|| chart.usage_at(at))?)?));
    let latest = chart.recording.signals.iter().rev();
    let drawn = latest.filter_map(|signal| Some((place(signal.at, signal.bytes)?, signal))).take(MARKS);
    drawn
        .map(|((x, y), signal)| {
            let corners = format!("M{x:.1} {:.1}L{:.1} {:.1}H{:.1}Z", y - 1.0, x - 5.0, y + 9.0, x + 5.0);
            let path = Element::new("path").class("signal").with("d", corners);
            path.child(&Element::new("title").text(&signal.cause))
        })
        .collect()
}

/// How high a window's mark is in the band: a third, two or all of it.
const fn thirds(level: &str) -> Option<(u8, &'static str)> {
    match level.as_bytes() {
        b"low" => Some((1, "low")),
        b"medium" => Some((2, "medium")),
        b"critical" => Some((3, "critical")),
        _ => None,
    }
}

/// The band of pressure: in each column the highest level of the windows there.
fn pressure(chart: &Chart<'_>) -> Vec<Element> {
    const COLUMN: f64 = 3.0;
    let mut columns: BTreeMap<u64, (u8, &'static str)> = BTreeMap::new();
    let known = |window: &PressureEntry| Some((chart.x(window.at)?, thirds(&window.level)?));
    for (x, level) in chart.recording.pressure.iter().filter_map(known) {
        let column = columns.entry((x / COLUMN) as u64).or_insert(level);
        *column = level.max(*column);
    }
    let mut parts = vec![
        text("soft", LEFT - 8.0, BAND + 13.0, "end", "pressure"),
        line("grid", (LEFT, BAND + BAND_HEIGHT), (RIGHT, BAND + BAND_HEIGHT)),
    ];
    parts.extend(columns.into_iter().map(|(column, (thirds, class))| {
        let height = BAND_HEIGHT * f64::from(thirds) / 3.0;
        rect(class, column as f64 * COLUMN, BAND + BAND_HEIGHT - height, COLUMN, height)
    }));
    parts
}

/// A line from top to bottom for each OOM, with a lozenge at its top.
fn ooms(chart: &Chart<'_>) -> Vec<Element> {
    let latest = chart.recording.ooms.iter().rev();
    let drawn = latest.filter_map(|oom| Some((chart.x(oom.at)?, oom))).take(MARKS);
    drawn
        .map(|(x, oom)| {
            let shape = format!("M{x:.1} {TOP}V{BOTTOM}M{x:.1} {:.1}l5 6l-5 6l-5 -6Z", TOP - 12.0);
            let by = oom.limit_of.as_deref().unwrap_or("a limit that is not known");
            let path = Element::new("path").class("oom").with("d", shape);
            path.child(&Element::new("title").text(&format!("out of memory, by {by}")))
        })
        .collect()
}

/// A cross for each kill, with the names of the latest victims.
fn kills(chart: &Chart<'_>) -> Vec<Element> {
    let mut parts = Vec::new();
    let latest = chart.recording.kills.iter().rev();
    for (at, (x, kill)) in latest.filter_map(|kill| Some((chart.x(kill.at)?, kill))).take(MARKS).enumerate() {
        let y = TOP - 22.0;
        let cross = format!("M{:.1} {:.1}l10 10m0 -10l-10 10", x - 5.0, y - 5.0);
        let title = Element::new("title").text(&format!("killed {}", kill.name()));
        parts.push(Element::new("path").class("kill").with("d", cross).child(&title));
        if at < VICTIMS {
            let words = shortened(&format!("killed {}", kill.name()), 48);
            let (place, anchor) = if x > 300.0 { (x - 12.0, "end") } else { (x + 12.0, "start") };
            parts.push(text("victim", place, y + 4.0 - 13.0 * at as f64, anchor, &words));
        }
    }
    parts
}

fn legend() -> Vec<Element> {
    let y = LEGEND;
    let sample = |x: f64, class: &str| line(class, (x, y - 4.0), (x + 24.0, y - 4.0));
    let name = |x: f64, words: &str| text("soft", x, y, "start", words);
    let shape = |class: &str, d: String| Element::new("path").class(class).with("d", d);
    let mut parts = vec![
        sample(LEFT, "usage"),
        name(LEFT + 30.0, "usage"),
        sample(LEFT + 90.0, "limit"),
        name(LEFT + 120.0, "limit"),
        sample(LEFT + 170.0, "threshold"),
        name(LEFT + 200.0, "threshold"),
        shape("signal", format!("M{} {}l-5 10h10Z", LEFT + 285.0, y - 10.0)),
        name(LEFT + 296.0, "signal"),
        shape("oom", format!("M{} {}l5 6l-5 6l-5 -6Z", LEFT + 357.0, y - 10.0)),
        name(LEFT + 368.0, "OOM"),
        shape("kill", format!("M{} {}l10 10m0 -10l-10 10", LEFT + 418.0, y - 9.0)),
        name(LEFT + 434.0, "kill"),
        name(LEFT + 480.0, "pressure:"),
    ];
    for (at, level) in ["low", "medium", "critical"].into_iter().enumerate() {
        let (x, height) = (LEFT + 540.0 + 64.0 * at as f64, 4.0 * (at + 1) as f64);
        parts.extend([rect(level, x, y - height, 6.0, height), name(x + 10.0, level)]);
    }
    parts
}
