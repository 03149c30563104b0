//! The steps of `cargo xtask test`: what each does, and what has to be done before.

use anyhow::{Result, bail, ensure};

use super::Arguments;
use super::boots::{boots, kernels_of};
use super::filter::Filter;
use super::scenarios::{Declared, On};
use crate::arch::Arch;
use crate::build;
use crate::debian::{self, BARE, Bare, DEBIAN};
use crate::dist::{Linters, RpmBuild};
use crate::fuzz::{self, CargoFuzz};
use crate::image::Buildah;
use crate::project::Project;
use crate::prometheus::{self, Prometheus};
use crate::steps::{self, PROGRAMS, Step, TOOLCHAIN, VM, download, ready, shown, work};
use crate::summary::Outcome;
use crate::{bench, checks, clients, deploy, dist, docs, kernels, native, setup, soak, tidy};

const SOURCES: &str = "get clients and languages";
const SYSTEMS: &str = "get Debian and Prometheus";
const CLIENT_TESTS: &str = "clients' own tests";
pub(super) const CLIENTS: &str = "build clients and examples";

/// Returns all steps of these arguments, in the order in which they are begun.
pub(super) fn steps(arguments: &Arguments, tests: &[Declared]) -> Vec<Step> {
    let mut steps = Vec::new();
    let filter = arguments.filter.as_deref().map(Filter::new);
    let has_host = filter.is_none();
    let is_whole = has_host && arguments.kernel.is_empty() && !arguments.quick && !arguments.only_host;

    steps.push(steps::toolchain());
    let boots = if arguments.only_host { Vec::new() } else { boots(arguments, tests) };
    let has_boot = |arch| boots.iter().any(|boot| boot.arch() == arch);
    if !arguments.only_host {
        let kernels = kernels_of(arguments);
        steps.push(steps::vm(kernels));
        if has_boot(Arch::Amd64) || boots.is_empty() {
            steps.push(download(SOURCES, &[], || ready(&clients::NEEDS)));
            steps.push(steps::dependencies());
            steps.push(steps::programs(Arch::Amd64));
            steps.push(work(CLIENTS, &[SOURCES], || {
                clients::build()?;
                Ok(Outcome::ready(""))
            }));
        }
    }
    if has_host {
        host_steps(arguments, &mut steps);
    }
    if is_whole {
        steps.push(download(SYSTEMS, &[], || {
            ready(&[&DEBIAN, &Buildah, &Prometheus, &deploy::Kustomize, &Project, &RpmBuild, &Linters])?;
            BARE.iter().try_for_each(|bare| setup::ensure(&[&bare.root]))?;
            Ok(Outcome::ready(""))
        }));
        steps.push(work("fuzz tool", &[], || ready(&[&CargoFuzz])));
    }
    let has_arm64 = has_boot(Arch::Arm64);
    if has_arm64 {
        steps.push(steps::programs(Arch::Arm64));
    }
    if has_host && !arguments.only_host {
        steps.push(shown("tests on this machine", &[PROGRAMS], native::tests));
        if !arguments.quick {
            let after = &[PROGRAMS, CLIENT_TESTS];
            steps.push(work("clients beside an agent", after, clients::beside_an_agent));
        }
    }
    for combination in boots {
        combination.steps(arguments, &mut steps);
    }
    if names_debian(arguments, tests) {
        debian_step(arguments, &mut steps);
    }
    for bare in bare_boots(arguments, tests) {
        bare_step(bare, arguments, &mut steps);
    }
    if is_whole || filter.is_some_and(|filter| filter.has_prometheus()) {
        steps.push(shown("VM 6.12 Prometheus", &[PROGRAMS, VM, SYSTEMS], || {
            prometheus::scrape(&build::built_guest(Arch::Amd64))
        }));
    }
    if is_whole {
        debian_step(arguments, &mut steps);
        let mut packed = vec![Arch::Amd64];
        let mut after = vec![PROGRAMS, SYSTEMS];
        if has_arm64 {
            packed.push(Arch::Arm64);
            after.push(steps::programs_of(Arch::Arm64));
        }
        steps.push(work("packages", &after, move || dist::smoke(&packed)));
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
    let has_debian = names_debian(arguments, tests) || !bare_boots(arguments, tests).is_empty();
    if filter.has_prometheus() || has_debian || !boots(arguments, tests).is_empty() {
        return Ok(());
    }
    let wanted: Vec<_> = tests.iter().filter(|test| filter.wants(&test.name)).collect();
    let Some(first) = wanted.first() else {
        bail!("--filter {names} excludes every test that it names; leave out a word that begins with `-`");
    };
    bail!(
        "--filter {names}: none of these kernels has a boot for {} ({:?}); leave out --kernel, or give one \
         that has: {} with cgroup v1, {} with cgroup v2",
        first.name,
        first.on,
        kernels::OLDEST,
        super::kernels().join(", ")
    );
}

/// True if a test that needs Debian is chosen by a part of its name.
fn names_debian(arguments: &Arguments, tests: &[Declared]) -> bool {
    let filter = arguments.filter.as_deref().map(Filter::new);
    debian_kernel(arguments).is_some()
        && filter.is_some_and(|filter| {
            let is_named = |test: &Declared| filter.names(&test.name) && filter.wants(&test.name);
            tests.iter().any(|test| test.on == On::Debian && is_named(test))
        })
}

/// Returns the bare releases of Debian's for which a test is chosen; a whole run boots all.
fn bare_boots(arguments: &Arguments, tests: &[Declared]) -> Vec<&'static Bare> {
    let has_kernel =
        |bare: &Bare| arguments.kernel.is_empty() || arguments.kernel.iter().any(|name| name == bare.kernel);
    let Some(filter) = arguments.filter.as_deref().map(Filter::new) else {
        let is_whole = arguments.kernel.is_empty() && !arguments.quick && !arguments.only_host;
        return if is_whole { BARE.iter().collect() } else { Vec::new() };
    };
    let is_named = |bare: &Bare, test: &Declared| {
        test.on.bare() == Some(bare.version) && filter.names(&test.name) && filter.wants(&test.name)
    };
    let has_test = |bare: &Bare| tests.iter().any(|test| is_named(bare, test));
    BARE.iter().filter(|bare| has_kernel(bare) && has_test(bare)).collect()
}

