//! `memcg-monitor listen`: what the kernel's sample `cgroup_event_listener`
//! does, through the agent.

use std::{
    io::{self, Write as _},
    os::fd::{AsFd as _, AsRawFd as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use memcg_monitor::printable::printable;
use monitor_client::{
    AdminConnection, RemovalCheck, Target, register,
    wire::{AdminRequest, Answer, EventRow},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::cli::{Listen, Output};

/// Exit code of `--timeout`.
const TIMED_OUT: u8 = 3;

pub fn run(options: &Listen) -> Result<ExitCode> {
    let path = &options.control_file;
    let control = Target::open(path)?;
    let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("eventfd2 failed")?;
    let args = control.args(options.args());
    let line = format!("{} {} {args}", eventfd.as_raw_fd(), control.as_fd().as_raw_fd());
    // Sent along, so that it works from other pid namespaces, too.
    let descriptors = [eventfd.as_fd(), control.as_fd()];
    let refused = || format!("cannot register {:?} on {}", options.args(), path.display());
    let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
    match options.output {
        Output::Text => {
            register(&options.socket, line.as_bytes(), Some(descriptors)).with_context(refused)?;
            print_lines(options, &control.into_mark(), &eventfd, deadline)
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

/// Time left in milliseconds; `None`: no deadline.
fn left(deadline: Option<Instant>) -> Option<u128> {
    // Rounded up, so as not to wake just before the deadline.
    deadline.map(|at| (at.saturating_duration_since(Instant::now()) + Duration::from_micros(999)).as_millis())
}

fn print_lines(
    options: &Listen,
    mark: &RemovalCheck,
    eventfd: &EventFd,
    deadline: Option<Instant>,
) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    let mut printed = 0;
    loop {
        let timeout = match left(deadline) {
            None => PollTimeout::NONE,
            Some(milliseconds) => PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX),
        };
        match poll(&mut [PollFd::new(eventfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if left(deadline) == Some(0) => return Ok(ExitCode::from(TIMED_OUT)),
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => bail!("poll: {errno}"),
        }
        let signals = eventfd.read().context("read of the eventfd failed")?;
        // As the kernel's sample does: a wake-up with the file gone is the
        // removal. On v2 a file also goes when its controller is turned off.
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
