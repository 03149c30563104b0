//! The two formats that scrapers read: OpenMetrics, and Prometheus' older text.

use std::collections::HashMap;

use crate::metrics::families::{self, MetricKind};

/// Media type in the `Accept` header of a scraper that reads OpenMetrics.
pub const OPEN_METRICS: &str = "application/openmetrics-text";

/// The `Content-Type` of OpenMetrics.
pub const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The `Content-Type` of the older text.
pub const PROMETHEUS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Converts OpenMetrics into Prometheus' own older text format: a family's lines have the
/// name of its samples, and there are no units, infos and end mark.
#[must_use]
pub fn prometheus(open_metrics: &str) -> String {
    let renamed: HashMap<_, _> = families::all()
        .into_iter()
        .filter(|family| matches!(family.kind, MetricKind::Counter | MetricKind::Info))
        .map(|family| (family.name(), family.queried()))
        .collect();
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.split_inclusive('\n') {
        let Some(comment) = line.strip_prefix("# ") else {
            text.push_str(line);
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        let (Some(word @ ("HELP" | "TYPE")), Some(name), Some(rest)) =
            (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let name = renamed.get(name).map_or(name, String::as_str);
        let rest = if (word, rest) == ("TYPE", "info\n") { "gauge\n" } else { rest };
        text.extend(["# ", word, " ", name, " ", rest]);
    }
    text
}
