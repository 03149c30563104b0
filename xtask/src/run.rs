//! `cargo xtask run`: the demonstration in the VM, a shell there, or the agent here.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Args;

use crate::times::Times;
use crate::vm::{Boot, Hierarchy, booting};
use crate::workspace::root;
use crate::{build, kernels, process, schedule, setup, steps, toolchain};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Kernel to boot: 6.1, 6.12, 7.2 or the path of a vmlinuz
    #[arg(long, default_value = kernels::NEWEST, value_name = "KERNEL", value_parser = kernels::parse)]
    kernel: String,
    /// Hierarchy to mount; only 6.1 still has v1
    #[arg(long, value_enum, default_value = "v2")]
    cgroup: Hierarchy,
    /// Give a prompt in the VM, with the agent running
    #[arg(long, conflicts_with = "host")]
    shell: bool,
    /// Run the agent on this host instead, which needs root
    #[arg(long, conflicts_with_all = ["kernel", "cgroup"])]
    host: bool,
    /// With --host: arguments for the agent
    #[arg(last = true, requires = "host", value_name = "ARGS")]
    arguments: Vec<String>,
    /// Run this one step, in the process that is there for it
    #[arg(long, value_name = "STEP", hide = true)]
    step: Option<String>,
}

impl Arguments {
    /// Refuses a hierarchy that the kernel does not have, before anything is built.
    pub(crate) fn check(&self) -> Result<()> {
        let has_it = self.cgroup == Hierarchy::V2 || kernels::has_v1(&self.kernel) != Some(false);
        let with_v1 = kernels::with_v1().collect::<Vec<_>>().join(", ");
        ensure!(
            has_it,
            "--cgroup v1: kernel {} has no cgroup v1 memory; give --kernel {with_v1}, or --cgroup v2",
            self.kernel
        );
        Ok(())
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.host {
        agent(&arguments.arguments)?;
        return Ok(ExitCode::SUCCESS);
    }
    let kernel = steps::vm(vec![arguments.kernel.clone()]);
    let steps = [steps::toolchain(), kernel, steps::dependencies(), steps::programs()];
    if let Some(name) = &arguments.step {
        return steps::run_one(&steps, name);
    }
    let times = Times::load();
    let summary = schedule::run(&steps, &times)?;
    times.remember(&summary).save()?;
    ensure!(
        summary.failed() == 0,
        "a step before the demonstration failed; its log is in target/test:\n{summary}"
    );
    boot(arguments)?;
    Ok(ExitCode::SUCCESS)
}

fn boot(arguments: &Arguments) -> Result<()> {
    let guest = build::built_guest();
    let kernel = kernels::get(&arguments.kernel)?;
    let mode = if arguments.shell { "shell" } else { "demo" };
    let boot = Boot::new(&kernel, arguments.cgroup, mode);
    println!("{}", booting(&kernel, arguments.cgroup));
    if arguments.shell {
        println!("`exit` or Ctrl-D powers it off, Ctrl-A X kills it");
        return boot.interact(&guest);
    }
    let report = boot.run(&guest, &mut |line| println!("{line}"))?;
    ensure!(
        report.failed == 0,
        "the demonstration failed; its log is in target/vm; `cargo xtask run --shell` gives a prompt"
    );
    Ok(())
}

fn agent(arguments: &[String]) -> Result<()> {
    setup::ensure(&toolchain::NEEDS)?;
    process::run(
        std::process::Command::new("cargo")
            .args(["run", "--quiet", "--release", "--package", "memcg-monitor", "--", "agent"])
            .args(arguments)
            .current_dir(root()),
    )
}
