//! The commands of the command line, one file for each.

// `println` and `eprintln` panic where their reader is gone: `writeln` returns that, `say` ignores it.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

use std::{
    error::Error,
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use monitor_client::named;
use nix::sys::signal::{SigSet, Signal};

/// The exit code after `--timeout`.
const TIMED_OUT: u8 = 3;

/// Says that the agent has not answered, for commands that only wait for its answer.
fn timed_out(limit: Option<Duration>) -> ExitCode {
    let limit = limit.unwrap_or_default().as_secs_f64();
    say(&format!(
        "the agent has not answered within {limit} s (--timeout); if it runs, its log says more \
         (journalctl -u memcg-monitor)"
    ));
    ExitCode::from(TIMED_OUT)
}

/// Says something on standard error, beside what is printed; nobody may read it any more.
fn say(text: &str) {
    say_bare(&format!("memcg-monitor: {text}"));
}

/// Says it without the program's name before it.
fn say_bare(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Lets the signals that end or restart the process arrive, whatever the parent had blocked: a program
/// inherits that, and could not be ended but by SIGKILL.
pub fn unblock_signals() -> anyhow::Result<()> {
    let caught: SigSet = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    caught.thread_unblock().context("sigprocmask failed")
}

/// The error and its causes in one line, each errno by its name.
pub fn text_of(error: &anyhow::Error) -> String {
    let text = |cause: &(dyn Error + 'static)| {
        cause.downcast_ref::<io::Error>().map_or_else(|| cause.to_string(), named)
    };
    error.chain().map(text).collect::<Vec<_>>().join(": ")
}

pub mod agent;
pub mod check;
pub mod completions;
pub mod connect;
pub mod deadline;
pub mod device_plugin;
pub mod drop_in;
#[cfg(test)]
mod fake_agent;
pub mod fold;
pub mod group;
pub mod human;
pub mod kills;
pub mod list;
pub mod listen;
pub mod man;
pub mod output;
pub mod record;
pub mod report;
pub mod status;
pub mod top;
pub mod unmount;
pub mod victim;
pub mod watch;

#[cfg(test)]
mod tests {
    use std::{env, io, process::Command};

    use super::{say, text_of, timed_out};

    #[test]
    fn an_errno_has_its_name() {
        let error = anyhow::Error::new(io::Error::from_raw_os_error(2)).context("cannot open /a");
        assert_eq!(text_of(&error), "cannot open /a: ENOENT: No such file or directory");
        assert_eq!(text_of(&anyhow::anyhow!("inner").context("outer")), "outer: inner");
    }

    #[test]
    #[ignore = "a program for the test below"]
    fn program_that_says_something() {
        say("something");
        let _ = timed_out(None);
    }

    #[test]
    fn what_nobody_reads_any_more_is_no_failure() {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let mut program = Command::new(env::current_exe().expect("this program"));
        let name = "commands::tests::program_that_says_something";
        program.args(["--exact", name, "--ignored", "--nocapture"]).stderr(writer);
        let output = program.output().expect("this program");
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("1 passed"), "{}: {told}", output.status);
    }
}
