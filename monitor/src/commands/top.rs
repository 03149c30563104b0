//! The command `memcg-monitor top`: the groups by usage, distance to their limits and the time left
//! to them, on a screen or as lines.

mod app;
mod arrange;
mod batch;
mod cells;
mod growth;
pub mod host;
mod model;
mod screen;
mod source;
mod terminal;

use std::{
    io,
    process::ExitCode,
    sync::mpsc::RecvTimeoutError,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use crossterm::event::{Event, KeyEventKind};
use memcg_monitor::cgroup::Hierarchy;
use nix::sys::signal::Signal;

use self::{
    app::{App, Request},
    arrange::Arrangement,
    cells::Signs,
    host::HostMemory,
    model::Model,
    screen::{Surroundings, Theme},
    source::{GroupSource, KnownNumbers, details::Details},
    terminal::{TakenTerminal, TerminalMessage},
};
use crate::cli::{Output, Top};

/// Time between the end of the terminal and the signal that says so.
const HANG_UP: Duration = Duration::from_millis(100);

pub fn run(options: &Top) -> Result<ExitCode> {
    let hierarchy = Hierarchy::find(options.cgroup_root.as_deref())?;
    let by = Arrangement { sort: options.sort, is_inverted: options.invert, is_tree: !options.list };
    let mut app = App::new(Model::new(&hierarchy.root.to_string_lossy()), by);
    app.filter(options.filter.as_deref().unwrap_or_default());
    let mut feed = Feed {
        source: GroupSource::new(&hierarchy, options.control_socket.clone()),
        details: Details::new(&hierarchy),
        start: Instant::now(),
    };
    let output = options.output.unwrap_or(Output::Text);
    if options.once || options.batch || options.output.is_some() {
        print(options, output, &mut app, &mut feed)?;
    } else {
        show(options, &mut app, &mut feed)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Brings the view's groups up to date.
struct Feed {
    source: GroupSource,
    details: Details,
    start: Instant,
}

impl Feed {
    fn tick(&mut self, app: &mut App) -> Result<()> {
        app.model.begin(self.start.elapsed().as_secs_f64());
        let visible = app.visible();
        self.source.renew(&mut app.model, &visible)?;
        app.arrange();
        // Of those that are visible now.
        let visible = app.visible();
        self.details.renew(&mut app.model, &visible);
        app.known = KnownNumbers {
            registrations: self.source.is_agent(),
            ooms: self.details.has_ooms,
            kills: self.details.has_kills,
        };
        Ok(())
    }
}

/// How many ticks are shown; `None` for as many as the user likes.
fn ticks(options: &Top) -> Option<u64> {
    if options.once { Some(1) } else { options.iterations }
}

fn print(options: &Top, output: Output, app: &mut App, feed: &mut Feed) -> Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    // Each group is read each time.
    app.resize(usize::MAX);
    let mut done = 0;
    loop {
        feed.tick(app)?;
        if done == 0 {
            // Whose pressure is known only now.
            app.arrange();
        }
        let note = feed.source.note();
        match output {
            Output::Text => batch::text(&mut out, app, &note)?,
            Output::Json => batch::json(&mut out, app, &note)?,
        }
        done += 1;
        if ticks(options).is_some_and(|ticks| done >= ticks) {
            return Ok(());
        }
        sleep(options.delay);
    }
}

fn show(options: &Top, app: &mut App, feed: &mut Feed) -> Result<()> {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let theme =
        Theme { signs: Signs::of_locale(|name| std::env::var(name).ok()), has_color: !is_set("NO_COLOR") };
    let mut taken = TakenTerminal::take()?;
    let mut around = Surroundings::default();
    let (mut next, mut done) = (Instant::now(), 0);
    loop {
        if next <= Instant::now() {
            app.resize(screen::rows_of(taken.height()?));
            if !app.is_paused {
                feed.tick(app)?;
                around = Surroundings { host: HostMemory::read(), note: feed.source.note() };
                done += 1;
            }
            next = Instant::now() + options.delay;
        }
        taken.draw(|frame| {
            app.resize(screen::rows_of(frame.area().height));
            screen::draw(frame, app, &around, theme);
        })?;
        if options.iterations.is_some_and(|ticks| done >= ticks) {
            return Ok(());
        }
        let message = match taken.messages.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => bail!("nothing reads the terminal any more"),
        };
        match message {
            TerminalMessage::Terminal(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                match app.press(key) {
                    Request::Quit => return Ok(()),
                    // It comes back as a signal.
                    Request::Suspend => terminal::ask_to_stop()?,
                    Request::Redraw => taken.resume()?,
                    Request::Draw => {}
                }
            }
            TerminalMessage::Terminal(_) => {}
            TerminalMessage::Signal(Signal::SIGTSTP) => taken.suspend()?,
            TerminalMessage::Signal(Signal::SIGCONT) => taken.resume()?,
            TerminalMessage::Signal(signal) => return Err(taken.end_by(signal)),
            TerminalMessage::Ended => {
                // The hang-up's own signal comes beside it, if it is the controlling terminal.
                while let Ok(message) = taken.messages.recv_timeout(HANG_UP) {
                    if let TerminalMessage::Signal(Signal::SIGHUP) = message {
                        return Err(taken.end_by(Signal::SIGHUP));
                    }
                }
                bail!("the terminal is gone, or cannot be read");
            }
        }
    }
}
