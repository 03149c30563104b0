//! A `memcg-monitor listen`, and what it says.

use std::fs;
use std::io::{PipeReader, Read, pipe};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::print_row;
use crate::harness::agent::{Agent, BINARY, PATIENCE, until};

/// The end of the line that a listener prints once its group is gone.
const REMOVED: &str = ": the group was removed";

/// A listener, and what it has said.
#[derive(Debug)]
pub(super) struct Listener {
    name: String,
    child: Child,
    pipe: PipeReader,
    partial: Vec<u8>,
    pub(super) lines: Vec<String>,
    ended: bool,
}

impl Listener {
    /// Starts one, and waits until it is registered.
    pub(super) fn start(agent: &Agent, name: &str, file: &str, options: &[&str]) -> Result<Self> {
        let before = agent.status()?.registrations;
        let args = [&["listen", file], options].concat();
        print_row("$", &format!("memcg-monitor {}", args.join(" ")));
        let (reader, writer) = pipe().context("cannot make a pipe")?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("fcntl failed")?;
        let mut command = Command::new(BINARY);
        // What it complains of is shown, too.
        command.args(&args).stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let child = command.spawn().with_context(|| format!("cannot start {BINARY}"))?;
        let listener = Self {
            name: name.into(),
            child,
            pipe: reader,
            partial: Vec::new(),
            lines: Vec::new(),
            ended: false,
        };
        until("the listener is registered and waits", || {
            Ok(agent.status()?.registrations == before + 1 && listener.sleeps())
        })?;
        Ok(listener)
    }

    /// Whether it waits for something.
    fn sleeps(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
    }

    /// Takes and shows what it has said.
    fn read(&mut self) -> Result<()> {
        let mut bytes = [0; 4096];
        while !self.ended {
            match self.pipe.read(&mut bytes) {
                Ok(0) => self.ended = true,
                Ok(length) => self.partial.extend(&bytes[..length]),
                Err(error) if error.raw_os_error() == Some(Errno::EAGAIN as i32) => break,
                Err(error) => return Err(error).context("cannot read what a listener says"),
            }
        }
        while let Some(end) = self.partial.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            // A storm of pressure is shown by its first lines.
            if self.lines.len() < 12 || !self.lines.contains(&line) {
                print_row(&self.name, &line);
            }
            self.lines.push(line);
        }
        Ok(())
    }

    /// Checks that it has ended by itself, with the removal as its last line.
    pub(super) fn finish(mut self) -> Result<()> {
        let status = self.child.wait().context("cannot wait for a listener")?;
        let said = self.lines.last().map_or("", String::as_str);
        if !status.success() || !said.ends_with(REMOVED) {
            bail!("the listener {} ended with {status}, its last word {said:?}", self.name);
        }
        Ok(())
    }

    /// Signals that its lines tell of: one for each line but those with detail, and the last.
    pub(super) fn signals(&self) -> u64 {
        let signals = self.lines.iter().filter(|line| !line.starts_with(' ') && !line.ends_with(REMOVED));
        signals.count() as u64
    }

    /// Whether it has ended.
    pub(super) const fn has_ended(&self) -> bool {
        self.ended
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Shows what listeners say until `holds`.
pub(super) fn await_lines(
    listeners: &mut [Listener],
    what: &str,
    holds: impl Fn(&[Listener]) -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for listener in &mut *listeners {
            listener.read()?;
        }
        if holds(listeners)? {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "still not so: {what}; the agent: {}", Agent::log());
        let open = listeners.iter().filter(|listener| !listener.ended);
        let mut pipes: Vec<_> =
            open.map(|listener| PollFd::new(listener.pipe.as_fd(), PollFlags::POLLIN)).collect();
        ensure!(!pipes.is_empty(), "all listeners ended, and it is still not so: {what}");
        poll(&mut pipes, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)).context("poll failed")?;
    }
}
