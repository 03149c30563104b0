//! The steps of `cargo xtask test` that need no VM.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};

use crate::process::{self, command};
use crate::setup::{self, Need};
use crate::summary::Outcome;
use crate::workspace::{root, target};
use crate::{cargo_install, ebpf, toolchain};

/// The checker of licences and origins of dependencies.
#[derive(Debug)]
pub(crate) struct CargoDeny;

impl Need for CargoDeny {
    fn name(&self) -> &'static str {
        "deny"
    }

    fn find(&self) -> Result<String> {
        let program = cargo_install::program("cargo-deny");
        setup::file(&program).map(|path| format!("dependency checker {path}"))
    }

    fn fetch(&self) -> Result<()> {
        // It runs for seconds: an optimized build takes minutes.
        cargo_install::install("cargo-deny", &["--version", "^0.20", "--debug"], &[])
    }
}

pub(crate) fn format() -> Result<Outcome> {
    process::run(cargo().args(["fmt", "--all", "--check"]))
        .context("run `cargo fmt --all`; without rustfmt, `rustup component add rustfmt` first")?;
    Ok(Outcome::pass(""))
}

pub(crate) fn lints() -> Result<Outcome> {
    setup::ensure(&toolchain::NEEDS)?;
    process::run(cargo().args(["clippy", "--quiet", "--workspace", "--exclude", "monitor-ebpf"]).args([
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
    .context("repair what is above; without clippy, `rustup component add clippy` first")?;
    Ok(Outcome::pass(""))
}

/// Sets of features of the eBPF programs, each of which makes an object of its own.
const OBJECTS: [&[&str]; 2] = [&[], &["--features", "kprobe"]];

/// Checks the programs of each object in two passes. The compiler for BPF may have no clippy beside
/// it, so clippy looks at the programs as if they were for the host, which checks all but
/// what is BPF's alone; the compiler's own warnings come from the real target.
pub(crate) fn ebpf_lints() -> Result<Outcome> {
    setup::ensure(&toolchain::NEEDS)?;
    let toolchain = ebpf::find(root()).map_err(|error| anyhow!(error))?;
    let directory = target().join("ebpf-lints");
    for features in OBJECTS {
        let named = if features.is_empty() { "without features".to_owned() } else { features.join(" ") };
        process::run(ebpf::cargo(&toolchain, root(), &directory, "check", &["-Dwarnings"]).args(features))
            .with_context(|| {
                format!("the compiler for BPF has errors or warnings ({named}), as above; repair them")
            })?;
        process::run(
            cargo()
                .args(["clippy", "--quiet", "--package", "monitor-ebpf"])
                .args(features)
                // Naming the target keeps the flags from build scripts.
                .args(["--target", "x86_64-unknown-linux-gnu", "--target-dir"])
                .arg(&directory)
                // Attach macros hand the context over by value.
                .args(["--", "-D", "warnings", "-A", "clippy::needless_pass_by_value"])
                .env_remove("CARGO_ENCODED_RUSTFLAGS")
                .env("RUSTFLAGS", "-C panic=abort")
                // The programs use intrinsics, which a stable compiler hides.
                .env("RUSTC_BOOTSTRAP", "1"),
        )
        .with_context(|| {
            format!("clippy has errors or warnings on the programs ({named}), as above; repair them")
        })?;
    }
    Ok(Outcome::pass(""))
}

pub(crate) fn dependencies() -> Result<Outcome> {
    setup::ensure(&[&CargoDeny])?;
    let deny = || {
        let mut command = command(cargo_install::program("cargo-deny"));
        command.current_dir(root());
        command
    };
    process::run(deny().args(["--log-level", "warn", "check", "licenses", "bans", "sources"]))
        .context("a dependency breaks deny.toml, as above; replace it, or extend that file")?;
    // Their database is fetched from elsewhere and may be out of reach.
    let advisories = command("timeout")
        .arg("60")
        .arg(cargo_install::program("cargo-deny"))
        .args(["--log-level", "off", "check", "advisories"])
        .current_dir(root())
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status();
    let clean = advisories.is_ok_and(|status| status.success());
    Ok(Outcome::pass(if clean {
        "no advisories"
    } else {
        "advisories not checked or some found: `cargo deny check advisories`"
    }))
}

pub(crate) fn unit_tests() -> Result<Outcome> {
    setup::ensure(&toolchain::NEEDS)?;
    count_tests(cargo().args(["test", "--no-fail-fast"]))
}

/// Runs the tests called `loom` under every interleaving that differs for loom.
pub(crate) fn model_check() -> Result<Outcome> {
    count_tests(
        cargo()
            .args(["test", "--release", "--package", "monitor-common", "--lib", "loom"])
            .arg("--target-dir")
            .arg(target().join("loom"))
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", "--cfg loom"),
    )
}

fn cargo() -> Command {
    let mut command = command("cargo");
    command.current_dir(root());
    command
}

/// Runs `cargo test`, passing its output on and adding up its results.
fn count_tests(command: &mut Command) -> Result<Outcome> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo; install Rust (rustup's stable toolchain)")?;
    let stdout = child.stdout.take().context("cargo's stdout is a pipe")?;
    let mut outcome = Outcome::default();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read the output of cargo")?;
        println!("{line}");
        if let Some((passed, failed)) = parse_result(&line) {
            outcome.passed += passed;
            outcome.failed += failed;
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    ensure!(
        status.success() || outcome.failed > 0,
        "`cargo test` failed ({status}) before any test; its messages are above"
    );
    ensure!(outcome.passed + outcome.failed > 0, "`cargo test` ran no test; its messages are above");
    Ok(outcome)
}

/// Reads `test result: ok. 12 passed; 0 failed; ...`.
fn parse_result(line: &str) -> Option<(usize, usize)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = counts.split("; ");
    let passed = counts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed = counts.next()?.strip_suffix(" failed")?.parse().ok()?;
    Some((passed, failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_test_results_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(parse_result(line), Some((12, 3)));
        assert_eq!(parse_result("test a::b ... ok"), None);
    }
}
