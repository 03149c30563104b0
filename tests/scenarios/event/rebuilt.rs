//! Windows of reclaim that are rebuilt, beside those of a kernel that has them.

use std::fs::{self, OpenOptions};
use std::io::Write as _;

use anyhow::{Context, Result, bail, ensure};
use memcg_monitor::kernel::VMLINUX_BTF;
use memcg_monitor::kernel::btf::Btf;
use monitor_common::grammar::control_file::ControlFile::Pressure;
use monitor_common::protocol::pressure::{CRITICAL_PRIORITY, WINDOW};

use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::block;
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::{Family, Group};
use crate::harness::report::say;
use crate::harness::test::vm_test;

const LEVELS: [&str; 3] = ["low", "medium", "critical"];

/// An agent, and a listener for each level.
struct Counts {
    agent: Agent,
    waiters: Vec<Waiter>,
    counts: [u64; 3],
}

impl Counts {
    fn at(group: &Group, agent: Agent) -> Result<Self> {
        let register = |level: &&str| {
            let waiter = Waiter::new()?;
            waiter.register_with(agent.socket(), group, Pressure, &format!("{level},hierarchy"))?;
            Ok(waiter)
        };
        let waiters = LEVELS.iter().map(register).collect::<Result<_>>()?;
        Ok(Self { agent, waiters, counts: [0; 3] })
    }

    /// The windows so far, of each level or a higher one.
    fn take(&mut self) -> Result<[u64; 3]> {
        self.agent.settle()?;
        for (waiter, count) in self.waiters.iter().zip(&mut self.counts) {
            *count += waiter.take()?;
        }
        Ok(self.counts)
    }
}

/// A probe at `vmpressure`, and one at `vmpressure_prio`: the witness of what reclaim reports.
/// Where the kernel has no `vmpressure_prio`, the other is at `shrink_node`, which each pass calls
/// once: the VM has one node.
struct Probes {
    has_prio: bool,
}

/// Sums of what reclaim has reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reported {
    /// Pages scanned, with a window for each pass at a critical priority.
    scanned: u64,
    /// Passes at a critical priority.
    passes: u64,
}

impl Probes {
    const EVENTS: &str = "/sys/kernel/tracing/kprobe_events";
    const BUFFER: &str = "/sys/kernel/tracing/instances/rebuilt";

    fn insert(btf: &Btf) -> Result<Self> {
        remove();
        let has_prio = btf.has_func("vmpressure_prio");
        let inserted = Self { has_prio };
        // Newer kernels have the allocation's order for the second argument.
        let [memcg, tree, scanned] = match btf.func_arg_count("vmpressure") {
            Some(5) => [2, 3, 4],
            Some(6) => [3, 4, 5],
            count => bail!("vmpressure has {count:?} arguments"),
        };
        let args = format!("memcg=$arg{memcg}:x64 tree=$arg{tree}:u8 scanned=$arg{scanned}:u64");
        probe(&format!("p:rebuilt/report vmpressure {args}"))?;
        if has_prio {
            probe("p:rebuilt/pass vmpressure_prio memcg=$arg2:x64 prio=$arg3:s32")?;
        } else {
            let offset = |member| btf.member_offset("scan_control", member);
            let (memcg, priority) = (offset("target_mem_cgroup")?, offset("priority")?);
            let args = format!("memcg=+{memcg}($arg2):x64 prio=+{priority}($arg2):s8");
            probe(&format!("p:rebuilt/pass shrink_node {args}"))?;
        }
        fs::create_dir(Self::BUFFER).context("cannot make a trace buffer")?;
        for (file, value) in [("buffer_size_kb", "8192"), ("events/rebuilt/enable", "1")] {
            let path = format!("{}/{file}", Self::BUFFER);
            fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))?;
        }
        Ok(inserted)
    }

    /// All that was reported so far at groups' limits.
    fn read(&self) -> Result<Reported> {
        let path = format!("{}/trace", Self::BUFFER);
        let trace = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let mut seen = Reported { scanned: 0, passes: 0 };
        for line in trace.lines().filter(|line| !line.starts_with('#')) {
            let value = |name: &str| {
                let value = line.split_whitespace().find_map(|word| word.strip_prefix(name));
                value.with_context(|| format!("the trace says {line:?}"))
            };
            if value("memcg=")? == "0x0" {
                continue;
            }
            if line.contains(" pass: ") {
                let priority: i32 = value("prio=")?.parse()?;
                seen.passes += u64::from(priority <= CRITICAL_PRIORITY.into());
            } else if value("tree=")? != "0" {
                seen.scanned += value("scanned=")?.parse::<u64>()?;
            }
        }
        if !self.has_prio {
            seen.scanned += seen.passes * WINDOW;
        }
        Ok(seen)
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        remove();
    }
}

