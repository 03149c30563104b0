//! The command `memcg-monitor listen`: does through the agent what the kernel's sample
//! `cgroup_event_listener` does, and says what happened.

pub mod hints;
mod note;
pub mod words;

use std::{
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use memcg_monitor::printable;
use monitor_client::{
    AdminConnection, Error, RegistrationConnection, RemovalCheck, Target,
    wire::{AdminRequest, Answer, EventRow},
};
use monitor_common::grammar::control_file::{ControlFile, split_directory_args};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use self::note::Noter;
use crate::{
    cli::{Listen, Output},
    commands::{TIMED_OUT, connect, group, say, wrong_usage},
};

const AGENT_ENDED: &str = "the agent ended; signals go on once an agent that keeps registrations \
    (--supervised, or a descriptor store) is back; after any other, end this and register again";

pub fn run(options: &Listen) -> Result<ExitCode> {
    let selected = options.group.find()?;
    let wanted = match Wanted::of(options, selected.as_deref()) {
        Ok(wanted) => wanted,
        Err(error) => return Ok(wrong_usage(&error)),
    };
    let control = Target::open(&wanted.path).map_err(explained)?;
    let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("eventfd2 failed")?;
    let args = control.args(&wanted.args);
    let line = format!("{} {} {args}", eventfd.as_raw_fd(), control.as_fd().as_raw_fd());
    // Sent along, so that it works from other pid namespaces, too.
    let descriptors = [eventfd.as_fd(), control.as_fd()];
    let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
    let made = match options.output {
        Output::Json => follow(options, &line, descriptors),
        Output::Text => register(options, &line, descriptors),
    };
    let agent = match made {
        Ok(agent) => agent,
        Err((error, _)) if error.is_timeout() => return Ok(ExitCode::from(TIMED_OUT)),
        Err((error, option)) => return Err(refused(error, option, &wanted)),
    };
    let mut noter = Noter::new(wanted.parts());
    tell(noter.take());
    match (options.output, agent) {
        (Output::Json, Agent::Followed(connection)) => {
            drop(control);
            announce(options, &serde_json::to_string(&Answer::Listening)?)?;
            print_json(options, &connection, noter, deadline)
        }
        (_, agent) => {
            announce(options, "registered")?;
            let mark = control.into_mark();
            Lines { options, wanted: &wanted, noter, printed: 0 }.print(agent, &mark, &eventfd, deadline)
        }
    }
}

/// The connection to the agent that has made the registration.
enum Agent {
    /// Reports the cause of each signal.
    Followed(AdminConnection),
    /// Reports nothing but its end.
    Registered(RegistrationConnection),
    Ended,
}

impl Agent {
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Followed(connection) => Some(connection.as_fd()),
            Self::Registered(connection) => Some(connection.as_fd()),
            Self::Ended => None,
        }
    }
}

