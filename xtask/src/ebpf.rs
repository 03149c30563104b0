//! Finds a compiler that can make eBPF objects, and builds the programs with it.
//!
//! Shared by xtask and `monitor/build.rs`, hence std only. A stock stable
//! toolchain has no `core` for the BPF target; two kinds of toolchain do:
//! one with rust-src (core is compiled along), or a distribution's with a
//! ready-made standard library for that target.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The target that the programs are compiled for.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// The LLVM that bpf-linker is built with; it reads no newer bitcode.
pub(crate) const LLVM: u32 = 22;
/// Names a rustc to try before all others.
pub(crate) const RUSTC_VARIABLE: &str = "MEMCG_EBPF_RUSTC";
/// Names a bpf-linker to use instead of the one that setup installs.
pub(crate) const LINKER_VARIABLE: &str = "MEMCG_BPF_LINKER";

const PACKAGE: &str = "monitor-ebpf";
const OBJECT: &str = "memcg-monitor-ebpf";

/// A rustc for the BPF target.
#[derive(Debug, Clone)]
pub(crate) struct Compiler {
    pub(crate) rustc: PathBuf,
    pub(crate) cargo: PathBuf,
    pub(crate) sysroot: PathBuf,
    /// True where `core` has to be compiled from rust-src.
    pub(crate) build_std: bool,
}

/// All that is needed to build the eBPF object.
#[derive(Debug, Clone)]
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: PathBuf,
}

/// Finds compiler and linker, or names what is missing and how to get it.
pub(crate) fn find(workspace_root: &Path) -> Result<Toolchain, String> {
    let advice = |what: String| format!("{what}\nrun `cargo xtask setup`, which installs it");
    Ok(Toolchain {
        compiler: find_compiler().map_err(advice)?,
        linker: find_linker(workspace_root).map_err(advice)?,
    })
}

/// The first compiler, in order of preference, that can build for BPF.
pub(crate) fn find_compiler() -> Result<Compiler, String> {
    let mut candidates = Vec::new();
    if let Some(path) = env::var_os(RUSTC_VARIABLE) {
        candidates.push(PathBuf::from(path));
    }
    candidates.extend(rustup_nightly());
    candidates.push(PathBuf::from("/usr/bin/rustc"));

    let mut reasons = Vec::new();
    for rustc in candidates {
        match probe(&rustc) {
            Ok(compiler) => return Ok(compiler),
            Err(reason) => reasons.push(format!("  {}: {reason}", rustc.display())),
        }
    }
    Err(format!("no rustc here can build for {TARGET}:\n{}", reasons.join("\n")))
}

/// The bpf-linker under `target/tools`, unless the environment names one.
pub(crate) fn find_linker(workspace_root: &Path) -> Result<PathBuf, String> {
    let path = env::var_os(LINKER_VARIABLE)
        .map_or_else(|| workspace_root.join("target/tools/bin/bpf-linker"), PathBuf::from);
    if path.is_file() { Ok(path) } else { Err(format!("there is no bpf-linker at {}", path.display())) }
}

/// Builds the eBPF object and returns its path. Errors of the compiler go to stderr.
pub(crate) fn build(
    toolchain: &Toolchain,
    workspace_root: &Path,
    target_dir: &Path,
    features: &[&str],
) -> Result<PathBuf, String> {
    let mut command = cargo(toolchain, workspace_root, target_dir, "build", &[]);
    command.arg("--features").arg(features.join(","));
    // A build script's stdout is read by cargo as instructions.
    command.stdout(Stdio::null());
    let status = command
        .status()
        .map_err(|error| format!("cannot start {}: {error}", toolchain.compiler.cargo.display()))?;
    if !status.success() {
        let rustc = toolchain.compiler.rustc.display();
        return Err(format!(
            "building {PACKAGE} for {TARGET} with {rustc} failed ({status}); its messages are above"
        ));
    }
    let object = target_dir.join(TARGET).join("release").join(OBJECT);
    if object.is_file() {
        Ok(object)
    } else {
        Err(format!("building {PACKAGE} left no {}", object.display()))
    }
}

