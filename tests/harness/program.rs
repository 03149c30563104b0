//! A third-party program, on a terminal of its own, so that it writes each line when it has
//! it.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;

use crate::harness::agent::{Agent, PATIENCE, until};
use crate::harness::stopwatch;

/// The program, and what it has said.
#[derive(Debug)]
pub(crate) struct Program {
    words: String,
    child: Child,
    stdin: ChildStdin,
    screen: OwnedFd,
    partial: Vec<u8>,
    lines: Vec<String>,
    ended: bool,
}

impl Program {
    pub(crate) fn start(words: &[&str]) -> Result<Self> {
        let pair = openpty(None, None).context("cannot make a terminal")?;
        // We are its only reader, and it must not keep that end open.
        for end in [&pair.master, &pair.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("fcntl failed")?;
        }
        fcntl(&pair.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("fcntl failed")?;
        let (program, args) = words.split_first().context("a program has a name")?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped());
        command.stdout(pair.slave.try_clone()?).stderr(pair.slave);
        let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        let stdin = child.stdin.take().context("its stdin is a pipe")?;
        Ok(Self {
            words: words.join(" "),
            child,
            stdin,
            screen: pair.master,
            partial: Vec::new(),
            lines: Vec::new(),
            ended: false,
        })
    }

    /// Gives it a line to read.
    pub(crate) fn write_line(&mut self, line: &str) -> Result<()> {
        writeln!(self.stdin, "{line}").with_context(|| format!("{} does not read", self.words))
    }

    /// The lines that it has said so far.
    pub(crate) fn lines(&mut self) -> Result<&[String]> {
        self.read()?;
        Ok(&self.lines)
    }

    /// How many lines it has said so far that contain this.
    pub(crate) fn count(&mut self, text: &str) -> Result<usize> {
        self.read()?;
        Ok(self.lines.iter().filter(|line| line.contains(text)).count())
    }

    /// Waits until it has said more than `before` such lines.
    pub(crate) fn says_more(&mut self, text: &str, before: usize) -> Result<()> {
        let _span = stopwatch::waiting();
        let deadline = Instant::now() + PATIENCE;
        while self.count(text)? <= before {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(
                !left.is_zero() && !self.ended,
                "{} said no more than {before} times {text:?}, but {:?}; {}",
                self.words,
                self.lines,
                last_of_agent()
            );
            let mut screen = [PollFd::new(self.screen.as_fd(), PollFlags::POLLIN)];
            poll(&mut screen, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))
                .context("poll failed")?;
        }
        Ok(())
    }

    /// Waits until it has said such a line.
    pub(crate) fn says(&mut self, text: &str) -> Result<()> {
        self.says_more(text, 0)
    }

    /// Waits until it sleeps in a read of an eventfd.
    pub(crate) fn reads_eventfd(&self) -> Result<()> {
        let process = format!("/proc/{}", self.child.id());
        until("the program reads its eventfd", || {
            let call = fs::read_to_string(format!("{process}/syscall")).unwrap_or_default();
            let fd = slept_in(&call).filter(|(number, _)| *number == libc::SYS_read);
            Ok(fd.is_some_and(|(_, fd)| is_link(&format!("{process}/fd/{fd}"), "[eventfd]")))
        })
        .with_context(|| self.words.clone())
    }

    /// Waits until one of its threads sleeps in an epoll that watches an eventfd. That an epoll
    /// watches it is not enough: a program that closes both before it sleeps fails by itself.
    pub(crate) fn polls_eventfd(&self) -> Result<()> {
        let process = format!("/proc/{}", self.child.id());
        until("the program polls its eventfd", || {
            let tasks = fs::read_dir(format!("{process}/task")).context("it has ended")?;
            Ok(tasks.flatten().any(|task| {
                let call = fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
                epoll_slept_in(&call).is_some_and(|epoll| {
                    let text = fs::read_to_string(format!("{process}/fdinfo/{epoll}")).unwrap_or_default();
                    text.lines()
                        .filter_map(|line| line.strip_prefix("tfd:")?.split_whitespace().next())
                        .any(|fd| is_link(&format!("{process}/fd/{fd}"), "[eventfd]"))
                })
            }))
        })
        .with_context(|| self.words.clone())
    }

    /// Waits until it ends; its exit code and its last line.
    pub(crate) fn end(mut self) -> Result<(i32, String)> {
        let mut status = None;
        until("the program ends", || {
            self.read()?;
            status = self.child.try_wait().context("cannot wait for it")?;
            Ok(status.is_some())
        })
        .with_context(|| format!("{} said {:?}; {}", self.words, self.lines, last_of_agent()))?;
        self.read()?;
        let code = status.and_then(|status| status.code());
        let code = code.with_context(|| format!("{} ended by {status:?}", self.words))?;
        Ok((code, self.lines.last().cloned().unwrap_or_default()))
    }

    /// Takes what it has said.
    fn read(&mut self) -> Result<()> {
        let mut bytes = [0; 4096];
        while !self.ended {
            match nix::unistd::read(&self.screen, &mut bytes) {
                // A terminal that no process writes to any more.
                Ok(0) | Err(Errno::EIO) => self.ended = true,
                Ok(length) => self.partial.extend(&bytes[..length]),
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(errno).with_context(|| format!("cannot read from {}", self.words)),
            }
        }
        while let Some(end) = self.partial.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            self.lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The agent's last words, if it runs.
fn last_of_agent() -> String {
    let log = Agent::log();
    let lines: Vec<_> = log.lines().rev().take(3).collect();
    format!("the agent's last words, latest first: {lines:?}")
}

/// The number of the call that a thread sleeps in, and its first argument, from the text of its
/// `/proc/PID/syscall`.
fn slept_in(text: &str) -> Option<(i64, u32)> {
    let mut words = text.split_whitespace();
    let number = words.next()?.parse().ok()?;
    Some((number, u32::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok()?))
}

/// The epoll's descriptor, where that call waits for one.
fn epoll_slept_in(text: &str) -> Option<u32> {
    let waits = |number| {
        #[cfg(target_arch = "x86_64")]
        if number == libc::SYS_epoll_wait {
            return true;
        }
        number == libc::SYS_epoll_pwait || number == libc::SYS_epoll_pwait2
    };
    slept_in(text).filter(|(number, _)| waits(*number)).map(|(_, descriptor)| descriptor)
}

fn is_link(path: &str, to: &str) -> bool {
    fs::read_link(Path::new(path)).is_ok_and(|link| link.to_string_lossy().contains(to))
}
