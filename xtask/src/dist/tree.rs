//! The files of a release, and where each lies: below the root of a package, or in a tarball.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::program::Program;
use super::{Release, changelog, licences};
use crate::arch::Arch;
use crate::build;
use crate::clients::remove;
use crate::process;
use crate::workspace::{entries_below, files_below, root, target};

/// A kind of package, by whose customs its files lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Debian,
    Rpm,
}

impl Family {
    /// Returns the file with the agent's options.
    pub(super) const fn options(self) -> &'static str {
        match self {
            Self::Debian => "etc/default/memcg-monitor",
            Self::Rpm => "etc/sysconfig/memcg-monitor",
        }
    }

    const fn zsh(self) -> &'static str {
        match self {
            Self::Debian => "usr/share/zsh/vendor-completions",
            Self::Rpm => "usr/share/zsh/site-functions",
        }
    }
}

/// The unit of the agent.
const SERVICE: &str = "memcg-monitor.service";

/// The template of the units that run rules; none of them is enabled.
const WATCH: &str = "memcg-monitor-watch@.service";

/// The units of its sockets. Scripts of packages have this list as `@SOCKETS@`.
pub(super) const SOCKETS: [&str; 3] =
    ["memcg-monitor.socket", "memcg-monitor-operator.socket", "memcg-monitor-pressure.socket"];

/// A directory with all files of a package or tarball, as they are to be packed.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) directory: PathBuf,
    pub(super) arch: Arch,
    epoch: u64,
    family: Option<Family>,
}

const DOCUMENTS: &str = "usr/share/doc/memcg-monitor";

/// The file with the licences of all that the program is linked from.
const THIRD_PARTY: &str = "third-party-notices.gz";

/// The files with the project's own licences.
pub(super) const LICENCES: [&str; 3] = ["LICENSE-APACHE", "LICENSE-GPL2", "LICENSE-MIT"];

/// The directory of a package's units.
const UNITS: &str = "usr/lib/systemd/system";

/// The registration socket's drop-in.
pub(super) const SOCKET_DROP_IN: &str = "usr/lib/systemd/system/memcg-monitor.socket.d/group.conf";

/// Directories of shells, which may not be installed.
const OTHERS: [&str; 2] = ["usr/share/zsh/site-functions", "usr/share/fish/vendor_completions.d"];

/// The directory in which the programs of a package lie.
const BIN: &str = "usr/bin";

