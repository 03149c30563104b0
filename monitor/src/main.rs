//! The command `memcg-monitor`: parse, run, exit code.

#![forbid(unsafe_code)]

mod cli;
mod commands;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use memcg_monitor::printable;
use monitor_client::named;
use monitor_sys::signals;
use nix::sys::signal::Signal;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    memcg_monitor::logging::init(log_filter(cli.verbose));
    let outcome = prepare(&cli.command).and_then(|()| run(&cli.command));
    log::logger().flush();
    let error = match outcome {
        Ok(code) => return code,
        Err(error) => error,
    };
    let text = match commands::output_failure(error) {
        // The reader of the output has closed it.
        Ok(failure) if failure.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
        Ok(failure) => format!(
            "cannot write to standard output: {}; what was written is not all: make room, or write it elsewhere",
            named(&failure)
        ),
        Err(error) if is_broken_pipe(&error) => return ExitCode::SUCCESS,
        Err(error) => commands::text_of(&error),
    };
    // It may hold names that other users chose.
    // Not `eprintln`, which panics where nobody reads it any more.
    let _ = writeln!(io::stderr(), "memcg-monitor: {}", printable(&text));
    ExitCode::FAILURE
}

/// Undoes what a parent may have set for itself, and a program inherits.
fn prepare(command: &Command) -> Result<()> {
    // The kernel reaps the children of a process that ignores it: nobody could wait for them.
    signals::restore(Signal::SIGCHLD).context("sigaction failed")?;
    match command {
        // They catch or ignore the signals that end a program first.
        Command::Agent(_) | Command::DevicePlugin(_) | Command::Unmount(_) => Ok(()),
        _ => commands::unblock_signals(),
    }
}

fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Agent(options) => commands::agent::run(options),
        Command::Listen(options) => commands::listen::run(options),
        Command::Watch(options) => commands::watch::run(options),
        Command::List(options) => commands::list::run(options),
        Command::Top(options) => commands::top::run(options),
        Command::Status(options) => commands::status::run(options),
        Command::Kills(options) => commands::kills::run(options),
        Command::Record(options) => commands::record::run(options),
        Command::Report(options) => commands::report::run(options),
        Command::Check(options) => commands::check::run(options),
        Command::DevicePlugin(options) => commands::device_plugin::run(options),
        Command::DropIn(options) => commands::drop_in::run(options),
        Command::Completions(options) => commands::completions::run(options),
        Command::Man(options) => commands::man::run(options),
        Command::Unmount(options) => commands::unmount::run(options),
    }
}

/// The log's filter for this many `-v`.
const fn log_filter(verbose: u8) -> &'static str {
    match verbose {
        // The agent logs FUSE's failures itself. Of aya, only errors are of use: it warns of each
        // kernel release without a patch level, which it does not understand.
        0 => "info,fuser=off,aya=error",
        1 => "info,fuser=off,aya=error,memcg_monitor=debug",
        _ => "debug,memcg_monitor=trace",
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use std::{env, process};

    use clap::Parser as _;
    use log::{Level, Record};
    use nix::sys::signal::{SigSet, Signal};

    use super::{log_filter, prepare};
    use crate::cli::Cli;

    #[test]
    #[ignore = "a program for the test below"]
    fn program_that_waits_for_a_child() {
        let cli = Cli::parse_from(["memcg-monitor", "status"]);
        prepare(&cli.command).expect("a default action");
        let status = process::Command::new("true").status().expect("its end");
        assert!(status.success(), "{status}");
    }

    #[test]
    fn children_are_waited_for_whatever_the_parent_ignores() {
        // Not `sh`: that of Debian ignores SIGCHLD for itself alone.
        let mut parent = process::Command::new("bash");
        parent.args(["--norc", "-c", "trap '' CHLD; exec \"$0\" \"$@\""]);
        let name = "tests::program_that_waits_for_a_child";
        parent.arg(env::current_exe().expect("this program")).args(["--exact", name, "--ignored"]);
        let output = parent.output().expect("bash");
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("1 passed"), "{}: {told}", output.status);
    }

    #[test]
    fn signals_that_a_parent_has_blocked_arrive() {
        let end = SigSet::from(Signal::SIGTERM);
        let is_blocked_in = |words: &[&str]| {
            end.thread_block().expect("a mask");
            prepare(&Cli::parse_from(words).command).expect("a mask");
            SigSet::thread_get_mask().expect("a mask").contains(Signal::SIGTERM)
        };
        assert!(!is_blocked_in(&["memcg-monitor", "watch", "/**", "oom"]));
        assert!(is_blocked_in(&["memcg-monitor", "agent"]), "it is caught before it arrives");
        end.thread_unblock().expect("a mask");
    }

    #[test]
    fn warnings_about_the_kernels_release_are_left_out() {
        for verbose in [0, 1] {
            let log = env_logger::Builder::new().parse_filters(log_filter(verbose)).build();
            let is_logged =
                |target: &str, level| log.matches(&Record::builder().target(target).level(level).build());
            assert!(
                !is_logged("aya::util", Level::Warn) && is_logged("aya::util", Level::Error),
                "{verbose}"
            );
            assert!(is_logged("memcg_monitor::programs", Level::Warn), "{verbose}");
            assert_eq!(is_logged("memcg_monitor::programs", Level::Debug), verbose == 1);
        }
    }
}
