//! A drawing of the dashboard for the documentation: its panels, with what a real Prometheus answered
//! to their queries. It is no photograph of Grafana's page.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::dashboard::read;
use super::json::list;
use crate::svg::escaped;

/// Pixels of the page's width, and of a row of Grafana's grid of 24 columns.
const WIDTH: f64 = 960.0;
const ROW: f64 = 24.0;

const GAP: f64 = 3.0;

const COLOURS: [&str; 10] = [
    "#3274d9", "#e0752d", "#2f9e44", "#c92a2a", "#7048e8", "#0b7285", "#d6336c", "#846a00", "#495057",
    "#5c940d",
];

/// Lines of a legend; more series than that are drawn without a name.
const LEGEND: usize = 3;

/// A series of an answer: its name in the legend, and its points.
#[derive(Debug)]
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

impl Series {
    fn highest(&self) -> f64 {
        self.points.iter().fold(f64::MIN, |high, (_, value)| high.max(*value))
    }
}

/// A place on the page.
#[derive(Debug, Clone, Copy)]
struct Area {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

/// Draws the dashboard with the answers to its queries, in the order of these.
pub(crate) fn draw(answers: &Value) -> Result<String> {
    let dashboard = read()?;
    let mut answers = list(answers);
    let (mut body, mut bottom) = (String::new(), 0.0_f64);
    for panel in list(&dashboard["panels"]) {
        let side = |name: &str| panel["gridPos"][name].as_f64().unwrap_or_default();
        let area = Area {
            x: side("x") * WIDTH / 24.0 + GAP,
            y: side("y") * ROW + GAP,
            width: side("w") * WIDTH / 24.0 - 2.0 * GAP,
            height: side("h") * ROW - 2.0 * GAP,
        };
        bottom = bottom.max(area.y + area.height);
        let title = escaped(panel["title"].as_str().unwrap_or_default());
        if panel["type"] == "row" {
            writeln!(body, r#"<text class="row" x="{}" y="{}">{title}</text>"#, area.x, area.y + 14.0)?;
            continue;
        }
        let Area { x, y, width, height } = area;
        writeln!(body, r#"<rect class="panel" x="{x}" y="{y}" width="{width}" height="{height}"/>"#)?;
        writeln!(body, r#"<text class="title" x="{}" y="{}">{title}</text>"#, x + 8.0, y + 16.0)?;
        let mut series = Vec::new();
        for target in list(&panel["targets"]) {
            let answer = answers.next().context("there are fewer answers than queries")?;
            let legend = target["legendFormat"].as_str().unwrap_or_default();
            series.extend(list(answer).map(|found| one(found, legend)));
        }
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or_default();
        let inner = Area { x: x + 8.0, y: y + 30.0, width: width - 16.0, height: height - 38.0 };
        // The highest are named in the legend.
        if panel["type"] != "stat" {
            series.sort_by(|a: &Series, b| b.highest().total_cmp(&a.highest()));
        }
        let drawn =
            if panel["type"] == "stat" { numbers(inner, &series, unit) } else { lines(inner, &series, unit) };
        body += &drawn?;
    }
    ensure!(answers.next().is_none(), "there are more answers than queries");
    let height = bottom + 24.0;
    Ok(format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">
<title>The dashboard, drawn with the answers of a Prometheus in a test VM</title>
<style>.panel{{fill:#fff;stroke:#ced4da}}.title{{font-weight:bold;fill:#212529}}.row{{font-size:13px;font-weight:bold;fill:#343a40}}.small{{font-size:9px;fill:#495057}}.grid{{stroke:#e9ecef}}.line{{fill:none;stroke-width:1.5}}</style>
<rect width="{WIDTH}" height="{height}" fill="#f1f3f5"/>
{body}<text class="small" x="8" y="{}">A drawing by the project's tests of what a Prometheus in a VM answered to the dashboard's queries; Grafana's own page looks different.</text>
</svg>
"##,
        height - 8.0
    ))
}

fn one(found: &Value, legend: &str) -> Series {
    let mut name = legend.to_owned();
    for (label, value) in found["metric"].as_object().into_iter().flatten() {
        name = name.replace(&format!("{{{{{label}}}}}"), value.as_str().unwrap_or_default());
    }
    let number = |value: &Value| value.as_str().and_then(|text| text.parse::<f64>().ok());
    let points = list(&found["values"]).filter_map(|point| Some((point[0].as_f64()?, number(&point[1])?)));
    Series { name, points: points.filter(|(_, value)| value.is_finite()).collect() }
}

/// A number as people read it, in Grafana's units.
fn shown(number: f64, unit: &str) -> String {
    let of = |number: f64, unit: &str| {
        let digits = usize::from(number.fract() != 0.0 && number.abs() < 10.0);
        format!("{number:.digits$}{unit}")
    };
    match unit {
        "bytes" if number >= 1024.0 * 1024.0 => of(number / 1024.0 / 1024.0, " MiB"),
        "bytes" => of(number / 1024.0, " KiB"),
        "percentunit" => of(number * 100.0, " %"),
        "s" if number >= 1.0 => of(number, " s"),
        "s" if number >= 0.001 => of(number * 1e3, " ms"),
        "s" => of(number * 1e6, " \u{b5}s"),
        "ops" => of(number, "/s"),
        _ => of(number, ""),
    }
}

/// The last value of each series.
fn numbers(area: Area, series: &[Series], unit: &str) -> Result<String> {
    let mut text = String::new();
    let step = area.width / series.len().max(1) as f64;
    for (at, one) in series.iter().enumerate() {
        let x = area.x + step * at as f64;
        let last = one.points.last().map_or_else(|| "-".to_owned(), |(_, value)| shown(*value, unit));
        writeln!(
            text,
            r##"<text x="{x:.1}" y="{:.1}" font-size="22" fill="#2f9e44">{last}</text>"##,
            area.y + 26.0
        )?;
        writeln!(
            text,
            r#"<text class="small" x="{x:.1}" y="{:.1}">{}</text>"#,
            area.y + 42.0,
            escaped(&one.name)
        )?;
    }
    Ok(text)
}

/// A line for each series, with an axis of values and a legend.
fn lines(area: Area, series: &[Series], unit: &str) -> Result<String> {
    let mut text = String::new();
    let points = || series.iter().flat_map(|one| &one.points);
    if points().next().is_none() {
        writeln!(text, r#"<text class="small" x="{:.1}" y="{:.1}">No data</text>"#, area.x, area.y + 30.0)?;
        return Ok(text);
    }
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        points().map(of).fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)))
    };
    let (begin, end) = bounds(|point| point.0);
    let high = bounds(|point| point.1).1;
    let high = if high > 0.0 { high * 1.1 } else { 1.0 };
    let (left, height) = (area.x + 50.0, area.height - 14.0 * LEGEND.min(series.len()) as f64 - 8.0);
    let width = area.width - 50.0;
    let place = |(time, value): (f64, f64)| {
        let x = left + (time - begin) / (end - begin).max(1.0) * width;
        (x, area.y + height - value / high * height)
    };
    for part in [0.0, 0.5, 1.0] {
        let (_, y) = place((begin, high * part));
        writeln!(
            text,
            r#"<line class="grid" x1="{left:.1}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}"/>"#,
            left + width
        )?;
        let label = shown(high * part, unit);
        writeln!(
            text,
            r#"<text class="small" x="{:.1}" y="{:.1}" text-anchor="end">{label}</text>"#,
            left - 4.0,
            y + 3.0
        )?;
    }
    for (at, one) in series.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let path: Vec<_> =
            one.points.iter().map(|point| place(*point)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        writeln!(text, r#"<polyline class="line" stroke="{colour}" points="{}"/>"#, path.join(" "))?;
        if at < LEGEND {
            let y = area.y + height + 14.0 * (at + 1) as f64;
            writeln!(
                text,
                r#"<rect x="{left:.1}" y="{:.1}" width="10" height="3" fill="{colour}"/>"#,
                y - 3.0
            )?;
            let more = series.len() - LEGEND.min(series.len());
            let rest =
                if at + 1 == LEGEND && more > 0 { format!(", and {more} more") } else { String::new() };
            writeln!(
                text,
                r#"<text class="small" x="{:.1}" y="{y:.1}">{}{rest}</text>"#,
                left + 14.0,
                escaped(&one.name)
            )?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::super::dashboard::queries;
    use super::*;
    use crate::workspace::{root, target};

    #[test]
    fn numbers_are_shown_in_their_unit() {
        for (number, unit, text) in [
            (0.0, "short", "0"),
            (25_165_824.0, "bytes", "24 MiB"),
            (0.955, "percentunit", "96 %"),
            (0.000_052, "s", "52 \u{b5}s"),
            (0.0125, "s", "12 ms"),
            (3.25, "ops", "3.2/s"),
        ] {
            assert_eq!(shown(number, unit), text);
        }
    }

    #[test]
    fn each_query_has_an_answer() {
        let count = queries().expect("queries").len();
        let answer = json!([{ "metric": { "id": "/<a>" }, "values": [[1, "2"], [2, "NaN"], [3, "4"]] }]);
        let answers = vec![answer; count];
        let picture = draw(&json!(answers)).expect("a picture");
        assert!(picture.contains("/&lt;a&gt;") && picture.ends_with("</svg>\n"), "{picture}");
        assert!(draw(&json!(answers[1..])).is_err() && draw(&json!(vec![json!([]); count + 1])).is_err());
        assert!(draw(&json!(vec![json!([]); count])).expect("a picture").contains("No data"));
    }

    #[test]
    #[ignore = "draws docs/images/dashboard.svg by the answers of the last run in the VM: cargo xtask test --filter prometheus"]
    fn write_dashboard() {
        let answers = fs::read_to_string(target().join("test/dashboard.json")).expect("answers of a run");
        let picture = draw(&serde_json::from_str(&answers).expect("JSON")).expect("a picture");
        fs::write(root().join("docs/images/dashboard.svg"), picture).expect("it can be written");
    }
}
