//! The picture of a recording: usage over time with its axes, the limit, and what happened.

use std::collections::VecDeque;

use memcg_monitor::black_box::Recording;

use super::{
    curve,
    element::Element,
    marks::{self, MARKS},
    scale::{byte_marks, bytes, offset, time_marks},
    story::{LimitsInForce, headline, limit_at, since, zero, zero_name},
};

/// Strokes, and colours in light and dark; nothing is told by a colour alone. Colours stand where they are used,
/// and the light ones outside of any condition: programs that are no browsers know neither variables nor
/// conditions of CSS, and draw black or nothing for a colour that they cannot read.
pub const STYLE: &str = "\
.chart{font:12px system-ui,sans-serif}.title{font-size:15px;font-weight:600}.area{opacity:.14}\
.usage{fill:none;stroke-width:2;stroke-linejoin:round}.limit{fill:none;stroke-width:1.5;stroke-dasharray:8 4}\
.threshold{stroke-dasharray:2 3}.kill{stroke-width:3}\
.paper{fill:#fff}.chart text{fill:#1f2328}.chart .soft{fill:#59636e}.axis{stroke:#59636e}.grid{stroke:#d1d9e0}\
.area{fill:#0969da}.usage{stroke:#0969da}.limit,.oom,.kill{stroke:#cf222e}\
.oom,.critical,.chart .limit-name{fill:#cf222e}.threshold{stroke:#8250df}\
.signal,.chart .threshold-name{fill:#8250df}.low{fill:#bf8700}.medium{fill:#bc4c00}\
@media(prefers-color-scheme:dark){\
.paper{fill:#0d1117}.chart text{fill:#f0f6fc}.chart .soft{fill:#9198a1}.axis{stroke:#9198a1}.grid{stroke:#3d444d}\
.area{fill:#58a6ff}.usage{stroke:#58a6ff}.limit,.oom,.kill{stroke:#ff7b72}\
.oom,.critical,.chart .limit-name{fill:#ff7b72}.threshold{stroke:#d2a8ff}\
.signal,.chart .threshold-name{fill:#d2a8ff}.low{fill:#d29922}.medium{fill:#f0883e}}";

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 480.0;
/// The left edge of the plot.
pub const LEFT: f64 = 78.0;
pub const RIGHT: f64 = 800.0;
pub const TOP: f64 = 92.0;
pub const BOTTOM: f64 = 372.0;

/// A limit, or a threshold, is drawn where it is at most so many times the highest usage: a curve
/// below one that is far off would be flat.
const REACH: u64 = 4;

/// The shortest step across that is drawn: the picture's numbers have one digit behind the point.
const FINEST: f64 = 0.1;

/// A recording with the axes on which it is drawn.
#[derive(Debug)]
pub struct Chart<'a> {
    pub recording: &'a Recording,
    /// The moment of the axis's 0.
    zero: u64,
    /// The ends of the axis, in nanoseconds beside it.
    from: f64,
    to: f64,
    /// Marks of the axis of bytes, and its upper end.
    marks: Vec<u64>,
    top: u64,
}

impl<'a> Chart<'a> {
    /// The whole recording, or its last `nanoseconds` before the end.
    pub fn new(recording: &'a Recording, last: Option<f64>) -> Self {
        let zero = zero(recording);
        let moments = recording.usage.iter().map(|point| point.at).chain([zero]);
        let offsets = moments.map(|at| since(zero, at));
        let (mut from, mut to) = offsets.fold((0.0, 0.0), |(from, to), at| (at.min(from), at.max(to)));
        if let Some(last) = last {
            (from, to) = (from.max(-last), to.min(last / 10.0));
        }
        if to - from < 1000.0 {
            from = to - 1e9;
        }
        let highest = recording.usage.iter().map(|point| point.bytes).max().unwrap_or(0);
        let near = highest.saturating_mul(REACH).max(1 << 20);
        let limits = recording.limits.iter().filter_map(|limit| limit.bytes);
        let thresholds = recording.registrations.iter().filter_map(|registration| registration.bytes);
        let drawn = limits.chain(thresholds).filter(|level| *level <= near).chain([highest]);
        let (marks, top) = byte_marks(drawn.max().unwrap_or(0));
        Self { recording, zero, from, to, marks, top }
    }

    /// The place across of a moment; `None`: it is beside the picture.
    pub fn x(&self, at: u64) -> Option<f64> {
        let offset = since(self.zero, at);
        (self.from <= offset && offset <= self.to).then(|| self.across(offset))
    }

    fn across(&self, offset: f64) -> f64 {
        LEFT + (offset - self.from) / (self.to - self.from) * (RIGHT - LEFT)
    }

    /// The height of so many bytes; `None`: above the picture.
    pub fn y(&self, bytes: u64) -> Option<f64> {
        (bytes <= self.top).then(|| BOTTOM - bytes as f64 / self.top as f64 * (BOTTOM - TOP))
    }

    /// The usage at a moment, as the curve has it.
    pub fn usage_at(&self, at: u64) -> Option<u64> {
        let later = self.recording.usage.partition_point(|point| point.at <= at);
        Some(self.recording.usage.get(later.checked_sub(1)?)?.bytes)
    }

