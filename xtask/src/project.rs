//! The project that the benchmark `build` compiles in the VM, and its compiler: zlib's
//! own sources, and Debian's gcc, binutils and make, unpacked below `target/`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::apt;
use crate::clients::{Packed, make, remove, tarball_in};
use crate::process::{self, command};
use crate::setup::Need;
use crate::workspace::{short, target, tools};

/// A source package that a plain makefile builds, without a configure script.
const SOURCE: &str = "zlib";
/// The directory of its sources in the VM.
const IN_VM: &str = "usr/src/project";

/// Packages to begin with, and the names of those to follow from there.
const PACKAGES: [&str; 4] = ["gcc", "binutils", "make", "libc6-dev"];
const FOLLOWED: [&str; 13] = [
    "gcc-",
    "cpp",
    "libgcc-",
    "binutils-",
    "libbinutils",
    "libgmp",
    "libisl",
    "libmpc",
    "libmpfr",
    "libzstd",
    "zlib1g",
    "libc6",
    "linux-libc-dev",
];

const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
/// The first letters of the libraries that compiler, assembler, archiver and make load.
const LOADED: [&str; 11] = [
    "libc.so.",
    "libm.so.",
    "libdl.so.",
    "libz.so.",
    "libzstd.so.",
    "libgmp.so.",
    "libmpfr.so.",
    "libmpc.so.",
    "libisl.so.",
    "libbfd-",
    "libsframe.so.",
];
/// Directories whose headers are all taken; of large ones, single files are.
const HEADERS: [&str; 4] = [
    "usr/include/x86_64-linux-gnu/bits",
    "usr/include/x86_64-linux-gnu/sys",
    "usr/include/x86_64-linux-gnu/gnu",
    "usr/include/x86_64-linux-gnu/asm",
];
const KERNEL_HEADERS: [&str; 4] =
    ["linux/errno.h", "linux/limits.h", "asm-generic/errno.h", "asm-generic/errno-base.h"];
const COMPILER_HEADERS: [&str; 4] = ["limits.h", "stdarg.h", "stddef.h", "syslimits.h"];

/// The sources that the benchmark `build` compiles, and a compiler for the VM.
#[derive(Debug)]
pub(crate) struct Project;

impl Need for Project {
    fn name(&self) -> &'static str {
        "project"
    }

    fn find(&self) -> Result<String> {
        let (compiler, makefile) = (compiler()?, sources().join("Makefile.in"));
        ensure!(makefile.is_file(), "there is no {}", short(&makefile));
        Ok(format!("{SOURCE}'s sources, and a compiler for the VM {}", short(&compiler)))
    }

    fn fetch(&self) -> Result<()> {
        if compiler().is_err() {
            println!("setup: downloading gcc, binutils and make for the VM, into target/ only");
            let system = apt::Source::system()?;
            system.unpack(&packages(&system)?, &root())?;
        }
        if sources().join("Makefile.in").is_file() {
            return Ok(());
        }
        if !process::exists("bzip2") {
            apt::install(&["bzip2"])?;
        }
        println!("setup: downloading the sources of {SOURCE}");
        let directory = target().join("project/download");
        remove(&directory)?;
        apt::Source::sources()?.download_source(SOURCE, &directory)?;
        let partial = target().join("project/partial");
        remove(&partial)?;
        make(&partial)?;
        let tarball = tarball_in(&directory)?;
        process::run(
            command("tar").args(["--strip-components=1", "-xf"]).arg(&tarball).arg("-C").arg(&partial),
        )?;
        fs::rename(&partial, sources()).context("cannot rename the sources into place")?;
        remove(&directory)
    }
}

/// Lists the files for one build in the VM: some 45 MB.
pub(crate) fn pack() -> Result<Vec<Packed>> {
    let mut packed = Vec::new();
    let mut add = |path: String, from: PathBuf| packed.push(Packed { path, from });
    let compiler = compiler()?;
    let home = compiler.parent().context("cc1 is in a directory")?;
    let version = home.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let in_vm = format!("usr/lib/gcc/x86_64-linux-gnu/{version}");

    for (name, from) in [
        ("cc", format!("x86_64-linux-gnu-gcc-{version}")),
        ("as", "x86_64-linux-gnu-as".to_owned()),
        ("ar", "x86_64-linux-gnu-ar".to_owned()),
        ("make", "make".to_owned()),
    ] {
        add(format!("usr/bin/{name}"), root().join("usr/bin").join(from));
    }
    add(format!("{in_vm}/cc1"), compiler.clone());
    for name in COMPILER_HEADERS {
        add(format!("{in_vm}/include/{name}"), home.join("include").join(name));
    }
    let loader = "ld-linux-x86-64.so.2";
    add(format!("lib64/{loader}"), root().join(LIBRARIES[0]).join(loader));
    for prefix in LOADED {
        let from = library(prefix)?;
        let name = from.file_name().unwrap_or_default().to_string_lossy();
        add(format!("{}/{name}", LIBRARIES[0]), from.clone());
    }
    for name in KERNEL_HEADERS {
        add(format!("usr/include/{name}"), root().join("usr/include").join(name));
    }
    // Without what is below: C++, and what programs rarely include.
    for from in files(&root().join("usr/include"))? {
        add(format!("usr/include/{}", name(&from)), from);
    }
    for directory in HEADERS {
        let mut open = vec![root().join(directory)];
        while let Some(directory) = open.pop() {
            for from in files(&directory)? {
                let path = from.strip_prefix(root()).context("it is below")?.display().to_string();
                add(path, from);
            }
            open.extend(list(&directory)?.into_iter().filter(|path| path.is_dir()));
        }
    }
    for from in files(&sources())? {
        add(format!("{IN_VM}/{}", name(&from)), from);
    }
    Ok(packed)
}

/// Returns the directory of the unpacked packages.
fn root() -> PathBuf {
    tools().join("gcc")
}

fn sources() -> PathBuf {
    target().join("project").join(SOURCE)
}

/// The compiler proper, whose directory has a version.
fn compiler() -> Result<PathBuf> {
    let directory = root().join("usr/lib/gcc/x86_64-linux-gnu");
    list(&directory)?
        .into_iter()
        .map(|version| version.join("cc1"))
        .find(|path| path.is_file())
        .with_context(|| format!("there is no cc1 in {}; `cargo xtask setup` unpacks it", short(&directory)))
}

/// Lists what the first packages need, as far as the VM does.
fn packages(source: &apt::Source) -> Result<Vec<String>> {
    let mut packages: Vec<String> = PACKAGES.map(str::to_owned).to_vec();
    let mut at = 0;
    while let Some(package) = packages.get(at) {
        for name in source.depends(package)? {
            if FOLLOWED.iter().any(|prefix| name.starts_with(prefix)) && !packages.contains(&name) {
                packages.push(name);
            }
        }
        at += 1;
    }
    Ok(packages)
}

/// Finds the library under the name that programs load it by, the shortest.
fn library(prefix: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for directory in LIBRARIES {
        found
            .extend(list(&root().join(directory))?.into_iter().filter(|path| name(path).starts_with(prefix)));
    }
    found.into_iter().min_by_key(|path| name(path).len()).with_context(|| {
        format!("Debian's compiler lacks {prefix}*; remove target/tools/gcc and run `cargo xtask setup`")
    })
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The plain files of a directory.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    Ok(list(directory)?.into_iter().filter(|path| path.is_file()).collect())
}

/// Lists a directory in sorted order, so that the VM is the same each time.
fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("there is no {}", short(directory)))?;
    let mut paths: Vec<_> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}