/// `cargo VERB` on the eBPF package, set up for the BPF target.
pub(crate) fn cargo(
    toolchain: &Toolchain,
    workspace_root: &Path,
    target_dir: &Path,
    verb: &str,
    more_rustflags: &[&str],
) -> Command {
    let mut linker = OsString::from("linker=");
    linker.push(&toolchain.linker);
    let mut flags: Vec<OsString> = vec!["-C".into(), linker];
    // `-C debuginfo` and `--btf`: the kernel wants BTF for maps and functions.
    // cpu v3: atomics that return the old value.
    for flag in ["-Clink-arg=--btf", "-Cdebuginfo=2", "-Ctarget-cpu=v3", "-Cpanic=abort"] {
        flags.push(flag.into());
    }
    flags.extend(more_rustflags.iter().map(OsString::from));
    // The object, line by line of its BTF, is the same wherever it is built.
    flags.extend(remaps(workspace_root, &toolchain.compiler.sysroot));

    let mut command = Command::new(&toolchain.compiler.cargo);
    forget_outer_cargo(&mut command);
    command
        .current_dir(workspace_root)
        .env("RUSTC", &toolchain.compiler.rustc)
        // Debian's compiler is a stable one, and the programs use intrinsics.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(OsStr::new("\x1f")))
        .args([verb, "--quiet", "--release", "--package", PACKAGE, "--bin", OBJECT, "--target", TARGET])
        .arg("--target-dir")
        .arg(target_dir)
        .stdin(Stdio::null());
    if toolchain.compiler.build_std {
        command.args(["-Z", "build-std=core"]);
    }
    command
}

/// Returns the compiler's options that replace the directories of one machine, those of the sources,
/// of the registry and of the compiler, by names that are the same on each. What cargo hashes leaves
/// them out, too.
pub(crate) fn remaps(workspace_root: &Path, sysroot: &Path) -> Vec<OsString> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let library = sysroot.join("lib/rustlib");
    // Where several match, the last one counts.
    [(Some(library), "/rustlib"), (home, "/cargo"), (Some(workspace_root.to_path_buf()), "/memcg-monitor")]
        .into_iter()
        .filter_map(|(from, to)| {
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(from.filter(|path| !path.as_os_str().is_empty())?);
            flag.push("=");
            flag.push(to);
            Some(flag)
        })
        .collect()
}

/// Removes the variables that an outer cargo sets for its own build: they would steer the
/// inner one wrongly, or make it build all again, depending on the caller.
fn forget_outer_cargo(command: &mut Command) {
    // How to reach a registry and what to show stays as the user wants it.
    const KEPT: [&str; 7] =
        ["CARGO_HOME", "CARGO_HTTP", "CARGO_LOG", "CARGO_NET", "CARGO_REGISTR", "CARGO_SOURCE", "CARGO_TERM"];
    const BUILD_SCRIPT: [&str; 7] =
        ["DEBUG", "HOST", "NUM_JOBS", "OPT_LEVEL", "OUT_DIR", "PROFILE", "TARGET"];
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let opens_with = |prefix: &&str| name.starts_with(prefix);
        let steers = ["CARGO", "RUSTC", "RUSTFLAGS"].iter().any(opens_with);
        if (steers && !KEPT.iter().any(opens_with)) || BUILD_SCRIPT.contains(&name) {
            command.env_remove(name);
        }
    }
}

/// The path of rustup's nightly rustc, if that is installed.
fn rustup_nightly() -> Option<PathBuf> {
    let output = Command::new("rustup")
        .args(["which", "--toolchain", "nightly", "rustc"])
        // The query must not start a download.
        .env("RUSTUP_AUTO_INSTALL", "0")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(path.trim()))
}

/// Queries a compiler for its libraries and its LLVM.
fn probe(rustc: &Path) -> Result<Compiler, String> {
    let sysroot = PathBuf::from(query(rustc, &["--print", "sysroot"])?.trim());
    let version = query(rustc, &["-vV"])?;
    let llvm = llvm_major(&version).ok_or("`rustc -vV` names no LLVM version")?;
    if llvm > LLVM {
        return Err(format!("its LLVM {llvm} is newer than bpf-linker's {LLVM}"));
    }
    let rustlib = sysroot.join("lib/rustlib");
    let ready = rustlib.join(TARGET).join("lib").is_dir();
    let sources = rustlib.join("src/rust/library/core").is_dir();
    if !ready && !sources {
        return Err(format!("has neither {TARGET} nor rust-src under {}", rustlib.display()));
    }
    // build-std is an agreement between cargo and library: take the one beside it.
    let beside = sysroot.join("bin/cargo");
    let cargo = if !ready && beside.is_file() {
        beside
    } else {
        env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
    };
    Ok(Compiler { rustc: rustc.to_path_buf(), cargo, sysroot, build_std: !ready })
}

fn query(rustc: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(rustc)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn llvm_major(version: &str) -> Option<u32> {
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.trim().parse().ok()
}