/// A failure, and the option that names the socket at which it happened.
type Failed = (Error, &'static str);

/// Registers at the admin socket where this user is an operator, for the causes; else at the
/// registration socket.
fn register(options: &Listen, line: &str, descriptors: [BorrowedFd<'_>; 2]) -> Result<Agent, Failed> {
    // Another registration socket may be another agent's than the default admin socket is.
    let is_one_agents = options.socket == Path::new(monitor_client::SOCKET)
        || options.control_socket != Path::new(monitor_client::CONTROL_SOCKET);
    if is_one_agents {
        match follow(options, line, descriptors) {
            Err((error, _)) if is_not_admitted(&error) => {}
            outcome => return outcome,
        }
    }
    let connection = match options.timeout {
        Some(limit) => RegistrationConnection::connect_within(&options.socket, limit),
        None => RegistrationConnection::connect(&options.socket),
    };
    let registered = connection.and_then(|agent| {
        agent.register(line.as_bytes(), Some(descriptors))?;
        Ok(Agent::Registered(agent))
    });
    registered.map_err(|error| (error, "--socket"))
}

/// Whether the admin socket is none, or not for this user; the registration socket may be.
fn is_not_admitted(error: &Error) -> bool {
    match error {
        Error::Syscall { .. } => !error.is_timeout(),
        Error::Refused { errno, .. } => *errno == Errno::EPERM as i32,
        // A registration socket, or an agent that ended.
        _ => true,
    }
}

/// Registers at the admin socket, which reports causes.
fn follow(options: &Listen, line: &str, descriptors: [BorrowedFd<'_>; 2]) -> Result<Agent, Failed> {
    let made = connect::admin(&options.control_socket, options.timeout).and_then(|connection| {
        connection.send(&AdminRequest::Listen(line.to_owned()), &descriptors)?;
        Ok((connection.next()?, connection))
    });
    match made {
        Ok((Some(Answer::Listening), connection)) => Ok(Agent::Followed(connection)),
        Ok((other, _)) => Err((Error::Answer(format!("{other:?}")), "--control-socket")),
        Err(error) => Err((error, "--control-socket")),
    }
}

/// The error of a registration that was not made, with what to do.
fn refused(error: Error, option: &'static str, wanted: &Wanted) -> anyhow::Error {
    let is_form = error.errno() == Some(Errno::EINVAL as i32);
    let hint = is_form.then(|| hints::instead_of(&wanted.path, wanted.file(), &wanted.args)).flatten();
    let error = connect::explained(error, option);
    let error = match hint {
        Some(hint) => anyhow!("{error:#}; {hint}"),
        None => error,
    };
    error.context(format!("cannot register {:?} on {}", wanted.args, wanted.path.display()))
}

/// The registration that the command line names.
struct Wanted {
    path: PathBuf,
    args: String,
}

impl Wanted {
    /// The registration on a control file, or in the group that an option names.
    ///
    /// # Errors
    /// The words are none.
    fn of(options: &Listen, selected: Option<&Path>) -> Result<Self> {
        // `DIRECTORY memory.pressure_level low`, not quoted.
        let unquoted = options.args.as_ref().zip(options.rest.as_ref());
        let unquoted = unquoted.map(|(args, rest)| format!("{args} {rest}"));
        let first = options.control_file.as_deref();
        let second = unquoted.as_deref().or(options.args.as_deref());
        let (path, given) = match (selected, first) {
            (Some(selected), _) => group::registration(selected, first, second)?,
            (None, Some(path)) => (path.to_owned(), second),
            (None, None) => bail!("name a control file"),
        };
        let args = options.args(&path, given);
        Ok(Self { path, args })
    }

    /// The control file, by its name in the path, or in the arguments for a directory.
    fn file(&self) -> Option<ControlFile> {
        let by_name = self.path.file_name().and_then(|name| ControlFile::from_name(name.as_bytes()));
        by_name.or_else(|| Some(split_directory_args(self.args.as_bytes())?.0))
    }

    /// The directory of the group, the control file, and its own arguments.
    fn parts(&self) -> Option<(&Path, ControlFile, &str)> {
        match self.path.file_name().and_then(|name| ControlFile::from_name(name.as_bytes())) {
            Some(file) => Some((self.path.parent()?, file, &self.args)),
            None => {
                let (file, args) = split_directory_args(self.args.as_bytes())?;
                Some((&self.path, file, str::from_utf8(args).ok()?))
            }
        }
    }
}

/// Says what cannot be crossed.
fn tell(note: Option<String>) {
    if let Some(note) = note {
        say(&format!("note: {}", printable(&note)));
    }
}

/// The longest that a poll may take: until the end, or the next look for a limit that was lowered.
fn poll_limit(deadline: Option<Instant>, noter: &Noter<'_>) -> PollTimeout {
    match left([deadline, noter.next()].into_iter().flatten().min()) {
        None => PollTimeout::NONE,
        Some(milliseconds) => PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX),
    }
}

/// No event but the end of the output's reader, which is always reported.
const READER_ALONE: PollFlags = PollFlags::empty();

/// Prints the first line, where one is wanted: nothing else shows that the registration is made.
fn announce(options: &Listen, text: &str) -> Result<()> {
    if options.announce {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()?;
    }
    Ok(())
}

/// Adds what to do to the error of a control file that is not there.
fn explained(error: Error) -> anyhow::Error {
    let Error::File { error: cause, path, .. } = &error else { return error.into() };
    if cause.kind() != io::ErrorKind::NotFound {
        return error.into();
    }
    // A relative path may begin in the present directory.
    let named = |path: &Path| if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_owned() };
    let directory = named(path.parent().unwrap_or(path));
    let there = path.ancestors().skip(1).map(named).find(|above| above.is_dir());
    let there = there.unwrap_or_else(|| "/".into());
    if there == directory {
        return anyhow!(
            "{error}; {} has no such file: name one of a group's control files (see `memcg-monitor listen --help`)",
            directory.display()
        );
    }
    anyhow!(
        "{error}; there is no {}, only {}: name a control file in a group's directory",
        directory.display(),
        there.display()
    )
}

/// Time left in milliseconds; `None`: no deadline.
fn left(deadline: Option<Instant>) -> Option<u128> {
    // Rounded up, so as not to wake just before the deadline.
    deadline.map(|at| (at.saturating_duration_since(Instant::now()) + Duration::from_micros(999)).as_millis())
}

/// The output as text: a line for each signal.
struct Lines<'a> {
    options: &'a Listen,
    wanted: &'a Wanted,
    noter: Noter<'a>,
    /// Signals that have been printed.
    printed: u64,
}

