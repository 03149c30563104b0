//! The boots of `cargo xtask test`, and which tests each is there for.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Arguments;
use super::filter::Filter;
use super::plan::CLIENTS;
use super::scenarios::Declared;
use crate::arch::Arch;
use crate::build;
use crate::steps::{Step, VM, programs_of, shown};
use crate::summary::Outcome;
use crate::vm::{self, Boot, Hierarchy, booting};
use crate::{clients, kernels};

/// A boot of the test VM.
#[derive(Debug, Clone, Copy)]
pub(super) struct Combination<'a> {
    kernel: &'a str,
    hierarchy: Hierarchy,
    /// Kernel parameters that make it differ from the kernel's own defaults.
    parameters: &'a str,
    /// The tags of the tests that it is there for, or with `-` of those that it is not;
    /// empty: all.
    pub(super) select: &'a str,
    /// VMs that share its tests.
    parts: usize,
}

/// Chooses the tests for kernels that are built otherwise. Only a run that names no tests
/// boots these, or one that names such a kernel.
const VARIANT: &str = "variant";

/// The parameters of a kernel that refuses BPF programs, so that the agent samples; by the first
/// the guest, too, knows such a boot.
const LOCKED: &str = "lockdown=confidentiality guest.backend=auto";

/// The parameter of a boot whose agents watch by kprobes.
const KPROBE: &str = "guest.backend=kprobe";

/// 6.1 with v1 is the oracle; `preempt=full` is where the kernel's recursion guard skips
/// programs, and what depends on that runs there; on a kernel that is locked down the groups'
/// files are sampled; 7.3 evaluates no windows of reclaim. All tests run on the newest kernel, those
/// that depend on the kernel also on the oldest.
pub(super) const COMBINATIONS: [Combination<'_>; 10] = [
    Combination { kernel: kernels::NEWEST, hierarchy: Hierarchy::V2, parameters: "", select: "", parts: 2 },
    Combination { kernel: "6.1", hierarchy: Hierarchy::V2, parameters: "", select: "kernel", parts: 2 },
    Combination { kernel: "6.1", hierarchy: Hierarchy::V1, parameters: "", select: "oracle", parts: 1 },
    Combination {
        kernel: "6.12",
        hierarchy: Hierarchy::V2,
        parameters: "preempt=full",
        select: "preempt",
        parts: 2,
    },
    Combination { kernel: "6.12", hierarchy: Hierarchy::V2, parameters: LOCKED, select: "sampled", parts: 1 },
    Combination {
        kernel: "6.1-arm64",
        hierarchy: Hierarchy::V2,
        parameters: KPROBE,
        select: VARIANT,
        parts: 1,
    },
    Combination { kernel: "6.12", hierarchy: Hierarchy::V2, parameters: KPROBE, select: VARIANT, parts: 1 },
    Combination { kernel: "6.12-rt", hierarchy: Hierarchy::V2, parameters: "", select: VARIANT, parts: 1 },
    Combination { kernel: "7.3", hierarchy: Hierarchy::V2, parameters: "", select: VARIANT, parts: 1 },
    Combination {
        kernel: "6.12-arm64-16k",
        hierarchy: Hierarchy::V2,
        parameters: "",
        select: VARIANT,
        parts: 1,
    },
];

/// The boot of `cargo xtask test --quick`.
pub(super) const QUICK: Combination<'_> = Combination {
    kernel: kernels::NEWEST,
    hierarchy: Hierarchy::V2,
    parameters: "",
    select: "quick",
    parts: 1,
};

/// Returns the kernels of the table, each once.
pub(super) fn kernels() -> Vec<&'static str> {
    distinct(COMBINATIONS.iter().map(|row| row.kernel))
}

/// Returns those of an architecture.
pub(super) fn kernels_for(arch: Arch) -> Vec<String> {
    let of_arch = kernels().into_iter().filter(|kernel| arch_of(kernel) == arch);
    of_arch.map(str::to_owned).collect()
}

/// Returns the kernels that a run with these arguments boots.
pub(super) fn kernels_of(arguments: &Arguments) -> Vec<String> {
    let kernels = combinations(arguments).into_iter().map(|row| row.kernel);
    distinct(kernels).into_iter().map(str::to_owned).collect()
}

fn distinct<'a>(kernels: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found = Vec::new();
    for kernel in kernels {
        if !found.contains(&kernel) {
            found.push(kernel);
        }
    }
    found
}

/// A path that cannot be read fails in its step.
fn arch_of(kernel: &str) -> Arch {
    kernels::arch(kernel).unwrap_or(Arch::Amd64)
}

/// Returns the boots that have a test to run, as far as tests are chosen by name.
pub(super) fn boots<'a>(arguments: &'a Arguments, tests: &[Declared]) -> Vec<Combination<'a>> {
    let mut boots = combinations(arguments);
    if let Some(filter) = arguments.filter.as_deref().map(Filter::new) {
        let has_test = |boot: &Combination<'_>| {
            tests.iter().any(|test| {
                let is_locked = boot.parameters == LOCKED;
                let has = |wanted: &str| test.tags.iter().any(|tag| tag == wanted);
                let is_for_it = (!is_locked || has("Sampled"))
                    && (boot.parameters != KPROBE || has("Variant") && !test.name.starts_with("restart_"));
                is_for_it && test.on.includes(boot.hierarchy, is_locked) && filter.wants(&test.name)
            })
        };
        boots.retain(has_test);
    }
    boots
}

