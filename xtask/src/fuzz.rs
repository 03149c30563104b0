//! `cargo xtask fuzz`: the targets in `tests/fuzz`, and random lines beside the real
//! kernel's parser. New inputs and findings are kept in `target/fuzz`.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::arch::Arch;
use crate::process::{self, command};
use crate::setup::{self, Need};
use crate::summary::Outcome;
use crate::vm::{self, Boot, Hierarchy, booting};
use crate::workspace::{root, short, target};
use crate::{apt, build, cargo_install, kernels, toolchain};

/// The kernel that still has cgroup v1.
const ORACLE: &str = "6.1";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Seconds for each target in `cargo xtask test`.
const BRIEFLY: u64 = 10;
/// Lines of a failing target that are shown.
const SHOWN: usize = 40;

/// The builder of fuzz targets, and a C++ compiler for libFuzzer.
#[derive(Debug)]
pub(crate) struct CargoFuzz;

impl Need for CargoFuzz {
    fn name(&self) -> &'static str {
        "fuzz"
    }

    fn find(&self) -> Result<String> {
        setup::programs(&["c++"])?;
        setup::file(&cargo_install::program("cargo-fuzz"))
            .map(|path| format!("builder of fuzz targets {path}"))
    }

    fn fetch(&self) -> Result<()> {
        if setup::programs(&["c++"]).is_err() {
            apt::install(&["g++"])?;
        }
        // It only starts others.
        cargo_install::install("cargo-fuzz", &["--version", "^0.13", "--debug"], &[])
    }
}

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Targets to fuzz; all of them when absent
    #[arg(value_enum, value_name = "TARGET")]
    targets: Vec<Target>,
    /// How long to fuzz each target
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Use AddressSanitizer, in a build of its own
    #[arg(long)]
    address: bool,
    /// Instead, compare with the parser of the real kernel 6.1 in the VM
    #[arg(long, conflicts_with_all = ["targets", "seconds", "address"])]
    differential: bool,
    /// With --differential: how many lines
    #[arg(long, value_name = "N", default_value_t = 1_000_000, requires = "differential",
          value_parser = clap::value_parser!(u64).range(1..))]
    lines: u64,
    /// With --differential: the lines of an earlier run
    #[arg(long, value_name = "SEED", requires = "differential", value_parser = seed)]
    seed: Option<u64>,
}

/// A binary of `tests/fuzz`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// The line that a client writes, and the arguments for each control file
    Line,
    /// Packets at the sockets, with descriptors
    Packet,
    /// Requests of the view, as bytes on the FUSE device
    Fuse,
    /// The kernel's type information
    Btf,
    /// The state that an agent finds of its predecessor
    State,
}

impl Target {
    const ALL: [Self; 5] = [Self::Line, Self::Packet, Self::Fuse, Self::Btf, Self::State];

    fn name(self) -> &'static str {
        match self {
            Self::Line => "line",
            Self::Packet => "packet",
            Self::Fuse => "fuse",
            Self::Btf => "btf",
            Self::State => "state",
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.differential {
        return differential(arguments.lines, arguments.seed);
    }
    let targets = if arguments.targets.is_empty() { &Target::ALL } else { arguments.targets.as_slice() };
    let sanitizer = if arguments.address { Sanitizer::Address } else { Sanitizer::None };
    let table = fuzz(targets, sanitizer, arguments.seconds)?;
    println!("\n{table}");
    ensure!(
        table.findings() == 0,
        "{} findings, see above; the inputs are in target/fuzz/findings",
        table.findings()
    );
    Ok(())
}

/// Reads a seed as the guest prints it, or in decimal.
fn seed(text: &str) -> Result<u64, std::num::ParseIntError> {
    text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16))
}

/// Fuzzes each target for a moment.
pub(crate) fn briefly() -> Result<Outcome> {
    let table = fuzz(&Target::ALL, Sanitizer::None, BRIEFLY)?;
    println!("\n{table}");
    let executions: u64 = table.0.iter().map(|row| row.executions).sum();
    let failed = table.findings();
    let passed = table.0.len() - failed;
    Ok(Outcome { passed, failed, note: format!("{executions} executions"), ..Outcome::default() })
}

fn fuzz(targets: &[Target], sanitizer: Sanitizer, seconds: u64) -> Result<Table> {
    setup::ensure(&toolchain::NEEDS)?;
    setup::ensure(&[&CargoFuzz])?;
    sanitizer.build(targets)?;
    let mut rows = Vec::new();
    for target in targets {
        println!("{}: {seconds} s", target.name());
        rows.push(target.run(sanitizer, seconds)?);
    }
    Ok(Table(rows))
}

/// Returns the directory of inputs and findings, which all builds share.
fn directory() -> PathBuf {
    target().join("fuzz")
}

/// The instrumentation of the targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sanitizer {
    /// Instruments for coverage only: half the time to build, and faster.
    None,
    /// Checks what unsafe code does to memory, too.
    Address,
}

impl Sanitizer {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Address => "address",
        }
    }

    fn binaries(self) -> PathBuf {
        directory().join("build").join(self.name())
    }

    /// Builds all targets at once: most of it is the same.
    fn build(self, targets: &[Target]) -> Result<()> {
        println!("building the fuzz targets (minutes the first time, then seconds)");
        let mut command = command(cargo_install::program("cargo-fuzz"));
        command
            .args(["fuzz", "build", "--fuzz-dir", "tests/fuzz", "--codegen-units", "16"])
            .args(["--sanitizer", self.name(), "--target-dir"])
            .arg(self.binaries())
            .current_dir(root())
            // Instrumentation is for nightly compilers, by name.
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("RUSTFLAGS");
        if let [one] = targets {
            command.arg(one.name());
        }
        process::run(&mut command)
    }
}

