//! The terminal: what is switched on for the screen is switched off again however the program ends.

use std::{
    io::{self, BufWriter, IsTerminal as _, Stdout, Write as _},
    mem::ManuallyDrop,
    os::fd::{AsFd as _, BorrowedFd},
    process,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Error, Result, anyhow, bail};
use crossterm::{
    cursor::{Hide, Show},
    event::{self, Event, KeyCode, KeyModifiers},
    execute, queue,
    terminal::{self, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{SigSet, Signal, kill, raise},
    unistd::Pid,
};
use ratatui::{Frame, Terminal, TerminalOptions, Viewport, backend::CrosstermBackend, layout::Rect};

/// Signals that end the program, or stop it and let it go on. Those of the processor's faults are not
/// among them: the kernel does not let a program wait for its own.
const HANDLED: [Signal; 17] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGABRT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
    Signal::SIGSTKFLT,
    Signal::SIGXCPU,
    Signal::SIGXFSZ,
    Signal::SIGTSTP,
    Signal::SIGCONT,
];

/// Columns and lines of the largest screen that is drawn: a terminal may have any size, of which each
/// cell takes memory.
const LARGEST: (u16, u16) = (1000, 500);

/// Time within which the program ends by itself after a signal or a key that ends it. It may be waiting
/// for an agent, or for a terminal that nobody reads.
const END_WITHIN: Duration = Duration::from_secs(1);

/// Time within which the screen is left, which may have to wait for somebody to read the terminal.
const LEAVE_WITHIN: Duration = Duration::from_millis(200);

/// Whether the terminal is in our hands.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// An event from outside the program.
#[derive(Debug)]
pub enum TerminalMessage {
    Terminal(Event),
    Signal(Signal),
    /// The terminal is gone, or a thread that listens to it is.
    Ended,
}

/// The screen, in the alternate buffer and without the line discipline's help.
type Screen = Terminal<CrosstermBackend<BufWriter<Stdout>>>;

/// The terminal, which is given back when this is dropped.
#[derive(Debug)]
pub struct TakenTerminal {
    /// Never dropped: it would show the cursor itself, and panic where the terminal is gone.
    screen: ManuallyDrop<Screen>,
    area: Rect,
    pub messages: Receiver<TerminalMessage>,
    _given_back: GivenBack,
}

impl TakenTerminal {
    /// Takes the terminal, and begins to listen to keys and signals.
    ///
    /// # Errors
    /// Standard output is no terminal, or one without a cursor.
    pub fn take() -> Result<Self> {
        const INSTEAD: &str =
            "for lines instead of a screen: memcg-monitor top --once, or --batch, or -o json";
        if !io::stdout().is_terminal() {
            bail!("standard output is no terminal; {INSTEAD}");
        }
        if std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb") {
            bail!("TERM names no terminal with a cursor; {INSTEAD}");
        }
        let mut signals = SigSet::empty();
        HANDLED.into_iter().for_each(|signal| signals.add(signal));
        // Before there are other threads, which have the same blocked.
        signals.thread_block().context("pthread_sigmask")?;
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            usual(panic);
        }));
        let given_back = GivenBack;
        enter().context("cannot take the terminal")?;
        let area = area()?;
        let backend = CrosstermBackend::new(BufWriter::new(io::stdout()));
        let screen = Terminal::with_options(backend, TerminalOptions { viewport: Viewport::Fixed(area) });
        let screen = ManuallyDrop::new(screen.context("cannot set up the screen")?);
        let (sender, messages) = channel();
        listen_to_signals(signals, sender.clone());
        listen_to_keys(sender.clone());
        listen_to_the_end(sender);
        Ok(Self { screen, area, messages, _given_back: given_back })
    }

    /// Lines of the screen.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn height(&self) -> Result<u16> {
        Ok(area()?.height)
    }

    /// Draws a screen in the size that the terminal has by now.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> Result<()> {
        let area = area()?;
        if area != self.area {
            self.clear(area)?;
        }
        // A panic of another thread has given it back: nothing is drawn on the user's own screen.
        if IS_TAKEN.load(Ordering::SeqCst) {
            self.screen.draw(draw).context("cannot draw")?;
        }
        Ok(())
    }

    /// Gives the terminal back, stops like any other job, and takes it again afterwards. Where no
    /// shell could let it go on (`ssh -t HOST memcg-monitor top`), the kernel does not stop it.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn suspend(&mut self) -> Result<()> {
        give_back();
        let stop = SigSet::from(Signal::SIGTSTP);
        stop.thread_unblock().context("pthread_sigmask")?;
        // To this thread: another one waits for those to the process.
        raise(Signal::SIGTSTP).context("raise")?;
        stop.thread_block().context("pthread_sigmask")?;
        self.resume()
    }

    /// Takes the terminal again, and draws all of it anew.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn resume(&mut self) -> Result<()> {
        // Also where it is taken: a shell has set it to its own taste if SIGSTOP was the reason.
        give_back();
        enter().context("cannot take the terminal again")?;
        self.clear(area()?)
    }

    // Not `Terminal::clear`, which asks the terminal where its cursor is, and waits for the answer.
    fn clear(&mut self, area: Rect) -> Result<()> {
        self.area = area;
        self.screen.resize(area).context("cannot clear the terminal")
    }

    /// Ends the program by a signal, as if it had not been handled; returns why it goes on.
    pub fn end_by(self, signal: Signal) -> Error {
        drop(self);
        end_by(signal)
    }
}

