//! Busybox, the VM's shell and its small programs.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::apt;
use crate::arch::Arch;
use crate::setup::{self, Need};
use crate::workspace::tools;

/// The static busybox of Debian's package, for an architecture.
#[derive(Debug)]
pub(crate) struct Busybox(pub(crate) Arch);

impl Need for Busybox {
    fn name(&self) -> &'static str {
        match self.0 {
            Arch::Amd64 => "busybox",
            Arch::Arm64 => "busybox-arm64",
        }
    }

    fn find(&self) -> Result<String> {
        setup::file(&program(self.0)).map(|path| format!("VM shell {path}"))
    }

    fn fetch(&self) -> Result<()> {
        println!("setup: downloading busybox-static for {}", self.0.name());
        let parent = tools();
        fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
        apt::Source::of(self.0, None)?.unpack(&["busybox-static".to_owned()], &unpacked(self.0))
    }
}

/// Returns the path of the program.
pub(crate) fn program(arch: Arch) -> PathBuf {
    unpacked(arch).join("bin/busybox")
}

fn unpacked(arch: Arch) -> PathBuf {
    tools().join(Busybox(arch).name())
}
