//! The program as it is packed: without its symbols, which lie in a file of their own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Release;
use crate::arch::Arch;
use crate::build;
use crate::clients::remove;
use crate::process::{self, command};
use crate::workspace::target;

/// The two files that a build is split into.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) stripped: PathBuf,
    /// The names of functions, for a debugger or a profiler; the program names this file.
    pub(super) symbols: PathBuf,
}

/// Returns the ELF format's number of a processor.
const fn machine(arch: Arch) -> u16 {
    match arch {
        Arch::Amd64 => 62,
        Arch::Arm64 => 183,
    }
}

/// The program of Debian's binutils that reads and writes programs for an architecture.
const fn objcopy(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "objcopy",
        Arch::Arm64 => "aarch64-linux-gnu-objcopy",
    }
}

impl Program {
    /// Splits what a build has made.
    pub(super) fn of(release: &Release, arch: Arch) -> Result<Self> {
        let directory = target().join("dist-trees").join(arch.name()).join("program");
        remove(&directory)?;
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let built = build::built_guest(arch).monitor;
        let stripped = directory.join("memcg-monitor");
        let symbols = directory.join(format!("{}.debug", release.name(arch)));
        process::run(command(objcopy(arch)).arg("--only-keep-debug").arg(&built).arg(&symbols))?;
        let mut link = std::ffi::OsString::from("--add-gnu-debuglink=");
        link.push(&symbols);
        process::run(command(objcopy(arch)).arg("--strip-all").arg(link).arg(&built).arg(&stripped))?;
        let program = Self { stripped, symbols };
        program.check(arch)?;
        Ok(program)
    }

    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        read(&self.stripped)
    }

    /// Fails unless it is for this architecture and names no directory of this machine.
    fn check(&self, arch: Arch) -> Result<()> {
        let bytes = self.bytes()?;
        let number = bytes.get(18..20).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        ensure!(
            bytes.starts_with(b"\x7fELF") && number == Some(machine(arch)),
            "{} is no program for {}: its machine is {number:?}",
            self.stripped.display(),
            arch.name()
        );
        let directories = build::directories(arch)?;
        for file in [&self.stripped, &self.symbols] {
            if let Some(directory) = named(&read(file)?, &directories) {
                anyhow::bail!(
                    "{} names {directory}, so a build elsewhere has other bytes; xtask/src/ebpf.rs lists \
                     the directories that the compilers replace",
                    file.display()
                );
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Finds the first of these directories that the bytes contain.
fn named(bytes: &[u8], directories: &[PathBuf]) -> Option<String> {
    let texts = directories.iter().map(|path| path.display().to_string());
    texts.into_iter().find(|text| {
        let first = text.as_bytes()[0];
        // By the first byte, which a debug build of this finds soon enough.
        let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == first);
        starts.into_iter().any(|(at, _)| bytes[at..].starts_with(text.as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::root;

    #[test]
    fn a_directory_is_found_anywhere_in_a_program() {
        let directories = [root().to_owned(), PathBuf::from("/registry")];
        let with = |text: &str| [b"\x7fELF\0\0//", text.as_bytes(), b"/src/main.rs\0"].concat();
        assert_eq!(named(&with("/registry"), &directories).as_deref(), Some("/registry"));
        assert_eq!(
            named(&with(&root().display().to_string()), &directories),
            Some(root().display().to_string())
        );
        assert_eq!(named(&with("/memcg-monitor"), &directories), None);
    }
}
