//! Runs the tests one by one and gives the verdict.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::harness::agent::Agent;
use crate::harness::child::{self, End};
use crate::harness::init::{self, Hierarchy};
use crate::harness::report::{self, say};

/// How long a test may take under emulation on a busy host.
const LIMIT: Duration = Duration::from_secs(120);

/// A test of the running system.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Test {
    pub(crate) name: &'static str,
    /// What it shows, in one sentence.
    pub(crate) what: &'static str,
    pub(crate) on: On,
    pub(crate) run: fn() -> Result<()>,
}

/// The hierarchy that a test makes sense on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    Any,
    V1,
    V2,
}

impl On {
    fn includes(self, hierarchy: Hierarchy) -> bool {
        match self {
            Self::Any => true,
            Self::V1 => hierarchy == Hierarchy::V1,
            Self::V2 => hierarchy == Hierarchy::V2,
        }
    }
}

/// Whether a test of this name is asked for: it contains `filter`, or one of several with
/// commas between, and none of those that a `-` comes before.
fn is_wanted(name: &str, filter: &str) -> bool {
    let (not, only): (Vec<&str>, Vec<&str>) = filter.split(',').partition(|part| part.starts_with('-'));
    (only.is_empty() || only.iter().any(|part| name.contains(part)))
        && !not.iter().any(|part| name.contains(&part[1..]))
}

/// Runs the tests that are for this hierarchy and that `filter` asks for; those after the
/// one called `after`, if that is not empty.
pub(crate) fn run(tests: &[Test], hierarchy: Hierarchy, filter: &str, after: &str) -> Result<()> {
    let mut passed = 0;
    let mut failed = 0;
    let first = tests.iter().position(|test| test.name == after).map_or(0, |last| last + 1);
    for test in &tests[first..] {
        if !test.on.includes(hierarchy) || !is_wanted(test.name, filter) {
            continue;
        }
        Agent::forget_log();
        let start = Instant::now();
        let end = child::run(LIMIT, test.run)?;
        // Each test finds the world empty, whatever the one before left.
        init::remove_groups(hierarchy);
        let took = start.elapsed().as_secs_f64();
        if end == End::Passed {
            passed += 1;
            say!("test {} ... ok ({took:.1} s)", test.name);
        } else {
            failed += 1;
            say!("test {} ({}) ... FAILED: {end} ({took:.1} s)", test.name, test.what);
            for line in Agent::log().lines() {
                say!("  {line}");
            }
        }
    }
    report::verdict(passed, failed);
    Ok(())
}
