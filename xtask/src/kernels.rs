//! The kernels that the project is tested on, and the package of each.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::setup::Need;
use crate::{apt, workspace};

/// A kernel image that the VM can boot.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// The name in the table, or the path.
    pub(crate) label: String,
    /// The version in its boot header, as in `uname -r`.
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

/// A row of the kernel table. A new kernel is a new row.
#[derive(Debug)]
struct Packaged {
    label: &'static str,
    /// The package that depends on the newest image.
    meta: &'static str,
    /// The suite of the package; None: the machine's own sources.
    suite: Option<&'static str>,
    /// True if it has the memory controller of cgroup v1.
    v1: bool,
}

const PACKAGED: [Packaged; 3] = [
    Packaged { label: "6.1", meta: "linux-image-cloud-amd64", suite: None, v1: true },
    Packaged { label: "6.12", meta: "linux-image-6.12-cloud-amd64", suite: None, v1: false },
    Packaged { label: "7.2", meta: "linux-image-cloud-amd64", suite: Some("sid"), v1: false },
];

/// The kernel that `run` and `bench` take by default.
pub(crate) const NEWEST: &str = "7.2";

/// The names of all kernels in the table.
pub(crate) fn labels() -> impl Iterator<Item = &'static str> {
    PACKAGED.iter().map(|row| row.label)
}

/// The names of the kernels in the table that have cgroup v1.
pub(crate) fn with_v1() -> impl Iterator<Item = &'static str> {
    PACKAGED.iter().filter(|row| row.v1).map(|row| row.label)
}

/// Returns whether a kernel has cgroup v1, or None for a path, which may be any kernel.
pub(crate) fn has_v1(name: &str) -> Option<bool> {
    packaged(name).map(|row| row.v1)
}

/// Reads the value of an option `--kernel`: a name in the table or a kernel's path.
pub(crate) fn parse(name: &str) -> Result<String, String> {
    if packaged(name).is_some() {
        return Ok(name.to_owned());
    }
    let image = Path::new(name);
    if !image.is_file() {
        return Err(choices());
    }
    from_image(name, image).map(|_| name.to_owned()).map_err(|error| format!("{error:#}; {}", choices()))
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
    let source = match row.suite {
        Some(suite) => apt::Source::suite(suite)?,
        None => apt::Source::system()?,
    };
    let packages = image_packages(&source, row.meta)?;
    println!("setup: downloading {}", packages.join(" "));
    source.unpack(&packages, &directory(name))?;
    let kernel = find(name)?.with_context(|| {
        format!("{} holds no kernel; remove it and run `cargo xtask setup`", directory(name).display())
    })?;
    println!("setup: kernel {name} is {}", kernel.release);
    Ok(())
}

/// Returns a remark on a kernel whose package has moved on past its label.
pub(crate) fn remark(kernel: &Kernel) -> Option<String> {
    packaged(&kernel.label)?;
    let same = kernel
        .release
        .strip_prefix(&kernel.label)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
    (!same).then(|| format!("the archive has moved on from {} to {}", kernel.label, kernel.release))
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

/// The image behind a meta-package. Older ones are one package; newer ones
/// only depend on `linux-binary-*` and `linux-modules-*`.
fn image_packages(source: &apt::Source, meta: &str) -> Result<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    let mut open = vec![meta.to_owned()];
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
        "the package {meta} depends on no kernel image; run `apt-get update` as root, then try again"
    );
    Ok(found)
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

fn from_image(label: &str, image: &Path) -> Result<Kernel> {
    let bytes = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    let release = release_of(&bytes)
        .with_context(|| format!("{} is not a bootable x86 kernel (bzImage)", image.display()))?;
    let modules = image
        .ancestors()
        .skip(1)
        .flat_map(|directory| {
            ["usr/lib/modules", "lib/modules"].map(|sub| directory.join(sub).join(&release))
        })
        .find(|directory| directory.join("kernel").is_dir());
    Ok(Kernel { label: label.to_owned(), release, image: image.to_path_buf(), modules })
}

/// The version string that the boot header points to (Documentation/arch/x86/boot.rst).
fn release_of(image: &[u8]) -> Option<String> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let offset = u16::from_le_bytes(image.get(0x20e..0x210)?.try_into().ok()?);
    let text = image.get(0x200 + usize::from(offset)..)?;
    let end = text.iter().position(|byte| matches!(byte, 0 | b' '))?;
    Some(String::from_utf8_lossy(text.get(..end)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_header_tells_the_release() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x30a].copy_from_slice(b"7.2.1-arm ");
        assert_eq!(release_of(&image).as_deref(), Some("7.2.1-arm"));
        assert_eq!(release_of(b"short"), None);
    }

    #[test]
    fn a_label_is_not_a_prefix_of_a_longer_number() {
        let kernel = |label: &str, release: &str| Kernel {
            label: label.to_owned(),
            release: release.to_owned(),
            image: PathBuf::new(),
            modules: None,
        };
        assert_eq!(remark(&kernel("6.1", "6.1.0-56-cloud-amd64")), None);
        assert!(remark(&kernel("6.1", "6.12.117")).is_some());
        assert!(remark(&kernel("7.2", "7.3.1")).is_some());
    }

    #[test]
    fn a_kernel_is_refused_with_the_choices() {
        assert_eq!(parse("6.1").as_deref(), Ok("6.1"));
        let choices = "give one of 6.1, 6.12, 7.2 or the path of a vmlinuz";
        assert_eq!(parse("9.9"), Err(choices.to_owned()));
        let text = parse(file!()).or_else(|_| parse("/proc/version")).expect_err("no kernel");
        assert!(text.contains("is not a bootable x86 kernel") && text.ends_with(choices), "{text}");
    }
}
