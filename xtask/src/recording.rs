//! The picture of a run of the demonstration: its lines with their times, as an SVG whose lines appear
//! when they were printed. Without animations, and for those who want less motion, all of them are there.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::svg::escaped;
use crate::workspace::short;

/// Characters in a line; what is longer goes on in the next.
const COLUMNS: usize = 104;
/// Characters before the text of a line: the time, the source and a bar.
const MARGIN: usize = 23;
/// Pixels of a character and of a line.
const CHARACTER: f64 = 7.25;
const LINE: usize = 17;

/// A line of the demonstration.
#[derive(Clone, Debug, PartialEq)]
struct Step {
    /// Seconds since the first one.
    at: f64,
    who: String,
    text: String,
}

/// The report of a run of the demonstration.
#[derive(Debug, Default)]
struct Recording {
    version: String,
    steps: Vec<Step>,
}

impl Recording {
    /// Reads the data lines of the guest.
    fn read(data: &[String]) -> Result<Self> {
        let mut recording = Self::default();
        for line in data {
            let line: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
            let text = |name: &str| line.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            if let Some(at) = line.get("step").and_then(Value::as_f64) {
                recording.steps.push(Step { at, who: text("who"), text: text("text") });
            } else if text("text") == "version" {
                recording.version = text("is");
            }
        }
        ensure!(!recording.steps.is_empty(), "the demonstration has reported none of its lines");
        Ok(recording)
    }

    fn draw(&self, place: &str) -> String {
        let mut lines = String::new();
        let mut rows = 0;
        for step in &self.steps {
            let at = step.at;
            let class = class_of(step);
            // Lines that were printed at the start need no animation.
            let delay = if at > 0.0 { format!(" style=\"--d:{at:.2}s\"") } else { String::new() };
            for (place, part) in wrapped(&step.text).into_iter().enumerate() {
                rows += 1;
                let head = if place == 0 {
                    format!("{at:6.2} s {:>12} | ", step.who)
                } else {
                    format!("{:>MARGIN$}", "| ")
                };
                let y = rows * LINE + 8;
                let _ = writeln!(
                    lines,
                    "<text class=\"{class}\" x=\"12\" y=\"{y}\"{delay}>{}</text>",
                    escaped(&format!("{head}{part}"))
                );
            }
        }
        let stamp = format!(
            "{} on {place}; recorded by `cargo xtask run --record`, times as measured there",
            self.version
        );
        let (width, height) = ((COLUMNS as f64 * CHARACTER).round() as usize + 24, rows * LINE + 50);
        let stamp_at = rows * LINE + 34;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" xml:space=\"preserve\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" aria-labelledby=\"title\">\n\
             <title id=\"title\">The demonstration: a group grows past thresholds and back, runs out of memory, becomes empty and is removed; each is signalled</title>\n\
             <style>\n{STYLE}</style>\n\
             <rect class=\"paper\" width=\"{width}\" height=\"{height}\" rx=\"6\"/>\n\
             {lines}<text class=\"stamp\" x=\"12\" y=\"{stamp_at}\">{}</text>\n</svg>\n",
            escaped(&stamp)
        )
    }
}

const STYLE: &str = "text { font: 12px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; white-space: pre; fill: #1f2328; }\n\
    .paper { fill: #f6f8fa; stroke: #d0d7de; }\n\
    .command { font-weight: bold; }\n\
    .bar { fill: #1a7f37; }\n\
    .signal { fill: #0969da; }\n\
    .oom { fill: #cf222e; }\n\
    .end, .stamp { fill: #57606a; }\n\
    @media (prefers-color-scheme: dark) {\n\
    text { fill: #e6edf3; }\n\
    .paper { fill: #0d1117; stroke: #30363d; }\n\
    .bar { fill: #3fb950; }\n\
    .signal { fill: #58a6ff; }\n\
    .oom { fill: #ff7b72; }\n\
    .end, .stamp { fill: #9da7b3; }\n\
    }\n\
    @media (prefers-reduced-motion: no-preference) {\n\
    text[style] { animation: appear 1ms var(--d) both; }\n\
    @keyframes appear { from { opacity: 0; } }\n\
    }\n";

/// Writes a text that a guest has made, and says where.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("written: {} ({} bytes)", short(path), text.len());
    Ok(())
}

/// Writes the picture of a run that has reported `data`, on `place`.
pub(crate) fn write(path: &Path, data: &[String], place: &str) -> Result<()> {
    let picture = Recording::read(data)?.draw(place);
    fs::write(path, &picture).with_context(|| format!("cannot write {}", path.display()))?;
    println!("recorded in {} ({} bytes)", path.display(), picture.len());
    Ok(())
}

/// The colour of a line.
fn class_of(step: &Step) -> &'static str {
    let text = step.text.as_str();
    match step.who.as_str() {
        "$" => "command",
        "usage" | "give back" | "" => "bar",
        who if who.starts_with("grow") => "bar",
        "oom" | "limit" if !text.ends_with("removed") => "oom",
        "agent" | "mkdir" | "rmdir" | "list" => "plain",
        _ if text.ends_with("was removed") => "end",
        _ => "signal",
    }
}

