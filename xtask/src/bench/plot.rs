//! Plots of what was measured, as SVG.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use plotters::coord::combinators::IntoLogRange;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

use super::data::{Data, Piece};

const SIZE: (u32, u32) = (900, 460);
/// Colours that people who see fewer of them can distinguish (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(100, 100, 100),
];
const MARGIN: u32 = 12;
/// Room for the names of bars, margin included.
const BELOW: i32 = 72;
const FONT: (&str, u32) = ("sans-serif", 14);

/// One plot, ready to be drawn.
#[derive(Debug)]
pub(crate) struct Plot {
    title: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Heights for each kernel, in the order of the names.
    Bars {
        y: String,
        names: Vec<String>,
        kernels: Vec<(String, Vec<f64>)>,
    },
    Lines {
        x: Axis,
        y: Axis,
        lines: Vec<(String, Vec<(f64, f64)>)>,
    },
}

/// An axis's name and whether it is logarithmic.
#[derive(Debug)]
struct Axis {
    name: String,
    log: bool,
}

impl Axis {
    fn parse(text: &str) -> Self {
        match text.strip_suffix(", log") {
            Some(name) => Self { name: name.to_owned(), log: true },
            None => Self { name: text.to_owned(), log: false },
        }
    }
}

/// Returns the plots that the data belong to.
pub(crate) fn plots(data: &[Data]) -> Vec<Plot> {
    let mut plots: BTreeMap<&str, Plot> = BTreeMap::new();
    for Data { kernel, piece } in data {
        match piece {
            Piece::Row(_) => {}
            Piece::Bars(given) => {
                let plot = plots.entry(&given.plot).or_insert_with(|| Plot {
                    title: given.plot.clone(),
                    kind: Kind::Bars { y: given.y.clone(), names: Vec::new(), kernels: Vec::new() },
                });
                if let Kind::Bars { names, kernels, .. } = &mut plot.kind {
                    *names = given.bars.iter().map(|(name, _)| name.clone()).collect();
                    kernels.push((kernel.clone(), given.bars.iter().map(|(_, height)| *height).collect()));
                }
            }
            Piece::Line(given) => {
                let plot = plots.entry(&given.plot).or_insert_with(|| Plot {
                    title: given.plot.clone(),
                    kind: Kind::Lines {
                        x: Axis::parse(&given.x),
                        y: Axis::parse(&given.y),
                        lines: Vec::new(),
                    },
                });
                if let Kind::Lines { lines, .. } = &mut plot.kind {
                    lines.push((format!("{} ({kernel})", given.line), given.points.clone()));
                }
            }
        }
    }
    plots.into_values().collect()
}

impl Plot {
    /// The title, fit for a file's name.
    pub(crate) fn file(&self) -> String {
        let words = self.title.split(|letter: char| !letter.is_ascii_alphanumeric());
        words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-").to_lowercase()
    }

    /// Draws the plot and returns the SVG.
    pub(crate) fn draw(&self) -> Result<String> {
        let mut text = String::new();
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        match &self.kind {
            Kind::Bars { y, names, kernels } => self.bars(&area, y, names, kernels)?,
            Kind::Lines { x, y, lines } => {
                let (xs, ys) = (range(lines, |point| point.0, x.log), range(lines, |point| point.1, y.log));
                match (x.log, y.log) {
                    (false, false) => self.lines(&area, x, y, lines, xs, ys)?,
                    (true, false) => self.lines(&area, x, y, lines, xs.log_scale(), ys)?,
                    (false, true) => self.lines(&area, x, y, lines, xs, ys.log_scale())?,
                    (true, true) => self.lines(&area, x, y, lines, xs.log_scale(), ys.log_scale())?,
                }
            }
        }
        area.present().map_err(failed)?;
        drop(area);
        Ok(text)
    }

