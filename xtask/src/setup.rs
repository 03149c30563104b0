//! `cargo xtask setup`: finds every prerequisite, and gets what is missing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::ebpf;
use crate::process::{self, command};
use crate::workspace::{root, short, target, tools};
use crate::{apt, clients, debian, image, kernels, lock, project, prometheus, qemu};

/// Something that a command of ours cannot do without.
#[derive(Debug, Clone)]
pub(crate) enum Need {
    /// A rustc for the BPF target.
    Compiler,
    /// bpf-linker, of the compiler's LLVM.
    Linker,
    /// The emulator that runs the test kernels, and xz for their modules.
    Qemu,
    /// The VM's shell.
    Busybox,
    /// A kernel by its label or path.
    Kernel(String),
    /// A C compiler, and xz for the kernel's sources.
    C,
    /// Sources of clients, and the languages that they and our examples are in.
    Clients,
    /// What the benchmark `build` compiles, and a compiler for the VM.
    Project,
    /// What scrapes the agent in a VM, and judges metrics and alert rules.
    Prometheus,
    /// Debian with systemd, for the VM.
    Debian,
    /// Builds container images without a daemon.
    Buildah,
    /// Checks licences and origins of dependencies.
    Deny,
    /// Builds fuzz targets, and a compiler for libFuzzer.
    Fuzz,
}

impl Need {
    /// The name of the lock that is held while it is being got.
    const fn name(&self) -> &'static str {
        match self {
            Self::Compiler => "compiler",
            Self::Linker => "linker",
            Self::Qemu => "qemu",
            Self::Busybox => "busybox",
            Self::Kernel(_) => "kernel",
            Self::C => "c",
            Self::Clients => "clients",
            Self::Project => "project",
            Self::Prometheus => "prometheus",
            Self::Debian => "debian",
            Self::Buildah => "buildah",
            Self::Deny => "deny",
            Self::Fuzz => "fuzz",
        }
    }
}

/// What it takes to compile the workspace.
pub(crate) const BUILD: [Need; 2] = [Need::Compiler, Need::Linker];

/// What it takes to build the clients that the VM's tests start.
pub(crate) const CLIENTS: [Need; 2] = [Need::C, Need::Clients];

/// What it takes to boot one kernel.
pub(crate) fn vm(kernel: &str) -> Vec<Need> {
    let mut needs = BUILD.to_vec();
    needs.extend([Need::Qemu, Need::Busybox, Need::Kernel(kernel.to_owned())]);
    needs
}

/// `cargo xtask setup`: everything, and a line on each.
pub(crate) fn all() -> Result<()> {
    let mut needs = BUILD.to_vec();
    needs.extend([Need::Qemu, Need::Busybox]);
    needs.extend(kernels::labels().map(|label| Need::Kernel(label.to_owned())));
    needs.extend(CLIENTS);
    needs.extend([Need::Project, Need::Debian, Need::Buildah, Need::Prometheus, Need::Deny, Need::Fuzz]);
    for need in &needs {
        println!("setup: found {}", provide(need)?);
    }
    Ok(())
}

/// Gets what is missing; silent about what is there.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    needs.iter().try_for_each(|need| provide(need).map(drop))
}

fn provide(need: &Need) -> Result<String> {
    let missing = match find(need) {
        Ok(found) => return Ok(found),
        Err(missing) => missing,
    };
    // Another step may be getting the same; each waits here, and then looks again.
    let _lock = lock::hold(need.name())?;
    if let Ok(found) = find(need) {
        return Ok(found);
    }
    println!("setup: {missing:#}");
    get(need).with_context(|| format!("setup cannot get what is missing: {missing:#}"))?;
    find(need).context("setup got it, and still it is not there")
}