impl Lines<'_> {
    fn print(
        mut self,
        mut agent: Agent,
        mark: &RemovalCheck,
        eventfd: &EventFd,
        deadline: Option<Instant>,
    ) -> Result<ExitCode> {
        // Signals of a follower come by its connection, and are in the eventfd, too.
        let mut told = 0;
        loop {
            let stdout = io::stdout();
            let is_followed = matches!(agent, Agent::Followed(_));
            let by_eventfd = if is_followed { PollFlags::empty() } else { PollFlags::POLLIN };
            let mut watched =
                vec![PollFd::new(eventfd.as_fd(), by_eventfd), PollFd::new(stdout.as_fd(), READER_ALONE)];
            // The eventfd does not report the agent's end; the connection's hang-up does.
            watched.extend(agent.as_fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            let limit = poll_limit(deadline, &self.noter);
            match poll(&mut watched, limit) {
                Ok(0) if left(deadline) == Some(0) => return Ok(ExitCode::from(TIMED_OUT)),
                Ok(0) | Err(Errno::EINTR) => {
                    tell(self.noter.take());
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
                let event = match &agent {
                    Agent::Followed(connection) => match connection.next() {
                        Ok(Some(Answer::Event(event))) => Some(event),
                        Ok(Some(_)) => continue,
                        Err(error) if error.is_timeout() => continue,
                        Ok(None) | Err(_) => None,
                    },
                    _ => None,
                };
                let Some(event) = event else {
                    agent = Agent::Ended;
                    say(AGENT_ENDED);
                    continue;
                };
                told += event.signals;
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
            let words = match (&agent, self.wanted.parts()) {
                // It may be the signal of that end.
                (Agent::Ended, _) | (_, None) => words::UNKNOWN.to_owned(),
                (_, Some((directory, file, args))) => {
                    let usage = (file == ControlFile::Usage).then(|| words::usage(directory)).flatten();
                    words::of_signal(Some(file), args, usage)
                }
            };
            for _ in 0..signals {
                if self.signal(&words)? {
                    return Ok(ExitCode::SUCCESS);
                }
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
        for _ in 0..event.signals {
            if self.signal(&words)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Prints the line of a signal; returns whether there are enough now.
    fn signal(&mut self, words: &str) -> Result<bool> {
        self.line(words)?;
        self.printed += 1;
        Ok(self.options.count == Some(self.printed))
    }

    /// Prints a line; one that begins with a space is detail of the line before.
    fn line(&self, words: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        let words = printable(words);
        if words.starts_with(' ') {
            writeln!(out, "{words}")?;
        } else {
            let Wanted { path, args } = self.wanted;
            let path = path.to_string_lossy();
            let named = format!("{path} {args}");
            writeln!(out, "{}: {words}", printable(named.trim_end()))?;
        }
        Ok(out.flush()?)
    }
}

fn print_json(
    options: &Listen,
    control: &AdminConnection,
    mut noter: Noter<'_>,
    deadline: Option<Instant>,
) -> Result<ExitCode> {
    let stdout = io::stdout();
    let mut out = stdout.lock();
    let mut printed = 0;
    loop {
        let mut watched =
            [PollFd::new(control.as_fd(), PollFlags::POLLIN), PollFd::new(stdout.as_fd(), READER_ALONE)];
        let polled = match poll(&mut watched, poll_limit(deadline, &noter)) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(errno) => bail!("poll: {errno}"),
        };
        tell(noter.take());
        if watched[1].any().unwrap_or(false) {
            return Ok(ExitCode::SUCCESS);
        }
        match left(deadline) {
            Some(0) => return Ok(ExitCode::from(TIMED_OUT)),
            Some(milliseconds) => {
                let milliseconds = u64::try_from(milliseconds).unwrap_or(u64::MAX);
                control.set_timeout(Some(Duration::from_millis(milliseconds)))?;
            }
            None => {}
        }
        if polled == 0 {
            continue;
        }
        let event: EventRow = match control.next() {
            Ok(Some(Answer::Event(event))) => event,
            Ok(Some(_)) => continue,
            Ok(None) => bail!("the agent ended; register again once it is back"),
            Err(error) if error.is_timeout() => continue,
            Err(error) => return Err(error.into()),
        };
        serde_json::to_writer(&mut out, &event).context("cannot write")?;
        writeln!(out)?;
        out.flush()?;
        printed += event.signals;
        if event.event == "removed" || options.count.is_some_and(|count| printed >= count) {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::explained;
    use monitor_client::Target;

    #[test]
    fn a_missing_control_file_is_named_with_errno_and_advice() {
        let text = |path: &str| {
            let error = Target::open(path.as_ref()).expect_err("no such file");
            explained(error).to_string()
        };
        let missing = text("/nonexistent/a/memory.current");
        assert!(
            missing.starts_with("open /nonexistent/a/memory.current: ENOENT: No such file or directory; there is no /nonexistent/a, only /: name "),
            "{missing}"
        );
        let here = text("memory.nonsense");
        assert!(here.contains("; . has no such file: name "), "{here}");
        let below = text("nonexistent/memory.current");
        assert!(below.contains("; there is no nonexistent, only .: name "), "{below}");
        let other = text("/proc/self/memory.nonsense");
        assert!(other.contains("; /proc/self has no such file: name "), "{other}");
    }
}
