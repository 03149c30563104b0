//! `cargo xtask test`: every check and test, two steps at a time, then where the time
//! went and one table.

#[cfg(test)]
mod declared;
mod filter;
mod plan;
mod scenarios;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Args;

use self::scenarios::Declared;
use crate::times::Times;
use crate::{kernels, schedule, steps};

#[derive(Debug, Default, Args)]
pub(crate) struct Arguments {
    /// Boot only this kernel (6.1, 6.12, 7.2 or a path); may be repeated
    #[arg(long, value_name = "KERNEL", value_parser = kernels::parse, conflicts_with = "only_host")]
    kernel: Vec<String>,
    /// Leave out the VM
    #[arg(long)]
    only_host: bool,
    /// Run only the VM tests whose name contains this (or one of several, with commas
    /// between; `-NAME`: all but those), and nothing on the host
    #[arg(long, value_name = "NAME", conflicts_with = "only_host")]
    filter: Option<String>,
    /// Run what a change most likely breaks: format, lints, unit tests, and a chosen set of
    /// VM tests on the newest kernel
    #[arg(long, conflicts_with_all = ["kernel", "only_host", "filter"])]
    quick: bool,
    /// Run this one step, in the process that is there for it
    #[arg(long, value_name = "STEP", hide = true)]
    step: Option<String>,
}

impl Arguments {
    /// Refuses names of which there is no test, before anything is built.
    pub(crate) fn check(&self) -> Result<()> {
        // A step's process has the arguments of the run that was checked.
        if self.step.is_some() {
            return Ok(());
        }
        plan::check(self, &self.tests()?)
    }

    /// The tests among which the filter chooses.
    fn tests(&self) -> Result<Vec<Declared>> {
        if self.filter.is_some() { scenarios::declared() } else { Ok(Vec::new()) }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let tests = arguments.tests()?;
    let steps = plan::steps(arguments, &tests);
    if let Some(name) = &arguments.step {
        return steps::run_one(&steps, name);
    }
    let start = Instant::now();
    let before = Times::load();
    let summary = schedule::run(&steps, &before)?;
    let times = Times::of(&summary, start.elapsed().as_secs_f64(), before);
    times.save()?;
    println!("\n{times}\n{summary}");
    Ok(if summary.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