/// Says what was found, or as an error what is missing.
fn find(need: &Need) -> Result<String> {
    match need {
        Need::Compiler => {
            let compiler = ebpf::find_compiler().map_err(|error| anyhow!(error))?;
            let core = if compiler.build_std { "rust-src" } else { "a ready core" };
            Ok(format!("eBPF compiler {} with {core}", compiler.rustc.display()))
        }
        Need::Linker => {
            let path = ebpf::find_linker(root()).map_err(|error| anyhow!(error))?;
            Ok(format!("eBPF linker {}", short(&path)))
        }
        Need::Qemu => have(&["xz"]).and_then(|xz| Ok(format!("{} and {xz}", qemu::find()?))),
        Need::C => have(&["cc", "xz"]),
        Need::Clients => clients::find(),
        Need::Project => project::find(),
        Need::Prometheus => prometheus::find(),
        Need::Debian => debian::find(),
        Need::Buildah => image::find(),
        Need::Busybox => is_there(&busybox()).map(|path| format!("VM shell {path}")),
        Need::Kernel(name) => {
            let kernel = kernels::find(name)?.with_context(|| format!("kernel {name} is not here yet"))?;
            let remark = kernels::remark(&kernel).map_or(String::new(), |text| format!(" ({text})"));
            Ok(format!("kernel {name}: {}{remark}", kernel.release))
        }
        Need::Deny => is_there(&cargo_deny()).map(|path| format!("dependency checker {path}")),
        Need::Fuzz => {
            have(&["c++"])?;
            is_there(&cargo_fuzz()).map(|path| format!("builder of fuzz targets {path}"))
        }
    }
}

fn get(need: &Need) -> Result<()> {
    match need {
        // Debian's compiler for its browsers; its library for BPF comes apart.
        Need::Compiler => apt::install(&["rustc-web", "libstd-rust-web-dev-bpf"]),
        Need::Linker => install_linker(),
        Need::Qemu => {
            apt::install(&["xz-utils"])?;
            // A stable release's own may be older than what we need.
            apt::install_backports(&["qemu-system-x86"]).or_else(|_| apt::install(&["qemu-system-x86"]))
        }
        Need::C => apt::install(&["gcc", "libc6-dev", "xz-utils"]),
        Need::Clients => clients::fetch(),
        Need::Project => project::fetch(),
        Need::Prometheus => prometheus::fetch(),
        Need::Debian => debian::fetch(),
        Need::Buildah => apt::install(&["buildah"]),
        Need::Busybox => {
            println!("setup: downloading busybox-static");
            let folder = tools().join("busybox");
            make_parent(&folder)?;
            apt::Source::system()?.unpack(&["busybox-static".to_owned()], &folder)
        }
        Need::Kernel(name) => kernels::fetch(name).map(drop),
        // It runs for seconds: an optimized build takes minutes.
        Need::Deny => cargo_install("cargo-deny", &["--version", "^0.20", "--debug"], &[]),
        Need::Fuzz => {
            if have(&["c++"]).is_err() {
                apt::install(&["g++"])?;
            }
            // It only starts others.
            cargo_install("cargo-fuzz", &["--version", "^0.13", "--debug"], &[])
        }
    }
}

/// bpf-linker is bound to one LLVM, so it is built here, against Debian's.
fn install_linker() -> Result<()> {
    let llvm = ebpf::LLVM;
    let prefix = format!("/usr/lib/llvm-{llvm}");
    if !Path::new(&prefix).join("bin/llvm-config").is_file() {
        apt::install(&[
            &format!("llvm-{llvm}-dev"),
            &format!("libpolly-{llvm}-dev"),
            "g++",
            "zlib1g-dev",
            "libzstd-dev",
        ])?;
    }
    // Its time is LLVM's: an optimized build would win nothing.
    cargo_install(
        "bpf-linker",
        &["--version", "^0.13", "--debug", "--no-default-features", "--features", &format!("llvm-{llvm}")],
        &[("LLVM_PREFIX", &prefix)],
    )
}

/// Installs a program from the registry under `target/tools`.
fn cargo_install(name: &str, options: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    // A folder of its own, so that an interrupted build goes on where it was.
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
            // Nobody debugs it or builds it again.
            .envs([("CARGO_PROFILE_DEV_DEBUG", "0"), ("CARGO_INCREMENTAL", "0")])
            .envs(variables.iter().copied()),
    )?;
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))
}

pub(crate) fn busybox() -> PathBuf {
    tools().join("busybox/bin/busybox")
}

pub(crate) fn cargo_deny() -> PathBuf {
    tools().join("bin/cargo-deny")
}

pub(crate) fn cargo_fuzz() -> PathBuf {
    tools().join("bin/cargo-fuzz")
}

/// Programs that can be started.
fn have(programs: &[&str]) -> Result<String> {
    match programs.iter().find(|program| !process::exists(program)) {
        Some(program) => Err(anyhow!("there is no {program}")),
        None => Ok(programs.join(" and ")),
    }
}

fn is_there(path: &Path) -> Result<String> {
    path.is_file().then(|| short(path)).with_context(|| format!("there is no {}", short(path)))
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().context("a path below target/ has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))
}
