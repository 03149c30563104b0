//! The command `memcg-monitor listen`: does through the agent what the kernel's sample
//! `cgroup_event_listener` does.

use std::{
    io::{self, Write as _},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use memcg_monitor::printable::printable;
use monitor_client::{
    AdminConnection, Error, RemovalCheck, Target, connect, register,
    wire::{AdminRequest, Answer, EventRow},
};
use monitor_sys::{pidfd, socket};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::{getsockopt, sockopt::PeerCredentials},
    },
};

use crate::cli::{Listen, Output};

/// The exit code after `--timeout`.
const TIMED_OUT: u8 = 3;

const AGENT_ENDED: &str = "the agent ended; signals go on once an agent that keeps registrations \
    (--supervised, or a descriptor store) is back; after any other, end this and register again";

pub fn run(options: &Listen) -> Result<ExitCode> {
    let path = &options.control_file;
    let control = Target::open(path).map_err(explained)?;
    let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("eventfd2 failed")?;
    let args = control.args(options.args());
    let line = format!("{} {} {args}", eventfd.as_raw_fd(), control.as_fd().as_raw_fd());
    // Sent along, so that it works from other pid namespaces, too.
    let descriptors = [eventfd.as_fd(), control.as_fd()];
    let refused = || format!("cannot register {:?} on {}", options.args(), path.display());
    let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
    match options.output {
        Output::Text => {
            let agent = agent_at(&options.socket);
            register(&options.socket, line.as_bytes(), Some(descriptors)).with_context(refused)?;
            print_lines(options, &control.into_mark(), &eventfd, agent, deadline)
        }
        Output::Json => {
            let connection = AdminConnection::connect(&options.control_socket)?;
            connection.ask(&AdminRequest::Listen(line), &descriptors)?;
            match connection.next().with_context(refused)? {
                Some(Answer::Listening) => {}
                other => bail!("the agent answered {other:?}"),
            }
            drop(control);
            print_json(options, &connection, deadline)
        }
    }
}

/// Adds what to do to the error of a control file that is not there.
fn explained(error: Error) -> anyhow::Error {
    match &error {
        Error::File { error: cause, .. } if cause.kind() == io::ErrorKind::NotFound => anyhow!(
            "{error}; name a control file in a group's directory (`memcg-monitor list` shows the groups)"
        ),
        _ => error.into(),
    }
}

/// A descriptor of the process that serves `socket`, readable once that process has ended: the
/// eventfd itself does not report that. `None` where the process is not visible. Before Linux 6.5
/// the kernel gives its number alone.
fn agent_at(socket: &Path) -> Option<OwnedFd> {
    let connection = connect(socket).ok()?;
    match socket::peer_pidfd(&connection) {
        Err(Errno::ENOPROTOOPT) => {
            let peer = getsockopt(&connection, PeerCredentials).ok()?;
            pidfd::open(peer.pid(), 0).ok()
        }
        held => held.ok(),
    }
}

/// Time left in milliseconds; `None`: no deadline.
fn left(deadline: Option<Instant>) -> Option<u128> {
    // Rounded up, so as not to wake just before the deadline.
    deadline.map(|at| (at.saturating_duration_since(Instant::now()) + Duration::from_micros(999)).as_millis())
}

fn print_lines(
    options: &Listen,
    mark: &RemovalCheck,
    eventfd: &EventFd,
    mut agent: Option<OwnedFd>,
    deadline: Option<Instant>,
) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    let mut printed = 0;
    loop {
        let timeout = match left(deadline) {
            None => PollTimeout::NONE,
            Some(milliseconds) => PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX),
        };
        let watched = [Some(eventfd.as_fd()), agent.as_ref().map(OwnedFd::as_fd)];
        let watched = watched.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let mut watched: Vec<_> = watched.collect();
        match poll(&mut watched, timeout) {
            Ok(0) if left(deadline) == Some(0) => return Ok(ExitCode::from(TIMED_OUT)),
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => bail!("poll: {errno}"),
        }
        let is_ready = |at: usize| watched.get(at).and_then(PollFd::any).unwrap_or(false);
        let (is_signalled, has_ended) = (is_ready(0), is_ready(1));
        if has_ended {
            agent = None;
            eprintln!("memcg-monitor: {AGENT_ENDED}");
        }
        if !is_signalled {
            continue;
        }
        let signals = eventfd.read().context("read of the eventfd failed")?;
        // Like the kernel's sample: a wake-up after which the file is gone is the removal.
        // On v2 a file also goes when its controller is turned off.
        if !mark.is_there()? {
            writeln!(out, "The cgroup seems to have removed.")?;
            out.flush()?;
            return Ok(ExitCode::SUCCESS);
        }
        for _ in 0..signals {
            let file = options.control_file.to_string_lossy();
            writeln!(out, "{} {}: crossed", printable(&file), options.args())?;
            out.flush()?;
            printed += 1;
            if options.count == Some(printed) {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

fn print_json(options: &Listen, control: &AdminConnection, deadline: Option<Instant>) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    let mut printed = 0;
    loop {
        match left(deadline) {
            Some(0) => return Ok(ExitCode::from(TIMED_OUT)),
            Some(milliseconds) => {
                let milliseconds = u64::try_from(milliseconds).unwrap_or(u64::MAX);
                control.set_timeout(Some(Duration::from_millis(milliseconds)))?;
            }
            None => {}
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
        if event.event == "removed" || options.count == Some(printed) {
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
        let error = Target::open("/nonexistent/memory.current".as_ref()).expect_err("no such file");
        let text = explained(error).to_string();
        assert!(
            text.starts_with("open /nonexistent/memory.current: ENOENT: No such file or directory; name "),
            "{text}"
        );
    }
}
