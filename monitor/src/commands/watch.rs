//! The command `memcg-monitor watch`: tells what happens in all groups that match patterns, over
//! restarts of the agent.

mod actions;
mod check;
mod directory;
mod exec;
mod known;
mod queue;
mod request;
mod rule;
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
        TIMED_OUT, deadline, output, say, timed_out,
        watch::{
            actions::Actions,
            known::Known,
            rule::Rule,
            stream::{News, Stream, WatchEnd},
        },
    },
};

/// The exit code for words, or a rule, that no agent takes.
const WRONG_USAGE: u8 = 2;

/// The reason why the agent had no room for events.
const TOO_SLOW: &str = "this was too slow to read the events before the next";

pub fn run(options: &Watch) -> Result<ExitCode> {
    if let Some(directory) = &options.check_config {
        let is_good = check::check(directory, options.output)?;
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
    let mut teller = Teller { output: options.output, deadline, known, told: 0, actions };
    let mut stream = Stream::new(&options.control_socket, request, deadline);
    match stream.begin()? {
        Some(WatchEnd::TimedOut) => return Ok(timed_out(options.timeout)),
        Some(_) => return Ok(ExitCode::SUCCESS),
        None => {}
    }
    let end = follow(options, &mut stream, &mut teller);
    if !matches!(end, Ok(WatchEnd::Counted)) {
        teller.actions.break_off();
    }
    match end? {
        WatchEnd::TimedOut => Ok(ExitCode::from(TIMED_OUT)),
        WatchEnd::Counted | WatchEnd::ReaderGone => Ok(ExitCode::SUCCESS),
    }
}

/// Tells what comes, from one agent after another.
fn follow(options: &Watch, stream: &mut Stream<'_>, teller: &mut Teller) -> Result<WatchEnd> {
    let mut away_since: Option<Instant> = None;
    loop {
        match stream.news()? {
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
struct Teller {
    output: Output,
    deadline: Option<Instant>,
    known: Known,
    /// Events that were told.
    told: u64,
    /// Done for each event.
    actions: Actions,
}

impl Teller {
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