impl Target {
    fn run(self, sanitizer: Sanitizer, seconds: u64) -> Result<Row> {
        let name = self.name();
        let directory = directory();
        let make = |name: String| -> Result<PathBuf> {
            let path = directory.join(name);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
            Ok(path)
        };
        let corpus = make(format!("corpus/{name}"))?;
        let findings = make(format!("findings/{name}"))?;
        // The targets end without tidying up.
        let scratch = make(format!("tmp/{name}"))?;
        let mut child = command(sanitizer.binaries().join(TRIPLE).join("release").join(name))
            .arg(format!("-max_total_time={seconds}"))
            .args(["-print_final_stats=1", "-timeout=20", "-rss_limit_mb=3000"])
            .arg(format!("-artifact_prefix={}/", findings.display()))
            // What is new goes to the first.
            .arg(corpus)
            .arg(root().join("tests/fuzz/corpus").join(name))
            .env("TMPDIR", &scratch)
            .current_dir(root())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start the target {name}"))?;
        let mut row = Row { name, executions: 0, rate: 0, coverage: 0, finding: None };
        let mut tail = Vec::new();
        let lines = BufReader::new(child.stderr.take().context("its stderr is a pipe")?);
        for line in lines.split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            row.read(&line);
            // The lines on each new input are left out; those are many.
            if ["INITED", "pulse", "DONE", "ERROR", "SUMMARY"].iter().any(|word| line.contains(word)) {
                println!("  {line}");
            }
            tail.push(line);
            if tail.len() > SHOWN {
                tail.remove(0);
            }
        }
        let status = child.wait().context("cannot wait for the target")?;
        fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
        if !status.success() {
            println!("{}\n{name} failed ({status})", tail.join("\n"));
            let file = row.finding.take().unwrap_or_else(|| status.to_string());
            row.finding = Some(file);
        } else if row.executions == 0 {
            bail!(
                "the target {name} printed no count of executions; run `cargo xtask fuzz {name} --seconds 10`"
            );
        }
        Ok(row)
    }
}

/// The result of one target.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    name: &'static str,
    executions: u64,
    rate: u64,
    /// Edges of the program that were taken.
    coverage: u64,
    /// The input that it failed on.
    finding: Option<String>,
}

impl Row {
    /// Reads the numbers in one line of libFuzzer.
    fn read(&mut self, line: &str) {
        let number = |text: &str| text.split_whitespace().next()?.parse().ok();
        let after = |word: &str| line.split_once(word).and_then(|(_, rest)| number(rest));
        // A target that fails prints no more than the last of these.
        if let Some(count) = line.strip_prefix('#').and_then(number) {
            self.executions = count;
        }
        self.coverage = after(" cov: ").unwrap_or(self.coverage);
        self.executions = after("stat::number_of_executed_units:").unwrap_or(self.executions);
        self.rate = after("stat::average_exec_per_sec:").unwrap_or(self.rate);
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.finding = Some(short(path.as_ref()));
        }
    }
}

#[derive(Debug)]
struct Table(Vec<Row>);

impl Table {
    fn findings(&self) -> usize {
        self.0.iter().filter(|row| row.finding.is_some()).count()
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:8} {:>12} {:>8} {:>9}  finding", "target", "executions", "each s", "coverage")?;
        for Row { name, executions, rate, coverage, finding } in &self.0 {
            let finding = finding.as_deref().unwrap_or("none");
            writeln!(f, "{name:8} {executions:>12} {rate:>8} {coverage:>9}  {finding}")?;
        }
        Ok(())
    }
}

fn differential(lines: u64, seed: Option<u64>) -> Result<()> {
    vm::ensure(ORACLE)?;
    let guest = build::guest(Arch::Amd64)?;
    let kernel = kernels::get(ORACLE)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let seed = seed.unwrap_or_else(|| now.as_secs() << 20 ^ u64::from(now.subsec_nanos()));
    println!("{}", booting(&kernel, Hierarchy::V1));
    let boot = Boot {
        parameters: format!("guest.args={lines},{seed}"),
        limit: Duration::from_secs(60 * 60),
        ..Boot::new(&kernel, Hierarchy::V1, "differential")
    };
    let report = boot.run(&guest, &mut |line| println!("{line}"))?;
    ensure!(
        report.failed == 0,
        "the agent's parser and the kernel's differ on the lines above; the seed repeats them"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_libfuzzer_is_read() {
        let mut row = Row { name: "line", executions: 0, rate: 0, coverage: 0, finding: None };
        row.read("#8192\tpulse  cov: 310 ft: 900 corp: 120/3Kb lim: 80 exec/s: 4096 rss: 80Mb");
        assert_eq!((row.executions, row.coverage), (8192, 310));
        row.read("artifact_prefix='x/'; Test unit written to x/crash-1");
        assert_eq!(row.finding.as_deref(), Some("x/crash-1"));
        row.read("stat::number_of_executed_units: 9000");
        row.read("stat::average_exec_per_sec:     4000");
        assert_eq!((row.executions, row.rate, row.coverage), (9000, 4000, 310));
    }
}