/// Adds the test of the package on a bare release of Debian's.
fn bare_step(bare: &'static Bare, arguments: &Arguments, steps: &mut Vec<Step>) {
    let names = arguments.filter.clone().unwrap_or_else(|| debian::TESTS.to_owned());
    let name = format!("VM {} Debian {}, bare", bare.kernel, bare.version);
    steps.push(shown(&name, &[PROGRAMS, VM, SYSTEMS], move || debian::test_bare(bare, &names)));
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
        steps.push(work(CLIENT_TESTS, &[SOURCES], clients::unit_tests));
        steps.push(work("dependencies", &[], checks::dependencies));
        steps.push(work("documentation", &[], docs::build));
        steps.push(work("alert rules", &[SYSTEMS], prometheus::check_rules));
        steps.push(work("Kubernetes manifests", &[SYSTEMS], deploy::check));
    }
}

/// The kernel for Debian's disk, which is x86-64's: the newest unless another is given.
fn debian_kernel(arguments: &Arguments) -> Option<String> {
    if arguments.kernel.is_empty() {
        return Some(kernels::NEWEST.to_owned());
    }
    let is_amd64 = |kernel: &&String| kernels::arch(kernel).is_ok_and(|arch| arch == Arch::Amd64);
    arguments.kernel.iter().find(is_amd64).cloned()
}

/// Adds the tests that need systemd.
fn debian_step(arguments: &Arguments, steps: &mut Vec<Step>) {
    let Some(kernel) = debian_kernel(arguments) else { return };
    let names = arguments.filter.clone().unwrap_or_else(|| debian::TESTS.to_owned());
    let name = format!("VM {kernel} Debian");
    steps.push(shown(&name, &[PROGRAMS, VM, SYSTEMS], move || debian::test(&kernel, &names)));
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
            test("debian_bare_12", On::Debian12),
            test("debian_bare_13", On::Debian13),
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
    fn arm64_has_programs_of_its_own_and_nothing_that_is_built_for_x86_64_alone() {
        let arguments = |kernels: &[&str]| filter("threshold_", kernels);
        let arm64 = names(&arguments(&["6.12-arm64"]));
        let expected = [TOOLCHAIN, VM, "build the VM's programs, arm64", "VM 6.12-arm64 v2"];
        assert_eq!(arm64, expected);
        let both = names(&arguments(&["6.12", "6.12-arm64"]));
        for name in [
            PROGRAMS,
            CLIENTS,
            "build the VM's programs, arm64",
            "VM 6.12 v2 preempt=full",
            "VM 6.12-arm64 v2",
        ] {
            assert!(both.iter().any(|other| other == name), "{name} in {both:?}");
        }
        let text = check(&filter("debian_", &["6.12-arm64"]), &tests()).expect_err("Debian is x86-64's");
        assert!(text.to_string().contains("debian_units (Debian)"), "{text}");
    }

    #[test]
    fn a_whole_run_boots_kernels_that_are_built_otherwise_and_a_search_by_name_does_not() {
        let whole = names(&Arguments::default());
        let by_name = names(&filter("threshold_", &[]));
        for name in ["VM 6.12-rt v2", "VM 7.3 v2", "VM 6.12-arm64-16k v2"] {
            assert!(whole.iter().any(|other| other == name), "{name} in {whole:?}");
            assert!(!by_name.iter().any(|other| other == name), "{name} in {by_name:?}");
        }
    }

    #[test]
    fn tests_chosen_by_name_need_nothing_on_the_host() {
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
        let bare = ["VM 6.1 Debian 12, bare", "VM 6.12 Debian 13, bare"];
        assert_eq!(boots("debian_bare", &[]).expect("boots"), bare);
        assert_eq!(boots("debian_bare", &["6.12"]).expect("a boot"), bare[1..]);
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
}
