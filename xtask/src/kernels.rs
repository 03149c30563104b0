//! The kernels that the VM boots: by their names in a table, or by their paths.

mod image;
mod table;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use self::table::{PACKAGED, Packaged};
use crate::arch::Arch;
use crate::setup::Need;
use crate::{apt, workspace};

/// A kernel image that the VM can boot.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// The name in the table, or the path.
    pub(crate) label: String,
    pub(crate) arch: Arch,
    /// The version, as in `uname -r`.
    pub(crate) release: String,
    pub(crate) image: PathBuf,
    /// `lib/modules/RELEASE`, where there is one.
    pub(crate) modules: Option<PathBuf>,
}

/// A kernel by its label or path, as a prerequisite.
#[derive(Debug)]
pub(crate) struct KernelImage<'a>(pub(crate) &'a str);

impl Need for KernelImage<'_> {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn find(&self) -> Result<String> {
        let name = self.0;
        let kernel = find(name)?.with_context(|| format!("kernel {name} is not here yet"))?;
        let remark = remark(&kernel).map_or(String::new(), |text| format!(" ({text})"));
        Ok(format!("kernel {name}: {}{remark}", kernel.release))
    }

    fn fetch(&self) -> Result<()> {
        fetch(self.0)
    }
}

/// The kernel that `run` and `bench` take by default.
pub(crate) const NEWEST: &str = "7.2";

/// The oldest that the agent works on, and the last with cgroup v1.
pub(crate) const OLDEST: &str = "6.1";

/// The newest for arm64.
const NEWEST_ARM64: &str = "7.2-arm64";

/// Returns the kernel that is taken where none is named.
pub(crate) fn newest(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => NEWEST,
        Arch::Arm64 => NEWEST_ARM64,
    }
}

/// The names of all kernels in the table.
pub(crate) fn labels() -> impl Iterator<Item = &'static str> {
    PACKAGED.iter().map(|row| row.label)
}

/// Returns whether a kernel has cgroup v1, or None for a path, which may be any kernel.
pub(crate) fn has_v1(name: &str) -> Option<bool> {
    packaged(name).map(|row| row.v1)
}

/// Returns a kernel's architecture; a path is read.
pub(crate) fn arch(name: &str) -> Result<Arch> {
    packaged(name).map_or_else(|| Ok(from_image(name, Path::new(name))?.arch), |row| Ok(row.arch))
}

/// Reads the value of an option `--kernel`: a name in the table, with or without its
/// architecture, or a kernel's path.
pub(crate) fn parse(name: &str) -> Result<String, String> {
    if packaged(name).is_some() || PACKAGED.iter().any(|row| row.short() == name) {
        return Ok(name.to_owned());
    }
    let image = Path::new(name);
    if !image.is_file() {
        return Err(choices());
    }
    from_image(name, image).map(|_| name.to_owned()).map_err(|error| format!("{error:#}; {}", choices()))
}

/// Reads such a value where no option `--arch` completes it.
pub(crate) fn parse_complete(name: &str) -> Result<String, String> {
    complete(None, &parse(name)?).map_err(|error| format!("{error:#}"))
}

/// Reads such a value where only x86-64 will do.
pub(crate) fn parse_amd64(name: &str) -> Result<String, String> {
    complete(Some(Arch::Amd64), &parse(name)?).map_err(|error| format!("{error:#}"))
}

/// Returns the name of the kernel that `name` means with the option `--arch`: 6.12 is
/// 6.12-arm64 there.
pub(crate) fn complete(wanted: Option<Arch>, name: &str) -> Result<String> {
    let of_arch = |row: &&Packaged| Some(row.arch) == wanted && row.short() == name;
    if let Some(row) = PACKAGED.iter().find(of_arch) {
        return Ok(row.label.to_owned());
    }
    if let (None, None, Some(row)) = (wanted, packaged(name), PACKAGED.iter().find(|row| row.short() == name))
    {
        bail!("kernel {name} is for {} only; give --kernel {}", row.arch.name(), row.label);
    }
    if let Some(wanted) = wanted {
        let others = PACKAGED.iter().filter(|row| row.arch == wanted).map(Packaged::short);
        ensure!(
            packaged(name).map_or_else(|| arch(name).ok(), |row| Some(row.arch)) == Some(wanted),
            "kernel {name} is not for {}; those are {}",
            wanted.name(),
            others.collect::<Vec<_>>().join(", ")
        );
    }
    Ok(name.to_owned())
}

