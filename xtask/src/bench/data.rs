//! The results of a measurement, which the guest prints as lines of JSON.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One piece, and the kernel that it was measured on.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Data {
    #[serde(default)]
    pub(crate) kernel: String,
    #[serde(flatten)]
    pub(crate) piece: Piece,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(crate) enum Piece {
    Row(Row),
    Bars(Bars),
    Line(Line),
}

/// One row of a table.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Row {
    pub(crate) table: String,
    pub(crate) row: String,
    /// The cells, in the order in which the guest gives them.
    pub(crate) columns: Vec<(String, Value)>,
}

/// The bars of one kernel in a plot.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Bars {
    pub(crate) plot: String,
    pub(crate) y: String,
    pub(crate) bars: Vec<(String, f64)>,
}

/// One line of a plot.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Line {
    pub(crate) plot: String,
    pub(crate) x: String,
    pub(crate) y: String,
    pub(crate) line: String,
    pub(crate) points: Vec<(f64, f64)>,
}
