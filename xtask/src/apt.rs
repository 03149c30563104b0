//! Debian packages: installed on this machine, or unpacked into a directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::arch::Arch;
use crate::process::{self, command};
use crate::{lock, workspace};

/// The age at which package lists are refreshed.
const FRESH: Duration = Duration::from_secs(60 * 60);

/// Installs packages on this machine, which only root may.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    update_system()?;
    install_with(&[], packages)
}

/// Installs packages out of the machine's release or its backports, whichever has the
/// newer one. The machine's own sources stay as they are.
pub(crate) fn install_backports(packages: &[&str]) -> Result<()> {
    install_with(&Source::backports()?.options, packages)
}

fn install_with(options: &[String], packages: &[&str]) -> Result<()> {
    let by_hand = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    ensure!(
        process::exists("apt-get"),
        "this machine has no apt-get; install what corresponds to: {}",
        packages.join(" ")
    );
    ensure!(is_root(), "only root may install packages; run `{by_hand}` as root, then try again");
    let _lock = lock::hold("apt")?;
    println!("setup: {by_hand}");
    process::run(
        command("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(options)
            .args(["install", "--no-install-recommends", "-y", "-qq"])
            // Another apt may be at work; wait for it instead of failing.
            .args(["-o", "DPkg::Lock::Timeout=600", "-o", "Dpkg::Use-Pty=0"])
            .args(packages),
    )
    .context("cannot install packages; is the archive reachable? Its messages are above")
}

/// Refreshes the machine's package lists, once in a while.
fn update_system() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let _lock = lock::hold("apt")?;
    let stamp = workspace::target().join("locks/apt-updated");
    if is_fresh(&stamp) {
        return Ok(());
    }
    println!("setup: apt-get update");
    process::run(command("apt-get").args(["update", "-qq", "-o", "DPkg::Lock::Timeout=600"]))
        .context("cannot refresh the package lists (is the archive reachable?)")?;
    fs::write(&stamp, "").with_context(|| format!("cannot write {}", stamp.display()))
}

