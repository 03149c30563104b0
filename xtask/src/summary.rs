//! The outcomes of the steps of `cargo xtask test`, and the tables that it ends with.

use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};

use crate::vm::Report;

/// The outcome of one step.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) note: String,
    /// Texts on what failed: one on each test, with its last lines, and one on the step's log.
    pub(crate) failures: Vec<String>,
    /// The times in its VM, if it boots one.
    pub(crate) vm: Option<VmTimes>,
}

/// The time that each part of one VM took.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct VmTimes {
    /// Seconds from the kernel's start to the first test.
    pub(crate) boot: f64,
    pub(crate) tests: Vec<TestTimes>,
}

/// The time that each part of one test took, in seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TestTimes {
    #[serde(rename = "test")]
    pub(crate) name: String,
    pub(crate) seconds: f64,
    /// Until the agents that it started were ready.
    #[serde(default)]
    pub(crate) agent_seconds: f64,
    #[serde(default)]
    pub(crate) agent_starts: u64,
    /// Waiting for a state, with the agent running.
    #[serde(default)]
    pub(crate) wait_seconds: f64,
}

impl TestTimes {
    /// Returns the time that is left: the test's own work.
    pub(crate) fn work(&self) -> f64 {
        (self.seconds - self.agent_seconds - self.wait_seconds).max(0.0)
    }
}

impl Outcome {
    /// A step that prepares others, and is no check itself.
    pub(crate) fn ready(note: impl Into<String>) -> Self {
        Self { note: note.into(), ..Self::default() }
    }

    /// A step that is a single check, and passed.
    pub(crate) fn pass(note: impl Into<String>) -> Self {
        Self { passed: 1, note: note.into(), ..Self::default() }
    }

    /// A step that failed as a whole.
    pub(crate) fn failure(why: &str) -> Self {
        Self { failed: 1, failures: vec![why.replace('\n', "\n    ")], ..Self::default() }
    }

    /// The outcome of a guest's tests.
    pub(crate) fn of(report: Report, note: String) -> Self {
        let vm = VmTimes::read(&report.data);
        Self { passed: report.passed, failed: report.failed, note, failures: report.failures, vm: Some(vm) }
    }
}

impl VmTimes {
    /// Reads the guest's data lines; those about other things are passed over.
    fn read(data: &[String]) -> Self {
        #[derive(Deserialize)]
        struct Booted {
            boot: f64,
        }
        let boot = data.iter().find_map(|line| serde_json::from_str::<Booted>(line).ok());
        let tests = data.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Self { boot: boot.map_or(0.0, |line| line.boot), tests }
    }
}

/// All steps that have ended.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    rows: Vec<Row>,
}

#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    pub(crate) seconds: f64,
}

impl Summary {
    pub(crate) fn add(&mut self, name: &str, outcome: Outcome, seconds: f64) {
        self.rows.push(Row { name: name.to_owned(), outcome, seconds });
    }

    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    pub(crate) fn passed(&self) -> usize {
        self.rows.iter().map(|row| row.outcome.passed).sum()
    }

    pub(crate) fn failed(&self) -> usize {
        self.rows.iter().map(|row| row.outcome.failed).sum()
    }
}

impl Row {
    pub(crate) const fn result(&self) -> &'static str {
        if self.outcome.failed == 0 { "ok" } else { "FAILED" }
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
                row.seconds
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        // Once more at the end, which may be all that CI keeps.
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
    use super::*;

    #[test]
    fn a_failing_step_counts_and_the_last_line_is_the_sum() {
        let mut summary = Summary::default();
        let failures = vec!["test x ... FAILED: no signal".to_owned()];
        summary.add("a", Outcome { passed: 4, failed: 1, failures, ..Outcome::default() }, 1.0);
        summary.add("b", Outcome::failure("broken\nin two lines"), 1.0);
        summary.add("c", Outcome::pass(""), 1.0);
        summary.add("d", Outcome::ready("built"), 1.0);
        let text = summary.to_string();
        assert_eq!(text.lines().last(), Some("5 passed, 2 failed"));
        assert!(text.contains("\na: test x ... FAILED: no signal\n"));
        assert!(text.contains("\nb: broken\n    in two lines\n"));
    }

    #[test]
    fn the_times_of_a_guest_are_read_among_its_other_data() {
        let data = [
            r#"{"boot":2.5,"tests":2}"#,
            r#"{"table":"oom","row":"a"}"#,
            r#"{"test":"x","ok":true,"seconds":3.0,"agent_seconds":1.0,"agent_starts":2,"wait_seconds":0.5}"#,
        ];
        let times = VmTimes::read(&data.map(str::to_owned));
        assert_eq!((times.boot, times.tests.len()), (2.5, 1));
        let test = &times.tests[0];
        assert_eq!((test.name.as_str(), test.agent_starts, test.work()), ("x", 2, 1.5));
    }
}
