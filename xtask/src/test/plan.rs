//! The steps of `cargo xtask test`: what each does, and what has to be done before.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::Arguments;
use super::filter::Filter;
use super::scenarios::{Declared, On};
use crate::build::{self, Guest};
use crate::debian::{self, Debian};
use crate::fuzz::{self, CargoFuzz};
use crate::image::Buildah;
use crate::project::Project;
use crate::prometheus::{self, Prometheus};
use crate::steps::{self, PROGRAMS, Step, TOOLCHAIN, VM, download, ready, shown, work};
use crate::summary::Outcome;
use crate::vm::{self, Boot, Hierarchy, booting};
use crate::{bench, checks, clients, docs, kernels, soak, tidy};

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

/// 6.1 with v1 is the oracle; `preempt=full` is where the kernel's recursion guard skips
/// programs. All tests run on the oldest and on the newest kernel but for those that
/// show nothing about the kernel, which run on the newest alone.
pub(super) const COMBINATIONS: [Combination<'_>; 5] = [
    Combination { kernel: kernels::NEWEST, hierarchy: Hierarchy::V2, parameters: "", select: "", parts: 2 },
    Combination { kernel: "6.1", hierarchy: Hierarchy::V2, parameters: "", select: "-newest", parts: 2 },
    Combination { kernel: "6.1", hierarchy: Hierarchy::V1, parameters: "", select: "oracle", parts: 1 },
    Combination { kernel: "6.12", hierarchy: Hierarchy::V2, parameters: "", select: "kernel", parts: 1 },
    Combination {
        kernel: "6.12",
        hierarchy: Hierarchy::V2,
        parameters: "preempt=full",
        select: "preempt",
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

const SOURCES: &str = "get clients and languages";
const SYSTEMS: &str = "get Debian and Prometheus";
const CLIENTS: &str = "build clients and examples";

/// Returns all steps of these arguments, in the order in which they are begun.
pub(super) fn steps(arguments: &Arguments, tests: &[Declared]) -> Vec<Step> {
    let mut steps = Vec::new();
    let filter = arguments.filter.as_deref().map(Filter::new);
    let has_host = filter.is_none();
    let is_whole = has_host && arguments.kernel.is_empty() && !arguments.quick && !arguments.only_host;

    steps.push(steps::toolchain());
    if !arguments.only_host {
        let kernels = kernels_of(arguments);
        steps.push(steps::vm(kernels));
        steps.push(download(SOURCES, &[], || ready(&clients::NEEDS)));
        steps.push(steps::dependencies());
        steps.push(steps::programs());
        steps.push(work(CLIENTS, &[SOURCES], || {
            clients::build()?;
            Ok(Outcome::ready(""))
        }));
    }
    if has_host {
        host_steps(arguments, &mut steps);
    }
    if is_whole {
        steps.push(download(SYSTEMS, &[], || ready(&[&Debian, &Buildah, &Prometheus, &Project])));
        steps.push(work("fuzz tool", &[], || ready(&[&CargoFuzz])));
    }
    if !arguments.only_host {
        for combination in boots(arguments, tests) {
            combination.steps(arguments, &mut steps);
        }
    }
    if names_debian(filter.as_ref(), tests) {
        debian_step(arguments, &mut steps);
    }
    if is_whole || filter.is_some_and(|filter| filter.has_prometheus()) {
        steps.push(shown("VM 6.12 Prometheus", &[PROGRAMS, VM, SYSTEMS], || {
            prometheus::scrape(&build::built_guest())
        }));
    }
    if is_whole {
        debian_step(arguments, &mut steps);
        steps.push(shown("VM soak, two minutes", &[PROGRAMS, VM], soak::brief));
        steps.push(shown("VM benchmarks, one round", &[PROGRAMS, VM, SYSTEMS, CLIENTS], bench::smoke));
        steps.push(work("fuzz, briefly", &["fuzz tool", TOOLCHAIN, "unit tests"], fuzz::briefly));
    }
    steps
}

/// Fails if a kernel is given twice, or if the filter has a word that names no test or
/// leaves no test to run.
pub(super) fn check(arguments: &Arguments, tests: &[Declared]) -> Result<()> {
    let kernels = &arguments.kernel;
    let twice = kernels.iter().enumerate().find(|(at, kernel)| kernels[..*at].contains(kernel));
    ensure!(twice.is_none(), "a --kernel is given twice, of {}; leave one out", kernels.join(", "));
    let Some(names) = &arguments.filter else { return Ok(()) };
    let filter = Filter::new(names);
    filter.check(tests)?;
    if filter.has_prometheus() || names_debian(Some(&filter), tests) || !boots(arguments, tests).is_empty() {
        return Ok(());
    }
    let wanted: Vec<_> = tests.iter().filter(|test| filter.wants(&test.name)).collect();
    let Some(first) = wanted.first() else {
        bail!("--filter {names} excludes every test that it names; leave out a word that begins with `-`");
    };
    let v1 = kernels::with_v1().collect::<Vec<_>>().join(", ");
    bail!(
        "--filter {names}: none of these kernels has a boot for {} ({:?}); leave out --kernel, or give one \
         that has: {} with cgroup v1, {} with cgroup v2",
        first.name,
        first.on,
        v1,
        kernels::labels().collect::<Vec<_>>().join(", ")
    );
}

/// Returns the boots that have a test to run, as far as tests are chosen by name.
fn boots<'a>(arguments: &'a Arguments, tests: &[Declared]) -> Vec<Combination<'a>> {
    let mut boots = combinations(arguments);
    if let Some(filter) = arguments.filter.as_deref().map(Filter::new) {
        let has_test = |boot: &Combination<'_>| {
            tests.iter().any(|test| test.on.includes(boot.hierarchy) && filter.wants(&test.name))
        };
        boots.retain(has_test);
    }
    boots
}

