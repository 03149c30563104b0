//! Builds the eBPF programs, so that the library can include the object.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "../xtask/src/ebpf.rs"]
mod ebpf;

fn main() -> Result<(), Box<dyn Error>> {
    let variable = |name: &str| env::var_os(name).ok_or(format!("cargo sets {name}"));
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let root = package.parent().ok_or("the package lies in the workspace")?;

    for path in [
        "monitor-ebpf/src",
        "monitor-ebpf/Cargo.toml",
        "monitor-common/src",
        "monitor-common/Cargo.toml",
        "xtask/src/ebpf.rs",
        "Cargo.lock",
    ] {
        rerun_if_changed(&root.join(path));
    }
    for name in [ebpf::RUSTC_VARIABLE, ebpf::LINKER_VARIABLE] {
        println!("cargo::rerun-if-env-changed={name}");
    }

    // One directory for all profiles and target directories: it is the same object.
    let toolchain = ebpf::find(root)?;
    rerun_if_changed(&toolchain.linker);
    rerun_if_changed(&toolchain.compiler.rustc);
    let objects: [(&str, &str, &[&str]); 2] = [
        ("memcg-monitor-ebpf.o", "target/ebpf", &[]),
        ("memcg-monitor-kprobe.o", "target/ebpf/kprobe", &["kprobe"]),
    ];
    for (name, directory, features) in objects {
        let built = ebpf::build(&toolchain, root, &root.join(directory), features)?;
        let object = out.join(name);
        fs::copy(&built, &object)
            .map_err(|error| format!("cannot copy {} to {}: {error}", built.display(), object.display()))?;
    }
    Ok(())
}

fn rerun_if_changed(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
}
