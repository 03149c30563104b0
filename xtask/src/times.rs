//! The times of steps and tests: `target/test/times.json`, and the tables at the end of
//! a run.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::steps::{self, Step};
use crate::summary::{Summary, TestTimes};

/// Rows of the table of tests.
const SLOWEST: usize = 20;

/// The times of a run, and the last known times of steps that it did not have.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Times {
    /// Seconds that the run took, all in all.
    total: f64,
    /// Seconds of each step of the run.
    steps: Vec<(String, f64)>,
    /// The tests of its VMs, the slowest first.
    tests: Vec<VmTest>,
    /// Seconds from each VM's start to its first test.
    boots: BTreeMap<String, f64>,
    /// Seconds of each step when it last ran, in whichever run.
    last: BTreeMap<String, f64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct VmTest {
    step: String,
    #[serde(flatten)]
    times: TestTimes,
}

impl Times {
    fn file() -> PathBuf {
        steps::directory().join("times.json")
    }

    /// The times of the run before; none if there was none.
    pub(crate) fn load() -> Self {
        let text = fs::read_to_string(Self::file()).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// How long the step took when it last ran.
    pub(crate) fn step(&self, name: &str) -> Option<f64> {
        self.last.get(name).copied()
    }

    /// How long the run before took, if it had the same steps.
    pub(crate) fn total(&self, steps: &[Step]) -> Option<f64> {
        let is_same = self.steps.len() == steps.len()
            && steps.iter().all(|step| self.steps.iter().any(|(name, _)| *name == step.name));
        is_same.then_some(self.total)
    }

    /// The times of the run that has just ended; keeps what the ones before it took.
    pub(crate) fn of(summary: &Summary, total: f64, before: Self) -> Self {
        let last = before.remember(summary).last;
        let mut times = Self { total, last, ..Self::default() };
        for row in summary.rows() {
            times.steps.push((row.name.clone(), row.seconds));
            let Some(vm) = &row.outcome.vm else { continue };
            times.boots.insert(row.name.clone(), vm.boot);
            let tests = vm.tests.iter().cloned();
            times.tests.extend(tests.map(|times| VmTest { step: row.name.clone(), times }));
        }
        times.tests.sort_by(|a, b| b.times.seconds.total_cmp(&a.times.seconds));
        times
    }

    /// Keeps how long these steps took, and nothing else of the run.
    pub(crate) fn remember(mut self, summary: &Summary) -> Self {
        for row in summary.rows().iter().filter(|row| row.outcome.failed == 0) {
            self.last.insert(row.name.clone(), row.seconds);
        }
        self
    }

    pub(crate) fn save(&self) -> Result<()> {
        let path = Self::file();
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Display for Times {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut steps: Vec<_> = self.steps.iter().collect();
        steps.sort_by(|a, b| b.1.total_cmp(&a.1));
        writeln!(f, "slowest steps, of {}:", minutes(self.total))?;
        for (name, seconds) in steps.into_iter().take(SLOWEST / 2) {
            let boot = self.boots.get(name).map_or(String::new(), |boot| format!("  (boot {boot:.1} s)"));
            writeln!(f, "{seconds:8.1} s  {name}{boot}")?;
        }
        if self.tests.is_empty() {
            return Ok(());
        }
        let sum = |of: fn(&TestTimes) -> f64| self.tests.iter().map(|test| of(&test.times)).sum::<f64>();
        writeln!(f, "\nslowest tests in a VM, seconds:")?;
        writeln!(f, "     all  agent's start    wait    work  test")?;
        let row = |f: &mut Formatter<'_>, times: &TestTimes, name: &str| {
            let TestTimes { seconds, agent_seconds, agent_starts, wait_seconds, .. } = times;
            let starts = format!("{agent_seconds:.1} ({agent_starts})");
            let work = times.work();
            writeln!(f, "{seconds:8.1}  {starts:>13}  {wait_seconds:6.1}  {work:6.1}  {name}")
        };
        for VmTest { step, times } in self.tests.iter().take(SLOWEST) {
            row(f, times, &format!("{}, {step}", times.name))?;
        }
        let all = TestTimes {
            name: String::new(),
            seconds: sum(|test| test.seconds),
            agent_seconds: sum(|test| test.agent_seconds),
            agent_starts: self.tests.iter().map(|test| test.times.agent_starts).sum(),
            wait_seconds: sum(|test| test.wait_seconds),
        };
        row(f, &all, &format!("all {} of them", self.tests.len()))
    }
}

/// `4 min 10 s`, or `9.5 s`.
pub(crate) fn minutes(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    format!("{:.0} min {:.0} s", (seconds / 60.0).floor(), (seconds % 60.0).floor())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::{Outcome, VmTimes};

    #[test]
    fn the_slowest_come_first_and_earlier_steps_are_remembered() {
        let mut summary = Summary::default();
        let test = |name: &str, seconds| TestTimes { name: name.into(), seconds, ..TestTimes::default() };
        let vm = Some(VmTimes { boot: 2.0, tests: vec![test("fast", 1.0), test("slow", 9.0)] });
        summary.add("VM", Outcome { passed: 2, vm, ..Outcome::default() }, 12.0);
        summary.add("lints", Outcome::failure("x"), 3.0);
        let last = [("tidy".to_owned(), 5.0), ("lints".to_owned(), 7.0)].into();
        let times = Times::of(&summary, 13.0, Times { last, ..Times::default() });
        assert_eq!(times.step("tidy"), Some(5.0));
        assert_eq!(times.step("lints"), Some(7.0), "the time of a failed step is not kept");
        let text = times.to_string();
        let (vm, lints) = (text.find("12.0 s  VM  (boot 2.0 s)"), text.find("3.0 s  lints"));
        assert!(vm.is_some() && vm < lints, "{text}");
        assert!(text.find("slow, VM") < text.find("fast, VM"), "{text}");
        assert!(text.contains("10.0"), "{text}");
    }

    #[test]
    fn a_time_is_rounded_for_reading() {
        assert_eq!(minutes(9.54), "9.5 s");
        assert_eq!(minutes(250.9), "4 min 10 s");
    }
}
