//! `cargo xtask build`: the host's programs, and the static ones for the VM.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow};

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
    /// Programs and files that only the tests use.
    pub(crate) more: Vec<Packed>,
    /// A disk; what the guest writes to it is discarded.
    pub(crate) disk: Option<PathBuf>,
}

/// Builds everything that `cargo xtask build` promises.
pub(crate) fn all() -> Result<()> {
    ebpf()?;
    host()?;
    guest().map(drop)
}

/// The eBPF object. The other builds would do it too, but cargo hides what a
/// build script prints for longer.
fn ebpf() -> Result<()> {
    let toolchain = ebpf::find(root()).map_err(|error| anyhow!(error))?;
    ebpf::build(&toolchain, root(), &target().join("ebpf")).map_err(|error| anyhow!(error))?;
    Ok(())
}

/// The host's programs in the dev profile, as plain `cargo build` does.
fn host() -> Result<()> {
    process::run(command("cargo").arg("build").current_dir(root()))
}

/// Builds what the VM's programs are made of, as far as it needs no eBPF object. The
/// toolchain for that may be on its way meanwhile, so a failure here means nothing: what
/// fails for another reason fails again in [`guest`].
pub(crate) fn guest_dependencies() -> Result<()> {
    let mut cargo = guest_cargo();
    cargo
        .arg("--keep-going")
        .status()
        .context("cannot start cargo; install Rust (rustup's stable toolchain)")?;
    Ok(())
}

/// The VM has no libraries, so its programs carry their own.
pub(crate) fn guest() -> Result<Guest> {
    println!("building the VM's programs (minutes the first time, then seconds)");
    ebpf()?;
    process::run(&mut guest_cargo())?;
    Ok(built_guest())
}

/// The VM's programs as a step before has built them.
pub(crate) fn built_guest() -> Guest {
    let release = guest_directory().join(GUEST_TARGET).join("release");
    let (init, monitor) = (release.join("guest"), release.join("memcg-monitor"));
    Guest { init, monitor, more: Vec::new(), disk: None }
}

const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

fn guest_directory() -> PathBuf {
    target().join("guest")
}

fn guest_cargo() -> Command {
    let mut cargo = command("cargo");
    cargo
        .args(["build", "--release", "--package", "tests", "--package", "memcg-monitor"])
        .args(["--target", GUEST_TARGET, "--target-dir"])
        .arg(guest_directory())
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // The initramfs is kept in the VM's memory: no debug information.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .current_dir(root());
    cargo
}
