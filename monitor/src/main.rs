//! The command `memcg-monitor`: parse, run, exit code.

#![forbid(unsafe_code)]

mod cli;
mod commands;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match cli.verbose {
        // The agent logs FUSE's failures itself.
        0 => "info,fuser=off",
        1 => "info,fuser=off,memcg_monitor=debug",
        _ => "debug,memcg_monitor=trace",
    };
    memcg_monitor::logging::init(level);
    let outcome = match cli.command {
        Command::Agent(options) => commands::agent::run(&options),
        Command::Listen(options) => commands::listen::run(&options),
        Command::List(options) => commands::list::run(&options),
        Command::Status(options) => commands::status::run(&options),
        Command::Check(options) => Ok(commands::check::run(&options)),
        Command::Unmount(options) => commands::unmount::run(&options),
    };
    log::logger().flush();
    match outcome {
        Ok(code) => code,
        // The reader of the output has closed it.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("memcg-monitor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
