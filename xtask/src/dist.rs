//! `cargo xtask dist`: what a release consists of, for each architecture: a tarball, packages for
//! Debian and for RPM, a container image, a list of the parts that it is built from, checksums.
//!
//! The same sources and tools make the same bytes: every time is that of the last commit, owners
//! are numbers, names are sorted.

mod changelog;
mod deb;
mod licences;
mod lint;
mod oci;
mod program;
mod rpm;
mod sbom;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

pub(crate) use self::lint::Linters;
use self::program::Program;
pub(crate) use self::rpm::RpmBuild;
pub(crate) use self::sbom::Cyclonedx;
use self::tree::Tree;
use crate::arch::Arch;
use crate::clients::remove;
use crate::process::{self, command};
use crate::summary::Outcome;
use crate::workspace::{root, short, target};
use crate::{build, cross, image, lock, setup, toolchain};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Make what is for this architecture alone
    #[arg(long, value_enum, value_name = "ARCH")]
    target: Option<Arch>,

    /// Pack once more, and fail unless each file has the same bytes
    #[arg(long)]
    verify: bool,
}

/// Runs `cargo xtask dist`.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(&toolchain::NEEDS)?;
    setup::ensure(&[&RpmBuild, &Cyclonedx, &image::Buildah])?;
    let wanted = arguments.target.map_or(vec![Arch::Amd64, Arch::Arm64], |arch| vec![arch]);
    if wanted.contains(&Arch::Arm64) {
        setup::ensure(&cross::NEEDS)?;
    }
    let release = Release::of_this()?;
    let directory = target().join("dist");
    // A program of this machine prints the man pages, whatever the release is for.
    build::guest(Arch::Amd64)?;
    for &arch in wanted.iter().filter(|arch| **arch != Arch::Amd64) {
        build::guest(arch)?;
    }
    release.make(&wanted, &directory)?;
    if arguments.verify {
        let again = target().join("dist-again");
        release.make(&wanted, &again)?;
        compare(&directory, &again)?;
        remove(&again)?;
        println!("packed twice: the same bytes");
    }
    let sums = fs::read_to_string(directory.join(SUMS)).context("cannot read the checksums")?;
    print!("{} holds\n{sums}", short(&directory));
    Ok(())
}

/// Name of the file with the checksums.
const SUMS: &str = "SHA256SUMS";

/// The lock on the directories in which packages are put together: steps that run side by side do that.
const LOCK: &str = "dist";

/// Packs what is built for these architectures twice, and looks at the packages.
pub(crate) fn smoke(wanted: &[Arch]) -> Result<Outcome> {
    setup::ensure(&[&RpmBuild, &image::Buildah, &Linters])?;
    let release = Release::of_this()?;
    let directory = target().join("dist-test");
    remove(&directory)?;
    for name in ["a", "b"] {
        release.pack_all(wanted, &directory.join(name))?;
    }
    compare(&directory.join("a"), &directory.join("b"))?;
    // The architectures differ in nothing that these look at.
    let package = |path: PathBuf| directory.join("a").join(path);
    lint::debian(&package(release.deb(Arch::Amd64).into()))?;
    lint::rpm(&rpm::path(&release, Arch::Amd64, &directory.join("a")))?;
    let names: Vec<_> = wanted.iter().map(|arch| arch.name()).collect();
    Ok(Outcome::pass(format!("{}, packed twice: the same bytes", names.join(" and "))))
}

/// Makes the packages that the test of an upgrade installs, one after the other, in `directory`:
/// this version, a next one, and one whose registration socket has another mode.
pub(crate) fn for_upgrade(directory: &Path) -> Result<Vec<PathBuf>> {
    let _lock = lock::hold(LOCK)?;
    let now = Release::of_this()?;
    remove(directory)?;
    let program = Program::of(&now, Arch::Amd64)?;
    let mut packages = Vec::new();
    for addition in ["", "+next", "+socket"] {
        let release = Release { version: format!("{}{addition}", now.version), epoch: now.epoch };
        let tree = Tree::of_package(&release, Arch::Amd64, &program, tree::Family::Debian)?;
        if addition == "+socket" {
            tree.write(
                tree::SOCKET_DROP_IN,
                b"[Socket]\nSocketGroup=memcg-monitor\nSocketMode=0666\n",
                0o644,
            )?;
        }
        packages.push(deb::pack(&release, &tree, directory)?);
    }
    Ok(packages)
}

/// Makes Debian's package of this version, in a directory of its own that `name` is part of.
pub(crate) fn package(name: &str) -> Result<PathBuf> {
    let directory = target().join("debian").join(format!("package-{name}"));
    let _lock = lock::hold(LOCK)?;
    let release = Release::of_this()?;
    remove(&directory)?;
    let program = Program::of(&release, Arch::Amd64)?;
    let tree = Tree::of_package(&release, Arch::Amd64, &program, tree::Family::Debian)?;
    deb::pack(&release, &tree, &directory)?;
    Ok(directory)
}

/// A version, and the time that all files of it carry.
#[derive(Debug)]
struct Release {
    version: String,
    /// Seconds since 1970: `SOURCE_DATE_EPOCH`.
    epoch: u64,
}

