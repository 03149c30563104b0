//! `cargo xtask`: everything that is done with this workspace.

mod apt;
mod arch;
mod bench;
mod build;
mod busybox;
mod cargo_install;
mod checks;
mod clients;
mod conformance;
mod cross;
mod debian;
mod deploy;
mod dist;
mod docs;
mod ebpf;
mod fuzz;
mod image;
mod initramfs;
mod kernels;
mod lock;
mod modules;
mod native;
mod needs;
mod process;
mod project;
mod prometheus;
mod qemu;
mod recording;
mod run;
mod schedule;
mod setup;
mod soak;
mod steps;
mod summary;
mod svg;
mod test;
mod tidy;
mod times;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

/// Sets up, builds, runs, tests and measures memcg-monitor.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Find or install every prerequisite; the others do it for what they need
    Setup,
    /// Build the host's programs, and the static ones for the VM
    Build(build::Arguments),
    /// Build the container image, deploy/container/Containerfile
    Image,
    /// Pack a release: tarball, .deb, .rpm, container image, SBOM, checksums, in target/dist
    Dist(dist::Arguments),
    /// Boot the test VM and show a group crossing its thresholds
    Run(run::Arguments),
    /// Run every check and test, and end with a table
    Test(test::Arguments),
    /// Compare with the real cgroup v1 in the VM, and write docs/reference/conformance.md
    Conformance,
    /// Kill, stop and hand over the agent amid a random mix of everything, against a model
    Soak(soak::Arguments),
    /// Measure in the VM; tables, plots and JSON go to target/bench
    Bench(bench::Arguments),
    /// Fuzz what reads bytes that others chose; new inputs go to target/fuzz
    Fuzz(fuzz::Arguments),
    /// Build the documentation as a site, target/docs, and check every link in it
    Docs,
}

impl Verb {
    /// Refuses arguments that do not fit together, which clap cannot see.
    fn check(&self) -> Result<()> {
        match self {
            Self::Run(arguments) => arguments.check(),
            Self::Test(arguments) => arguments.check(),
            _ => Ok(()),
        }
    }
}

fn main() -> ExitCode {
    let verb = Cli::parse().command;
    if let Err(error) = verb.check() {
        clap::Error::raw(ErrorKind::ValueValidation, format!("{error:#}\n")).exit();
    }
    match dispatch(verb) {
        Ok(code) => code,
        Err(error) => {
            let name = std::env::args().nth(1).unwrap_or_default();
            eprintln!("error: `cargo xtask {name}` failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Setup => setup::report(&needs::all())?,
        Verb::Build(arguments) => build::run(&arguments)?,
        Verb::Image => image::run()?,
        Verb::Dist(arguments) => dist::run(&arguments)?,
        Verb::Run(arguments) => return run::run(&arguments),
        Verb::Test(arguments) => return test::run(&arguments),
        Verb::Conformance => conformance::run()?,
        Verb::Soak(arguments) => soak::run(&arguments)?,
        Verb::Bench(arguments) => bench::run(&arguments)?,
        Verb::Fuzz(arguments) => fuzz::run(&arguments)?,
        Verb::Docs => println!("{}", docs::build()?.note),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The error on a command line, from clap or from what it cannot see.
    fn refusal(line: &str) -> Option<String> {
        let words = ["cargo xtask"].into_iter().chain(line.split(' '));
        match Cli::try_parse_from(words) {
            Ok(cli) => cli.command.check().err().map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }

    #[test]
    fn the_command_line_fits_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_kernel_that_is_not_there_is_refused_at_once() {
        for line in
            ["test --kernel", "run --kernel", "soak --kernel", "bench --kernel", "bench charge --kernel"]
        {
            assert_eq!(refusal(&format!("{line} 6.12")), None, "{line}");
            let text = refusal(&format!("{line} 9.9")).expect(line);
            assert!(text.contains("give one of 6.1, 6.12, 7.2, "), "{text}");
        }
    }

    #[test]
    fn the_help_names_kernels_and_how_to_see_the_others() {
        for name in ["test", "run", "soak", "bench"] {
            let mut command = Cli::command();
            let command = command.find_subcommand_mut(name).expect(name);
            let help = command.render_help().to_string();
            for word in [kernels::OLDEST, "6.12", kernels::NEWEST, "--list-kernels"] {
                assert!(help.contains(word), "{name}: {word}");
            }
        }
    }

    #[test]
    fn a_kernel_is_of_the_architecture_that_is_asked_for() {
        for line in [
            "run --arch arm64",
            "run --arch aarch64 --kernel 6.12-16k --cpu cortex-a72",
            "test --arch arm64 --kernel 6.12-arm64 --kernel 7.2",
            "test --kernel 6.12-rt",
            "test --list-kernels",
            "build --target aarch64",
            "soak --kernel 7.2-arm64",
        ] {
            assert_eq!(refusal(line), None, "{line}");
        }
        for (line, text) in [
            ("run --kernel 6.12-16k", "give --kernel 6.12-arm64-16k"),
            ("test --arch arm64 --kernel 6.12-rt", "is not for arm64"),
            ("test --arch amd64 --kernel 6.12-arm64", "is not for amd64"),
            ("bench --kernel 6.12-arm64", "is not for amd64"),
            ("test --arch arm64 --kernel 7.2 --kernel 7.2-arm64", "given twice"),
        ] {
            assert!(refusal(line).is_some_and(|found| found.contains(text)), "{line}: {:?}", refusal(line));
        }
    }

    #[test]
    fn a_fuzz_run_has_an_end() {
        for line in ["fuzz --seconds 0", "fuzz --differential --lines 0"] {
            assert!(refusal(line).is_some_and(|text| text.contains("1..")), "{line}");
        }
        assert_eq!(refusal("fuzz line --seconds 1"), None);
    }

    #[test]
    fn cgroup_v1_is_refused_where_the_kernel_lacks_it() {
        assert_eq!(refusal("run --kernel 6.1 --cgroup v1"), None);
        assert_eq!(refusal("run --kernel 6.1 --arch arm64 --cgroup v1"), None);
        assert_eq!(refusal("run --kernel 7.2 --cgroup v2"), None);
        for line in ["run --cgroup v1", "run --kernel 6.12 --cgroup v1"] {
            let text = refusal(line).expect(line);
            assert!(text.contains("give --kernel 6.1, or --cgroup v2"), "{text}");
        }
        assert!(refusal("run --cgroup v3").is_some_and(|text| text.contains("[possible values: v1, v2]")));
    }

    #[test]
    fn a_filter_that_names_no_test_is_refused_at_once() {
        for filter in ["threshold_", "debian_", "prometheus", "conformance_,-threshold_"] {
            assert_eq!(refusal(&format!("test --filter {filter}")), None, "{filter}");
        }
        let text = refusal("test --filter threshhold_").expect("no such test");
        assert!(text.contains("`threshhold_`") && text.contains("near it: threshold"), "{text}");
        let text = refusal("test --filter conformance_removal_order --kernel 7.2").expect("no such boot");
        assert!(text.contains("6.1 with cgroup v1"), "{text}");
    }
}