/// Returns a line on each kernel of the table; `tested` are those that a whole run boots.
pub(crate) fn list(tested: &[&str]) -> String {
    let mut text = String::new();
    for row in &PACKAGED {
        let here = directory(row.label).is_dir();
        let remarks = [(tested.contains(&row.label), "tested"), (row.v1, "cgroup v1"), (here, "is here")];
        let remarks: Vec<_> = remarks.iter().filter(|(applies, _)| *applies).map(|(_, text)| *text).collect();
        let suite = row.suite.unwrap_or("this release");
        let _ = writeln!(text, "{:15} {:32} {suite:17} {}", row.label, row.package, remarks.join(", "));
    }
    text
}

/// Finds the kernel if it is already here.
fn find(name: &str) -> Result<Option<Kernel>> {
    if packaged(name).is_none() {
        let image = Path::new(name);
        ensure!(image.is_file(), "no kernel {name}: {}", choices());
        return Ok(Some(from_image(name, image)?));
    }
    let directory = directory(name);
    if !directory.is_dir() {
        return Ok(None);
    }
    let image = image_in(&directory)
        .with_context(|| format!("remove {} and run `cargo xtask setup`", directory.display()))?;
    Ok(Some(from_image(name, &image)?))
}

/// Returns the kernel, which setup has provided.
pub(crate) fn get(name: &str) -> Result<Kernel> {
    find(name)?.with_context(|| format!("kernel {name} is not here; run `cargo xtask setup`"))
}

/// Downloads a kernel by its name in the table.
fn fetch(name: &str) -> Result<()> {
    let row = packaged(name).with_context(|| format!("no kernel {name}: {}", choices()))?;
    let source = apt::Source::of(row.arch, row.suite)?;
    let packages = image_packages(&source, row.package)?;
    println!("setup: downloading {}", packages.join(" "));
    source.unpack(&packages, &directory(name))?;
    let kernel = find(name)?.with_context(|| {
        format!("{} holds no kernel; remove it and run `cargo xtask setup`", directory(name).display())
    })?;
    println!("setup: kernel {name} is {}", kernel.release);
    Ok(())
}

/// Returns a remark on a kernel whose package has moved on past its label, or lacks its
/// modules.
pub(crate) fn remark(kernel: &Kernel) -> Option<String> {
    let version = packaged(&kernel.label)?.version();
    let same = kernel
        .release
        .strip_prefix(version)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
    let moved = (!same).then(|| format!("the archive has moved on from {version} to {}", kernel.release));
    let bare = kernel.modules.is_none().then(|| "the archive has its image alone: no swap".to_owned());
    let remarks: Vec<_> = moved.into_iter().chain(bare).collect();
    (!remarks.is_empty()).then(|| remarks.join("; "))
}

fn packaged(name: &str) -> Option<&'static Packaged> {
    PACKAGED.iter().find(|row| row.label == name)
}

fn choices() -> String {
    let labels: Vec<_> = labels().collect();
    format!("give one of {} or the path of a vmlinuz", labels.join(", "))
}

fn directory(name: &str) -> PathBuf {
    workspace::target().join("kernels").join(name)
}

/// The packages of an image. Older ones are one package; newer ones only depend on
/// `linux-binary-*` and `linux-modules-*`.
fn image_packages(source: &apt::Source, package: &str) -> Result<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    if let Some((prefix, suffix)) = package.split_once('*') {
        let newest = newest_of(&source.names(prefix)?, suffix);
        found.push(newest.with_context(|| format!("the archive offers no {package} now"))?);
    }
    let mut open = found.clone();
    if open.is_empty() {
        open.push(package.to_owned());
    }
    while let Some(package) = open.pop() {
        for name in source.depends(&package)? {
            let part = ["linux-image-", "linux-binary-", "linux-modules-"]
                .iter()
                .any(|prefix| name.starts_with(prefix));
            if part && !found.contains(&name) {
                found.push(name.clone());
                open.push(name);
            }
        }
    }
    ensure!(
        !found.is_empty(),
        "the package {package} depends on no kernel image; run `apt-get update` as root, then try again"
    );
    Ok(found)
}

/// The name with the highest numbers, of those that end in `suffix`.
fn newest_of(names: &[String], suffix: &str) -> Option<String> {
    let numbers = |name: &str| {
        let words = name.split(|c: char| !c.is_ascii_digit());
        words.filter_map(|word| word.parse().ok()).collect::<Vec<u32>>()
    };
    names.iter().filter(|name| name.ends_with(suffix)).max_by_key(|name| numbers(name)).cloned()
}

