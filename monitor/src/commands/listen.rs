//! The command `memcg-monitor listen`: does through the agent what the kernel's sample
//! `cgroup_event_listener` does, and says what happened.

pub mod hints;
mod lines;
mod note;
mod registrar;
mod rows;
mod wanted;
pub mod words;

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow};
use monitor_client::{Error, Target, wire::Answer};
use nix::{
    errno::Errno,
    sys::eventfd::{EfdFlags, EventFd},
};

use self::{lines::Lines, note::Noter, registrar::Registrar, wanted::Wanted};
use crate::{
    cli::{Listen, Output},
    commands::{TIMED_OUT, connect, deadline, output, wrong_usage},
};

pub fn run(options: &Listen) -> Result<ExitCode> {
    deadline::outcome(listen(options))
}

fn listen(options: &Listen) -> Result<ExitCode> {
    let selected = options.group.find()?;
    let wanted = match Wanted::of(options, selected.as_deref()) {
        Ok(wanted) => wanted,
        Err(error) => return Ok(wrong_usage(&error)),
    };
    let control = Target::open(&wanted.path).map_err(explained)?;
    let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("eventfd2 failed")?;
    let args = control.args(&wanted.args);
    let line = format!("{} {} {args}", eventfd.as_raw_fd(), control.as_fd().as_raw_fd());
    // Sent along, so that it works from other pid namespaces, too.
    let descriptors = [eventfd.as_fd(), control.as_fd()];
    let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
    let made = match options.output {
        Output::Json => registrar::follow(options, &line, descriptors),
        Output::Text => registrar::register(options, &line, descriptors),
    };
    let registrar = match made {
        Ok(registrar) => registrar,
        Err((error, _)) if error.is_timeout() => return Ok(ExitCode::from(TIMED_OUT)),
        Err((error, option)) => return Err(refused(error, option, &wanted)),
    };
    let mut noter = Noter::new(wanted.parts());
    noter.tell();
    match (options.output, registrar) {
        (Output::Json, Registrar::Followed(connection)) => {
            drop(control);
            announce(options, &serde_json::to_string(&Answer::Listening)?, deadline)?;
            rows::print(options, &connection, noter, deadline)
        }
        (_, registrar) => {
            announce(options, "registered", deadline)?;
            let mark = control.into_mark();
            let lines = Lines { options, wanted: &wanted, noter, deadline, printed: 0 };
            lines.print(registrar, &mark, &eventfd)
        }
    }
}

/// The error of a registration that was not made, with what to do.
fn refused(error: Error, option: &'static str, wanted: &Wanted) -> anyhow::Error {
    let is_form = error.errno() == Some(Errno::EINVAL as i32);
    let hint = is_form.then(|| hints::instead_of(&wanted.path, wanted.file(), &wanted.args)).flatten();
    let error = connect::explained(error, option);
    let error = match hint {
        Some(hint) => anyhow!("{error:#}; {hint}"),
        None => error,
    };
    error.context(format!("cannot register {:?} on {}", wanted.args, wanted.path.display()))
}

/// Prints the first line, where one is wanted: nothing else shows that the registration is made.
fn announce(options: &Listen, text: &str, deadline: Option<Instant>) -> Result<()> {
    if options.announce { output::print(text, deadline) } else { Ok(()) }
}

/// Adds what to do to the error of a control file that is not there.
fn explained(error: Error) -> anyhow::Error {
    let Error::File { error: cause, path, .. } = &error else { return error.into() };
    if cause.kind() != io::ErrorKind::NotFound {
        return error.into();
    }
    // A relative path may begin in the present directory.
    let named = |path: &Path| if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_owned() };
    let directory = named(path.parent().unwrap_or(path));
    let there = path.ancestors().skip(1).map(named).find(|above| above.is_dir());
    let there = there.unwrap_or_else(|| "/".into());
    if there == directory {
        return anyhow!(
            "{error}; {} has no such file: name one of a group's control files (see `memcg-monitor listen --help`)",
            directory.display()
        );
    }
    anyhow!(
        "{error}; there is no {}, only {}: name a control file in a group's directory",
        directory.display(),
        there.display()
    )
}

