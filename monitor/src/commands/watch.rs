//! The command `memcg-monitor watch`: tells what happens in all groups that match patterns, over
//! restarts of the agent.

mod actions;
mod check;
mod directory;
mod ending;
mod exec;
mod known;
mod queue;
mod request;
mod rule;
mod running;
mod signal;
mod stream;
mod words;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use memcg_monitor::printable;
use monitor_client::wire::{Answer, EventRow};
use serde::Serialize;

use crate::{
    cli::{Output, Watch},
    commands::{
        TIMED_OUT, WRONG_USAGE, deadline, output, say, timed_out,
        watch::{
            actions::Actions,
            known::Known,
            rule::Rule,
            stream::{News, Stream, WatchEnd},
        },
    },
};

/// The reason why the agent had no room for events.
const TOO_SLOW: &str = "this was too slow to read the events before the next";

pub fn run(options: &Watch) -> Result<ExitCode> {
    if let Some(path) = options.to_check() {
        let is_good = check::check(&path, options.output)?;
        return Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let rule = match Rule::of(options) {
        Ok(rule) => rule,
        Err(wrong) => {
            wrong.iter().for_each(|wrong| say(&printable(&wrong.to_string())));
            return Ok(ExitCode::from(WRONG_USAGE));
        }
    };
    deadline::outcome(watch(options, &rule))
}

fn watch(options: &Watch, rule: &Rule) -> Result<ExitCode> {
    let mut request = rule.request.clone();
    let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
    let known = Known::of(&mut request.specs);
    let actions = Actions::of(rule)?;
    let mut teller = Teller { output: options.output, deadline, known, told: 0, actions: &actions };
    let mut stream = Stream::new(&options.control_socket, request, deadline);
    match stream.begin()? {
        Some(WatchEnd::TimedOut) => return Ok(timed_out(options.timeout)),
        Some(_) => return Ok(ExitCode::SUCCESS),
        None => {}
    }
    let end = follow(options, &mut stream, &mut teller);
    if !matches!(end, Ok(WatchEnd::Counted)) {
        actions.break_off();
    }
    // The registrations are not needed any more.
    drop(stream);
    actions.finish();
    match end? {
        WatchEnd::TimedOut => Ok(ExitCode::from(TIMED_OUT)),
        WatchEnd::Counted | WatchEnd::ReaderGone => Ok(ExitCode::SUCCESS),
    }
}

/// Tells what comes, from one agent after another.
fn follow(options: &Watch, stream: &mut Stream<'_>, teller: &mut Teller<'_>) -> Result<WatchEnd> {
    let mut away_since: Option<Instant> = None;
    loop {
        let news = stream.news()?;
        // Nothing would be done for it any more.
        teller.actions.leave_to_signal();
        match news {
            News::Answer(answer) => {
                if let Some(start) = away_since.take() {
                    teller.away(Some(start.elapsed()))?;
                }
                teller.tell(*answer)?;
            }
            News::Ends(end) => return Ok(end),
            News::AgentEnded if options.once => bail!("the agent ended (--once)"),
            News::AgentEnded => {
                // The socket of an agent that is being killed may take a connection, and end it.
                if away_since.is_none() {
                    away_since = Some(Instant::now());
                    teller.away(None)?;
                    teller.known.begin_again();
                }
                if let Some(end) = stream.begin_again()? {
                    return Ok(end);
                }
            }
        }
        if options.count.is_some_and(|count| teller.told >= count) {
            return Ok(WatchEnd::Counted);
        }
    }
}

/// Lines in which `watch` speaks of itself, beside the agent's answers.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Notice {
    /// The agent has ended.
    Away,
    /// An agent is there again: what happened meanwhile is told late, as far as it still holds.
    Back { seconds: f64 },
}

/// Tells events in the form that is asked for.
struct Teller<'a> {
    output: Output,
    deadline: Option<Instant>,
    known: Known,
    /// Events that were told.
    told: u64,
    /// Done for each event.
    actions: &'a Actions,
}