impl Release {
    fn of_this() -> Result<Self> {
        let text = match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(text) => text,
            Err(_) => process::output(command("git").args(["log", "-1", "--format=%ct"]).current_dir(root()))
                .context("outside a git clone, set SOURCE_DATE_EPOCH to the release's time (seconds)")?,
        };
        let epoch = text.trim().parse().with_context(|| format!("{text:?} is not a number of seconds"))?;
        Ok(Self { version: env!("CARGO_PKG_VERSION").to_owned(), epoch })
    }

    /// Returns a command whose output depends on no time but the release's.
    fn command(&self, program: &str) -> Command {
        let mut command = command(program);
        command.env("SOURCE_DATE_EPOCH", self.epoch.to_string()).env("TZ", "UTC");
        command
    }

    /// Returns the version of Debian's package.
    fn debian_version(&self) -> String {
        format!("{}-1", self.version)
    }

    /// Returns the name of Debian's package.
    fn deb(&self, arch: Arch) -> String {
        format!("memcg-monitor_{}_{}.deb", self.debian_version(), arch.name())
    }

    /// Returns the name of what is for an architecture.
    fn name(&self, arch: Arch) -> String {
        format!("memcg-monitor-{}-{}", self.version, arch.triple())
    }

    fn make(&self, wanted: &[Arch], directory: &Path) -> Result<()> {
        remove(directory)?;
        self.pack_all(wanted, directory)?;
        for &arch in wanted {
            sbom::write(self, arch, directory)?;
        }
        let mut names = file_names(directory)?;
        names.sort();
        let sums = process::output(command("sha256sum").args(&names).current_dir(directory))?;
        fs::write(directory.join(SUMS), sums).context("cannot write the checksums")
    }

    /// Writes all that is packed of programs that are built, and checks it.
    fn pack_all(&self, wanted: &[Arch], directory: &Path) -> Result<()> {
        let mut layouts = Vec::new();
        for &arch in wanted {
            println!("packing {} for {}", self.version, arch.name());
            let _lock = lock::hold(LOCK)?;
            let program = Program::of(self, arch)?;
            self.pack(arch, &program, directory)?;
            let layout = oci::write(self, arch, &program, directory)?;
            self.check(arch, &program, directory)?;
            oci::check(&layout, arch, &program)?;
            layouts.push((arch, layout));
        }
        if layouts.len() > 1 {
            oci::write_all(self, &layouts, directory)?;
        }
        Ok(())
    }

    /// Writes tarball and packages.
    fn pack(&self, arch: Arch, program: &Program, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let name = self.name(arch);
        let tree = Tree::of_tarball(self, arch, program)?;
        self.tar(&tree.directory, &[&name], &directory.join(format!("{name}.tar.gz")))?;
        fs::copy(&program.symbols, directory.join(format!("{name}.debug")))
            .context("cannot copy the symbols")?;
        deb::pack(self, &Tree::of_package(self, arch, program, tree::Family::Debian)?, directory)?;
        rpm::pack(self, &Tree::of_package(self, arch, program, tree::Family::Rpm)?, directory)
    }

    /// Fails unless each package has this program, and says for what it is.
    fn check(&self, arch: Arch, program: &Program, directory: &Path) -> Result<()> {
        let deb = directory.join(self.deb(arch));
        let field = process::output(command("dpkg-deb").arg("-f").arg(&deb).arg("Architecture"))?;
        ensure!(field.trim() == arch.name(), "{} is for {field}", short(&deb));
        let unpacked = target().join("dist-trees").join(arch.name()).join("unpacked");
        remove(&unpacked)?;
        fs::create_dir_all(&unpacked).with_context(|| format!("cannot make {}", unpacked.display()))?;
        process::run(command("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked))?;
        let tarball = directory.join(format!("{}.tar.gz", self.name(arch)));
        process::run(command("tar").arg("-xzf").arg(&tarball).arg("-C").arg(&unpacked))?;
        let bytes = program.bytes()?;
        for (package, path) in [
            (&deb, "usr/bin/memcg-monitor".to_owned()),
            (&tarball, format!("{}/bin/memcg-monitor", self.name(arch))),
        ] {
            let packed =
                fs::read(unpacked.join(&path)).with_context(|| format!("{path} of {}", short(package)))?;
            ensure!(packed == bytes, "{} has another program", short(package));
        }
        remove(&unpacked)?;
        rpm::check(&rpm::path(self, arch, directory), arch, &oci::sha256(&program.stripped)?)
    }

    /// Packs what lies in a directory so that the same files make the same bytes.
    fn tar(&self, directory: &Path, names: &[&str], archive: &Path) -> Result<()> {
        let mut tar = self.command("tar");
        tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=posix"])
            .args(["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"])
            .arg(format!("--mtime=@{}", self.epoch))
            .arg("-C")
            .arg(directory);
        if archive.extension().is_some_and(|extension| extension == "gz") {
            // Without the name and the time that gzip adds.
            tar.args(["-I", "gzip -9n"]);
        }
        process::run(tar.arg("-cf").arg(archive).args(names))
    }
}

fn file_names(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

/// Fails unless two directories have the same files with the same bytes.
fn compare(one: &Path, other: &Path) -> Result<()> {
    let (mut names, mut others) = (file_names(one)?, file_names(other)?);
    names.sort();
    others.sort();
    ensure!(names == others, "{names:?} were made first, then {others:?}");
    for name in &names {
        let read = |directory: &Path| {
            fs::read(directory.join(name))
                .with_context(|| format!("cannot read {name} in {}", directory.display()))
        };
        ensure!(
            read(one)? == read(other)?,
            "{name} has other bytes when it is made again; both are kept: {} and {}",
            short(one),
            short(other)
        );
    }
    Ok(())
}
