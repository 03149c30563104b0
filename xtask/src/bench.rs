//! `cargo xtask bench`: measures in the VM, prints tables, and writes tables and
//! plots under `target/bench`.

mod data;
mod plan;
mod plot;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

pub(crate) use self::data::{Data, Piece};
use self::plan::{Bench, Leg};
use crate::arch::Arch;
use crate::build::{self, Guest};
use crate::kernels;
use crate::summary::Outcome;
use crate::vm::{self, Boot, booting};
use crate::workspace::{short, target};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Benchmarks to run; all of them when absent
    #[arg(value_enum, value_name = "NAME")]
    names: Vec<Bench>,
    /// Boot only this kernel: 6.1, 6.12, 7.2, another for x86-64 of `cargo xtask test
    /// --list-kernels`, or the path of a vmlinuz
    #[arg(long, value_name = "KERNEL", value_parser = kernels::parse_amd64)]
    kernel: Option<String>,
    /// Measure agents with these backends, separated by commas, each in a boot of its own: the
    /// figures are side by side
    #[arg(long, value_enum, value_name = "BACKEND", value_delimiter = ',', default_value = "fentry")]
    backend: Vec<Backend>,
    /// Run one short round, which shows that it works and gives no figures to quote.
    /// Without a name, all benchmarks in one boot of the newest kernel, as `cargo xtask
    /// test` does
    #[arg(long)]
    once: bool,
}

/// A backend of the agents that are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// Programs by BPF trampolines
    Fentry,
    /// Programs by kprobes and kretprobes
    Kprobe,
}

impl Backend {
    /// Returns the name that the guest and the agent have for it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
        }
    }
}

/// The longest time that a boot may measure.
const LIMIT: Duration = Duration::from_secs(60 * 60);

/// The advice after a failed measurement.
const LOGS: &str = "the guest's log is in target/vm";

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.once && arguments.names.is_empty() && arguments.kernel.is_none() {
        let outcome = smoke()?;
        ensure!(
            outcome.failed == 0,
            "{} of {} benchmarks failed; their messages are above",
            outcome.failed,
            outcome.passed + outcome.failed
        );
        return Ok(());
    }
    let names = if arguments.names.is_empty() { &Bench::ALL } else { arguments.names.as_slice() };
    for (at, &bench) in names.iter().enumerate() {
        println!("==> {} ({} of {})", bench.name(), at + 1, names.len());
        let start = Instant::now();
        let mut found = Vec::new();
        let legs = bench.legs(arguments.kernel.as_deref());
        let legs = legs
            .into_iter()
            .flat_map(|leg| arguments.backend.iter().map(move |backend| Leg { backend: *backend, ..leg }));
        let measured = legs.into_iter().try_for_each(|leg| {
            let guest = guest(&[bench], leg.kernel)?;
            let (report, data) = leg.measure(&guest, &[bench], arguments.once)?;
            ensure!(report.failed == 0, "{} failed on {}; {LOGS}", bench.name(), leg.label());
            ensure!(!data.is_empty(), "{} gave no figures on {}; {LOGS}", bench.name(), leg.label());
            found.extend(data);
            Ok(())
        });
        // What was measured is printed, though the next boot failed.
        println!();
        for line in table::tables(&found).lines() {
            println!("{line}");
        }
        for path in keep(bench, &found)? {
            println!("also in {}", short(&path));
        }
        measured?;
        println!("<== {} ({} s)\n", bench.name(), start.elapsed().as_secs());
    }
    Ok(())
}

/// One short round of every benchmark on the newest kernel, so that they keep working.
pub(crate) fn smoke() -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for leg in plan::smoke() {
        let guest = guest(&Bench::ALL, leg.kernel)?;
        let (report, data) = leg.measure(&guest, &Bench::ALL, true)?;
        // Drawn, too: what cannot be drawn is broken.
        for plot in plot::plots(&data) {
            plot.draw()?;
        }
        outcome.passed += report.passed;
        outcome.failed += report.failed;
    }
    Ok(outcome)
}

/// Provides the prerequisites, and builds the guest with the programs that it runs.
fn guest(benches: &[Bench], kernel: &str) -> Result<Guest> {
    vm::ensure(kernel)?;
    let mut guest = build::guest(Arch::Amd64)?;
    for bench in benches {
        guest.more.extend(bench.programs()?);
    }
    Ok(guest)
}

impl Leg<'_> {
    fn measure(&self, guest: &Guest, benches: &[Bench], once: bool) -> Result<(vm::Report, Vec<Data>)> {
        let kernel = kernels::get(self.kernel)?;
        println!("{}, {}", booting(&kernel, self.hierarchy), self.clock());
        let mut args: Vec<_> = benches.iter().map(|bench| bench.name()).collect();
        args.extend(once.then_some("once"));
        let boot = Boot {
            parameters: format!("guest.args={} guest.backend={}", args.join(","), self.backend.name()),
            processors: self.processors,
            memory: self.memory,
            limit: LIMIT,
            label: self.log_label(),
            ..Boot::new(&kernel, self.hierarchy, "bench")
        };
        let start = Instant::now();
        let report = boot.run(guest, &mut |line| println!("{:5} s  {line}", start.elapsed().as_secs()))?;
        let parse = |line: &String| {
            let data = serde_json::from_str(line);
            data.with_context(|| format!("cannot read the guest's `{line}`"))
        };
        let mut data = report.data.iter().map(parse).collect::<Result<Vec<Data>>>()?;
        for item in &mut data {
            item.kernel = self.label();
        }
        Ok((report, data))
    }
}

/// Writes the results, and returns the paths of the files.
fn keep(bench: Bench, found: &[Data]) -> Result<Vec<PathBuf>> {
    let directory = target().join("bench");
    let mut files = vec![(format!("{}.json", bench.name()), serde_json::to_string_pretty(found)? + "\n")];
    for plot in plot::plots(found) {
        files.push((format!("{}-{}.svg", bench.name(), plot.file()), plot.draw()?));
    }
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    files.into_iter().map(|(name, text)| write(&directory.join(name), &text)).collect()
}

fn write(path: &Path, text: &str) -> Result<PathBuf> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path.to_owned())
}
