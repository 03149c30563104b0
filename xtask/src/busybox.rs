//! Busybox, the VM's shell and its small programs.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::apt;
use crate::setup::{self, Need};
use crate::workspace::tools;

/// The static busybox of Debian's package.
#[derive(Debug)]
pub(crate) struct Busybox;

impl Need for Busybox {
    fn name(&self) -> &'static str {
        "busybox"
    }

    fn find(&self) -> Result<String> {
        setup::file(&program()).map(|path| format!("VM shell {path}"))
    }

    fn fetch(&self) -> Result<()> {
        println!("setup: downloading busybox-static");
        let parent = tools();
        fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
        apt::Source::system()?.unpack(&["busybox-static".to_owned()], &unpacked())
    }
}

/// Returns the path of the program.
pub(crate) fn program() -> PathBuf {
    unpacked().join("bin/busybox")
}

fn unpacked() -> PathBuf {
    tools().join("busybox")
}
