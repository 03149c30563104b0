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
use memcg_monitor::printable;
use monitor_client::named;
use nix::sys::signal::{SigSet, Signal};

/// The exit code after `--timeout`.
const TIMED_OUT: u8 = 3;

/// The exit code for words that a command refuses by itself.
const WRONG_USAGE: u8 = 2;

/// Says why words are refused that the command line has.
fn wrong_usage(error: &anyhow::Error) -> ExitCode {
    say(&printable(&text_of(error)));
    ExitCode::from(WRONG_USAGE)
}

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

/// Takes the failure to write to standard output out of an error, or gives back another error. A command names
/// the call of each other `io::Error` as context, and `serde_json` fails by one only where it writes.
///
/// # Errors
/// The error, where it is another one.
pub fn output_failure(error: anyhow::Error) -> anyhow::Result<io::Error> {
    // Its own source is not the `io::Error`, but what that came from.
    if error.downcast_ref::<serde_json::Error>().is_some_and(serde_json::Error::is_io) {
        return error.downcast::<serde_json::Error>().map(io::Error::from);
    }
    let is_alone = error.chain().nth(1).is_none();
    if is_alone { error.downcast::<io::Error>() } else { Err(error) }
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
    use std::{env, fs::File, io, process::Command};

    use anyhow::Context as _;

    use super::{output_failure, say, text_of, timed_out};

    #[test]
    fn an_errno_has_its_name() {
        let error = anyhow::Error::new(io::Error::from_raw_os_error(2)).context("cannot open /a");
        assert_eq!(text_of(&error), "cannot open /a: ENOENT: No such file or directory");
        assert_eq!(text_of(&anyhow::anyhow!("inner").context("outer")), "outer: inner");
    }

    #[test]
    fn output_that_cannot_be_written_is_told_apart_with_its_errno() {
        let full = || File::options().write(true).open("/dev/full").expect("a device");
        let written = serde_json::to_writer(full(), &1).context("cannot write");
        let failure = output_failure(written.expect_err("it is full")).expect("of the output");
        assert_eq!(failure.raw_os_error(), Some(28));
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let written = serde_json::to_writer(writer, &1).expect_err("nobody reads it");
        let failure = output_failure(written.into()).expect("of the output");
        assert_eq!(failure.kind(), io::ErrorKind::BrokenPipe);
        let bare = io::Error::from_raw_os_error(28);
        assert!(output_failure(bare.into()).is_ok());
        for other in [
            anyhow::anyhow!("no such group"),
            anyhow::Error::new(io::Error::from_raw_os_error(28)).context("cannot write /a"),
            serde_json::from_str::<u8>("x").expect_err("no number").into(),
        ] {
            output_failure(other).expect_err("another error");
        }
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