/// True if a test that needs Debian is chosen by a part of its name.
fn names_debian(filter: Option<&Filter<'_>>, tests: &[Declared]) -> bool {
    filter.is_some_and(|filter| {
        let is_named = |test: &Declared| filter.names(&test.name) && filter.wants(&test.name);
        tests.iter().any(|test| test.on == On::Debian && is_named(test))
    })
}

/// Adds the checks and tests that need no VM.
fn host_steps(arguments: &Arguments, steps: &mut Vec<Step>) {
    steps.push(work("format", &[], checks::format));
    steps.push(work("tidy", &[], tidy::check));
    if !arguments.quick {
        steps.push(work("model check", &[], checks::model_check));
    }
    // One after the other: they share cargo's directory, and would wait for its lock.
    steps.push(work("lints", &[TOOLCHAIN, "format"], checks::lints));
    steps.push(work("unit tests", &[TOOLCHAIN, "lints"], checks::unit_tests));
    if !arguments.quick {
        steps.push(work("lints, eBPF", &[TOOLCHAIN], checks::ebpf_lints));
        steps.push(work("dependencies", &[], checks::dependencies));
        steps.push(work("documentation", &[], docs::build));
        steps.push(work("alert rules", &[SYSTEMS], prometheus::check_rules));
    }
}

/// Adds the tests that need systemd, on the newest kernel unless another is given.
fn debian_step(arguments: &Arguments, steps: &mut Vec<Step>) {
    let kernel = arguments.kernel.first().map_or(kernels::NEWEST, String::as_str).to_owned();
    let names = arguments.filter.clone().unwrap_or_else(|| debian::TESTS.to_owned());
    let name = format!("VM {kernel} Debian");
    steps.push(shown(&name, &[PROGRAMS, VM, SYSTEMS], move || debian::test(&kernel, &names)));
}

fn kernels_of(arguments: &Arguments) -> Vec<String> {
    match (arguments.kernel.as_slice(), arguments.quick) {
        ([], false) => kernels::labels().map(str::to_owned).collect(),
        ([], true) => vec![kernels::NEWEST.to_owned()],
        (kernels, _) => kernels.to_vec(),
    }
}

/// The rows of the table for these kernels; a kernel outside the table gets v2.
fn combinations(arguments: &Arguments) -> Vec<Combination<'_>> {
    if arguments.quick {
        return vec![QUICK];
    }
    if arguments.kernel.is_empty() {
        return COMBINATIONS.to_vec();
    }
    let of = |kernel| {
        let mut known: Vec<_> = COMBINATIONS.into_iter().filter(|row| row.kernel == kernel).collect();
        if known.is_empty() {
            let hierarchy = Hierarchy::V2;
            known.push(Combination { kernel, hierarchy, parameters: "", select: "", parts: 1 });
        }
        known
    };
    arguments.kernel.iter().flat_map(|kernel| of(kernel)).collect()
}

impl Combination<'_> {
    fn name(&self) -> String {
        let parts = ["VM", self.kernel, self.hierarchy.name(), self.parameters];
        parts.join(" ").trim_end().to_owned()
    }

    /// Adds a step for each of its parts; a single one for tests that are chosen by name.
    fn steps(&self, arguments: &Arguments, steps: &mut Vec<Step>) {
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
            words.insert(0, self.parameters.to_owned());
            let (kernel, hierarchy, parameters) = (self.kernel.to_owned(), self.hierarchy, words.join(" "));
            let label = name.replace([' ', '/', '='], "-");
            steps.push(shown(&name, &[PROGRAMS, CLIENTS, VM], move || {
                test(&kernel, hierarchy, &parameters, &label)
            }));
        }
    }
}