#[cfg(test)]
mod tests {
    use std::{
        env, fs,
        process::{self, ExitCode, Stdio},
    };

    use anyhow::Result;
    use clap::Parser as _;
    use monitor_client::Target;

    use super::{explained, run};
    use crate::{
        cli::{Cli, Command},
        commands::{TIMED_OUT, fake_agent::FakeAgent, say},
    };

    const LISTENING: &str = r#"{"type":"listening"}"#;

    /// Listens at this agent on a file in a group's place.
    fn listen(agent: &FakeAgent, options: &[&str]) -> Result<ExitCode> {
        let group = tempfile::tempdir().expect("a directory");
        let usage = group.path().join("memory.current");
        fs::write(&usage, "0\n").expect("a file");
        let (usage, socket) = (usage.to_str().expect("text"), agent.socket());
        let words = ["memcg-monitor", "listen", usage, "1M", "--control-socket"];
        let words = words.into_iter().chain(socket.to_str()).chain(options.iter().copied());
        let Command::Listen(options) = Cli::parse_from(words).command else { panic!("another command") };
        run(&options)
    }

    #[test]
    fn an_error_in_the_middle_is_not_the_end_of_the_agent() {
        for (packet, words) in [
            (r#"{"type":"error","errno":12,"why":"ENOMEM: gone"}"#, "ENOMEM: gone"),
            (r#"{"type":"new_thing"}"#, "the agent answered"),
        ] {
            for output in ["text", "json"] {
                let agent = FakeAgent::start(move |_, connection| {
                    connection.send(LISTENING);
                    connection.send(packet);
                });
                let error = listen(&agent, &["-o", output, "--timeout", "5"]).expect_err("an error");
                assert!(error.to_string().contains(words), "{output}: {error}");
            }
        }
    }

    #[test]
    #[ignore = "a program for the test below"]
    fn program_that_is_signalled_without_end() {
        let agent = FakeAgent::start(|_, connection| {
            connection.send(LISTENING);
            for (event, signals) in [("oom", u64::MAX), ("oom", 5), ("removed", 1)] {
                let what = format!(r#""time":0,"cgroup":"/g","event":"{event}","signals":{signals}"#);
                connection.send(&format!(r#"{{"type":"event",{what}}}"#));
            }
        });
        let of = |options: &[&str]| listen(&agent, options).expect("an exit code");
        assert_eq!(of(&["-o", "json"]), ExitCode::SUCCESS, "the group is removed");
        assert_eq!(of(&["-o", "text", "--timeout", "0.1"]), ExitCode::from(TIMED_OUT));
        say("both have ended");
    }

    #[test]
    fn more_signals_than_can_be_counted_or_printed_end_at_the_deadline() {
        let mut program = process::Command::new(env::current_exe().expect("this program"));
        let name = "commands::listen::tests::program_that_is_signalled_without_end";
        program.args(["--exact", name, "--ignored", "--nocapture"]).stdout(Stdio::null());
        let output = program.output().expect("this program");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.contains("both have ended"), "{}: {told}", output.status);
    }

    #[test]
    fn an_agent_that_ends_before_it_answers_is_explained() {
        let agent = FakeAgent::start(|_, _| {});
        let error = format!("{:#}", listen(&agent, &["-o", "json"]).expect_err("no answer"));
        assert!(error.contains("as many connections open as one may have"), "{error}");
    }

    #[test]
    fn a_missing_control_file_is_named_with_errno_and_advice() {
        let text = |path: &str| {
            let error = Target::open(path.as_ref()).expect_err("no such file");
            explained(error).to_string()
        };
        let missing = text("/nonexistent/a/memory.current");
        assert!(
            missing.starts_with("open /nonexistent/a/memory.current: ENOENT: No such file or directory; there is no /nonexistent/a, only /: name "),
            "{missing}"
        );
        let here = text("memory.nonsense");
        assert!(here.contains("; . has no such file: name "), "{here}");
        let below = text("nonexistent/memory.current");
        assert!(below.contains("; there is no nonexistent, only .: name "), "{below}");
        let other = text("/proc/self/memory.nonsense");
        assert!(other.contains("; /proc/self has no such file: name "), "{other}");
    }
}
