//! The output of `listen -o json`: an object for each event.

use std::{io, os::fd::AsFd as _, process::ExitCode, time::Instant};

use anyhow::{Result, bail};
use monitor_client::{
    AdminConnection, Error,
    wire::{Answer, EventRow},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};

use super::note::Noter;
use crate::{
    cli::Listen,
    commands::{TIMED_OUT, connect, deadline, output},
};

const AGENT_ENDED: &str = "the agent ended; register again once it is back";

/// Prints an object for each event, until as many signals as were asked for have come, or the group is
/// removed.
///
/// # Errors
/// The agent ended, or answers with an error; nobody made room for an object by the deadline; `poll` or
/// `write` failed.
pub fn print(
    options: &Listen,
    connection: &AdminConnection,
    mut noter: Noter<'_>,
    deadline: Option<Instant>,
) -> Result<ExitCode> {
    let stdout = io::stdout();
    let mut printed: u64 = 0;
    loop {
        let mut watched = [
            PollFd::new(connection.as_fd(), PollFlags::POLLIN),
            PollFd::new(stdout.as_fd(), output::READER_ALONE),
        ];
        let polled = match poll(&mut watched, noter.limit(deadline)) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(errno) => bail!("poll: {errno}"),
        };
        noter.tell();
        if watched[1].any().unwrap_or(false) {
            return Ok(ExitCode::SUCCESS);
        }
        if deadline::is_over(deadline) {
            return Ok(ExitCode::from(TIMED_OUT));
        }
        if polled == 0 {
            continue;
        }
        let event: EventRow = match connection.next() {
            Ok(Some(Answer::Event(event))) => event,
            Ok(Some(_)) => continue,
            Ok(None) | Err(Error::Ended(_)) => bail!(AGENT_ENDED),
            Err(error) if error.is_timeout() => continue,
            Err(error) => return Err(connect::explained(error, "--control-socket")),
        };
        output::print(&serde_json::to_string(&event)?, deadline)?;
        printed = printed.saturating_add(event.signals);
        if event.event == "removed" || options.count.is_some_and(|count| printed >= count) {
            return Ok(ExitCode::SUCCESS);
        }
    }
}
