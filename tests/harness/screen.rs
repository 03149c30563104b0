//! A program on a terminal of its own that reads keys and draws a screen; the screen is what a
//! terminal would show.

use std::fs;
use std::num::NonZero;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use vt100::Parser;

use crate::harness::agent::{PATIENCE, until};
use crate::harness::process::{on_cpu, own_terminal};
use crate::harness::stopwatch;

/// The program, and the screen that it has drawn.
pub(crate) struct Screen {
    child: Child,
    terminal: OwnedFd,
    parser: Parser,
    has_ended: bool,
}

/// Columns and lines of a terminal.
pub(crate) type Size = (NonZero<u16>, NonZero<u16>);

/// A size from numbers that are not 0.
pub(crate) const fn size(columns: u16, lines: u16) -> Size {
    let none = "a terminal has columns and lines";
    (NonZero::new(columns).expect(none), NonZero::new(lines).expect(none))
}

impl Screen {
    /// Starts a program on a terminal of this size.
    pub(crate) fn start(words: &[&str], size: Size, environment: &[(&str, &str)]) -> Result<Self> {
        let pair = openpty(&winsize(size), None).context("cannot make a terminal")?;
        for end in [&pair.master, &pair.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("fcntl failed")?;
        }
        fcntl(&pair.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("fcntl failed")?;
        let (program, args) = words.split_first().context("a program has a name")?;
        let mut command = Command::new(program);
        command.args(args).env("TERM", "xterm-256color").env("LANG", "C.UTF-8");
        command.env_remove("NO_COLOR").envs(environment.iter().copied());
        command.stdin(pair.slave.try_clone()?).stdout(pair.slave.try_clone()?).stderr(pair.slave);
        own_terminal(&mut command);
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        let parser = Parser::new(size.1, size.0, 0);
        Ok(Self { child, terminal: pair.master, parser, has_ended: false })
    }

    /// Presses keys, as the bytes that a terminal sends for them.
    pub(crate) fn press(&self, keys: &str) -> Result<()> {
        nix::unistd::write(&self.terminal, keys.as_bytes()).context("cannot write to the terminal")?;
        Ok(())
    }

    /// Changes the size of the terminal; its program is told by SIGWINCH.
    pub(crate) fn resize(&mut self, size: Size) -> Result<()> {
        let size_now = winsize(size);
        // SAFETY: the descriptor is a terminal's, and the request reads a `winsize`.
        let set = unsafe { libc::ioctl(self.terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size_now) };
        Errno::result(set).context("TIOCSWINSZ failed")?;
        self.parser.screen_mut().set_size(size.1, size.0);
        Ok(())
    }

    /// The lines on the screen.
    pub(crate) fn lines(&mut self) -> Result<Vec<String>> {
        self.read()?;
        let screen = self.parser.screen();
        let (_, columns) = screen.size();
        Ok(screen.rows(0, columns.get()).map(|line| line.trim_end().to_owned()).collect())
    }

    /// Waits until the screen is as wanted; returns its lines.
    pub(crate) fn shows(
        &mut self,
        what: &str,
        mut holds: impl FnMut(&[String]) -> bool,
    ) -> Result<Vec<String>> {
        let _span = stopwatch::waiting();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lines = self.lines()?;
            if holds(&lines) {
                return Ok(lines);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero() && !self.has_ended, "no {what} on the screen:\n{}", lines.join("\n"));
            let mut terminal = [PollFd::new(self.terminal.as_fd(), PollFlags::POLLIN)];
            poll(&mut terminal, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))
                .context("poll failed")?;
        }
    }

    /// Waits until a line of the screen contains this.
    pub(crate) fn says(&mut self, text: &str) -> Result<Vec<String>> {
        self.shows(&format!("{text:?}"), |lines| lines.iter().any(|line| line.contains(text)))
    }

    /// Whether any character on the screen has a colour.
    pub(crate) fn has_color(&mut self) -> Result<bool> {
        self.read()?;
        let screen = self.parser.screen();
        let (lines, columns) = screen.size();
        let mut cells =
            (0..lines.get()).flat_map(|line| (0..columns.get()).map(move |column| (line, column)));
        Ok(cells.any(|(line, column)| {
            screen.cell(line, column).is_some_and(|cell| {
                cell.fgcolor() != vt100::Color::Default || cell.bgcolor() != vt100::Color::Default
            })
        }))
    }

    /// How long its threads have been on a CPU, in nanoseconds.
    pub(crate) fn on_cpu(&self) -> Result<u64> {
        on_cpu(self.child.id())
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal).context("cannot signal the program")
    }

    /// Waits until it has stopped, as a job does at Ctrl-Z.
    pub(crate) fn stops(&mut self) -> Result<()> {
        let path = format!("/proc/{}/stat", self.child.id());
        until("the program stops", || {
            self.read()?;
            let text = fs::read_to_string(&path).context("it has ended")?;
            Ok(text.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T')))
        })
    }

    /// Fails unless the terminal is as it was before the program: its own screen, a cursor, and lines
    /// that are edited and echoed.
    pub(crate) fn is_restored(&mut self) -> Result<()> {
        self.read()?;
        let screen = self.parser.screen();
        ensure!(!screen.alternate_screen(), "still on the alternate screen");
        ensure!(!screen.hide_cursor(), "the cursor is hidden");
        let flags = tcgetattr(&self.terminal).context("tcgetattr failed")?.local_flags;
        let usual = LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG;
        ensure!(flags.contains(usual), "the terminal is left in raw mode: {flags:?}");
        Ok(())
    }

    /// Waits until the program ends; how it did.
    pub(crate) fn ends(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        let ended = until("the program ends", || {
            self.read()?;
            status = self.child.try_wait().context("cannot wait for it")?;
            Ok(status.is_some())
        });
        if let Err(error) = ended {
            bail!("{error:#}:\n{}", self.lines()?.join("\n"));
        }
        self.read()?;
        status.context("no status")
    }

    /// Takes what it has written.
    fn read(&mut self) -> Result<()> {
        let mut bytes = [0; 4096];
        loop {
            match nix::unistd::read(&self.terminal, &mut bytes) {
                // A terminal that no process has open any more.
                Ok(0) | Err(Errno::EIO) => self.has_ended = true,
                Ok(length) => {
                    self.parser.process(&bytes[..length]);
                    continue;
                }
                Err(Errno::EAGAIN) => {}
                Err(errno) => return Err(errno).context("cannot read from the terminal"),
            }
            return Ok(());
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const fn winsize((columns, lines): Size) -> Winsize {
    Winsize { ws_row: lines.get(), ws_col: columns.get(), ws_xpixel: 0, ws_ypixel: 0 }
}
