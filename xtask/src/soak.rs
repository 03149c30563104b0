//! `cargo xtask soak`: a random mix of everything, attacks by an ordinary user included,
//! compared with a model for any number of minutes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::summary::Outcome;
use crate::vm::{self, Boot, Hierarchy, booting};
use crate::{build, kernels};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Minutes to run, by the VM's clock
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
    /// Seed of the random mix; printed, so that a failure can be repeated [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Kernel to boot: 6.1, 6.12, 7.2, another of `cargo xtask test --list-kernels`, or the
    /// path of a vmlinuz
    #[arg(long, default_value = kernels::NEWEST, value_name = "KERNEL", value_parser = kernels::parse_complete)]
    kernel: String,
    /// Leave out the attacks of an ordinary user
    #[arg(long)]
    no_attacks: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.subsec_nanos().into());
    let seed = arguments.seed.unwrap_or(now).max(1);
    soak(&arguments.kernel, Duration::from_secs(60 * arguments.minutes), seed, !arguments.no_attacks)
}

/// The round that `cargo xtask test` runs.
pub(crate) fn brief() -> Result<Outcome> {
    const SEED: u64 = 0x6d65_6d63;
    soak(kernels::NEWEST, Duration::from_secs(120), SEED, true)?;
    Ok(Outcome::pass("two minutes"))
}

fn soak(kernel: &str, time: Duration, seed: u64, attacks: bool) -> Result<()> {
    vm::ensure(kernel)?;
    let guest = build::guest(kernels::arch(kernel)?)?;
    let kernel = kernels::get(kernel)?;
    println!("{}", booting(&kernel, Hierarchy::V2));
    let boot = Boot {
        parameters: format!("guest.args={},{seed}{}", time.as_secs(), if attacks { ",attacks" } else { "" }),
        limit: time * 2 + Duration::from_secs(300),
        ..Boot::new(&kernel, Hierarchy::V2, "soak")
    };
    let again = || {
        let (kernel, minutes) = (&kernel.label, time.as_secs() / 60);
        let attacks = if attacks { "" } else { " --no-attacks" };
        format!(
            "repeat it with `cargo xtask soak --kernel {kernel} --minutes {minutes} --seed {seed}{attacks}`"
        )
    };
    let report = boot.run(&guest, &mut |line| println!("{line}")).with_context(again)?;
    ensure!(report.failed == 0, "{}; {}", report.failures.join(" | "), again());
    Ok(())
}