/// The rows of the table for these kernels; a kernel outside the table gets v2.
fn combinations(arguments: &Arguments) -> Vec<Combination<'_>> {
    if arguments.quick {
        return vec![QUICK];
    }
    if arguments.kernel.is_empty() {
        let by_name = arguments.filter.is_some();
        return COMBINATIONS.into_iter().filter(|row| !by_name || row.select != VARIANT).collect();
    }
    let of = |kernel| {
        let mut known: Vec<_> = COMBINATIONS.into_iter().filter(|row| row.kernel == kernel).collect();
        if known.is_empty() {
            let hierarchy = Hierarchy::V2;
            // What other tests run beside the agent is built for x86-64.
            let select = if arch_of(kernel) == Arch::Arm64 { VARIANT } else { "" };
            known.push(Combination { kernel, hierarchy, parameters: "", select, parts: 1 });
        }
        known
    };
    arguments.kernel.iter().flat_map(|kernel| of(kernel)).collect()
}

impl Combination<'_> {
    pub(super) fn arch(&self) -> Arch {
        arch_of(self.kernel)
    }

    fn name(&self) -> String {
        let parts = ["VM", self.kernel, self.hierarchy.name(), self.parameters];
        parts.join(" ").trim_end().to_owned()
    }

    /// Adds a step for each of its parts; a single one for tests that are chosen by name.
    pub(super) fn steps(&self, arguments: &Arguments, steps: &mut Vec<Step>) {
        let by_name = arguments.filter.is_some();
        let parts = if by_name { 1 } else { self.parts };
        for part in 1..=parts {
            let (mut name, mut words) = (self.name(), Vec::new());
            if let Some(names) = &arguments.filter {
                words.push(format!("guest.filter={names}"));
            } else if !self.select.is_empty() {
                words.push(format!("guest.select={}", self.select));
            }
            if parts > 1 {
                name = format!("{name} {part}/{parts}");
                words.push(format!("guest.part={part}/{parts}"));
            }
            let times = arguments.repeat.unwrap_or(1);
            if times > 1 {
                words.push(format!("guest.repeat={times}"));
            }
            words.insert(0, self.parameters.to_owned());
            let (kernel, hierarchy, parameters) = (self.kernel.to_owned(), self.hierarchy, words.join(" "));
            let (cpu, label) = (arguments.cpu.clone(), name.replace([' ', '/', '='], "-"));
            let after: &[_] = match self.arch() {
                Arch::Amd64 => &[programs_of(Arch::Amd64), CLIENTS, VM],
                Arch::Arm64 => &[programs_of(Arch::Arm64), VM],
            };
            steps.push(shown(&name, after, move || {
                test(&kernel, hierarchy, &parameters, cpu.as_deref(), &label, times)
            }));
        }
    }
}

/// Boots, and runs the tests that the parameters choose.
fn test(
    kernel: &str,
    hierarchy: Hierarchy,
    parameters: &str,
    cpu: Option<&str>,
    label: &str,
    times: u16,
) -> Result<Outcome> {
    vm::ensure(kernel)?;
    let kernel = kernels::get(kernel)?;
    let mut guest = build::built_guest(kernel.arch);
    if kernel.arch == Arch::Amd64 {
        guest.more = clients::built()?;
    }
    println!("{}", booting(&kernel, hierarchy));
    let boot = Boot {
        parameters: parameters.to_owned(),
        cpu: cpu.map(str::to_owned),
        limit: Duration::from_secs(30 * 60) * u32::from(times),
        label: label.to_owned(),
        ..Boot::new(&kernel, hierarchy, "test")
    };
    let report = boot.run(&guest, &mut |line| println!("{line}"))?;
    ensure!(report.passed + report.failed > 0, "the guest ran no test; its log is in target/vm");
    Ok(Outcome::of(report, kernels::remark(&kernel).unwrap_or(kernel.release)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_architecture_stands_for_its_kernels_of_a_whole_run() {
        assert_eq!(kernels_for(Arch::Arm64), ["6.1-arm64", "6.12-arm64-16k"]);
        assert_eq!(kernels_for(Arch::Amd64).len() + 2, kernels().len());
        let arguments = Arguments { kernel: vec!["7.2-arm64".to_owned()], ..Arguments::default() };
        let boots = combinations(&arguments);
        assert_eq!((boots.len(), boots[0].select), (1, VARIANT));
    }

    #[test]
    fn each_boot_with_v1_is_of_a_kernel_that_has_it() {
        for boot in COMBINATIONS.iter().filter(|boot| boot.hierarchy == Hierarchy::V1) {
            assert_eq!(kernels::has_v1(boot.kernel), Some(true), "{}", boot.kernel);
        }
    }
}
