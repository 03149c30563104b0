//! The package for Debian, made by `dpkg-deb`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Release;
use super::tree::{Family, SOCKETS, Tree};
use crate::process;
use crate::workspace::root;

/// The maintainer's name. The project has no address for mail.
pub(super) const MAINTAINER: &str = "The memcg-monitor authors <maintainers@memcg-monitor.invalid>";

/// Packs a tree. Returns the package's path.
pub(super) fn pack(release: &Release, tree: &Tree, directory: &Path) -> Result<PathBuf> {
    let installed = tree.installed()?;
    let files: Vec<_> = installed.iter().map(|path| path.trim_start_matches('/')).collect();
    let mut bytes = 0;
    for file in &files {
        bytes +=
            fs::metadata(tree.directory.join(file)).with_context(|| format!("cannot look at {file}"))?.len();
    }
    let sums = process::output(process::command("md5sum").args(&files).current_dir(&tree.directory))?;
    tree.write("DEBIAN/control", control(release, tree.arch.name(), bytes.div_ceil(1024)).as_bytes(), 0o644)?;
    tree.write("DEBIAN/md5sums", sums.as_bytes(), 0o644)?;
    tree.write("DEBIAN/conffiles", format!("/{}\n", Family::Debian.options()).as_bytes(), 0o644)?;
    for script in ["preinst", "postinst", "prerm", "postrm"] {
        let from = root().join("deploy/package/debian").join(script);
        let text = fs::read_to_string(&from).with_context(|| format!("cannot read {}", from.display()))?;
        let text = text.replace("@SOCKETS@", &SOCKETS.join(" "));
        tree.write(&format!("DEBIAN/{script}"), text.as_bytes(), 0o755)?;
    }
    tree.seal()?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let package = directory.join(release.deb(tree.arch));
    let mut dpkg = release.command("dpkg-deb");
    // xz, which Debian 12 reads; one thread, whose output does not depend on the machine.
    dpkg.args(["--root-owner-group", "-Zxz", "--threads-max=1", "--build"])
        .arg(&tree.directory)
        .arg(&package);
    process::output(&mut dpkg)?;
    Ok(package)
}

fn control(release: &Release, arch: &str, kibibytes: u64) -> String {
    let version = release.debian_version();
    format!(
        "Package: memcg-monitor\n\
         Version: {version}\n\
         Architecture: {arch}\n\
         Maintainer: {MAINTAINER}\n\
         Installed-Size: {kibibytes}\n\
         Section: admin\n\
         Priority: optional\n\
         Multi-Arch: foreign\n\
         Depends: passwd\n\
         Description: cgroup v1's memory notifications on cgroup v2\n \
         Signals eventfds when the memory of a cgroup crosses a threshold, when the\n \
         group runs out of memory, when the kernel reclaims from it and when it is\n \
         removed: what cgroup v1 had as cgroup.event_control, for unmodified clients\n \
         and new ones, on kernels with cgroup v2.\n"
    )
}
