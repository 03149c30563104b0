//! Runs the guest's program on this machine instead of in a VM, in namespaces of its own.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::arch::Arch;
use crate::build;
use crate::process::command;
use crate::summary::Outcome;
use crate::vm::{Output, Report};

/// The words of the tests that need no VM: those that hold for sampled files.
const TESTS: [&str; 3] = ["guest.mode=test", "guest.backend=sampled", "guest.select=sampled"];

/// Runs the tests of the sampled backend.
pub(crate) fn tests() -> Result<Outcome> {
    if let Some(reason) = missing() {
        return Ok(Outcome::ready(format!("not run: {reason}; the VMs run them, too")));
    }
    let report = run(&TESTS, &mut |line| println!("{line}"))?;
    ensure!(report.passed + report.failed > 0, "the guest ran no test; its messages are above");
    Ok(Outcome::of(report, "this machine".to_owned()))
}

/// Runs the demonstration, with the most precise backend that this machine allows.
/// Returns its data lines.
pub(crate) fn demonstration() -> Result<Vec<String>> {
    if let Some(reason) = missing() {
        anyhow::bail!(
            "the demonstration on this machine needs more: {reason}; without --host it runs in a VM"
        );
    }
    let report = run(&["guest.mode=demo"], &mut |line| println!("{line}"))?;
    ensure!(report.failed == 0, "the demonstration failed, as above");
    Ok(report.data)
}

/// The reason why nothing can be run on this machine.
pub(crate) fn missing() -> Option<&'static str> {
    // SAFETY: geteuid takes nothing and never fails.
    if unsafe { libc::geteuid() } != 0 {
        return Some("root, for namespaces and a group of its own");
    }
    let has_controller = ["/sys/fs/cgroup/memory/memory.usage_in_bytes", "/sys/fs/cgroup/cgroup.controllers"]
        .iter()
        .any(|path| Path::new(path).exists());
    (!has_controller).then_some("a mounted cgroup hierarchy with the memory controller")
}

fn run(words: &[&str], say: &mut dyn FnMut(&str)) -> Result<Report> {
    let guest = build::built_guest(Arch::Amd64).init;
    let mut child = command(&guest)
        .arg("native")
        .args(words)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", guest.display()))?;
    let stdout = child.stdout.take().context("the guest's stdout is a pipe")?;
    let mut output = Output::default();
    for line in BufReader::new(stdout).lines() {
        output.take(&line.context("cannot read what the guest says")?, say);
    }
    let status = child.wait().context("cannot wait for the guest")?;
    ensure!(status.success(), "the guest ended with {status}; its messages are above");
    output.into_report()
}