fn is_fresh(stamp: &Path) -> bool {
    let age = fs::metadata(stamp).and_then(|meta| meta.modified()).map(|time| time.elapsed());
    matches!(age, Ok(Ok(age)) if age < FRESH)
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A place to get packages from: the machine's own sources, or another suite
/// of the same archive through lists of its own under `target/`.
#[derive(Debug)]
pub(crate) struct Source {
    options: Vec<String>,
}

impl Source {
    /// The machine's configured sources, with fresh lists if this process is root's.
    pub(crate) fn system() -> Result<Self> {
        update_system()?;
        Ok(Self { options: Vec::new() })
    }

    /// The packages of the machine's release or its backports, whichever has the newer one.
    pub(crate) fn backports() -> Result<Self> {
        let archives = archives()?;
        let (release, address) = (&archives[0].release, &archives[0].address);
        let backports = format!("{release}-backports");
        let mut lines: String = archives
            .iter()
            .map(|archive| format!("deb {} {} main\n", archive.address, archive.release))
            .collect();
        lines += &format!("deb {address} {backports} main\n");
        // The machine's own list of what is installed: these packages go there.
        let mut source = Self::private("backports", &lines, Some(Path::new("/var/lib/dpkg/status")))?;
        source.options.extend(["-t".to_owned(), backports]);
        Ok(source)
    }

    /// The packages of a suite such as `sid`.
    pub(crate) fn suite(suite: &str) -> Result<Self> {
        let archive = archives()?.swap_remove(0);
        Self::private(suite, &format!("deb {} {suite} main\n", archive.address), None)
    }

    /// The packages of an architecture, of a suite or of the machine's own release. They
    /// can be unpacked only: nothing of another architecture is installed.
    pub(crate) fn of(arch: Arch, suite: Option<&str>) -> Result<Self> {
        if arch == Arch::Amd64 {
            return suite.map_or_else(Self::system, Self::suite);
        }
        let archives = archives()?;
        let line = |address: &str, suite: &str| format!("deb {address} {suite} main\n");
        let (name, lines) = match suite {
            Some(suite) => (format!("{suite}-{}", arch.name()), line(&archives[0].address, suite)),
            None => {
                let all = archives.iter().map(|archive| line(&archive.address, &archive.release));
                (arch.name().to_owned(), all.collect())
            }
        };
        Self::private_of(&name, &lines, None, Some(arch))
    }

    /// The source packages of what the machine's own sources hold.
    pub(crate) fn sources() -> Result<Self> {
        let line = |archive: &Archive| format!("deb-src {} {} main\n", archive.address, archive.release);
        Self::private("sources", &archives()?.iter().map(line).collect::<String>(), None)
    }

    /// Prepares package lists under `target/` and writes nothing elsewhere. Nothing counts
    /// as installed, or what the file `installed` lists.
    fn private(name: &str, lines: &str, installed: Option<&Path>) -> Result<Self> {
        Self::private_of(name, lines, installed, None)
    }

    /// Prepares lists of the packages for `arch`, where that is not this machine's.
    fn private_of(name: &str, lines: &str, installed: Option<&Path>, arch: Option<Arch>) -> Result<Self> {
        let _lock = lock::hold(&format!("apt-{name}"))?;
        let directory = workspace::target().join(format!("apt-{name}"));
        for sub in ["lists/partial", "cache/archives/partial", "etc"] {
            let path = directory.join(sub);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            Ok::<_, anyhow::Error>(path)
        };
        let list = write("sources.list", lines)?;
        let status = installed.map_or_else(|| write("status", ""), |path| Ok(PathBuf::from(path)))?;
        let under = |sub: &str| directory.join(sub).display().to_string();
        let mut settings = vec![
            ("Dir::Etc::SourceList", list.display().to_string()),
            ("Dir::Etc::SourceParts", under("etc")),
            ("Dir::Etc::PreferencesParts", under("etc")),
            ("Dir::State", directory.display().to_string()),
            ("Dir::State::Lists", under("lists")),
            ("Dir::State::Status", status.display().to_string()),
            ("Dir::Cache", under("cache")),
            ("Acquire::Languages", "none".to_owned()),
            ("APT::Sandbox::User", "root".to_owned()),
        ];
        if let Some(arch) = arch {
            settings.push(("APT::Architecture", arch.name().to_owned()));
            settings.push(("APT::Architectures", arch.name().to_owned()));
        }
        let options = settings.iter().flat_map(|(name, value)| ["-o".into(), format!("{name}={value}")]);
        let source = Self { options: options.collect() };
        let stamp = directory.join("updated");
        if !is_fresh(&stamp) {
            println!("setup: apt-get update, for {name} and under target/ only");
            process::run(command("apt-get").args(&source.options).args(["update", "-qq"])).with_context(
                || format!("cannot get the package lists of {name} (is the archive reachable?)"),
            )?;
            fs::write(&stamp, "").with_context(|| format!("cannot write {}", stamp.display()))?;
        }
        Ok(source)
    }

    /// Downloads a source package's files, as they are, into `directory`.
    pub(crate) fn download_source(&self, package: &str, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        process::run(
            command("apt-get")
                .args(&self.options)
                .args(["source", "--download-only", "--only-source", "-qq", package])
                .current_dir(directory),
        )
        .context("cannot download sources (is the archive reachable?)")
    }

    /// The names of all packages that begin with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let text = process::output(command("apt-cache").args(&self.options).args(["pkgnames", prefix]))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// The packages that one depends on directly.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = process::output(command("apt-cache").args(&self.options).args(["depends", package]))
            .with_context(|| {
                format!("the package lists do not know {package}; run `apt-get update` as root")
            })?;
        Ok(parse_depends(&text))
    }

    /// Downloads packages and unpacks them into `directory`, all or nothing.
    pub(crate) fn unpack(&self, packages: &[String], directory: &Path) -> Result<()> {
        let name = directory.file_name().context("the directory needs a name")?.to_string_lossy();
        // Complete packages stay here when a later one fails: apt skips them.
        let downloads = workspace::target().join("downloads").join(&*name);
        let partial = directory.with_file_name(format!("{name}.partial"));
        fs::create_dir_all(&downloads).with_context(|| format!("cannot make {}", downloads.display()))?;
        process::run(
            command("apt-get")
                .args(&self.options)
                .args(["-o", "APT::Sandbox::User=root", "download", "-qq"])
                .args(packages)
                .current_dir(&downloads),
        )
        .context("cannot download packages; if the archive is reachable, run `apt-get update` as root")?;
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
                .with_context(|| format!("apt-get downloaded no {package}; run `apt-get update` as root"))?;
            process::run(command("dpkg").arg("-x").arg(&deb).arg(&partial))?;
        }
        fs::rename(&partial, directory)
            .with_context(|| format!("cannot rename {} into place", partial.display()))?;
        fs::remove_dir_all(&downloads).with_context(|| format!("cannot remove {}", downloads.display()))
    }
}

