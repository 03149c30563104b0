//! `cargo xtask bench start`: what a start of the agent costs, until it says that it is
//! ready. The host boots us with one CPU and icount: a nanosecond is an instruction.

use std::time::Instant;

use anyhow::Result;
use nix::sys::signal::Signal;

use super::{Scope, programs};
use crate::harness::agent::Agent;
use crate::harness::init::Hierarchy;
use crate::harness::report::{rounded, row};

/// A start that finds nothing pinned, and so loads its programs.
const FRESH: &str = "loads its programs";

pub(crate) fn run(scope: Scope, _hierarchy: Hierarchy) -> Result<()> {
    // The first start of a boot also reads the binary in.
    for _ in 0..scope.of(3, 1) {
        let begun = Instant::now();
        let agent = Agent::start(&[])?;
        let (ready, ran) = (begun.elapsed(), agent.on_cpu()?);
        let millions = |nanoseconds: u128| rounded(nanoseconds as f64 / 1e6, 0);
        row(
            "a start, million instructions",
            FRESH,
            &[("until ready", millions(ready.as_nanos())), ("in the agent", millions(ran.into()))],
        );
        agent.end(Signal::SIGTERM)?;
    }
    programs::report()
}
