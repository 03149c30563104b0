//! Steps: pieces of work that run side by side, each in a process of its own.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::setup::{self, Need};
use crate::summary::Outcome;
use crate::workspace::target;
use crate::{build, cross, toolchain, vm};

/// Returns the directory of the steps' logs and outcomes.
pub(crate) fn directory() -> PathBuf {
    target().join("test")
}

/// Returns the path of one file of a step.
pub(crate) fn file_of(step: &str, extension: &str) -> PathBuf {
    let name: String =
        step.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    directory().join(format!("{name}.{extension}"))
}

/// Returns the path of the file in which the step's process leaves its outcome.
pub(crate) fn outcome_file(step: &str) -> PathBuf {
    file_of(step, "outcome.json")
}

/// The resource that a step keeps busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// A processor: builds, lints, VMs.
    Work,
    /// The network, above all.
    Download,
}

impl Lane {
    /// How many steps of this kind run side by side.
    pub(crate) const fn width(self) -> usize {
        match self {
            // Two, for two processors: a build fills the time in which a VM waits.
            Self::Work => 2,
            Self::Download => 1,
        }
    }
}

type Run = Box<dyn Fn() -> Result<Outcome>>;

/// One step, run in a process of its own.
pub(crate) struct Step {
    pub(crate) name: String,
    /// Steps that it needs; those that are not part of the run are taken as done.
    pub(crate) after: Vec<String>,
    pub(crate) lane: Lane,
    /// True if its lines are worth showing as they come.
    pub(crate) is_shown: bool,
    pub(crate) run: Run,
}

/// The step that gets the compiler and the linker for the kernel.
pub(crate) const TOOLCHAIN: &str = "get the eBPF toolchain";
/// The step that gets the emulator and the kernels that it boots.
pub(crate) const VM: &str = "get QEMU and kernels";
/// The step that builds the crates that the agent and the guest use.
const DEPENDENCIES: &str = "build dependencies";
/// The step that builds the agent and the guest.
pub(crate) const PROGRAMS: &str = "build the VM's programs";
/// The step that builds them for arm64.
const PROGRAMS_ARM64: &str = "build the VM's programs, arm64";

pub(crate) fn toolchain() -> Step {
    work(TOOLCHAIN, &[], || ready(&toolchain::NEEDS))
}

pub(crate) fn vm(kernels: Vec<String>) -> Step {
    download(VM, &[], move || get_kernels(&kernels))
}

/// A start on what takes longest, while the toolchain is downloaded.
pub(crate) fn dependencies() -> Step {
    work(DEPENDENCIES, &[], || {
        build::guest_dependencies()?;
        Ok(Outcome::ready(""))
    })
}

/// Returns the name of the step that builds the agent and the guest.
pub(crate) fn programs_of(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => PROGRAMS,
        Arch::Arm64 => PROGRAMS_ARM64,
    }
}

pub(crate) fn programs(arch: Arch) -> Step {
    // One after the other: they share cargo's directory.
    let after: &[_] = match arch {
        Arch::Amd64 => &[TOOLCHAIN, DEPENDENCIES],
        Arch::Arm64 => &[TOOLCHAIN, DEPENDENCIES, PROGRAMS],
    };
    work(programs_of(arch), after, move || {
        if arch == Arch::Arm64 {
            setup::ensure(&cross::NEEDS)?;
        }
        build::guest(arch)?;
        Ok(Outcome::ready(""))
    })
}

pub(crate) fn work(name: &str, after: &[&str], run: impl Fn() -> Result<Outcome> + 'static) -> Step {
    Step {
        name: name.to_owned(),
        after: after.iter().map(ToString::to_string).collect(),
        lane: Lane::Work,
        is_shown: false,
        run: Box::new(run),
    }
}

pub(crate) fn shown(name: &str, after: &[&str], run: impl Fn() -> Result<Outcome> + 'static) -> Step {
    Step { is_shown: true, ..work(name, after, run) }
}

pub(crate) fn download(name: &str, after: &[&str], run: impl Fn() -> Result<Outcome> + 'static) -> Step {
    Step { lane: Lane::Download, ..work(name, after, run) }
}

pub(crate) fn ready(needs: &[&dyn Need]) -> Result<Outcome> {
    setup::ensure(needs)?;
    Ok(Outcome::ready(""))
}

fn get_kernels(kernels: &[String]) -> Result<Outcome> {
    for kernel in kernels {
        vm::ensure_machine(kernel)?;
    }
    Ok(Outcome::ready(kernels.join(", ")))
}

/// Runs the step called `name`, and leaves its outcome where the scheduler reads it.
pub(crate) fn run_one(steps: &[Step], name: &str) -> Result<ExitCode> {
    let step = steps.iter().find(|step| step.name == name);
    let step =
        step.with_context(|| format!("there is no step {name}; a run prints the name of each after `==>`"))?;
    let outcome = (step.run)().unwrap_or_else(|error| {
        println!("{error:#}");
        Outcome::failure(&format!("{error:#}"))
    });
    let path = outcome_file(name);
    let text = serde_json::to_string(&outcome)?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(if outcome.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
