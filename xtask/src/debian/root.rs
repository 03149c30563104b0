//! Root file systems of Debian's on disks for the VM, made by debootstrap.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::directory;
use crate::apt;
use crate::process::{self, command};
use crate::setup::Need;
use crate::workspace::short;

/// A disk with Debian.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Root {
    /// The name of the lock, as of any prerequisite.
    pub(super) name: &'static str,
    /// The name of the disk's file.
    pub(super) file: &'static str,
    /// The release's code name; None: this machine's own.
    pub(super) release: Option<&'static str>,
    /// Packages that are installed beside Debian's smallest set.
    pub(super) packages: &'static str,
    /// Room for the packages, and for what a test unpacks.
    pub(super) size: &'static str,
}

impl Root {
    pub(super) fn disk(&self) -> PathBuf {
        directory().join(self.file)
    }

    /// Installs Debian into a directory, and makes a disk of it.
    fn make(&self) -> Result<()> {
        if !process::exists("debootstrap") || !process::exists("mke2fs") {
            apt::install(&["debootstrap", "e2fsprogs"])?;
        }
        let system = directory().join(format!("{}.partial.d", self.name));
        discard(&system)?;
        fs::create_dir_all(&system).with_context(|| format!("cannot make {}", system.display()))?;
        let mirror = apt::mirror()?;
        let release = self.release.unwrap_or(&mirror.release);
        println!("setup: debootstrap of {release} with {}, under target/ (a minute)", self.packages);
        let mut debootstrap = command("debootstrap");
        debootstrap.args(["--variant=minbase", "--include", self.packages]);
        if let Some(keyring) = &mirror.keyring {
            debootstrap.arg("--keyring").arg(keyring);
        }
        process::run(
            debootstrap.arg(release).arg(&system).arg(&mirror.address).stdout(std::process::Stdio::null()),
        )
        .context(
            "debootstrap needs root and an archive that is reachable; its log is in target/debian. If it \
             does not know the release, install a newer debootstrap",
        )?;
        // No test reads this, and every boot would carry it.
        for waste in ["var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"] {
            let path = system.join(waste);
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        let partial = directory().join(format!("{}.partial", self.file));
        process::run(
            command("mke2fs")
                .args(["-q", "-F", "-t", "ext4", "-d"])
                .arg(&system)
                .arg(&partial)
                .arg(self.size),
        )?;
        discard(&system)?;
        fs::rename(&partial, self.disk()).with_context(|| format!("cannot rename {}", partial.display()))
    }
}

impl Need for Root {
    fn name(&self) -> &'static str {
        self.name
    }

    fn find(&self) -> Result<String> {
        let disk = self.disk();
        ensure!(disk.is_file(), "there is no Debian for the VM, {}", short(&disk));
        Ok(format!("Debian for the VM {}", short(&disk)))
    }

    fn fetch(&self) -> Result<()> {
        self.make()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_are_found() {
        let mounts = "proc /proc proc rw 0 0\nproc /t/tree/proc proc rw 0 0\nx /t/trees x rw 0 0\n";
        assert_eq!(mounts_below(mounts, Path::new("/t/tree")), [Path::new("/t/tree/proc")]);
    }
}
