//! Runs the tests one by one and gives the verdict.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::time::{ClockId, clock_gettime};

use crate::harness::agent::Agent;
use crate::harness::child::{self, End};
use crate::harness::init::{self, Hierarchy};
use crate::harness::report::{self, say};
use crate::harness::standing;
use crate::harness::stopwatch;
use crate::harness::test::{Tag, Test};

/// The time that a test may take under emulation on a busy host.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs the tests, each in a process of its own.
pub(crate) fn run(tests: &[Test], hierarchy: Hierarchy) -> Result<()> {
    stopwatch::share()?;
    each(tests, |test| {
        if !test.tags.contains(&Tag::Standing) {
            standing::end()?;
        }
        Agent::forget_log();
        let end = child::run(LIMIT, test.run)?;
        // Each test finds the world empty, whatever the one before left.
        init::remove_groups(hierarchy);
        let failure = (end != End::Passed).then(|| end.to_string());
        Ok(failure.or_else(standing::ended))
    })
}

/// Runs the tests by `run`, which gives the reason of a failure; reports each of them and
/// the verdict.
pub(crate) fn each(tests: &[Test], mut run: impl FnMut(&Test) -> Result<Option<String>>) -> Result<()> {
    let (mut passed, mut failed) = (0, 0);
    say!("running {} tests", tests.len());
    report::run(since_boot()?, tests.len());
    for test in tests {
        let before = stopwatch::read();
        let start = Instant::now();
        let failure = run(test)?;
        let took = start.elapsed().as_secs_f64();
        if let Some(why) = &failure {
            failed += 1;
            say!("test {} ({}) ... FAILED: {why} ({took:.1} s)", test.name, test.what);
            for line in Agent::log().lines() {
                say!("  {line}");
            }
        } else {
            passed += 1;
            say!("test {} ... ok ({took:.1} s)", test.name);
        }
        report::test(test.name, failure.is_none(), took, stopwatch::read() - before);
    }
    report::verdict(passed, failed);
    Ok(())
}

/// Seconds since the kernel started.
fn since_boot() -> Result<f64> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?).as_secs_f64())
}
