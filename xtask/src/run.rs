//! `cargo xtask run`: the demonstration in the VM or here, a shell there, or the agent here.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::arch::Arch;
use crate::times::Times;
use crate::vm::{Boot, Hierarchy, booting, text_in};
use crate::workspace::{root, target};
use crate::{build, kernels, native, process, recording, schedule, setup, steps, toolchain};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Kernel to boot: 6.1, 6.12, 7.2 (the default), another of `cargo xtask test
    /// --list-kernels`, or the path of a vmlinuz
    #[arg(long, value_name = "KERNEL", value_parser = kernels::parse)]
    kernel: Option<String>,
    /// Architecture of the kernel: 6.12 is 6.12-arm64 there
    #[arg(long, value_enum, value_name = "ARCH")]
    arch: Option<Arch>,
    /// The VM's processor, one of `qemu-system-ARCH -cpu help`
    #[arg(long, value_name = "CPU")]
    cpu: Option<String>,
    /// Hierarchy to mount; only 6.1 still has v1
    #[arg(long, value_enum, default_value = "v2")]
    cgroup: Hierarchy,
    /// Give a prompt in the VM, with the agent running
    #[arg(long, conflicts_with = "host")]
    shell: bool,
    /// Run the demonstration on this host instead, with the best backend that it allows, in
    /// namespaces and a group of its own; needs root
    #[arg(long, conflicts_with_all = ["kernel", "arch", "cpu", "cgroup"])]
    host: bool,
    /// Write a picture of the demonstration into this file: an SVG of its lines, with their times
    #[arg(long, value_name = "FILE", conflicts_with_all = ["shell", "arguments"])]
    record: Option<PathBuf>,
    /// With --host: run the agent on this host with these arguments, and no demonstration
    #[arg(last = true, requires = "host", value_name = "ARGS")]
    arguments: Vec<String>,
    /// Run this one step, in the process that is there for it
    #[arg(long, value_name = "STEP", hide = true)]
    step: Option<String>,
}

impl Arguments {
    /// Refuses a hierarchy that the kernel does not have, before anything is built.
    pub(crate) fn check(&self) -> Result<()> {
        let kernel = self.kernel()?;
        let has_it = self.cgroup == Hierarchy::V2 || kernels::has_v1(&kernel) != Some(false);
        ensure!(
            has_it,
            "--cgroup v1: kernel {kernel} has no cgroup v1 memory; give --kernel {}, or --cgroup v2",
            kernels::OLDEST
        );
        Ok(())
    }

    /// The kernel's name in the table, or its path.
    fn kernel(&self) -> Result<String> {
        let newest = || kernels::newest(self.arch.unwrap_or(Arch::Amd64)).to_owned();
        self.kernel.as_deref().map_or_else(|| Ok(newest()), |name| kernels::complete(self.arch, name))
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.host && !arguments.arguments.is_empty() {
        agent(&arguments.arguments)?;
        return Ok(ExitCode::SUCCESS);
    }
    let kernel = arguments.kernel()?;
    let arch = if arguments.host { Arch::Amd64 } else { kernels::arch(&kernel)? };
    let mut steps = vec![steps::toolchain()];
    if !arguments.host {
        steps.push(steps::vm(vec![kernel]));
    }
    if arch == Arch::Amd64 {
        steps.push(steps::dependencies());
    }
    steps.push(steps::programs(arch));
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
    if arguments.host {
        let data = native::demonstration()?;
        record(arguments, &data, "this machine")?;
    } else {
        boot(arguments)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn boot(arguments: &Arguments) -> Result<()> {
    let kernel = kernels::get(&arguments.kernel()?)?;
    let guest = build::built_guest(kernel.arch);
    let mode = if arguments.shell { "shell" } else { "demo" };
    let boot = Boot { cpu: arguments.cpu.clone(), ..Boot::new(&kernel, arguments.cgroup, mode) };
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
    let place = format!("Linux {}, cgroup {}, in QEMU", kernel.release, arguments.cgroup.name());
    record(arguments, &report.data, &place)
}

/// Writes the black box's report, and, where one is wanted, the picture, with the report beside it.
fn record(arguments: &Arguments, data: &[String], place: &str) -> Result<()> {
    let directory = target().join("run");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for name in ["report.svg", "report.html"] {
        let text = data
            .iter()
            .find_map(|line| text_in(line, name))
            .with_context(|| format!("the guest made no {name}"))?;
        recording::write_text(&directory.join(name), &text)?;
        if let Some(path) = arguments.record.as_deref().filter(|_| name == "report.svg") {
            recording::write_text(&path.with_file_name(name), &text)?;
        }
    }
    arguments.record.as_deref().map_or(Ok(()), |path| recording::write(path, data, place))
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
