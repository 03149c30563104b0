//! The guest's report to the host: lines on the second serial line.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

use serde_json::{Value, json};

use crate::harness::stopwatch::Reading;

/// Prints a line for people; the host shows it without the prefix.
macro_rules! say {
    ($($text:tt)*) => { println!("memcg-guest: {}", format_args!($($text)*)) };
}
pub(crate) use say;

/// The machine's second serial line.
const LINE: &str = if cfg!(target_arch = "aarch64") { "/dev/ttyAMA1" } else { "/dev/ttyS1" };

/// Makes the second serial line our stdout and stderr, and so our children's.
/// The first one is the kernel's, which would cut our lines in two.
pub(crate) fn open() {
    let Ok(line) = OpenOptions::new().read(true).write(true).open(LINE) else {
        return; // Then the console has to do, as when booted by hand.
    };
    for target in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: both are open descriptors, and no value in this process owns 1 or 2.
        unsafe { libc::dup2(line.as_raw_fd(), target) };
    }
}

/// One row of a table of measurements; columns in the order given.
pub(crate) fn row(table: &str, name: &str, columns: &[(&str, Value)]) {
    let columns: Vec<_> = columns.iter().map(|(name, value)| json!([name, value])).collect();
    data(&json!({ "table": table, "row": name, "columns": columns }));
}

/// Bars of a plot: a name and a height each. The host puts the kernels' side by side.
pub(crate) fn bars(plot: &str, y: &str, bars: &[(&str, f64)]) {
    data(&json!({ "plot": plot, "y": y, "bars": bars }));
}

/// A line of a plot. An axis whose name ends in ", log" is logarithmic.
pub(crate) fn line(plot: &str, (x, y): (&str, &str), name: &str, points: &[(f64, f64)]) {
    data(&json!({ "plot": plot, "x": x, "y": y, "line": name, "points": points }));
}

/// A number for a table, with so many decimals.
pub(crate) fn rounded(value: f64, decimals: i32) -> Value {
    let unit = 10f64.powi(decimals);
    Value::from((value * unit).round() / unit)
}

/// A line of the demonstration: seconds since its first one, its source and its text.
pub(crate) fn step(at: f64, who: &str, text: &str) {
    data(&json!({ "step": rounded(at, 3), "who": who, "text": text }));
}

/// A text that the host looks at further.
pub(crate) fn text(name: &str, text: &str) {
    data(&json!({ "text": name, "is": text }));
}

/// The start of a run: seconds since the kernel started, and the tests to come.
pub(crate) fn run(since_boot: f64, tests: usize) {
    data(&json!({ "boot": rounded(since_boot, 3), "tests": tests }));
}

/// One test's outcome and times.
pub(crate) fn test(name: &str, ok: bool, seconds: f64, spent: Reading) {
    data(&json!({
        "test": name,
        "ok": ok,
        "seconds": rounded(seconds, 3),
        "agent_seconds": rounded(spent.agent.as_secs_f64(), 3),
        "agent_starts": spent.agent_starts,
        "wait_seconds": rounded(spent.wait.as_secs_f64(), 3),
    }));
}

fn data(value: &Value) {
    println!("memcg-guest-json: {value}");
}

/// The one line that the host judges the whole boot by.
pub(crate) fn verdict(passed: usize, failed: usize) {
    say!("verdict pass={passed} fail={failed}");
}

/// Waits until the serial line has sent all that was said: the power may go off at once, as
/// systemd's does after its last service.
pub(crate) fn drain() {
    // SAFETY: tcdrain waits for what was written to the descriptor, and changes nothing.
    unsafe { libc::tcdrain(libc::STDOUT_FILENO) };
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    format!("{error:#}").trim_end().replace('\n', " | ")
}