impl Teller<'_> {
    fn tell(&mut self, mut answer: Answer) -> Result<()> {
        match &mut answer {
            Answer::Event(event) => {
                if self.known.is_news(event) {
                    self.told += 1;
                    self.actions.run(event);
                } else if event.lost > 0 {
                    answer = Answer::Missed { count: event.lost, why: TOO_SLOW.into() };
                } else {
                    return Ok(());
                }
            }
            Answer::Note(note) => self.known.name_given(note),
            Answer::Watching { .. } => self.known.all_are_told(),
            _ => {}
        }
        match (self.output, &answer) {
            (Output::Json, answer) => self.line(&serde_json::to_string(answer)?),
            (Output::Text, Answer::Event(event)) => self.event(event),
            (Output::Text, Answer::Watching { groups }) => {
                say(&format!("watching {groups} groups, and those to come"));
                Ok(())
            }
            (Output::Text, Answer::Missed { count, why }) => {
                self.line(&printable(&format!("missed {count}: {why}")))
            }
            (Output::Text, Answer::Note(note)) => {
                say(&format!("note: {}", printable(&words::of_note(note))));
                Ok(())
            }
            (Output::Text, _) => Ok(()),
        }
    }

    fn event(&self, event: &EventRow) -> Result<()> {
        if event.lost > 0 {
            self.line(&format!("missed {}: {TOO_SLOW}", event.lost))?;
        }
        self.line(&printable(&words::of(event)))
    }

    /// Says that the agent has ended, or after this time is back.
    fn away(&self, back_after: Option<Duration>) -> Result<()> {
        match (self.output, back_after) {
            (Output::Json, None) => self.line(&serde_json::to_string(&Notice::Away)?)?,
            (Output::Json, Some(time)) => {
                self.line(&serde_json::to_string(&Notice::Back { seconds: time.as_secs_f64() })?)?;
            }
            (Output::Text, None) => say("the agent ended; waiting for the next one"),
            (Output::Text, Some(time)) => say(&format!(
                "the agent is back after {:.1} s; thresholds that were passed meanwhile are told late",
                time.as_secs_f64()
            )),
        }
        Ok(())
    }

    fn line(&self, text: &str) -> Result<()> {
        output::print(text, self.deadline)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        env, fs,
        os::unix::process::ExitStatusExt as _,
        process::{self, Stdio},
        thread,
        time::Duration,
    };

    use clap::Parser as _;
    use nix::{
        errno::Errno,
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    use super::run;
    use crate::{
        cli::{Cli, Command},
        commands::fake_agent::FakeAgent,
    };

    /// The variable that names the file for a command's number.
    const FILE: &str = "MONITOR_TEST_FILE";

    #[test]
    #[ignore = "a program for the test below"]
    fn program_that_runs_a_command() {
        let file = env::var(FILE).expect("a file");
        let agent = FakeAgent::start(|_, connection| {
            connection.send(r#"{"type":"watching","groups":1}"#);
            connection.send(r#"{"type":"event","time":0,"cgroup":"/g","event":"oom","signals":1,"id":7}"#);
            loop {
                thread::park();
            }
        });
        let (socket, command) = (agent.socket(), format!("echo $$ > {file}; exec sleep 600"));
        let socket = socket.to_str().expect("text");
        let words = ["memcg-monitor", "watch", "/**", "oom", "--exec", &command, "--control-socket", socket];
        let Command::Watch(options) = Cli::parse_from(words).command else { panic!("another command") };
        let _ = run(&options);
    }

    #[test]
    fn a_signal_ends_the_commands_that_run_and_then_the_watch() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("pid");
        let mut program = process::Command::new(env::current_exe().expect("this program"));
        let name = "commands::watch::tests::program_that_runs_a_command";
        program.args(["--exact", name, "--ignored", "--nocapture"]).env(FILE, &file);
        // It cannot remove what it makes there.
        program.env("TMPDIR", directory.path());
        let mut program = program.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("this program");
        let command = loop {
            let number = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
            if let Some(number) = number {
                break Pid::from_raw(number);
            }
            assert!(program.try_wait().expect("a status").is_none(), "it has ended");
            thread::sleep(Duration::from_millis(1));
        };
        let watch = Pid::from_raw(program.id().try_into().expect("a number"));
        kill(watch, Signal::SIGTERM).expect("a signal");
        let status = program.wait().expect("its end");
        assert_eq!(status.signal(), Some(Signal::SIGTERM as i32), "{status}");
        assert_eq!(kill(command, None::<Signal>), Err(Errno::ESRCH), "it is ended and reaped");
    }
}