    fn bars(&self, area: &Area<'_>, y: &str, names: &[String], kernels: &[(String, Vec<f64>)]) -> Result<()> {
        let heights = kernels.iter().flat_map(|(_, heights)| heights).copied();
        let (lowest, highest) =
            heights.fold((0.0f64, 0.0f64), |(low, high), height| (low.min(height), high.max(height)));
        let space = (highest - lowest).max(f64::MIN_POSITIVE) * 0.1;
        let low = if lowest < 0.0 { lowest - space } else { 0.0 };
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(MARGIN)
            .x_label_area_size(BELOW as u32 - MARGIN)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..names.len() as f64, low..highest + space)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(0)
            .y_desc(y)
            .label_style(FONT)
            .draw()
            .map_err(failed)?;
        let width = 0.8 / kernels.len() as f64;
        for (at, (kernel, heights)) in kernels.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            let bar = |(name, height): (usize, &f64)| {
                let left = name as f64 + 0.1 + at as f64 * width;
                Rectangle::new([(left, 0.0), (left + width * 0.92, *height)], colour.filled())
            };
            chart
                .draw_series(heights.iter().enumerate().map(bar))
                .map_err(failed)?
                .label(kernel)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
        }
        let letters = SIZE.0 as usize / names.len().max(1) / 8;
        for (at, name) in names.iter().enumerate() {
            let (x, _) = chart.backend_coord(&(at as f64 + 0.5, low));
            for (line, text) in (0..).zip(wrapped(name, letters)) {
                let style = FONT.into_font().color(&BLACK).pos(CENTRED);
                let y = SIZE.1 as i32 - BELOW + 8 + 15 * line;
                area.draw(&Text::new(text, (x, y), style)).map_err(failed)?;
            }
        }
        chart
            .configure_series_labels()
            .label_font(FONT)
            .background_style(WHITE.mix(0.8))
            .draw()
            .map_err(failed)
    }

    fn lines<X, Y>(
        &self,
        area: &Area<'_>,
        x: &Axis,
        y: &Axis,
        lines: &[(String, Vec<(f64, f64)>)],
        xs: X,
        ys: Y,
    ) -> Result<()>
    where
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(MARGIN)
            .x_label_area_size(46)
            .y_label_area_size(70)
            .build_cartesian_2d(xs, ys)
            .map_err(failed)?;
        chart.configure_mesh().x_desc(&x.name).y_desc(&y.name).label_style(FONT).draw().map_err(failed)?;
        for (at, (name, points)) in lines.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            let points = points
                .iter()
                .copied()
                .filter(|(at, height)| (!x.log || *at > 0.0) && (!y.log || *height > 0.0));
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))
                .map_err(failed)?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .label_font(FONT)
            .background_style(WHITE.mix(0.8))
            .position(SeriesLabelPosition::LowerRight)
            .draw()
            .map_err(failed)
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

const CENTRED: plotters::style::text_anchor::Pos = plotters::style::text_anchor::Pos {
    h_pos: plotters::style::text_anchor::HPos::Center,
    v_pos: plotters::style::text_anchor::VPos::Top,
};

/// Lines of so many letters, broken between words.
fn wrapped(name: &str, letters: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in name.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= letters => *line += &format!(" {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The range from least to greatest; a logarithm takes nothing below a positive least.
fn range(lines: &[(String, Vec<(f64, f64)>)], of: fn(&(f64, f64)) -> f64, log: bool) -> std::ops::Range<f64> {
    let values = lines.iter().flat_map(|(_, points)| points).map(of).filter(|value| !log || *value > 0.0);
    let (low, high) =
        values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    match (low < high, log) {
        (true, _) => low..high,
        (false, true) => 0.1..1.0,
        (false, false) => 0.0..1.0,
    }
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw a plot: {error}; the data are in target/bench as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_broken_between_words() {
        assert_eq!(wrapped("10,000 thresholds on a sibling", 12), ["10,000", "thresholds", "on a sibling"]);
    }

    #[test]
    fn what_a_guest_reports_becomes_pictures() {
        let lines = [
            r#"{"plot": "Added to a fault", "y": "%", "bars": [["none", 0.2], ["one", -0.1]]}"#,
            r#"{"plot": "Latency", "x": "us, log", "y": "share", "line": "ours", "points": [[0, 0], [1, 0.5], [100, 1]]}"#,
            r#"{"plot": "Nothing", "x": "a", "y": "b, log", "line": "empty", "points": []}"#,
        ];
        let data: Vec<Data> = lines.iter().map(|line| serde_json::from_str(line).expect("data")).collect();
        let plots = plots(&data);
        let names: Vec<_> = plots.iter().map(Plot::file).collect();
        assert_eq!(names, ["added-to-a-fault", "latency", "nothing"]);
        for plot in &plots {
            let text = plot.draw().expect("drawn");
            assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"), "{text}");
        }
        assert!(plots[0].draw().expect("drawn").contains("one"));
    }
}
