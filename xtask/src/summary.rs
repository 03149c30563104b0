//! The table that `cargo xtask test` ends with.

use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::vm::Report;

/// What a step found. One that has no tests of its own counts as one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) note: String,
    /// A line on each test that failed.
    pub(crate) failures: Vec<String>,
}

impl Outcome {
    /// A step that is a single check, and passed.
    pub(crate) fn pass(note: impl Into<String>) -> Self {
        Self { passed: 1, note: note.into(), ..Self::default() }
    }

    /// What a guest's tests found.
    pub(crate) fn of(report: Report, note: String) -> Self {
        Self { passed: report.passed, failed: report.failed, note, failures: report.failures }
    }
}

/// All steps so far.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    outcome: Outcome,
    took: Duration,
}

impl Summary {
    /// Runs a step, saying so, and keeps its outcome. An error is a failure of
    /// the step; it does not keep the next one from running.
    pub(crate) fn step(&mut self, name: &str, step: impl FnOnce() -> Result<Outcome>) {
        println!("\n==> {name}");
        let start = Instant::now();
        let outcome = step().unwrap_or_else(|error| {
            println!("{error:#}");
            let failure = format!("{error:#}").replace('\n', " | ");
            Outcome { failed: 1, failures: vec![failure], ..Outcome::default() }
        });
        let row = Row { name: name.to_owned(), outcome, took: start.elapsed() };
        println!("<== {name}: {} ({:.1} s)", row.result(), row.took.as_secs_f64());
        self.rows.push(row);
    }

    pub(crate) fn passed(&self) -> usize {
        self.rows.iter().map(|row| row.outcome.passed).sum()
    }

    pub(crate) fn failed(&self) -> usize {
        self.rows.iter().map(|row| row.outcome.failed).sum()
    }
}

impl Row {
    fn result(&self) -> &'static str {
        match (self.outcome.passed, self.outcome.failed) {
            (0, 0) => "none",
            (_, 0) => "ok",
            _ => "FAILED",
        }
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(4);
        writeln!(f, "{:width$}  result  passed  failed  seconds  note", "step")?;
        for row in &self.rows {
            let Outcome { passed, failed, note, .. } = &row.outcome;
            let line = format!(
                "{:width$}  {:6}  {passed:6}  {failed:6}  {:7.1}  {note}",
                row.name,
                row.result(),
                row.took.as_secs_f64()
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        // Once more, where nobody has to scroll: CI may keep the end only.
        for row in &self.rows {
            for failure in &row.outcome.failures {
                writeln!(f, "\n{}: {failure}", row.name)?;
            }
        }
        // The last line is read by CI; its form is fixed.
        write!(f, "\n{} passed, {} failed", self.passed(), self.failed())
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn a_failing_step_counts_and_the_last_line_is_the_sum() {
        let mut summary = Summary::default();
        let failures = vec!["test x ... FAILED: no signal".to_owned()];
        summary.step("a", || Ok(Outcome { passed: 4, failed: 1, failures, ..Outcome::default() }));
        summary.step("b", || bail!("broken\nin two lines"));
        summary.step("c", || Ok(Outcome::pass("")));
        let text = summary.to_string();
        assert_eq!(text.lines().last(), Some("5 passed, 2 failed"));
        assert!(text.contains("\na: test x ... FAILED: no signal\n"));
        assert!(text.contains("\nb: broken | in two lines\n"));
    }
}
