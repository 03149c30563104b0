//! `cargo xtask image`: the container image, built without a daemon.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::process::{self, command};
use crate::setup::{self, Need};
use crate::workspace::{root, short, target};
use crate::{apt, build, lock, toolchain};

/// The image's name, as the manifests in deploy/kubernetes have it.
pub(crate) const NAME: &str = "memcg-monitor:latest";

fn directory() -> PathBuf {
    target().join("image")
}

/// The image as an OCI layout.
pub(crate) fn layout() -> PathBuf {
    directory().join("layout")
}

/// The builder of container images, which needs no daemon.
#[derive(Debug)]
pub(crate) struct Buildah;

impl Need for Buildah {
    fn name(&self) -> &'static str {
        "buildah"
    }

    fn find(&self) -> Result<String> {
        process::exists("buildah").then(|| "image builder buildah".to_owned()).context("there is no buildah")
    }

    fn fetch(&self) -> Result<()> {
        apt::install(&["buildah"])
    }
}

/// Runs `cargo xtask image`: builds the programs and writes an archive.
pub(crate) fn run() -> Result<()> {
    setup::ensure(&toolchain::NEEDS)?;
    build(&build::guest(Arch::Amd64)?.monitor)?;
    let archive = directory().join("memcg-monitor.tar");
    if archive.exists() {
        fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
    }
    process::run(
        buildah().args(["push", "--quiet", NAME]).arg(format!("oci-archive:{}", archive.display())),
    )?;
    println!(
        "{} holds {NAME}; load it with `podman load`, `skopeo copy` or `ctr images import`",
        short(&archive)
    );
    Ok(())
}

/// Builds the image for an architecture around its binary, with this time (seconds since 1970).
/// Returns the layout's path.
pub(crate) fn layout_for(monitor: &Path, arch: Arch, epoch: u64) -> Result<PathBuf> {
    let name = format!("memcg-monitor:dist-{}", arch.name());
    let layout = directory().join(format!("layout-{}", arch.name()));
    build_as(&name, arch, epoch, monitor, &layout)?;
    Ok(layout)
}

/// Builds the image around this binary, as a layout.
pub(crate) fn build(monitor: &Path) -> Result<()> {
    // No time of today, so that the same binary makes the same image.
    build_as(NAME, Arch::Amd64, 0, monitor, &layout())
}

fn build_as(name: &str, arch: Arch, epoch: u64, monitor: &Path, layout: &Path) -> Result<()> {
    setup::ensure(&[&Buildah])?;
    // Steps that run side by side share the directory and buildah's store.
    let _lock = lock::hold("image")?;
    let context = directory().join("context");
    fs::create_dir_all(&context).with_context(|| format!("cannot make {}", context.display()))?;
    fs::copy(monitor, context.join("memcg-monitor"))
        .with_context(|| format!("cannot copy {}", monitor.display()))?;
    process::run(
        buildah()
            // Nothing is run in it, so nothing has to be kept apart.
            .args(["build", "--quiet", "--isolation", "chroot", "--tag", name, "--platform"])
            .arg(format!("linux/{}", arch.name()))
            .arg("--timestamp")
            .arg(epoch.to_string())
            .arg("--file")
            .arg(root().join("deploy/container/Containerfile"))
            .arg(&context)
            .stdout(std::process::Stdio::null()),
    )?;
    if layout.exists() {
        fs::remove_dir_all(layout).with_context(|| format!("cannot remove {}", layout.display()))?;
    }
    process::run(buildah().args(["push", "--quiet", name]).arg(format!("oci:{}:latest", layout.display())))
}

/// Returns buildah with a store of its own, copied instead of mounted, so that it works
/// anywhere.
fn buildah() -> std::process::Command {
    let mut buildah = command("buildah");
    buildah.args(["--storage-driver", "vfs", "--root"]).arg(directory().join("store"));
    buildah.arg("--runroot").arg(directory().join("run"));
    buildah
}