/// Ends the program by a signal's default action; returns why it goes on.
fn end_by(signal: Signal) -> Error {
    let unblocked = SigSet::from(signal).thread_unblock().context("pthread_sigmask");
    match unblocked.and_then(|()| kill(Pid::this(), signal).context("kill")) {
        Ok(()) => anyhow!("ended at {signal}, which it was started to ignore (nohup)"),
        Err(error) => error,
    }
}

/// Ends the program unless it ends in time by itself, as its main thread was told to.
fn end_unless_ended(signal: Signal) {
    thread::sleep(END_WITHIN);
    let is_taken = IS_TAKEN.swap(false, Ordering::SeqCst);
    // First, since it waits for nobody.
    let _ = disable_raw_mode();
    if is_taken {
        let (told, is_told) = channel();
        let writer = thread::Builder::new().spawn(move || {
            leave_screen();
            let _ = told.send(());
        });
        if writer.is_ok() {
            let _ = is_told.recv_timeout(LEAVE_WITHIN);
        }
    }
    let _ = end_by(signal);
    // It is ignored. Nothing is said: standard error may be the terminal that nobody reads.
    process::exit(1);
}

/// Asks the terminal's whole job to stop, as Ctrl-Z does where the terminal itself reads it.
///
/// # Errors
/// The kernel refuses.
pub fn ask_to_stop() -> Result<()> {
    kill(Pid::from_raw(0), Signal::SIGTSTP).context("kill")
}

/// Gives the terminal back when it is dropped.
#[derive(Debug)]
struct GivenBack;

impl Drop for GivenBack {
    fn drop(&mut self) {
        give_back();
    }
}

/// The part of the terminal that is drawn.
fn area() -> Result<Rect> {
    let (width, height) = terminal::size().context("the terminal has no size")?;
    Ok(Rect::new(0, 0, width.min(LARGEST.0), height.min(LARGEST.1)))
}

fn enter() -> io::Result<()> {
    // Before the first change: one that fails may have been made in part.
    IS_TAKEN.store(true, Ordering::SeqCst);
    enable_raw_mode()?;
    execute!(io::stdout(), EnterAlternateScreen, Hide)
}

/// Gives the terminal back, once. What fails here fails because there is no terminal any more.
fn give_back() {
    if IS_TAKEN.swap(false, Ordering::SeqCst) {
        leave_screen();
        let _ = disable_raw_mode();
    }
}

fn leave_screen() {
    let mut out = io::stdout();
    let _ = queue!(out, LeaveAlternateScreen, Show);
    let _ = out.flush();
}

/// Tells the program when the thread that has it ends, also by a panic.
struct EndTold(Sender<TerminalMessage>);

impl Drop for EndTold {
    fn drop(&mut self) {
        let _ = self.0.send(TerminalMessage::Ended);
    }
}

fn listen_to_signals(signals: SigSet, messages: Sender<TerminalMessage>) {
    thread::spawn(move || {
        let told = EndTold(messages);
        while let Ok(signal) = signals.wait() {
            if told.0.send(TerminalMessage::Signal(signal)).is_err() {
                return;
            }
            if !matches!(signal, Signal::SIGTSTP | Signal::SIGCONT) {
                end_unless_ended(signal);
            }
        }
    });
}

fn listen_to_keys(messages: Sender<TerminalMessage>) {
    thread::spawn(move || {
        let told = EndTold(messages);
        while let Ok(event) = event::read() {
            let is_interrupt = is_interrupt(&event);
            if told.0.send(TerminalMessage::Terminal(event)).is_err() {
                return;
            }
            if is_interrupt {
                end_unless_ended(Signal::SIGINT);
            }
        }
    });
}

/// Whether an event is Ctrl-C, which ends the program wherever it is.
fn is_interrupt(event: &Event) -> bool {
    event
        .as_key_press_event()
        .is_some_and(|key| key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL))
}

/// Waits for the end of the terminal, which `event::read` does not notice: it reads again and again.
fn listen_to_the_end(messages: Sender<TerminalMessage>) {
    thread::spawn(move || {
        let told = EndTold(messages);
        let (input, output) = (io::stdin(), io::stdout());
        let mut terminals = vec![output.as_fd()];
        if input.is_terminal() {
            terminals.push(input.as_fd());
        }
        wait_for_the_end(&terminals);
        drop(told);
    });
}

/// Waits until one of the terminals is gone.
fn wait_for_the_end(terminals: &[BorrowedFd<'_>]) {
    // Nothing is asked for: a hang-up is told in any case.
    let mut ends: Vec<_> = terminals.iter().map(|fd| PollFd::new(*fd, PollFlags::empty())).collect();
    while poll(&mut ends, PollTimeout::NONE) == Err(Errno::EINTR) {}
}

#[cfg(test)]
mod tests;