/// The archive of this machine's release of Debian.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) address: String,
    /// The release's code name, such as `bookworm`.
    pub(crate) release: String,
    /// The file with the archive's keys, if this machine has it.
    pub(crate) keyring: Option<&'static Path>,
}

/// The archive that this machine was installed from.
pub(crate) fn mirror() -> Result<Mirror> {
    let Archive { address, release } = archives()?.swap_remove(0);
    // Without the options of a sources.list line.
    let address = address.rsplit(' ').next().unwrap_or_default().to_owned();
    Ok(Mirror { address, release, keyring: Some(Path::new(KEYRING)).filter(|path| path.is_file()) })
}

/// The file with the keys of Debian's archives.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An archive with packages for this machine's release of Debian.
#[derive(Debug)]
struct Archive {
    /// The address with the keyring before it, in the form of a sources.list line.
    address: String,
    /// The release's name in a sources.list line, such as `bookworm-security`.
    release: String,
}

/// The archives that this machine is configured for, the one that it was
/// installed from first.
fn archives() -> Result<Vec<Archive>> {
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
        "$(REPO_URI) $(CODENAME)",
        "Created-By: Packages",
        "Component: main",
        "Origin: Debian",
    ]))?;
    let archives = parse_targets(&targets, codename);
    if archives.first().is_none_or(|archive| archive.release != codename) {
        bail!(
            "apt knows no archive with Debian {codename} main; add it to the machine's sources, \
             run `apt-get update` as root, then try again"
        );
    }
    let keyring = Path::new(KEYRING);
    let signed =
        if keyring.is_file() { format!("[signed-by={}] ", keyring.display()) } else { String::new() };
    Ok(archives
        .into_iter()
        .map(|archive| Archive { address: format!("{signed}{}", archive.address), ..archive })
        .collect())
}

/// Reads lines of address and codename; the plain release comes first.
fn parse_targets(text: &str, codename: &str) -> Vec<Archive> {
    let mut found: Vec<Archive> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(address), Some(name)) = (words.next(), words.next()) else {
            continue;
        };
        let of_this =
            name.strip_prefix(codename).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
        if of_this && !found.iter().any(|known| known.address == address && known.release == name) {
            found.push(Archive { address: address.to_owned(), release: name.to_owned() });
        }
    }
    found.sort_by_key(|archive| archive.release != codename);
    found
}

/// `apt-cache depends` prints one `  Depends: NAME` or `  PreDepends: NAME` per line.
fn parse_depends(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| line.trim().trim_start_matches('|'))
        .filter_map(|line| line.strip_prefix("Pre").unwrap_or(line).strip_prefix("Depends: "))
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
            "linux-image\n  PreDepends: linux-base\n |Depends: a-tool\n  Depends: <virtual>\n  Breaks: x\n";
        assert_eq!(parse_depends(text), ["linux-base", "a-tool"]);
    }

    #[test]
    fn archives_are_those_of_the_release_its_own_first() {
        let text = "sec bookworm-security\nmain bookworm\nmain bookworm\nother sid\nmain bookworm-updates\n";
        let found = parse_targets(text, "bookworm");
        let releases: Vec<_> = found.iter().map(|archive| archive.release.as_str()).collect();
        assert_eq!(releases, ["bookworm", "bookworm-security", "bookworm-updates"]);
    }
}
