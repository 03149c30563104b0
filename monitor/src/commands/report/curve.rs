//! The curve of usage as a path: at most four points for each pixel across, so that a picture is
//! bounded however many points the file has, and no peak is left out.

use std::fmt::Write as _;

/// A point of the picture.
pub type Pixel = (f64, f64);

/// The path of a line that rests at each point's height until the next point: what is between two
/// points is not known but to be within a step of the first.
pub fn path(points: impl IntoIterator<Item = Pixel>, end: f64) -> String {
    let mut path = String::new();
    let mut columns = Columns { path: &mut path, column: None };
    let mut last_y = None;
    for (x, y) in points {
        columns.add(x, y, last_y);
        last_y = Some(y);
    }
    columns.flush();
    if last_y.is_some() {
        // Writing to a string does not fail.
        let _ = write!(path, "H{end:.1}");
    }
    path
}

/// The points within one pixel across.
struct Column {
    x: f64,
    first: f64,
    highest: f64,
    lowest: f64,
    last: f64,
}

struct Columns<'a> {
    path: &'a mut String,
    column: Option<Column>,
}

impl Columns<'_> {
    fn add(&mut self, x: f64, y: f64, before: Option<f64>) {
        if let Some(column) = &mut self.column
            && x - column.x < 1.0
        {
            (column.highest, column.lowest) = (column.highest.max(y), column.lowest.min(y));
            column.last = y;
            return;
        }
        self.flush();
        let first = before.unwrap_or(y);
        self.column = Some(Column { x, first, highest: first.max(y), lowest: first.min(y), last: y });
    }

    fn flush(&mut self) {
        let Some(Column { x, first, highest, lowest, last }) = self.column.take() else { return };
        let begin = if self.path.is_empty() { format!("M{x:.1} {first:.1}") } else { format!("H{x:.1}") };
        self.path.push_str(&begin);
        let mut at = first;
        // What is between the two ends is on the line already.
        let beyond = [highest, lowest].into_iter().filter(|y| *y > first.max(last) || *y < first.min(last));
        for y in beyond.chain([last]) {
            if (y - at).abs() >= 0.05 {
                // Writing to a string does not fail.
                let _ = write!(self.path, "V{y:.1}");
                at = y;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::path;

    /// All numbers of a path.
    fn numbers(path: &str) -> Vec<f64> {
        path.split(['M', 'H', 'V', ' ']).filter_map(|text| text.parse().ok()).collect()
    }

    #[test]
    fn a_line_rests_until_the_next_point() {
        assert_eq!(path([], 9.0), "");
        assert_eq!(path([(0.0, 5.0), (4.0, 2.0)], 9.0), "M0.0 5.0H4.0V2.0H9.0");
        assert_eq!(path([(0.0, 5.0), (0.5, 1.0), (0.6, 3.0)], 9.0), "M0.0 5.0V1.0V3.0H9.0");
    }

    proptest! {
        #[test]
        fn no_peak_is_left_out_and_the_path_is_bounded(
            points in proptest::collection::vec((0f64..100.0, 0u8..100), 1..2000)
        ) {
            let mut points: Vec<_> = points.into_iter().map(|(x, y)| (x, f64::from(y))).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let path = path(points.iter().copied(), 100.0);
            prop_assert!(path.len() < 101 * 30, "{}", path.len());
            let drawn = numbers(&path);
            for y in [points.iter().map(|(_, y)| *y).fold(0.0, f64::max), points[points.len() - 1].1] {
                prop_assert!(drawn.contains(&y), "{y} in {path}");
            }
        }
    }
}
