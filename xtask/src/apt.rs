//! Debian packages: installed on this machine, or unpacked into a folder.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{self, command};
use crate::workspace;

/// Installs packages on this machine, which only root may.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let by_hand = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    ensure!(
        process::exists("apt-get"),
        "this machine has no apt-get; install what corresponds to: {}",
        packages.join(" ")
    );
    ensure!(is_root(), "only root may install packages; run `{by_hand}` as root, then try again");
    update_system()?;
    println!("setup: {by_hand}");
    process::run(
        command("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--no-install-recommends", "-y", "-qq"])
            // Another apt may be at work; wait for it instead of failing.
            .args(["-o", "DPkg::Lock::Timeout=600", "-o", "Dpkg::Use-Pty=0"])
            .args(packages),
    )
}

/// Refreshes the machine's package lists, once in a run.
fn update_system() -> Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.get().is_some() || !is_root() {
        return Ok(());
    }
    println!("setup: apt-get update");
    process::run(command("apt-get").args(["update", "-qq", "-o", "DPkg::Lock::Timeout=600"]))?;
    let _ = DONE.set(());
    Ok(())
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A place to get packages from: the machine's own sources, or another suite
/// of the same archive through lists of our own under `target/`.
#[derive(Debug)]
pub(crate) struct Source {
    options: Vec<String>,
}

impl Source {
    /// The machine's configured sources, with fresh lists if we are root.
    pub(crate) fn system() -> Result<Self> {
        update_system()?;
        Ok(Self { options: Vec::new() })
    }

    /// A suite such as `sid`; nothing outside `target/` is written.
    pub(crate) fn suite(suite: &str) -> Result<Self> {
        let archive = archive()?;
        let folder = workspace::target().join(format!("apt-{suite}"));
        for sub in ["lists/partial", "cache/archives/partial", "etc"] {
            let path = folder.join(sub);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            Ok::<_, anyhow::Error>(path)
        };
        let list = write("sources.list", &format!("deb {archive} {suite} main\n"))?;
        let status = write("status", "")?;
        let under = |sub: &str| folder.join(sub).display().to_string();
        let settings = [
            ("Dir::Etc::SourceList", list.display().to_string()),
            ("Dir::Etc::SourceParts", under("etc")),
            ("Dir::Etc::PreferencesParts", under("etc")),
            ("Dir::State", folder.display().to_string()),
            ("Dir::State::Lists", under("lists")),
            ("Dir::State::Status", status.display().to_string()),
            ("Dir::Cache", under("cache")),
            ("Acquire::Languages", "none".to_owned()),
            ("APT::Sandbox::User", "root".to_owned()),
        ];
        let options = settings.iter().flat_map(|(name, value)| ["-o".into(), format!("{name}={value}")]);
        let source = Self { options: options.collect() };
        println!("setup: apt-get update, for suite {suite} and under target/ only");
        process::run(command("apt-get").args(&source.options).args(["update", "-qq"]))?;
        Ok(source)
    }

    /// The packages that one depends on directly.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = process::output(command("apt-cache").args(&self.options).args(["depends", package]))
            .with_context(|| {
                format!("the package lists do not know {package}; run `apt-get update` as root")
            })?;
        Ok(parse_depends(&text))
    }

    /// Downloads packages and unpacks them into `folder`, all or nothing.
    pub(crate) fn unpack(&self, packages: &[String], folder: &Path) -> Result<()> {
        let name = folder.file_name().context("the folder needs a name")?.to_string_lossy();
        // Complete packages stay here when a later one fails: apt skips them.
        let downloads = workspace::target().join("downloads").join(&*name);
        let partial = folder.with_file_name(format!("{name}.partial"));
        fs::create_dir_all(&downloads).with_context(|| format!("cannot make {}", downloads.display()))?;
        process::run(
            command("apt-get")
                .args(&self.options)
                .args(["-o", "APT::Sandbox::User=root", "download", "-qq"])
                .args(packages)
                .current_dir(&downloads),
        )?;
        if partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
        }
        fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
        for package in packages {
            // apt names files NAME_VERSION_ARCH.deb; a name holds no underscore.
            let deb = fs::read_dir(&downloads)?
                .filter_map(Result::ok)
                .map(|entry| entry.path())
                .filter(|path| {
                    let file = path.file_name().unwrap_or_default().to_string_lossy();
                    file.split('_').next() == Some(package) && file.ends_with(".deb")
                })
                .max_by_key(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok())
                .with_context(|| format!("apt-get downloaded no {package}"))?;
            process::run(command("dpkg").arg("-x").arg(&deb).arg(&partial))?;
        }
        fs::rename(&partial, folder)
            .with_context(|| format!("cannot rename {} into place", partial.display()))?;
        fs::remove_dir_all(&downloads).with_context(|| format!("cannot remove {}", downloads.display()))
    }
}

/// The address of the archive this machine was installed from, with the
/// keyring that signs it, in the form of a sources.list line.
fn archive() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release names no VERSION_CODENAME; is this Debian?")?
        .trim_matches('"');
    update_system()?;
    let targets = process::output(command("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Component: main",
        "Origin: Debian",
        &format!("Codename: {codename}"),
    ]))?;
    let Some(uri) = targets.lines().find(|line| !line.is_empty()) else {
        bail!(
            "apt knows no archive with Debian {codename} main; add it to the machine's sources, \
             run `apt-get update` as root, then try again"
        );
    };
    let keyring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
    if keyring.is_file() {
        Ok(format!("[signed-by={}] {uri}", keyring.display()))
    } else {
        Ok(uri.to_owned())
    }
}

/// `apt-cache depends` prints one `  Depends: NAME` per line.
fn parse_depends(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.trim().trim_start_matches('|').strip_prefix("Depends: "))
        .filter(|name| !name.starts_with('<'))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_are_read_and_virtual_packages_left_out() {
        let text =
            "linux-image\n  Depends: linux-base\n |Depends: a-tool\n  Depends: <virtual>\n  Breaks: x\n";
        assert_eq!(parse_depends(text), ["linux-base", "a-tool"]);
    }
}