fn probe(definition: &str) -> Result<()> {
    let file = OpenOptions::new().append(true).open(Probes::EVENTS);
    let mut file = file.with_context(|| format!("cannot open {}", Probes::EVENTS))?;
    file.write_all(definition.as_bytes())
        .with_context(|| format!("the kernel refused the probe {definition:?}"))
}

/// None is no failure: it may be what a killed test left.
fn remove() {
    let _ = fs::write(format!("{}/events/rebuilt/enable", Probes::BUFFER), "0");
    let _ = fs::remove_dir(Probes::BUFFER);
    for name in ["report", "pass"] {
        let _ = probe(&format!("-:rebuilt/{name}"));
    }
}

vm_test!(
    event_pressure_rebuilt,
    "windows rebuilt from what reclaim reports are those of the kernel: no fewer, no more than what \
     was scanned fills, each level reached by both; and each pass at a critical priority is one",
    V2,
    [Kernel, Preempt]
);
fn event_pressure_rebuilt() -> Result<()> {
    let bytes = fs::read(VMLINUX_BTF).with_context(|| format!("cannot read {VMLINUX_BTF}"))?;
    let probes = Probes::insert(&Btf::parse(bytes)?)?;
    let disk = block::disk()?;
    let family = Family::new("rebuilt")?;
    family.group.set_limit(8 * MIB)?;
    let real = Agent::start(&["--no-mount"])?;
    // Where the kernel reports each pass at a critical priority, that is a report like others, and
    // the last agent finds the passes itself as well.
    let both = ["vmpressure_work_fn", "vmpressure_prio"];
    let reports = Agent::start_beside("reports", &both[..1], &[])?;
    let passes = Agent::start_beside("passes", &both, &[])?;
    let kprobes = Agent::start_beside("kprobes", &both, &["--backend", "kprobe"])?;
    let mut real = Counts::at(&family.group, real)?;
    let mut reports = Counts::at(&family.group, reports)?;
    let mut passes = Counts::at(&family.group, passes)?;
    let mut kprobes = Counts::at(&family.group, kprobes)?;
    let before = probes.read()?;

    // Easy reclaim, then some of pages that are in use, then none that succeeds.
    let mut charger = Charger::start(&family.child)?;
    charger.read_disk(48 * MIB)?;
    compare("reading", &probes, before, [&mut real, &mut reports, &mut passes])?;
    charger.map_disk(12 * MIB, 3)?;
    compare("mapping", &probes, before, [&mut real, &mut reports, &mut passes])?;
    drop(disk);
    ensure!(charger.grow(Kind::Anonymous, 32 * MIB).is_err(), "it outlived its limit");
    let last = compare("an OOM", &probes, before, [&mut real, &mut reports, &mut passes])?;
    ensure!(last.passes > before.passes, "no pass at a critical priority");
    // The kernel calls no kprobe while another runs, so there may be less.
    let (by_kprobes, all) = (kprobes.take()?, passes.take()?);
    say!("  by kprobes {by_kprobes:?} of {all:?}");
    for (level, name) in LEVELS.iter().enumerate() {
        ensure!(by_kprobes[level] > 0, "no {name} window by kprobes");
    }
    ensure!(by_kprobes[0] <= all[0], "more windows by kprobes");
    Ok(())
}

/// Compares all windows so far; what reclaim has reported.
fn compare(
    what: &str,
    probes: &Probes,
    before: Reported,
    [real, reports, passes]: [&mut Counts; 3],
) -> Result<Reported> {
    // The kernel's worker comes later than the reports.
    let mut seen = None;
    until("all windows are evaluated", || {
        let now = (real.take()?, reports.take()?, passes.take()?, probes.read()?);
        let rests = seen == Some(now);
        seen = Some(now);
        Ok(rests)
    })?;
    let (of_kernel, of_reports, of_passes, reported) = seen.context("nothing was compared")?;
    let full = (reported.scanned - before.scanned) / WINDOW;
    let found = reported.passes - before.passes;
    say!(
        "  {what}: kernel {of_kernel:?}, rebuilt {of_reports:?} of at most {full}, with passes {of_passes:?} of {found}"
    );
    ensure!(of_kernel[0] <= of_reports[0], "more windows of the kernel's");
    ensure!(of_reports[0] <= full, "more windows than what was scanned fills");
    for (level, name) in LEVELS.iter().enumerate() {
        ensure!((of_kernel[level] > 0) == (of_reports[level] > 0), "only one has reached {name}");
    }
    // One more for each that the kernel reports as well.
    let more = of_passes[0] - of_reports[0];
    ensure!(more == if probes.has_prio { found } else { 0 }, "{more} more windows by {found} passes");
    Ok(reported)
}
