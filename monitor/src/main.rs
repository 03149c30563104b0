//! The command `memcg-monitor`: parse, run, exit code.

#![forbid(unsafe_code)]

mod cli;
mod commands;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use memcg_monitor::printable;
use monitor_client::named;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    memcg_monitor::logging::init(log_filter(cli.verbose));
    let outcome = match cli.command {
        Command::Agent(options) => commands::agent::run(&options),
        Command::Listen(options) => commands::listen::run(&options),
        Command::Watch(options) => commands::watch::run(&options),
        Command::List(options) => commands::list::run(&options),
        Command::Top(options) => commands::top::run(&options),
        Command::Status(options) => commands::status::run(&options),
        Command::Kills(options) => commands::kills::run(&options),
        Command::Record(options) => commands::record::run(&options),
        Command::Report(options) => commands::report::run(&options),
        Command::Check(options) => commands::check::run(&options),
        Command::DevicePlugin(options) => commands::device_plugin::run(&options),
        Command::DropIn(options) => commands::drop_in::run(&options),
        Command::Completions(options) => commands::completions::run(&options),
        Command::Man(options) => commands::man::run(&options),
        Command::Unmount(options) => commands::unmount::run(&options),
    };
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
    use log::{Level, Record};

    use super::log_filter;

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
