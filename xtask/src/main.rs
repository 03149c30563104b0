//! `cargo xtask`: everything that is done with this workspace.

mod apt;
mod bench;
mod build;
mod busybox;
mod cargo_install;
mod checks;
mod clients;
mod conformance;
mod debian;
mod deploy;
mod ebpf;
mod fuzz;
mod image;
mod initramfs;
mod kernels;
mod lock;
mod modules;
mod needs;
mod process;
mod project;
mod prometheus;
mod qemu;
mod run;
mod schedule;
mod setup;
mod soak;
mod steps;
mod summary;
mod test;
mod tidy;
mod times;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Sets up, builds, runs, tests and measures memcg-monitor.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Find or install every prerequisite; the others do it for what they need
    Setup,
    /// Build the host's programs, and the static ones for the VM
    Build,
    /// Build the container image, deploy/container/Containerfile
    Image,
    /// Boot the test VM and show a group crossing its thresholds
    Run(run::Arguments),
    /// Run every check and test, and end with a table
    Test(test::Arguments),
    /// Compare with the real cgroup v1 in the VM, and write docs/conformance.md
    Conformance,
    /// Kill, stop and hand over the agent amid a random mix of everything, against a model
    Soak(soak::Arguments),
    /// Measure in the VM; tables, plots and JSON go to target/bench
    Bench(bench::Arguments),
    /// Fuzz what reads bytes that others chose; new inputs go to target/fuzz
    Fuzz(fuzz::Arguments),
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Setup => setup::report(&needs::all())?,
        Verb::Build => {
            setup::ensure(&toolchain::NEEDS)?;
            build::all()?;
        }
        Verb::Image => image::run()?,
        Verb::Run(arguments) => return run::run(&arguments),
        Verb::Test(arguments) => return test::run(&arguments),
        Verb::Conformance => conformance::run()?,
        Verb::Soak(arguments) => soak::run(&arguments)?,
        Verb::Bench(arguments) => bench::run(&arguments)?,
        Verb::Fuzz(arguments) => fuzz::run(&arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}
