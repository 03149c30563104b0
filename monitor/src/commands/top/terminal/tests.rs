//! The terminal after the ends of a program, in a pseudo-terminal: a test runs another one as its child.

use std::{
    env,
    fs::File,
    io::Read as _,
    os::{fd::OwnedFd, unix::process::ExitStatusExt as _},
    process::{Child, Command, ExitStatus},
    sync::mpsc::RecvTimeoutError,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    pty::{Winsize, openpty},
    sys::{
        signal::{SigSet, Signal, kill},
        termios::{LocalFlags, tcgetattr},
    },
    unistd::{Pid, setsid},
};
use ratatui::widgets::Paragraph;

use super::{LARGEST, TakenTerminal, TerminalMessage};

const LONGEST: Duration = Duration::from_secs(60);

/// A program on a terminal of its own.
struct OnTerminal {
    child: Child,
    master: OwnedFd,
    slave: OwnedFd,
}

impl OnTerminal {
    /// Runs one of the tests below, as a program.
    fn start(program: &str, size: (u16, u16)) -> Result<Self> {
        Self::start_by(Command::new(env::current_exe()?), program, size)
    }

    /// Runs it by a command that takes the arguments of this program.
    fn start_by(mut command: Command, program: &str, (columns, lines): (u16, u16)) -> Result<Self> {
        let size = Winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).context("openpty")?;
        // A program that holds the other end would not see it close.
        for end in [&pair.master, &pair.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("fcntl")?;
        }
        let name = format!("{}::{program}", module_path!().split_once("::").context("a module")?.1);
        command.args(["--exact", &name, "--ignored", "--nocapture", "--test-threads=1"]);
        command.env("TERM", "xterm").env("RUST_BACKTRACE", "0");
        command.stdin(pair.slave.try_clone()?).stdout(pair.slave.try_clone()?);
        command.stderr(pair.slave.try_clone()?);
        // The runner of the test has threads that would take them; blocked for all, they wait for the one
        // that listens.
        let signals: SigSet = [Signal::SIGHUP, Signal::SIGTERM].into_iter().collect();
        signals.thread_block()?;
        let child = command.spawn();
        signals.thread_unblock()?;
        Ok(Self { child: child?, master: pair.master, slave: pair.slave })
    }

    /// Waits until it has ended; all that it has written.
    fn written(self) -> Result<(String, ExitStatus)> {
        let Self { mut child, master, slave } = self;
        let reader = thread::spawn({
            let mut master = File::from(master.try_clone()?);
            move || {
                let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
                // EIO once no program has the terminal open.
                while let Ok(length) = master.read(&mut part) {
                    bytes.extend_from_slice(&part[..length]);
                }
                bytes
            }
        });
        let status = child.wait()?;
        is_usual(&slave)?;
        drop(slave);
        let bytes = reader.join().ok().context("the reader panicked")?;
        drop(master);
        Ok((String::from_utf8_lossy(&bytes).into_owned(), status))
    }
}

/// Fails where the terminal is in raw mode.
fn is_usual(terminal: &OwnedFd) -> Result<()> {
    let flags = tcgetattr(terminal).context("tcgetattr")?.local_flags;
    let usual = LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG;
    ensure!(flags.contains(usual), "raw mode: {flags:?}");
    Ok(())
}

/// Fails unless the screen was left, with a cursor, before all of this was written; and for good.
fn is_left_before(text: &str, written: &str) -> Result<()> {
    let last = |sign: &str| written.rfind(sign).with_context(|| format!("no {sign:?} in {written:?}"));
    let (entered, left, shown) = (last("\x1b[?1049h")?, last("\x1b[?1049l")?, last("\x1b[?25h")?);
    ensure!(entered < left && last("\x1b[?25l")? < shown, "not left: {written:?}");
    ensure!(left < last(text)?, "written on the screen: {written:?}");
    Ok(())
}

/// Takes the terminal, in a session of its own: the controlling terminal is asked for its size first.
fn taken() -> TakenTerminal {
    setsid().expect("a session");
    TakenTerminal::take().expect("a terminal")
}

/// Draws one word on the screen.
fn draw(taken: &mut TakenTerminal) -> Result<()> {
    taken.draw(|frame| frame.render_widget(Paragraph::new("drawn"), frame.area()))
}

#[test]
#[ignore = "a program for the tests"]
fn program_that_panics() {
    let mut taken = taken();
    draw(&mut taken).expect("a screen");
    taken.draw(|_| panic!("within a screen")).expect("not reached");
}

#[test]
fn a_panic_gives_the_terminal_back_first() -> Result<()> {
    let (written, status) = OnTerminal::start("program_that_panics", (80, 24))?.written()?;
    ensure!(written.contains("drawn") && !status.success(), "{status}: {written}");
    is_left_before("within a screen", &written)
}

#[test]
#[ignore = "a program for the tests"]
fn program_whose_other_thread_panics() {
    let mut taken = taken();
    draw(&mut taken).expect("a screen");
    let panicked = thread::spawn(|| panic!("beside the screen"));
    panicked.join().expect_err("it panics");
    draw(&mut taken).expect("nothing is drawn any more");
}

