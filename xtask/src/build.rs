//! `cargo xtask build`: the host's programs, and the static ones for the VM.

use std::path::PathBuf;

use anyhow::{Result, anyhow};

use crate::clients::Packed;
use crate::ebpf;
use crate::process::{self, command};
use crate::workspace::{root, target};

/// The programs that run inside the VM.
#[derive(Debug)]
pub(crate) struct Guest {
    /// The first process: mounts, modules, tests.
    pub(crate) init: PathBuf,
    pub(crate) monitor: PathBuf,
    /// What only the tests start.
    pub(crate) more: Vec<Packed>,
    /// A disk; what the guest writes to it is forgotten.
    pub(crate) disk: Option<PathBuf>,
}

/// Builds everything.
pub(crate) fn all() -> Result<()> {
    ebpf()?;
    host()?;
    guest().map(drop)
}

/// The eBPF object. The other builds would do it too, but cargo hides what a
/// build script says for longer.
fn ebpf() -> Result<()> {
    let toolchain = ebpf::find(root()).map_err(|error| anyhow!(error))?;
    ebpf::build(&toolchain, root(), &target().join("ebpf")).map_err(|error| anyhow!(error))?;
    Ok(())
}

/// The host's programs in the dev profile, as plain `cargo build` does.
fn host() -> Result<()> {
    process::run(command("cargo").arg("build").current_dir(root()))
}

/// The VM has no libraries, so its programs carry their own.
pub(crate) fn guest() -> Result<Guest> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let folder = target().join("guest");
    println!("building the VM's programs (minutes the first time, then seconds)");
    ebpf()?;
    process::run(
        command("cargo")
            .args(["build", "--release", "--package", "tests", "--package", "memcg-monitor"])
            .args(["--target", TARGET, "--target-dir"])
            .arg(&folder)
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            // The initramfs is kept in the VM's memory: no debug information.
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .current_dir(root()),
    )?;
    let release = folder.join(TARGET).join("release");
    let (init, monitor) = (release.join("guest"), release.join("memcg-monitor"));
    Ok(Guest { init, monitor, more: Vec::new(), disk: None })
}
