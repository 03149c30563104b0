//! `cargo xtask test`: every check and test, two steps at a time, then where the time
//! went and one table.

mod boots;
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
use crate::arch::Arch;
use crate::times::Times;
use crate::{schedule, steps};

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Arguments {
    /// Boot only this kernel (6.1, 6.12, 7.2, another of --list-kernels, or a path); may be
    /// repeated
    #[arg(long, value_name = "KERNEL", value_parser = crate::kernels::parse, conflicts_with = "only_host")]
    kernel: Vec<String>,
    /// Boot only kernels of this architecture; --kernel 6.12 is 6.12-arm64 there
    #[arg(long, value_enum, value_name = "ARCH", conflicts_with = "only_host")]
    arch: Option<Arch>,
    /// The VMs' processor, one of `qemu-system-ARCH -cpu help`
    #[arg(long, value_name = "CPU", conflicts_with = "only_host")]
    cpu: Option<String>,
    /// Print the kernels that --kernel takes, and do nothing else
    #[arg(long, exclusive = true)]
    list_kernels: bool,
    /// Leave out the VM
    #[arg(long)]
    only_host: bool,
    /// Run only the VM tests whose name contains this (or one of several, with commas
    /// between; `-NAME`: all but those), and nothing on the host
    #[arg(long, value_name = "NAME", conflicts_with = "only_host")]
    filter: Option<String>,
    /// Run all of those this many times in each VM, to see a failure that is rare
    #[arg(long, value_name = "TIMES", requires = "filter", value_parser = clap::value_parser!(u16).range(1..))]
    repeat: Option<u16>,
    /// Run what a change most likely breaks: format, lints, unit tests, and a chosen set of
    /// VM tests on the newest kernel
    #[arg(long, conflicts_with_all = ["kernel", "arch", "only_host", "filter"])]
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
        plan::check(&self.completed()?, &self.tests()?)
    }

    /// Replaces the name of each kernel by that in the table.
    fn completed(&self) -> Result<Self> {
        let mut completed = self.clone();
        completed.kernel = match self.arch {
            Some(arch) if self.kernel.is_empty() => boots::kernels_for(arch),
            _ => self
                .kernel
                .iter()
                .map(|name| crate::kernels::complete(self.arch, name))
                .collect::<Result<_>>()?,
        };
        Ok(completed)
    }

    /// The tests among which the filter chooses.
    fn tests(&self) -> Result<Vec<Declared>> {
        if self.filter.is_some() { scenarios::declared() } else { Ok(Vec::new()) }
    }
}

/// Returns the kernels that a run without arguments boots.
pub(crate) fn kernels() -> Vec<&'static str> {
    boots::kernels()
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.list_kernels {
        print!("{}", crate::kernels::list(&kernels()));
        return Ok(ExitCode::SUCCESS);
    }
    let tests = arguments.tests()?;
    let steps = plan::steps(&arguments.completed()?, &tests);
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
