//! Debian 12 and 13 with nothing but systemd: the package installs there, and one line shows a
//! crossing.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::harness::client::attached;
use crate::harness::test::vm_test;
use crate::scenarios::deploy::debian::output;
use crate::scenarios::deploy::debian::package::crossing_of_a_unit;
use crate::scenarios::deploy::debian::service::stopped;

vm_test!(
    debian_bare_12,
    "on a bare Debian 12, with its kernel, apt installs the package and listen --unit shows a crossing",
    Debian12,
    []
);
fn debian_bare_12() -> Result<()> {
    installs_on("12")
}

vm_test!(
    debian_bare_13,
    "on a bare Debian 13, with its kernel, apt installs the package and listen --unit shows a crossing",
    Debian13,
    []
);
fn debian_bare_13() -> Result<()> {
    installs_on("13")
}

fn installs_on(version: &str) -> Result<()> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    ensure!(release.contains(&format!("VERSION_ID=\"{version}\"")), "it is {release}");
    ensure!(!Path::new("/usr/local/bin/memcg-monitor").exists(), "the program is there without the package");
    let before = attached()?;
    let said = shell("apt install --yes ./memcg-monitor_*_amd64.deb")?;
    // It has a line of its own only where something is wrong.
    ensure!(!said.contains("memcg-monitor: "), "apt says: {said}");
    crossing_of_a_unit()?;
    shell("apt purge --yes memcg-monitor")?;
    stopped(&before)
}

/// Runs a line as an administrator would type it, where the package lies. Returns all it prints.
fn shell(line: &str) -> Result<String> {
    output("sh", &["-c", &format!("cd /root && DEBIAN_FRONTEND=noninteractive {line} 2>&1")])
        .with_context(|| line.to_owned())
}