#[test]
fn nothing_is_drawn_after_the_panic_of_another_thread() -> Result<()> {
    let (written, _) = OnTerminal::start("program_whose_other_thread_panics", (80, 24))?.written()?;
    is_left_before("beside the screen", &written)?;
    let after = written.rfind("beside the screen").context("the panic")?;
    ensure!(!written[after..].contains('\x1b'), "{written:?}");
    Ok(())
}

#[test]
#[ignore = "a program for the tests"]
fn program_that_waits() {
    let mut taken = taken();
    draw(&mut taken).expect("a screen");
    loop {
        match taken.messages.recv_timeout(LONGEST) {
            Ok(TerminalMessage::Ended) => {
                drop(taken);
                std::process::exit(42)
            }
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => std::process::exit(43),
        }
    }
}

#[test]
fn the_end_of_the_terminal_is_noticed_without_a_signal() -> Result<()> {
    // It is no controlling terminal, so that nobody sends SIGHUP.
    let OnTerminal { mut child, master, slave } = OnTerminal::start("program_that_waits", (80, 24))?;
    let (mut terminal, mut seen, mut part) = (File::from(master), Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&seen).contains("drawn") {
        let length = terminal.read(&mut part)?;
        seen.extend_from_slice(&part[..length]);
    }
    drop((terminal, slave));
    ensure!(child.wait()?.code() == Some(42), "it waits");
    Ok(())
}

#[test]
#[ignore = "a program for the tests"]
fn program_that_draws() {
    let mut taken = taken();
    draw(&mut taken).expect("a screen");
    taken
        .draw(|frame| {
            let area = frame.area();
            assert!(area.width <= LARGEST.0 && area.height <= LARGEST.1, "{area}");
        })
        .expect("a screen");
    drop(taken);
    println!("given back");
}

#[test]
fn the_least_and_the_largest_terminal_are_drawn() -> Result<()> {
    for size in [(1, 1), (1, u16::MAX), (u16::MAX, 1), (u16::MAX, u16::MAX)] {
        let (written, status) = OnTerminal::start("program_that_draws", size)?.written()?;
        ensure!(status.success(), "{size:?}: {status}: {written}");
        is_left_before("given back", &written)?;
    }
    Ok(())
}

#[test]
#[ignore = "a program for the tests"]
fn program_that_takes_no_message() {
    let mut taken = taken();
    draw(&mut taken).expect("a screen");
    kill(Pid::this(), Signal::SIGTERM).expect("a signal");
    thread::sleep(LONGEST);
}

#[test]
fn a_signal_ends_a_program_that_takes_no_message() -> Result<()> {
    let (written, status) = OnTerminal::start("program_that_takes_no_message", (80, 24))?.written()?;
    ensure!(status.signal() == Some(Signal::SIGTERM as i32), "{status}: {written}");
    is_left_before("", &written)
}

#[test]
#[ignore = "a program for the tests"]
fn program_that_draws_without_end() {
    let mut taken = taken();
    kill(Pid::this(), Signal::SIGTERM).expect("a signal");
    for letter in ["a", "b"].into_iter().cycle() {
        let text = vec![letter.repeat(500); 200].join("\n");
        taken
            .draw(|frame| frame.render_widget(Paragraph::new(text.as_str()), frame.area()))
            .expect("a screen");
    }
}

#[test]
fn a_signal_ends_a_program_whose_terminal_nobody_reads() -> Result<()> {
    let running = OnTerminal::start("program_that_draws_without_end", (500, 200))?;
    let OnTerminal { mut child, master, slave } = running;
    let start = Instant::now();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if start.elapsed() < LONGEST => thread::sleep(Duration::from_millis(10)),
            None => {
                child.kill()?;
                bail!("it goes on");
            }
        }
    };
    ensure!(status.signal() == Some(Signal::SIGTERM as i32), "{status}");
    is_usual(&slave)?;
    drop(master);
    Ok(())
}

#[test]
#[ignore = "a program for the tests"]
fn program_that_is_told_to_hang_up() {
    let mut taken = taken();
    draw(&mut taken).expect("a screen");
    kill(Pid::this(), Signal::SIGHUP).expect("a signal");
    loop {
        let message = taken.messages.recv_timeout(LONGEST).expect("a message");
        if let TerminalMessage::Signal(signal) = message {
            panic!("{}", taken.end_by(signal));
        }
    }
}

#[test]
fn a_signal_that_is_ignored_ends_the_program_with_a_failure() -> Result<()> {
    let (_, status) = OnTerminal::start("program_that_is_told_to_hang_up", (80, 24))?.written()?;
    ensure!(status.signal() == Some(Signal::SIGHUP as i32), "{status}");
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(env::current_exe()?);
    let running = OnTerminal::start_by(command, "program_that_is_told_to_hang_up", (80, 24))?;
    let (written, status) = running.written()?;
    ensure!(status.code().is_some_and(|code| code != 0), "{status}: {written}");
    is_left_before("ended at SIGHUP, which it was started to ignore", &written)
}
