//! The tools of a build for arm64 on this machine: Debian's cross linker, and the standard
//! library for that target, unpacked below `target/`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::apt;
use crate::arch::Arch;
use crate::clients::remove;
use crate::process::{self, command};
use crate::setup::{self, Need};
use crate::workspace::{short, target, tools};

/// The prerequisites of a build for arm64.
pub(crate) const NEEDS: [&dyn Need; 2] = [&CrossLinker, &Library];

const ARCH: Arch = Arch::Arm64;

/// Debian's gcc for the target, which links what Rust has compiled.
const LINKER: &str = "aarch64-linux-gnu-gcc";

/// Debian's compiler that the package of the library is made with.
const COMPILER: &str = "/usr/bin/rustc";

/// The package with the library, as rlibs.
const PACKAGE: &str = "libstd-rust-web-dev";

/// A linker for arm64, with the C library for that.
#[derive(Debug)]
pub(crate) struct CrossLinker;

/// A standard library for arm64, and the compiler that can read it.
#[derive(Debug)]
pub(crate) struct Library;

impl Need for CrossLinker {
    fn name(&self) -> &'static str {
        "linker-arm64"
    }

    fn find(&self) -> Result<String> {
        let program = setup::programs(&[LINKER])?;
        let name = process::output(command(LINKER).arg("-print-file-name=libc.a"))?;
        // A name without a directory is one that was not found.
        ensure!(Path::new(name.trim()).is_absolute(), "{LINKER} has no static C library");
        Ok(format!("linker for arm64 {program}"))
    }

    fn fetch(&self) -> Result<()> {
        apt::install(&["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"])
    }
}

impl Need for Library {
    fn name(&self) -> &'static str {
        "library-arm64"
    }

    fn find(&self) -> Result<String> {
        if rustup_has_it() {
            return Ok(format!("the compiler's library for {}", ARCH.triple()));
        }
        compiles(COMPILER, &sysroot())?;
        Ok(format!("library for {} {}", ARCH.triple(), short(&sysroot())))
    }

    /// Gets compiler and library of one version: each reads only what it has made.
    fn fetch(&self) -> Result<()> {
        apt::install(&["rustc-web"])?;
        println!("setup: downloading {PACKAGE} for arm64, into target/ only");
        fs::create_dir_all(tools()).with_context(|| format!("cannot make {}", tools().display()))?;
        remove(&directory())?;
        apt::Source::of(ARCH, None)?.unpack(&[PACKAGE.to_owned()], &directory())
    }
}

/// Sets up cargo to build programs for arm64. Returns the compiler, and its options.
pub(crate) fn prepare(cargo: &mut Command) -> (&'static str, Vec<OsString>) {
    cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER);
    if rustup_has_it() {
        return ("rustc", Vec::new());
    }
    cargo.env("RUSTC", COMPILER);
    // Only for the target: build scripts and macros are this machine's.
    (COMPILER, vec!["--sysroot".into(), sysroot().into()])
}

/// Whether the usual compiler has a library for the target: `rustup target add` does that.
fn rustup_has_it() -> bool {
    let query = ["--print", "target-libdir", "--target", ARCH.triple()];
    process::output(command("rustc").args(query)).is_ok_and(|path| Path::new(path.trim()).is_dir())
}

fn directory() -> PathBuf {
    tools().join("library-arm64")
}

fn sysroot() -> PathBuf {
    directory().join("usr")
}

/// Compiles an empty crate, since a library of another version is of no use.
fn compiles(rustc: &str, sysroot: &Path) -> Result<()> {
    ensure!(sysroot.is_dir(), "there is no library for {} at {}", ARCH.triple(), short(sysroot));
    process::output(
        command(rustc)
            .args(["--crate-type", "lib", "--crate-name", "empty", "--emit", "metadata"])
            .args(["--target", ARCH.triple(), "--sysroot"])
            .arg(sysroot)
            .arg("-o")
            .arg(target().join("empty-arm64.rmeta"))
            .arg("/dev/null"),
    )
    .with_context(|| format!("{rustc} cannot use the library at {}", short(sysroot)))?;
    Ok(())
}