/// Finds `boot/vmlinuz-RELEASE` or `[usr/]lib/modules/RELEASE/vmlinuz`.
fn image_in(directory: &Path) -> Result<PathBuf> {
    for (sub, inner) in
        [("boot", None), ("usr/lib/modules", Some("vmlinuz")), ("lib/modules", Some("vmlinuz"))]
    {
        let Ok(entries) = fs::read_dir(directory.join(sub)) else {
            continue;
        };
        for entry in entries {
            let mut path = entry?.path();
            if let Some(inner) = inner {
                path.push(inner);
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("vmlinuz") && path.is_file() {
                return Ok(path);
            }
        }
    }
    bail!("no vmlinuz in {}", directory.display())
}

fn from_image(label: &str, path: &Path) -> Result<Kernel> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (arch, release) = image::read(path, &bytes).with_context(|| {
        format!("{} is no bootable kernel for x86-64 (bzImage) or arm64 (Image)", path.display())
    })?;
    let modules = path
        .ancestors()
        .skip(1)
        .flat_map(|directory| {
            ["usr/lib/modules", "lib/modules"].map(|sub| directory.join(sub).join(&release))
        })
        .find(|directory| directory.join("kernel").is_dir());
    Ok(Kernel { label: label.to_owned(), arch, release, image: path.to_path_buf(), modules })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_not_a_prefix_of_a_longer_number() {
        let kernel = |label: &str, release: &str| Kernel {
            label: label.to_owned(),
            arch: Arch::Amd64,
            release: release.to_owned(),
            image: PathBuf::new(),
            modules: Some(PathBuf::new()),
        };
        assert_eq!(remark(&kernel("6.1", "6.1.0-56-cloud-amd64")), None);
        assert_eq!(remark(&kernel("6.12-arm64-16k", "6.12.117+deb12-arm64-16k")), None);
        assert!(remark(&kernel("6.1", "6.12.117")).is_some());
        assert!(remark(&kernel("7.2-rt", "7.3.1")).is_some());
        let bare = Kernel { modules: None, ..kernel("7.1", "7.1.13") };
        assert!(remark(&bare).is_some_and(|text| text.contains("no swap")));
    }

    #[test]
    fn a_kernel_is_refused_with_the_choices() {
        assert_eq!(parse("6.1").as_deref(), Ok("6.1"));
        let text = parse("9.9").expect_err("no kernel");
        assert!(text.starts_with("give one of 6.1, 6.12, 7.2, "), "{text}");
        assert!(text.contains(", 6.12-rt, ") && text.ends_with(" or the path of a vmlinuz"), "{text}");
        let choices = text;
        let text = parse(file!()).or_else(|_| parse("/proc/version")).expect_err("no kernel");
        assert!(text.contains("is no bootable kernel") && text.ends_with(&choices), "{text}");
    }

    #[test]
    fn an_architecture_completes_the_name_of_a_kernel() {
        for (arch, name, label) in [
            (None, "6.12", "6.12"),
            (None, "6.12-arm64-16k", "6.12-arm64-16k"),
            (Some(Arch::Amd64), "6.12-rt", "6.12-rt"),
            (Some(Arch::Arm64), "6.12", "6.12-arm64"),
            (Some(Arch::Arm64), "6.12-16k", "6.12-arm64-16k"),
            (Some(Arch::Arm64), "6.12-arm64-16k", "6.12-arm64-16k"),
        ] {
            assert_eq!(complete(arch, name).expect(name), label);
            assert_eq!(super::arch(label).expect(label), arch.unwrap_or(super::arch(label).expect(label)));
        }
        let refusal = |arch, name| complete(arch, name).expect_err(name).to_string();
        assert!(refusal(None, "6.12-16k").contains("give --kernel 6.12-arm64-16k"));
        assert!(refusal(Some(Arch::Arm64), "6.12-rt").contains("those are 5.10, 6.1, 6.12, 7.2, "));
        assert!(refusal(Some(Arch::Amd64), "6.12-arm64").contains("is not for amd64"));
        assert_eq!(parse("6.12-16k").as_deref(), Ok("6.12-16k"));
        assert!(parse_complete("6.12-16k").is_err() && parse_amd64("6.12-arm64").is_err());
        for arch in [Arch::Amd64, Arch::Arm64] {
            assert_eq!(super::arch(newest(arch)).expect("in the table"), arch);
        }
    }

    #[test]
    fn the_newest_package_of_a_kind_is_taken() {
        let names = [
            "linux-image-6.16.3+deb13-cloud-amd64",
            "linux-image-6.16.12+deb13-cloud-amd64",
            "linux-image-6.16.12+deb13-cloud-amd64-dbg",
            "linux-image-6.16.13+deb13-rt-amd64",
        ];
        let names = names.map(str::to_owned);
        assert_eq!(newest_of(&names, "-cloud-amd64").as_ref(), Some(&names[1]));
        assert_eq!(newest_of(&names, "-cloud-arm64"), None);
    }

    #[test]
    fn the_list_has_a_line_for_each_kernel() {
        let text = list(&["6.12-rt"]);
        assert_eq!(text.lines().count(), labels().count());
        let line = text.lines().find(|line| line.starts_with("6.12-rt ")).expect("a line");
        assert!(line.contains("linux-image-6.12-rt-amd64") && line.contains("tested"), "{line}");
    }
}