    /// The picture, without its style.
    pub fn draw(&self) -> Element {
        let headline = headline(self.recording);
        Element::new("svg")
            .with("xmlns", "http://www.w3.org/2000/svg")
            .with("viewBox", format!("0 0 {WIDTH} {HEIGHT}"))
            .with("role", "img")
            .class("chart")
            .child(&Element::new("title").text(&headline))
            .child(&rect("paper", 0.0, 0.0, WIDTH, HEIGHT))
            .child(&text("title", 16.0, 26.0, "start", &shortened(&self.recording.header.group, 110)))
            .child(&text("soft", 16.0, 46.0, "start", &shortened(&headline, 140)))
            .children(&self.axes())
            .children(&self.usage())
            .children(&self.limits())
            .children(&marks::all(self))
    }

    fn axes(&self) -> Vec<Element> {
        let mut parts = Vec::new();
        for mark in &self.marks {
            let Some(y) = self.y(*mark) else { continue };
            parts.push(line(if *mark == 0 { "axis" } else { "grid" }, (LEFT, y), (RIGHT, y)));
            parts.push(text(
                "soft",
                LEFT - 8.0,
                y + 4.0,
                "end",
                &if *mark == 0 { "0".into() } else { bytes(*mark) },
            ));
        }
        for mark in time_marks(self.from, self.to) {
            let x = self.across(mark);
            parts.push(line("axis", (x, BOTTOM), (x, BOTTOM + 5.0)));
            let name = if mark == 0.0 { zero_name(self.recording).to_owned() } else { offset(mark) };
            parts.push(text("soft", x, BOTTOM + 19.0, "middle", &name));
        }
        let what = format!("time before the {}", zero_name(self.recording));
        parts.push(text("soft", f64::midpoint(LEFT, RIGHT), BOTTOM + 37.0, "middle", &what));
        parts
    }

    fn usage(&self) -> Vec<Element> {
        let (usage, mut points) = (&self.recording.usage, Vec::new());
        let before = usage.iter().rev().find(|point| since(self.zero, point.at) < self.from);
        points.extend(before.and_then(|point| Some((LEFT, self.y(point.bytes)?))));
        let within = usage.iter().filter_map(|point| Some((self.x(point.at)?, self.y(point.bytes)?)));
        points.extend(within);
        let Some((first, _)) = points.first().copied() else { return Vec::new() };
        let path = curve::path(points, RIGHT);
        let area = format!("{path}V{BOTTOM:.1}H{first:.1}Z");
        vec![
            Element::new("path").class("area").with("d", area),
            Element::new("path").class("usage").with("d", path),
        ]
    }

    /// The limit in force, as a line with a step where it was changed, of many the latest; its name beside
    /// the end.
    fn limits(&self) -> Vec<Element> {
        let mut in_force = LimitsInForce::default();
        let mut steps: VecDeque<(f64, Option<f64>)> = VecDeque::new();
        for limit in &self.recording.limits {
            let at = since(self.zero, limit.at);
            if at > self.to {
                break;
            }
            in_force.say(limit);
            let x = self.across(at.max(self.from));
            let height = in_force.lowest().and_then(|limit| self.y(limit));
            let x = match steps.back().copied() {
                Some((_, before)) if before == height => continue,
                // Of several at one place the last one counts, as of those before the picture.
                Some((place, _)) if x - place < FINEST => {
                    steps.pop_back();
                    place
                }
                _ => x,
            };
            if steps.len() == MARKS {
                steps.pop_front();
            }
            steps.push_back((x, height));
        }
        let ends = steps.iter().skip(1).map(|(x, _)| *x).chain([RIGHT]);
        let mut path = String::new();
        for ((x, height), end) in steps.iter().zip(ends) {
            if let Some(y) = height
                && end > *x
            {
                path.push_str(&format!("M{x:.1} {y:.1}H{end:.1}"));
            }
        }
        if path.is_empty() { Vec::new() } else { vec![Element::new("path").class("limit").with("d", path)] }
    }

    /// The limit's name at the plot's right edge.
    pub fn limit_name(&self) -> Option<(f64, String)> {
        let limit = limit_at(self.recording, self.zero)?;
        Some((self.y(limit)?, format!("limit {}", bytes(limit))))
    }
}

/// A text at a place, by its `start`, `middle` or `end`.
pub fn text(class: &str, x: f64, y: f64, anchor: &str, words: &str) -> Element {
    Element::new("text").class(class).length("x", x).length("y", y).with("text-anchor", anchor).text(words)
}

pub fn line(class: &str, from: (f64, f64), to: (f64, f64)) -> Element {
    let begin = Element::new("line").class(class).length("x1", from.0).length("y1", from.1);
    begin.length("x2", to.0).length("y2", to.1)
}

pub fn rect(class: &str, x: f64, y: f64, width: f64, height: f64) -> Element {
    let place = Element::new("rect").class(class).length("x", x).length("y", y);
    place.length("width", width).length("height", height)
}

/// The text, with its middle left out where it is longer than the picture is wide.
pub fn shortened(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    let half = (most - 3) / 2;
    let (head, tail): (String, String) =
        (text.chars().take(half).collect(), text.chars().skip(count - half).collect());
    format!("{head}...{tail}")
}