impl Tree {
    fn new(name: &str, release: &Release, arch: Arch, family: Option<Family>) -> Result<Self> {
        let directory = target().join("dist-trees").join(arch.name()).join(name);
        remove(&directory)?;
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self { directory, arch, epoch: release.epoch, family })
    }

    /// Lays out the files of a package.
    pub(super) fn of_package(
        release: &Release,
        arch: Arch,
        program: &Program,
        family: Family,
    ) -> Result<Self> {
        let name = if family == Family::Debian { "deb" } else { "rpm" };
        let tree = Self::new(name, release, arch, Some(family))?;
        let deploy = root().join("deploy");
        tree.copy(&program.stripped, &format!("{BIN}/memcg-monitor"), 0o755)?;
        for unit in SOCKETS.into_iter().chain([SERVICE, WATCH]) {
            tree.unit(&deploy.join("systemd").join(unit), &format!("{UNITS}/{unit}"))?;
        }
        let package = deploy.join("package");
        tree.copy(&package.join("socket-group.conf"), SOCKET_DROP_IN, 0o644)?;
        tree.copy(&package.join("memcg-monitor.sysusers"), "usr/lib/sysusers.d/memcg-monitor.conf", 0o644)?;
        tree.copy(&package.join("memcg-monitor.default"), family.options(), 0o644)?;
        for drop_in in ["metrics.conf", "no-view.conf", "own-user.conf", "systemd-254.conf"] {
            let from = deploy.join("systemd/memcg-monitor.service.d").join(drop_in);
            tree.unit(&from, &format!("{DOCUMENTS}/examples/memcg-monitor.service.d/{drop_in}"))?;
        }
        let rules = "memcg-monitor.rules.yml";
        tree.copy(&deploy.join("prometheus").join(rules), &format!("{DOCUMENTS}/examples/{rules}"), 0o644)?;
        let copyright = fs::read_to_string(package.join("copyright")).context("cannot read copyright")?;
        let copyright = copyright.replace("@MIT@\n", &paragraphs(&mit()?));
        tree.write(&format!("{DOCUMENTS}/copyright"), copyright.as_bytes(), 0o644)?;
        tree.documents(DOCUMENTS)?;
        tree.compressed(&root().join("CHANGELOG.md"), &format!("{DOCUMENTS}/changelog.gz"))?;
        if family == Family::Debian {
            tree.packed(&changelog::debian(release)?, &format!("{DOCUMENTS}/changelog.Debian.gz"))?;
            let overrides = package.join("debian/lintian-overrides");
            tree.copy(&overrides, "usr/share/lintian/overrides/memcg-monitor", 0o644)?;
        }
        tree.pages("usr/share/man")?;
        tree.completions(
            "usr/share/bash-completion/completions",
            family.zsh(),
            "usr/share/fish/vendor_completions.d",
        )?;
        tree.seal()?;
        Ok(tree)
    }

    /// Lays out the files of the tarball, in a directory called `name`.
    pub(super) fn of_tarball(release: &Release, arch: Arch, program: &Program) -> Result<Self> {
        let tree = Self::new("tar", release, arch, None)?;
        let name = release.name(arch);
        tree.copy(&program.stripped, &format!("{name}/bin/memcg-monitor"), 0o755)?;
        for path in files_below(&root().join("deploy"))? {
            let below = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
            // What only packages have.
            if !below.starts_with("deploy/package") {
                tree.copy(&path, &format!("{name}/{below}"), 0o644)?;
            }
        }
        tree.documents(&name)?;
        tree.copy(&root().join("CHANGELOG.md"), &format!("{name}/CHANGELOG.md"), 0o644)?;
        tree.pages(&format!("{name}/share/man"))?;
        let completions = format!("{name}/share/completions");
        tree.completions(&completions, &completions, &completions)?;
        tree.seal()?;
        Ok(tree)
    }

    fn documents(&self, to: &str) -> Result<()> {
        // Together, since their links are relative.
        let mut names =
            vec!["README.md", "SECURITY.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SPECIFICATION.md"];
        // Debian has these texts in one place, which the file "copyright" names.
        if self.family != Some(Family::Debian) {
            names.extend(LICENCES);
        }
        for name in names {
            self.copy(&root().join(name), &format!("{to}/{name}"), 0o644)?;
        }
        for path in files_below(&root().join("docs"))? {
            let below = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
            self.copy(&path, &format!("{to}/{below}"), 0o644)?;
        }
        self.packed(&licences::texts(self.arch)?, &format!("{to}/{THIRD_PARTY}"))
    }

    /// Adds the man pages, compressed.
    fn pages(&self, to: &str) -> Result<()> {
        let pages = target().join("dist-trees/man");
        remove(&pages)?;
        process::run(process::command(&build::built_guest(Arch::Amd64).monitor).arg("man").arg(&pages))?;
        for page in files_below(&pages)? {
            let section =
                page.extension().context("a man page without a section")?.to_string_lossy().into_owned();
            let name = page.file_name().context("a man page without a name")?.to_string_lossy().into_owned();
            self.compressed(&page, &format!("{to}/man{section}/{name}.gz"))?;
        }
        Ok(())
    }

    fn completions(&self, bash: &str, zsh: &str, fish: &str) -> Result<()> {
        for (shell, path) in [
            ("bash", format!("{bash}/memcg-monitor")),
            ("zsh", format!("{zsh}/_memcg-monitor")),
            ("fish", format!("{fish}/memcg-monitor.fish")),
        ] {
            let program = build::built_guest(Arch::Amd64).monitor;
            let text = process::output(process::command(program).args(["completions", shell]))?;
            self.write(&path, text.as_bytes(), 0o644)?;
        }
        Ok(())
    }

    /// Adds a unit, or a drop-in, that names the program where a package has it.
    fn unit(&self, from: &Path, to: &str) -> Result<()> {
        let text = fs::read_to_string(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.write(to, text.replace("/usr/local/bin/", &format!("/{BIN}/")).as_bytes(), 0o644)
    }

    fn compressed(&self, from: &Path, to: &str) -> Result<()> {
        let bytes = process::output_bytes(process::command("gzip").args(["-9nc"]).arg(from))?;
        self.write(to, &bytes, 0o644)
    }

    /// Adds a text, compressed.
    fn packed(&self, text: &str, to: &str) -> Result<()> {
        self.write(to, text.as_bytes(), 0o644)?;
        let path = self.directory.join(to);
        self.compressed(&path, to)
    }

    fn copy(&self, from: &Path, to: &str, mode: u32) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.write(to, &bytes, mode)
    }

    pub(super) fn write(&self, to: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let path = self.directory.join(to);
        let parent = path.parent().context("a file without a directory")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .with_context(|| format!("cannot set the mode of {}", path.display()))
    }

    /// Gives each file the release's time, and each directory its mode, whatever the umask.
    pub(super) fn seal(&self) -> Result<()> {
        let time = UNIX_EPOCH + Duration::from_secs(self.epoch);
        for path in entries_below(&self.directory)? {
            if path.is_dir() {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            }
            let times = FileTimes::new().set_modified(time).set_accessed(time);
            let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
            file.set_times(times).with_context(|| format!("cannot set the time of {}", path.display()))?;
        }
        Ok(())
    }

    /// Lists the directories that no other package has, as absolute paths.
    pub(super) fn owned(&self) -> Result<Vec<String>> {
        let own = |path: &str| path.contains("/memcg-monitor") || path.contains("/completions");
        let own = |path: &str| own(path) || OTHERS.iter().any(|other| path == format!("/{other}"));
        let found = entries_below(&self.directory)?.into_iter().filter(|path| path.is_dir());
        let absolute =
            found.filter_map(|path| Some(format!("/{}", path.strip_prefix(&self.directory).ok()?.display())));
        Ok(absolute.filter(|path| own(path)).collect())
    }

    /// Lists its files as absolute paths of the system that they are for.
    pub(super) fn installed(&self) -> Result<Vec<String>> {
        let found = files_below(&self.directory)?.into_iter();
        Ok(found
            .filter_map(|path| Some(format!("/{}", path.strip_prefix(&self.directory).ok()?.display())))
            .collect())
    }
}

/// Returns the text of the MIT licence without its heading.
fn mit() -> Result<String> {
    let text = fs::read_to_string(root().join("LICENSE-MIT")).context("cannot read LICENSE-MIT")?;
    let (_, rest) = text.split_once("\n\n").context("LICENSE-MIT has no heading")?;
    Ok(rest.to_owned())
}

/// Writes paragraphs as a field's further lines in Debian's format.
fn paragraphs(text: &str) -> String {
    let lines = text.trim().lines();
    lines.map(|line| if line.is_empty() { " .\n".to_owned() } else { format!(" {line}\n") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_has_no_empty_line() {
        assert_eq!(paragraphs("a\n\nb\n"), " a\n .\n b\n");
    }
}
