//! A command of the shell that runs for an event.
//!
//! One thread does all of it: its input, output, time-out and end are waited for at once, so that none of
//! them holds up the others.

use std::{
    io::{self, PipeReader, PipeWriter, Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use memcg_monitor::printable;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::commands::{deadline::left, say, watch::ending::Ending};

/// Bytes of a command's output that are logged.
pub const LOGGED: usize = 64 << 10;

/// A reason to end a command that does not end by itself.
#[derive(Clone, Copy)]
pub(super) enum CutShort {
    /// It took longer than its limit.
    Late,
    WatchEnds,
}

/// A command that runs, or has ended and is not reaped.
pub struct RunningCommand {
    pub(super) group: Pid,
    pub(super) process: OwnedFd,
    /// Standard input of the command, and what is still to be written to it.
    pub(super) input: Option<(PipeWriter, Vec<u8>)>,
    pub(super) output: Option<PipeReader>,
    pub(super) printed: Vec<u8>,
    /// Bytes that it printed beyond those.
    pub(super) more: u64,
    pub(super) limit: Duration,
    /// Time from the request to end until it is killed, from there until it is given up, and from its end
    /// until its output is.
    pub(super) grace: Duration,
    pub(super) ending: Arc<Ending>,
    /// Why it does not end by itself.
    pub(super) cut: Option<CutShort>,
}

impl RunningCommand {
    /// Waits for the command's end; after the limit, or when the watch ends, it is asked to end, and then
    /// killed. False, if it has not ended then.
    pub(super) fn until_end(&mut self) -> Result<bool> {
        let mut deadline = Instant::now() + self.limit;
        let mut signals = [Signal::SIGTERM, Signal::SIGKILL].into_iter();
        loop {
            if self.turn(deadline, false)? {
                return Ok(true);
            }
            let cut = match self.cut {
                cut if Instant::now() >= deadline => cut.unwrap_or(CutShort::Late),
                None if self.ending.is_begun() => CutShort::WatchEnds,
                _ => continue,
            };
            let Some(signal) = signals.next() else { return Ok(false) };
            (self.cut, deadline) = (Some(cut), Instant::now() + self.grace);
            let is_left = || format!("{}; it is left running", self.cut_short().unwrap_or_default());
            self.kill(signal).with_context(is_left)?;
        }
    }

    /// The reason why it did not end by itself, in words.
    pub(super) fn cut_short(&self) -> Option<String> {
        Some(match self.cut? {
            CutShort::Late => {
                format!("the command took longer than {} s (--exec-timeout)", self.limit.as_secs_f64())
            }
            CutShort::WatchEnds => "the command was asked to end, as the watch ends".into(),
        })
    }

    /// Reads what is left of the output, and returns whether it has ended. What went into a new session may
    /// hold it for ever.
    pub(super) fn read_rest(&mut self) -> Result<bool> {
        self.input = None;
        let deadline = Instant::now() + self.grace;
        while self.output.is_some() && Instant::now() < deadline {
            self.turn(deadline, true)?;
        }
        Ok(self.output.is_none())
    }

    pub(super) fn kill(&self, signal: Signal) -> Result<()> {
        match killpg(self.group, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => bail!("kill of the command's process group {}, {signal}: {errno}", self.group),
        }
    }

    /// Waits for what is next, at most until the deadline: moves input and output, and returns whether the
    /// command has ended, unless that is known.
    fn turn(&mut self, deadline: Instant, has_ended: bool) -> Result<bool> {
        let is_cut = has_ended || self.cut.is_some();
        let awaited = [
            (!has_ended).then(|| PollFd::new(self.process.as_fd(), PollFlags::POLLIN)),
            self.input.as_ref().map(|(pipe, _)| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)),
            self.output.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)),
            // It stays readable.
            (!is_cut).then(|| PollFd::new(self.ending.as_fd(), PollFlags::POLLIN)),
        ];
        let is_awaited = awaited.each_ref().map(Option::is_some);
        let mut awaited: Vec<_> = awaited.into_iter().flatten().collect();
        match poll(&mut awaited, left(Some(deadline))) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(false),
            Err(errno) => bail!("poll: {errno}"),
        }
        let mut ready = awaited.iter().map(|one| one.any().unwrap_or(true));
        let [ended, writable, readable, _] =
            is_awaited.map(|is_awaited| is_awaited && ready.next() == Some(true));
        if writable {
            self.write();
        }
        if readable {
            self.read();
        }
        Ok(ended)
    }

    /// Writes what fits; a command may not read it.
    fn write(&mut self) {
        let Some((pipe, text)) = &mut self.input else { return };
        match pipe.write(text) {
            Ok(count) => drop(text.drain(..count)),
            Err(error) if is_for_later(&error) => return,
            Err(_) => text.clear(),
        }
        if text.is_empty() {
            // Its end is what the command waits for.
            self.input = None;
        }
    }

    fn read(&mut self) {
        let Some(pipe) = &mut self.output else { return };
        let mut part = [0; 16 << 10];
        match pipe.read(&mut part) {
            Ok(count) if count > 0 => {
                let logged = count.min(LOGGED - self.printed.len());
                self.printed.extend_from_slice(&part[..logged]);
                self.more += (count - logged) as u64;
            }
            Err(error) if is_for_later(&error) => {}
            Ok(_) | Err(_) => self.output = None,
        }
    }

    /// Logs what the command printed, each line with the group's name.
    pub(super) fn log_output(&self, group: &str) {
        let group = printable(group);
        for line in String::from_utf8_lossy(&self.printed).lines() {
            say(&format!("{group}: {}", printable(line)));
        }
        if self.more > 0 {
            say(&format!("{group}: {} more bytes of output are left out", self.more));
        }
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
