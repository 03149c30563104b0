//! The compiler and the linker for the eBPF programs, as prerequisites.

use std::path::Path;

use anyhow::{Result, anyhow};

use crate::setup::Need;
use crate::workspace::{root, short};
use crate::{apt, cargo_install, ebpf};

/// The prerequisites of every build of the workspace.
pub(crate) const NEEDS: [&dyn Need; 2] = [&Compiler, &Linker];

/// A rustc for the BPF target.
#[derive(Debug)]
pub(crate) struct Compiler;

/// A bpf-linker that is built with the compiler's LLVM.
#[derive(Debug)]
pub(crate) struct Linker;

impl Need for Compiler {
    fn name(&self) -> &'static str {
        "compiler"
    }

    fn find(&self) -> Result<String> {
        let compiler = ebpf::find_compiler().map_err(|error| anyhow!(error))?;
        let core = if compiler.build_std { "rust-src" } else { "a ready core" };
        Ok(format!("eBPF compiler {} with {core}", compiler.rustc.display()))
    }

    fn fetch(&self) -> Result<()> {
        // Debian's compiler for its browsers; its library for BPF is a package of its own.
        apt::install(&["rustc-web", "libstd-rust-web-dev-bpf"])
    }
}

impl Need for Linker {
    fn name(&self) -> &'static str {
        "linker"
    }

    fn find(&self) -> Result<String> {
        let path = ebpf::find_linker(root()).map_err(|error| anyhow!(error))?;
        Ok(format!("eBPF linker {}", short(&path)))
    }

    /// Builds bpf-linker against Debian's LLVM: one binary works with one LLVM only.
    fn fetch(&self) -> Result<()> {
        let llvm = ebpf::LLVM;
        let prefix = format!("/usr/lib/llvm-{llvm}");
        if !Path::new(&prefix).join("bin/llvm-config").is_file() {
            apt::install(&[
                &format!("llvm-{llvm}-dev"),
                &format!("libpolly-{llvm}-dev"),
                "g++",
                "zlib1g-dev",
                "libzstd-dev",
            ])?;
        }
        // Its time is LLVM's: an optimized build would win nothing.
        cargo_install::install(
            "bpf-linker",
            &[
                "--version",
                "^0.13",
                "--debug",
                "--no-default-features",
                "--features",
                &format!("llvm-{llvm}"),
            ],
            &[("LLVM_PREFIX", &prefix)],
        )
    }
}
