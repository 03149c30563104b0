//! The output of `listen` as text: a line for each signal.

use std::{io, os::fd::AsFd as _, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result, bail};
use memcg_monitor::printable;
use monitor_client::{
    Error, RemovalCheck,
    wire::{Answer, EventRow},
};
use monitor_common::grammar::control_file::ControlFile;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sys::eventfd::EventFd,
};

use super::{note::Noter, registrar::Registrar, wanted::Wanted, words};
use crate::{
    cli::Listen,
    commands::{
        TIMED_OUT, connect,
        deadline::{self, TimeOver},
        output, say,
    },
};

const AGENT_ENDED: &str = "the agent ended; signals go on once an agent that keeps registrations \
    (--supervised, or a descriptor store) is back; after any other, end this and register again";

/// The output as text: a line for each signal.
pub struct Lines<'a> {
    pub options: &'a Listen,
    pub wanted: &'a Wanted,
    pub noter: Noter<'a>,
    pub deadline: Option<Instant>,
    /// Signals that have been printed.
    pub printed: u64,
}

impl Lines<'_> {
    /// Prints a line for each signal, until as many as were asked for have come, or the group is removed.
    ///
    /// # Errors
    /// [`TimeOver`] where there is more to print at the deadline; the agent's answer is an error, or not
    /// understood; `poll`, `read` or `write` failed.
    pub fn print(
        mut self,
        mut registrar: Registrar,
        mark: &RemovalCheck,
        eventfd: &EventFd,
    ) -> Result<ExitCode> {
        // Signals of a follower come by its connection, and are in the eventfd, too.
        let mut told: u64 = 0;
        loop {
            let stdout = io::stdout();
            let is_followed = matches!(registrar, Registrar::Followed(_));
            let by_eventfd = if is_followed { PollFlags::empty() } else { PollFlags::POLLIN };
            let mut watched = vec![
                PollFd::new(eventfd.as_fd(), by_eventfd),
                PollFd::new(stdout.as_fd(), output::READER_ALONE),
            ];
            // The eventfd does not report the agent's end; the connection's hang-up does.
            watched.extend(registrar.as_fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            let limit = self.noter.limit(self.deadline);
            match poll(&mut watched, limit) {
                Ok(0) if deadline::is_over(self.deadline) => return Ok(ExitCode::from(TIMED_OUT)),
                Ok(0) | Err(Errno::EINTR) => {
                    self.noter.tell();
                    continue;
                }
                Ok(_) => {}
                Err(errno) => bail!("poll: {errno}"),
            }
            let is_ready = |at: usize| watched.get(at).and_then(PollFd::any).unwrap_or(false);
            let (is_signalled, has_no_reader, has_news) = (is_ready(0), is_ready(1), is_ready(2));
            if has_no_reader {
                return Ok(ExitCode::SUCCESS);
            }
            if has_news {
                let event = match &registrar {
                    Registrar::Followed(connection) => match connection.next() {
                        Ok(Some(Answer::Event(event))) => Some(event),
                        Ok(Some(_)) => continue,
                        Err(error) if error.is_timeout() => continue,
                        Ok(None) => None,
                        Err(Error::Ended(_)) => None,
                        Err(error) => return Err(connect::explained(error, "--control-socket")),
                    },
                    _ => None,
                };
                let Some(event) = event else {
                    registrar = Registrar::Ended;
                    say(AGENT_ENDED);
                    continue;
                };
                told = told.saturating_add(event.signals);
                if self.event(&event)? {
                    return Ok(ExitCode::SUCCESS);
                }
                continue;
            }
            if !is_signalled {
                continue;
            }
            let signals = eventfd.read().context("read of the eventfd failed")?;
            let signals = signals.saturating_sub(std::mem::take(&mut told));
            // Like the kernel's sample: a wake-up after which the file is gone is the removal.
            // On v2 a file also goes when its controller is turned off.
            if !mark.is_there()? {
                self.line(words::REMOVED)?;
                return Ok(ExitCode::SUCCESS);
            }
            let words = match (&registrar, self.wanted.parts()) {
                // It may be the signal of that end.
                (Registrar::Ended, _) | (_, None) => words::UNKNOWN.to_owned(),
                (_, Some((directory, file, args))) => {
                    let usage = (file == ControlFile::Usage).then(|| words::usage(directory)).flatten();
                    words::of_signal(Some(file), args, usage)
                }
            };
            if self.signals(signals, &words)? {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }

    /// Prints a follower's event; returns whether it was the last.
    fn event(&mut self, event: &EventRow) -> Result<bool> {
        if event.lost > 0 {
            self.line(&format!(
                "  {} events before this one were lost: this was too slow to read them",
                event.lost
            ))?;
        }
        let words = words::of_event(event);
        let is_removed = event.event == "removed";
        if event.signals == 0 || is_removed {
            self.line(&words)?;
            return Ok(is_removed);
        }
        self.signals(event.signals, &words)
    }

    /// Prints a line for each of so many signals; returns whether there are enough now.
    fn signals(&mut self, count: u64, words: &str) -> Result<bool> {
        for _ in 0..count {
            self.line(words)?;
            self.printed += 1;
            if self.options.count == Some(self.printed) {
                return Ok(true);
            }
            // There may be more of them than anybody waits for.
            if deadline::is_over(self.deadline) {
                return Err(TimeOver.into());
            }
        }
        Ok(false)
    }

    /// Prints a line; one that begins with a space is detail of the line before.
    fn line(&self, words: &str) -> Result<()> {
        let words = printable(words);
        if words.starts_with(' ') {
            return output::print(&words, self.deadline);
        }
        let Wanted { path, args } = self.wanted;
        let named = format!("{} {args}", path.to_string_lossy());
        output::print(&format!("{}: {words}", printable(named.trim_end())), self.deadline)
    }
}
