//! Programs from the Rust package registry, installed under `target/tools`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::process::{self, command};
use crate::setup;
use crate::workspace::{target, tools};

/// Installs the program of the crate `name`.
pub(crate) fn install(name: &str, options: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    // A directory of its own, so that an interrupted build goes on where it was.
    let build = target().join("tools-build").join(name);
    println!("setup: cargo install {name} (takes a few minutes)");
    process::run(
        command("cargo")
            .args(["install", "--locked", name])
            .args(options)
            .arg("--root")
            .arg(tools())
            .arg("--target-dir")
            .arg(&build)
            // It is not debugged, and built once.
            .envs([("CARGO_PROFILE_DEV_DEBUG", "0"), ("CARGO_INCREMENTAL", "0")])
            .envs(variables.iter().copied()),
    )
    .with_context(|| format!("cannot install {name}; is the package registry reachable?"))?;
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))
}

/// Returns the short path of an installed program, if it is of this version. `query` are the arguments
/// by which it prints that.
pub(crate) fn found(name: &str, query: &[&str], version: &str) -> Result<String> {
    let program = program(name);
    let path = setup::file(&program)?;
    let printed = process::output(command(&program).args(query))?;
    ensure!(printed.contains(version), "{path} is {}, not {version}", printed.trim());
    Ok(path)
}

/// Returns the path of an installed program.
pub(crate) fn program(name: &str) -> PathBuf {
    tools().join("bin").join(name)
}
