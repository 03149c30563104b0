//! Debian with systemd in the VM: its root file system, and the boot that tests the
//! units and the container image there.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::build::{self, Guest};
use crate::clients::Packed;
use crate::process::{self, command};
use crate::setup::{self, Need};
use crate::summary::Outcome;
use crate::vm::{self, Boot, Hierarchy, booting};
use crate::workspace::{root, short, target};
use crate::{apt, deploy, image, kernels};

/// The prefix of the tests that run there.
pub(crate) const TESTS: &str = "debian_";

/// The packages that are installed beside Debian's smallest set.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,runc";

/// Room for the packages, and for what a test unpacks.
const SIZE: &str = "700M";

/// The directory of what the guest copies over Debian's files
/// (tests/scenarios/deploy/debian.rs).
const PAYLOAD: &str = "payload";

fn directory() -> PathBuf {
    target().join("debian")
}

fn disk() -> PathBuf {
    directory().join("root.ext4")
}

/// Debian with systemd on a disk for the VM.
#[derive(Debug)]
pub(crate) struct Debian;

impl Need for Debian {
    fn name(&self) -> &'static str {
        "debian"
    }

    fn find(&self) -> Result<String> {
        let disk = disk();
        ensure!(disk.is_file(), "there is no Debian for the VM, {}", short(&disk));
        Ok(format!("Debian for the VM {}", short(&disk)))
    }

    fn fetch(&self) -> Result<()> {
        make_disk()
    }
}

/// Installs Debian into a directory, and makes a disk of it.
fn make_disk() -> Result<()> {
    if !process::exists("debootstrap") || !process::exists("mke2fs") {
        apt::install(&["debootstrap", "e2fsprogs"])?;
    }
    let system = directory().join("root.partial");
    discard(&system)?;
    fs::create_dir_all(&system).with_context(|| format!("cannot make {}", system.display()))?;
    let mirror = apt::mirror()?;
    println!("setup: debootstrap of {} with {PACKAGES}, under target/ (a minute)", mirror.release);
    let mut debootstrap = command("debootstrap");
    debootstrap.args(["--variant=minbase", "--include", PACKAGES]);
    if let Some(keyring) = &mirror.keyring {
        debootstrap.arg("--keyring").arg(keyring);
    }
    process::run(
        debootstrap
            .arg(&mirror.release)
            .arg(&system)
            .arg(&mirror.address)
            .stdout(std::process::Stdio::null()),
    )
    .context("debootstrap needs root and an archive that is reachable; its log is in target/debian")?;
    // No test reads this, and every boot would carry it.
    for waste in ["var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"] {
        let path = system.join(waste);
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let partial = directory().join("root.ext4.partial");
    process::run(
        command("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(&system).arg(&partial).arg(SIZE),
    )?;
    discard(&system)?;
    fs::rename(&partial, disk()).with_context(|| format!("cannot rename {}", partial.display()))
}

/// Removes what an earlier run left; never what it left mounted in there.
fn discard(system: &Path) -> Result<()> {
    if !system.exists() {
        return Ok(());
    }
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    for point in mounts_below(&mounts, system).into_iter().rev() {
        process::run(command("umount").arg(point))?;
    }
    fs::remove_dir_all(system).with_context(|| format!("cannot remove {}", system.display()))
}

/// Mount points below a directory, outer ones first.
fn mounts_below<'a>(mounts: &'a str, directory: &Path) -> Vec<&'a Path> {
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    points.filter(|point| point.starts_with(directory)).collect()
}

/// Boots it and runs the tests whose name contains `filter`.
pub(crate) fn test(kernel: &str, filter: &str) -> Result<Outcome> {
    vm::ensure(kernel)?;
    setup::ensure(&[&Debian])?;
    let kernel = kernels::get(kernel)?;
    let programs = build::guest()?;
    image::build(&programs.monitor)?;
    let guest = Guest { more: payload()?, disk: Some(disk()), ..programs };
    println!("{}, Debian on its disk", booting(&kernel, Hierarchy::V2));
    let boot = Boot {
        parameters: format!("guest.filter={filter} systemd.unit=memcg-guest.target"),
        limit: Duration::from_secs(15 * 60),
        ..Boot::new(&kernel, Hierarchy::V2, "debian")
    };
    let report = boot.run(&guest, &mut |line| println!("{line}"))?;
    ensure!(
        report.passed + report.failed > 0,
        "the guest ran no test whose name contains `{filter}`; its log is in target/vm"
    );
    Ok(Outcome::of(report, kernel.release))
}

/// Lists what is copied over Debian's files: the agent's units, and the guest's own.
fn payload() -> Result<Vec<Packed>> {
    // The guest reads JSON; what is tested are the manifests all the same.
    let manifests = directory().join("kubernetes");
    fs::create_dir_all(&manifests).with_context(|| format!("cannot make {}", manifests.display()))?;
    for name in ["daemonset", "sidecar"] {
        let path = manifests.join(format!("{name}.json"));
        let manifest = deploy::manifest(&format!("{name}.yaml"))?;
        fs::write(&path, manifest.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut packed = Vec::new();
    for (from, to) in [
        (root().join("deploy/systemd"), "usr/share/memcg-monitor/systemd"),
        (root().join("tests/scenarios/deploy/debian/units"), "etc/systemd/system"),
        (manifests, "usr/share/memcg-monitor/kubernetes"),
        (image::layout(), "usr/share/memcg-monitor/image"),
    ] {
        for path in files(&from)? {
            let below = path.strip_prefix(&from).unwrap_or(&path);
            packed.push(Packed { path: format!("{PAYLOAD}/{to}/{}", below.display()), from: path });
        }
    }
    packed.push(Packed {
        path: format!("{PAYLOAD}/usr/share/memcg-monitor/deploy.md"),
        from: root().join("docs/guide/deploy.md"),
    });
    Ok(packed)
}

/// All files of a directory and of those in it.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_are_found() {
        let mounts = "proc /proc proc rw 0 0\nproc /t/tree/proc proc rw 0 0\nx /t/trees x rw 0 0\n";
        assert_eq!(mounts_below(mounts, Path::new("/t/tree")), [Path::new("/t/tree/proc")]);
    }
}