/// Boots, and runs the tests that the parameters choose.
fn test(kernel: &str, hierarchy: Hierarchy, parameters: &str, label: &str) -> Result<Outcome> {
    vm::ensure(kernel)?;
    let guest = Guest { more: clients::built()?, ..build::built_guest() };
    let kernel = kernels::get(kernel)?;
    println!("{}", booting(&kernel, hierarchy));
    let boot = Boot {
        parameters: parameters.to_owned(),
        limit: Duration::from_secs(30 * 60),
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

    fn tests() -> Vec<Declared> {
        let test =
            |name: &str, on| Declared { name: name.to_owned(), on, tags: Vec::new(), modules: Vec::new() };
        vec![
            test("threshold_up", On::Any),
            test("view_new", On::V2),
            test("conformance_line", On::V1),
            test("debian_units", On::Debian),
        ]
    }

    fn names(arguments: &Arguments) -> Vec<String> {
        steps(arguments, &tests()).into_iter().map(|step| step.name).collect()
    }

    fn filter(names: &str, kernels: &[&str]) -> Arguments {
        Arguments {
            filter: Some(names.to_owned()),
            kernel: kernels.iter().map(ToString::to_string).collect(),
            ..Arguments::default()
        }
    }

    #[test]
    fn a_kernel_outside_the_table_gets_one_boot() {
        let arguments = |kernels: &[&str]| Arguments {
            kernel: kernels.iter().map(ToString::to_string).collect(),
            ..Arguments::default()
        };
        let vms = |kernels: &[&str]| {
            let names = names(&arguments(kernels));
            names.into_iter().filter(|name| name.starts_with("VM ")).collect::<Vec<_>>()
        };
        assert_eq!(vms(&["6.1"]), ["VM 6.1 v2 1/2", "VM 6.1 v2 2/2", "VM 6.1 v1"]);
        assert_eq!(vms(&["/boot/vmlinuz"]), ["VM /boot/vmlinuz v2"]);
    }

    #[test]
    fn names_are_unique_and_each_step_comes_after_what_it_needs() {
        for arguments in [
            Arguments::default(),
            Arguments { quick: true, ..Arguments::default() },
            Arguments { only_host: true, ..Arguments::default() },
            filter("threshold_", &[]),
            filter("debian_units,view_", &[]),
            filter("prometheus", &[]),
        ] {
            let steps = steps(&arguments, &tests());
            for (at, step) in steps.iter().enumerate() {
                let same = steps.iter().filter(|other| other.name == step.name).count();
                assert_eq!(same, 1, "{}", step.name);
                for name in &step.after {
                    let place = steps.iter().position(|other| other.name == *name);
                    // A circle would never start.
                    assert!(place.is_none_or(|place| place != at), "{name}");
                }
            }
        }
    }

    #[test]
    fn tests_asked_for_by_name_need_nothing_on_the_host() {
        let names = names(&filter("debian_", &[]));
        assert!(names.iter().any(|name| name == "VM 7.2 Debian"), "{names:?}");
        assert!(!names.iter().any(|name| name == "lints" || name == "VM 7.2 v2"), "{names:?}");
    }

    #[test]
    fn a_boot_without_a_wanted_test_is_left_out() {
        let boots = |names: &str, kernels: &[&str]| {
            let arguments = filter(names, kernels);
            check(&arguments, &tests())?;
            let names = self::names(&arguments).into_iter().filter(|name| name.starts_with("VM "));
            Ok::<_, anyhow::Error>(names.collect::<Vec<_>>())
        };
        assert_eq!(boots("conformance_", &[]).expect("a boot"), ["VM 6.1 v1"]);
        assert_eq!(boots("view_", &["6.1"]).expect("a boot"), ["VM 6.1 v2"]);
        assert_eq!(boots("units", &["6.1"]).expect("a boot"), ["VM 6.1 Debian"]);
        assert_eq!(boots("prometheus", &[]).expect("a boot"), ["VM 6.12 Prometheus"]);
        let text = boots("view_", &["6.1", "6.1"]).expect_err("one kernel twice").to_string();
        assert!(text.contains("given twice, of 6.1, 6.1"), "{text}");
        let text = boots("conformance_", &["7.2"]).expect_err("7.2 has no v1").to_string();
        assert!(text.contains("conformance_line (V1)") && text.contains("6.1 with cgroup v1"), "{text}");
        let text = boots("view_,-view_", &[]).expect_err("nothing left").to_string();
        assert!(text.contains("excludes every test"), "{text}");
        let text = boots("veiw_", &[]).expect_err("no such test").to_string();
        assert!(text.contains("no test has `veiw_`"), "{text}");
    }

    #[test]
    fn each_boot_with_v1_is_of_a_kernel_that_has_it() {
        for boot in COMBINATIONS.iter().filter(|boot| boot.hierarchy == Hierarchy::V1) {
            assert_eq!(kernels::has_v1(boot.kernel), Some(true), "{}", boot.kernel);
        }
    }
}
