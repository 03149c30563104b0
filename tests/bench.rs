//! `cargo xtask bench`: what memcg-monitor costs, and how soon it signals. Each
//! benchmark is a module with a `run`; what it prints becomes tables and plots.

mod abuse;
mod accuracy;
mod allocator;
mod build;
mod charge;
mod groups;
mod latency;
mod programs;
mod register;
mod scale;
mod start;
mod storm;
mod subject;
mod sweep;
mod top;
mod watch;

use std::time::Duration;

use anyhow::{Context, Result};

use crate::harness::child::{self, End};
use crate::harness::init::{self, Hierarchy};
use crate::harness::report::{self, say};

/// How much is to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The rounds that the documents quote.
    Full,
    /// The shortest round that goes through everything: that it works.
    Once,
}

impl Scope {
    /// `full`, or `once` where one round is enough.
    pub(crate) fn of<T>(self, full: T, once: T) -> T {
        match self {
            Self::Full => full,
            Self::Once => once,
        }
    }
}

type Bench = (&'static str, fn(Scope, Hierarchy) -> Result<()>);

const ALL: [Bench; 11] = [
    ("build", build::run),
    ("charge", charge::run),
    ("latency", latency::run),
    ("accuracy", accuracy::run),
    ("scale", scale::run),
    ("storm", storm::run),
    ("start", start::run),
    ("sweep", sweep::run),
    ("top", top::run),
    ("watch", watch::run),
    ("abuse", abuse::run),
];

/// Longer than any of them takes under emulation.
const LIMIT: Duration = Duration::from_secs(3600);

/// `args`: names of benchmarks, and perhaps `once`.
pub(crate) fn run(args: &[String], hierarchy: Hierarchy) -> Result<()> {
    let scope = if args.iter().any(|arg| arg == "once") { Scope::Once } else { Scope::Full };
    let (mut passed, mut failed) = (0, 0);
    for name in args.iter().filter(|arg| *arg != "once") {
        let (name, bench) = ALL
            .into_iter()
            .find(|(known, _)| known == name)
            .with_context(|| format!("guest.args: there is no benchmark {name}"))?;
        let end = child::run(LIMIT, || bench(scope, hierarchy))?;
        init::remove_groups(hierarchy);
        if end == End::Passed {
            passed += 1;
            say!("bench {name} ... ok");
        } else {
            failed += 1;
            say!("bench {name} ... FAILED: {end}");
        }
    }
    report::verdict(passed, failed);
    Ok(())
}
