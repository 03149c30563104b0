//! The list of the crates that the program is built from (SBOM), in CycloneDX's format.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Release;
use crate::arch::Arch;
use crate::cargo_install;
use crate::process;
use crate::setup::Need;
use crate::workspace::root;

const VERSION: &str = "0.5.9";

/// The writer of such lists, `cargo cyclonedx`.
#[derive(Debug)]
pub(crate) struct Cyclonedx;

impl Need for Cyclonedx {
    fn name(&self) -> &'static str {
        "cyclonedx"
    }

    fn find(&self) -> Result<String> {
        let path = cargo_install::found("cargo-cyclonedx", &["cyclonedx", "--version"], VERSION)?;
        Ok(format!("SBOM writer {path}"))
    }

    fn fetch(&self) -> Result<()> {
        let version = format!("={VERSION}");
        cargo_install::install("cargo-cyclonedx", &["--version", &version, "--debug"], &[])
    }
}

/// Writes the list for an architecture.
pub(super) fn write(release: &Release, arch: Arch, directory: &Path) -> Result<()> {
    let name = format!("memcg-monitor-{}-{}.cdx", release.version, arch.name());
    let mut cyclonedx = release.command(&cargo_install::program("cargo-cyclonedx").display().to_string());
    cyclonedx
        .args(["cyclonedx", "-qq", "--format", "json", "--spec-version", "1.5", "--no-build-deps"])
        .args(["--target", arch.triple(), "--override-filename", &name, "--manifest-path"])
        .arg(root().join("monitor/Cargo.toml"));
    process::output(&mut cyclonedx)?;
    // It writes one beside the manifest of each member of the workspace.
    let file = format!("{name}.json");
    for entry in fs::read_dir(root()).context("cannot list the workspace")? {
        let member = entry?.path();
        let written = member.join(&file);
        if !written.is_file() {
            continue;
        }
        if member.ends_with("monitor") {
            let text = fs::read_to_string(&written).context("cannot read the SBOM")?;
            // Not where this clone lies.
            let text =
                text.replace(&format!("path+file://{}", root().display()), "path+file:///memcg-monitor");
            fs::write(directory.join(&file), text).context("cannot write the SBOM")?;
        }
        fs::remove_file(&written).with_context(|| format!("cannot remove {}", written.display()))?;
    }
    ensure!(directory.join(&file).is_file(), "cargo cyclonedx wrote no {file}");
    Ok(())
}
