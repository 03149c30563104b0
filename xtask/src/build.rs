//! `cargo xtask build`: the host's programs, and the static ones for the VM.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use clap::Args;

use crate::arch::Arch;
use crate::clients::Packed;
use crate::process::{self, command};
use crate::workspace::{root, short, target};
use crate::{cross, ebpf, setup, toolchain};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Build only the static programs, for this architecture
    #[arg(long, value_enum, value_name = "ARCH")]
    target: Option<Arch>,
}

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
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(&toolchain::NEEDS)?;
    if arguments.target.is_none() {
        ebpf()?;
        host()?;
    }
    let arch = arguments.target.unwrap_or(Arch::Amd64);
    if arch == Arch::Arm64 {
        setup::ensure(&cross::NEEDS)?;
    }
    let guest = guest(arch)?;
    println!("the agent for {} is {}", arch.name(), short(&guest.monitor));
    Ok(())
}

/// The eBPF object. The other builds would do it too, but cargo hides what a
/// build script prints for longer.
fn ebpf() -> Result<()> {
    let toolchain = ebpf::find(root()).map_err(|error| anyhow!(error))?;
    ebpf::build(&toolchain, root(), &target().join("ebpf"), &[]).map_err(|error| anyhow!(error))?;
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
    let mut cargo = guest_cargo(Arch::Amd64)?;
    cargo
        .arg("--keep-going")
        .status()
        .context("cannot start cargo; install Rust (rustup's stable toolchain)")?;
    Ok(())
}

/// The VM has no libraries, so its programs carry their own.
pub(crate) fn guest(arch: Arch) -> Result<Guest> {
    println!("building the VM's programs for {} (minutes the first time, then seconds)", arch.name());
    ebpf()?;
    process::run(&mut guest_cargo(arch)?)?;
    Ok(built_guest(arch))
}

/// The VM's programs as a step before has built them.
pub(crate) fn built_guest(arch: Arch) -> Guest {
    let release = guest_directory().join(arch.triple()).join("release");
    let (init, monitor) = (release.join("guest"), release.join("memcg-monitor"));
    Guest { init, monitor, more: Vec::new(), disk: None }
}

fn guest_directory() -> PathBuf {
    target().join("guest")
}

fn guest_cargo(arch: Arch) -> Result<Command> {
    let mut cargo = command("cargo");
    cargo
        .args(["build", "--release", "--package", "tests", "--package", "memcg-monitor"])
        .args(["--target", arch.triple(), "--target-dir"])
        .arg(guest_directory())
        .env_remove("RUSTFLAGS")
        // The initramfs is kept in the VM's memory: no debug information.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .current_dir(root());
    let (rustc, more) = match arch {
        Arch::Amd64 => ("rustc", Vec::new()),
        Arch::Arm64 => cross::prepare(&mut cargo),
    };
    let sysroot = sysroot(rustc)?;
    let mut flags = vec![OsString::from("-Ctarget-feature=+crt-static")];
    flags.extend(more);
    flags.extend(ebpf::remaps(root(), &sysroot));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join(OsStr::new("\x1f")));
    Ok(cargo)
}

fn sysroot(rustc: &str) -> Result<PathBuf> {
    let printed = process::output(command(rustc).args(["--print", "sysroot"]).current_dir(root()))?;
    Ok(PathBuf::from(printed.trim()))
}

/// Lists the directories of this machine whose names the compilers replace in the VM's programs.
pub(crate) fn directories(arch: Arch) -> Result<Vec<PathBuf>> {
    let mut cargo = command("cargo");
    let rustc = if arch == Arch::Arm64 { cross::prepare(&mut cargo).0 } else { "rustc" };
    let ebpf = ebpf::find(root()).map_err(|error| anyhow!(error))?;
    let remaps = [sysroot(rustc)?, ebpf.compiler.sysroot].map(|sysroot| ebpf::remaps(root(), &sysroot));
    let mut found = Vec::new();
    for remap in remaps.iter().flatten() {
        let text = remap.to_string_lossy();
        let from = text.split_once('=').and_then(|(_, rest)| rest.rsplit_once('=')).map(|(from, _)| from);
        let from = PathBuf::from(from.context("an option without a directory")?);
        if !found.contains(&from) {
            found.push(from);
        }
    }
    Ok(found)
}
