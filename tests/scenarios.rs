//! The tests, by theme.

pub(crate) mod abuse;
pub(crate) mod black_box;
pub(crate) mod cli;
pub(crate) mod clients;
pub(crate) mod conformance;
pub(crate) mod deploy;
pub(crate) mod event;
pub(crate) mod faults;
pub(crate) mod groups;
pub(crate) mod hierarchy;
pub(crate) mod host;
pub(crate) mod lifetime;
pub(crate) mod logs;
pub(crate) mod loss;
pub(crate) mod metrics;
pub(crate) mod pressure_socket;
pub(crate) mod restart;
pub(crate) mod sampled;
pub(crate) mod threshold;
pub(crate) mod top;
pub(crate) mod unprivileged;
pub(crate) mod view;
pub(crate) mod watch;

use crate::harness::test::{DECLARED, Test};

/// The themes in the order in which they run; what all others stand on comes first.
const ORDER: &[&str] = &[
    "host",
    "threshold",
    "lifetime",
    "restart",
    "faults",
    "abuse",
    "unprivileged",
    "view",
    "event",
    "black_box",
    "pressure_socket",
    "groups",
    "watch",
    "hierarchy",
    "loss",
    "metrics",
    "logs",
    "cli",
    "top",
    "conformance",
    "clients",
    "deploy",
];

/// Every declared test: by theme, then as the sources list them.
pub(crate) fn all() -> Vec<Test> {
    let mut tests = DECLARED.to_vec();
    tests.sort_by_key(|test| (rank(test.file), test.file, test.line));
    tests
}

/// The place of a file's theme in the order; a theme without one comes last.
fn rank(file: &str) -> usize {
    let theme = file.split('/').skip_while(|part| *part != "scenarios").nth(1).unwrap_or(file);
    let theme = theme.strip_suffix(".rs").unwrap_or(theme);
    ORDER.iter().position(|known| *known == theme).unwrap_or(ORDER.len())
}
