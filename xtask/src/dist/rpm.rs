//! The package for RPM, made by `rpmbuild`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Release;
use super::tree::{Family, LICENCES, SOCKETS, Tree};
use crate::apt;
use crate::arch::Arch;
use crate::clients::remove;
use crate::process::{self, command};
use crate::setup::{self, Need};
use crate::workspace::{root, target};

/// The builder of RPM packages, and the program that reads them.
#[derive(Debug)]
pub(crate) struct RpmBuild;

impl Need for RpmBuild {
    fn name(&self) -> &'static str {
        "rpm"
    }

    fn find(&self) -> Result<String> {
        Ok(format!("RPM's builder {}", setup::programs(&["rpmbuild", "rpm"])?))
    }

    fn fetch(&self) -> Result<()> {
        apt::install(&["rpm"])
    }
}

const fn arch_name(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "x86_64",
        Arch::Arm64 => "aarch64",
    }
}

/// Packs a tree into `directory`.
pub(super) fn pack(release: &Release, tree: &Tree, directory: &Path) -> Result<()> {
    let work = target().join("dist-trees").join(tree.arch.name()).join("rpmbuild");
    remove(&work)?;
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let list = work.join("files");
    let directories = tree.owned()?.into_iter().map(|path| format!("%dir %attr(0755, root, root) {path}\n"));
    let lines = tree.installed()?.into_iter().map(|path| attributed(&path) + "\n");
    fs::write(&list, directories.chain(lines).collect::<String>())
        .with_context(|| format!("cannot write {}", list.display()))?;
    let mut rpmbuild = release.command("rpmbuild");
    for (name, value) in [
        ("_topdir", work.display().to_string()),
        // Not what this machine's macros say.
        ("_rpmdir", directory.display().to_string()),
        ("_rpmfilename", "%{name}-%{version}-%{release}.%{arch}.rpm".to_owned()),
        ("packed_version", release.version.clone()),
        ("packed_tree", tree.directory.display().to_string()),
        ("packed_files", list.display().to_string()),
        ("packed_sockets", SOCKETS.join(" ")),
        ("use_source_date_epoch_as_buildtime", "1".to_owned()),
        ("clamp_mtime_to_source_date_epoch", "1".to_owned()),
        ("_buildhost", "localhost".to_owned()),
        ("_binary_payload", "w9.xzdio".to_owned()),
        // The programs are stripped already, and those of another architecture cannot be.
        ("__os_install_post", "%{nil}".to_owned()),
        ("debug_package", "%{nil}".to_owned()),
        ("_build_id_links", "none".to_owned()),
    ] {
        rpmbuild.arg("--define").arg(format!("{name} {value}"));
    }
    rpmbuild.args(["-bb", "--quiet", "--target", arch_name(tree.arch)]);
    process::output(rpmbuild.arg(root().join("deploy/package/memcg-monitor.spec")))?;
    Ok(())
}

/// A file's line in the list: its kind, mode and owner.
fn attributed(path: &str) -> String {
    let mode = if path.starts_with("/usr/bin/") { "0755" } else { "0644" };
    let kind = match path {
        path if path == format!("/{}", Family::Rpm.options()) => "%config(noreplace) ",
        path if LICENCES.iter().any(|name| path.ends_with(name)) => "%license ",
        path if path.starts_with("/usr/share/doc/") || path.starts_with("/usr/share/man/") => "%doc ",
        _ => "",
    };
    format!("%attr({mode}, root, root) {kind}{path}")
}

/// Returns the package's path.
pub(super) fn path(release: &Release, arch: Arch, directory: &Path) -> PathBuf {
    directory.join(format!("memcg-monitor-{}-1.{}.rpm", release.version, arch_name(arch)))
}

/// Fails unless RPM reads the package as it is meant, with this program (its SHA-256) in it.
pub(super) fn check(package: &Path, arch: Arch, program: &str) -> Result<()> {
    let query = |options: &[&str]| process::output(command("rpm").args(options).arg(package));
    let packed = query(&["-qp", "--qf", "%{ARCH}\\n[%{FILENAMES} %{FILEDIGESTS}\\n]"])?;
    ensure!(packed.lines().next() == Some(arch_name(arch)), "it is for {packed}");
    let line = format!("/usr/bin/memcg-monitor {program}");
    ensure!(packed.lines().any(|other| other == line), "no {line} in {}:\n{packed}", package.display());
    process::output(command("rpm").args(["--checksig", "--nosignature"]).arg(package))?;
    let files = query(&["-qlp"])?;
    for path in [
        "/usr/bin/memcg-monitor",
        "/usr/lib/systemd/system/memcg-monitor.service",
        "/usr/lib/sysusers.d/memcg-monitor.conf",
    ] {
        ensure!(files.lines().any(|line| line == path), "{path} is not in the package:\n{files}");
    }
    let directories = query(&["-qp", "--qf", "[%{FILEMODES:perms} %{FILENAMES}\\n]"])?;
    for directory in [
        "/usr/share/doc/memcg-monitor",
        "/usr/share/doc/memcg-monitor/examples",
        "/usr/lib/systemd/system/memcg-monitor.socket.d",
    ] {
        let line = format!("drwxr-xr-x {directory}");
        ensure!(directories.lines().any(|other| other == line), "no {line} in the package:\n{directories}");
    }
    let configuration = query(&["-qcp"])?;
    ensure!(
        configuration.trim() == format!("/{}", Family::Rpm.options()),
        "its configuration: {configuration}"
    );
    let scripts = query(&["-qp", "--scripts"])?;
    for script in ["preinstall", "postinstall", "preuninstall", "postuninstall", "posttrans"] {
        ensure!(scripts.contains(script), "the package has no {script} script:\n{scripts}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::attributed;

    #[test]
    fn options_are_configuration_and_the_program_can_be_run() {
        assert_eq!(attributed("/usr/bin/memcg-monitor"), "%attr(0755, root, root) /usr/bin/memcg-monitor");
        let options = attributed("/etc/sysconfig/memcg-monitor");
        assert_eq!(options, "%attr(0644, root, root) %config(noreplace) /etc/sysconfig/memcg-monitor");
    }
}