/// The text in parts that fit, broken at spaces.
fn wrapped(text: &str) -> Vec<String> {
    const ROOM: usize = COLUMNS - MARGIN;
    let mut parts = Vec::new();
    let mut rest = text;
    while rest.chars().count() > ROOM {
        let end = rest.char_indices().nth(ROOM).map_or(rest.len(), |(end, _)| end);
        let end =
            rest.get(..end).and_then(|part| part.trim_end().rfind(' ')).filter(|at| *at > 0).unwrap_or(end);
        let (part, after) = rest.split_at(end);
        parts.push(part.to_owned());
        rest = after.trim_start();
    }
    parts.push(rest.to_owned());
    parts
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{COLUMNS, MARGIN, Recording, Step, wrapped};
    use crate::workspace::root;

    /// The texts of a picture's lines.
    fn lines_of(picture: &str) -> Vec<String> {
        let texts = picture.lines().filter_map(|line| line.strip_prefix("<text ")?.strip_suffix("</text>"));
        let texts = texts.filter_map(|line| Some(line.split_once('>')?.1));
        texts.map(|text| text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")).collect()
    }

    fn step(at: f64, who: &str, text: &str) -> Step {
        Step { at, who: who.into(), text: text.into() }
    }

    #[test]
    fn a_picture_has_each_line_with_its_time_and_a_stamp() {
        let long = "word ".repeat(40);
        let steps =
            vec![step(0.0, "$", "a < b & c"), step(1.234, "8M", "crossed"), step(2.0, "agent", &long)];
        let picture = Recording { version: "memcg-monitor 1.2.3".into(), steps }.draw("Linux 7.2");
        let lines = lines_of(&picture);
        assert_eq!(lines[0], "  0.00 s            $ | a < b & c");
        assert_eq!(lines[1], "  1.23 s           8M | crossed");
        assert!(lines[3].starts_with("                     | word"), "{lines:?}");
        assert!(lines.iter().take(5).all(|line| line.chars().count() <= COLUMNS), "{lines:?}");
        assert!(lines.last().is_some_and(|stamp| stamp.starts_with("memcg-monitor 1.2.3 on Linux 7.2; ")));
        assert!(picture.contains("--d:1.23s") && picture.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn long_texts_are_broken_at_spaces_and_lose_no_word() {
        let text = "one two ".repeat(30).trim().to_owned();
        let parts = wrapped(&text);
        assert!(
            parts.len() > 1
                && parts.iter().all(|part| part.split(' ').all(|word| word == "one" || word == "two"))
        );
        assert_eq!(parts.join(" "), text);
        assert_eq!(wrapped(&"x".repeat(200)).concat().len(), 200, "a word without a place to break");
        assert_eq!(wrapped(""), [""]);
    }

    /// The strings that a source gives first to calls of this function.
    fn first_arguments<'a>(source: &'a str, function: &str) -> Vec<&'a str> {
        let call = format!("{function}(\"");
        let calls: Vec<_> = source.split(&call).skip(1).collect();
        let calls = calls.into_iter();
        calls
            .filter_map(|call| call.split_once('"'))
            .map(|(name, _)| name)
            .filter(|name| !name.is_empty())
            .collect()
    }

    #[test]
    fn the_picture_in_the_documentation_shows_todays_demonstration() {
        let read = |path: &str| {
            fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        let picture = read("docs/images/demonstration.svg");
        assert!(picture.len() < 60_000, "{} bytes", picture.len());
        assert_eq!(picture.matches("<text").count(), picture.matches("</text>").count());
        let mut lines: Vec<String> = Vec::new();
        let margin = format!("{:>MARGIN$}", "| ");
        for line in lines_of(&picture) {
            match (line.strip_prefix(&margin), lines.last_mut()) {
                // The part that did not fit into the line before.
                (Some(part), Some(whole)) => whole.push_str(&format!(" {part}")),
                _ => lines.push(line),
            }
        }
        let of =
            |who: &str| lines.iter().filter(|line| line.contains(&format!(" {who} | "))).collect::<Vec<_>>();
        let demo = read("tests/demo.rs");
        let steps = [first_arguments(&demo, "print_row"), first_arguments(&demo, "show")].concat();
        assert!(steps.len() > 8, "{steps:?}");
        let renew = "renew it: cargo xtask run --record docs/images/demonstration.svg";
        for who in steps {
            assert!(!of(who).is_empty(), "no line of {who:?}; {renew}");
        }
        // What the listeners say, by their names.
        for (who, words) in [
            ("8M", "memory.usage_in_bytes 8M: crossed 8M upwards, usage "),
            ("16M", "memory.current 16M: crossed 16M downwards, usage "),
            ("+swap 24M", "crossed 24M upwards, memory+swap "),
            ("oom", "memory.oom_control: out of memory, by the limit of "),
            ("oom", "  killed "),
            ("pressure", "memory.pressure_level low: pressure: "),
            ("empty", "cgroup.procs: the group is empty"),
            ("empty", "cgroup.procs: the group was removed"),
        ] {
            assert!(of(who).iter().any(|line| line.contains(words)), "{who}: {words}; {renew}");
        }
        let stamp = lines.last().expect("a stamp");
        assert!(stamp.starts_with("memcg-monitor ") && stamp.contains(" on Linux "), "{stamp}");
    }
}
