//! The bystander: a user who waits on a group of its own. Measures how soon it is signalled.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use monitor_client::{SOCKET, connect};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike as _};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::super::allocator::{Allocator, Ascent, now};
use crate::harness::client::{Waiter, page};
use crate::harness::group::Group;
use crate::harness::process;
use crate::harness::report::say;

/// User id of the bystander: neither the attacker nor a user that the attacker needs.
const BYSTANDER: u32 = 1001;
/// Between the group's usage at rest and the threshold.
const CLIMB: u64 = 2 << 20;
/// Time from one crossing to the next; both ways of ten lie well below what makes a threshold
/// rest.
const BETWEEN: Duration = Duration::from_millis(25);
/// How long usage stays above.
const HOLD: Duration = Duration::from_millis(2);

/// Results of a round of crossings.
#[derive(Clone, Debug, Default)]
pub(super) struct Crossings {
    /// Nanoseconds until each was signalled, sorted, where it is known when it happened; the
    /// highest number for one that was not signalled in time.
    pub(super) latencies: Vec<u64>,
    pub(super) tried: u64,
    /// Crossings that were signalled in time, both ways.
    pub(super) signalled: u64,
}

pub(super) struct Bystander {
    waiter: Waiter,
    allocator: Allocator,
    clerk: Clerk,
    threshold: u64,
    limit: Duration,
    _group: Group,
}

impl Bystander {
    pub(super) fn start(limit: Duration) -> Result<Self> {
        let group = Group::new("bystander")?;
        let waiter = Waiter::new()?;
        let allocator = Allocator::start(&group)?;
        let threshold = group.usage()? + CLIMB;
        let threshold = threshold - threshold % page();
        let mut clerk = Clerk::start(&group, &waiter, limit)?;
        ensure!(clerk.register(threshold)?.is_some(), "the bystander's registration was not answered");
        Ok(Self { waiter, allocator, clerk, threshold, limit, _group: group })
    }

    /// Crosses so many times, or as often as it can in the time, or until one was not signalled
    /// within the limit.
    pub(super) fn crossings(&mut self, count: u64, time: Duration) -> Result<Crossings> {
        let mut found = Crossings::default();
        let start = Instant::now();
        // What came late, the last time.
        self.waiter.take()?;
        while found.tried < count && start.elapsed() < time {
            sleep(BETWEEN);
            self.allocator.begin(Ascent {
                rest: 0,
                threshold: self.threshold,
                run_up: 70 + found.tried * 37 % 129,
                pace: 0,
                beyond: 0,
                hold: u64::try_from(HOLD.as_nanos())?,
                direct: false,
            })?;
            found.tried += 1;
            let mut received = self.receive()?;
            let woke = now()?;
            let ascended = self.allocator.finish()?;
            // And of the way back.
            while received > 0 && received < 2 {
                let more = self.receive()?;
                received = if more == 0 { 0 } else { received + more };
            }
            if received == 0 {
                found.latencies.push(u64::MAX);
                break;
            }
            found.signalled += 1;
            if ascended.exact && woke >= ascended.up {
                found.latencies.push(woke - ascended.up);
            }
        }
        found.latencies.sort_unstable();
        Ok(found)
    }

    /// How long one more registration takes; none within the limit.
    pub(super) fn registration(&mut self) -> Result<Option<Duration>> {
        self.clerk.register(0)
    }

    /// Signals, waited for no longer than the limit.
    fn receive(&self) -> Result<u64> {
        let timeout = PollTimeout::try_from(self.limit)?;
        let mut fds = [PollFd::new(self.waiter.0.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, timeout)? == 0 { Ok(0) } else { self.waiter.take() }
    }
}

/// A process of the bystander's that registers.
struct Clerk {
    pid: Pid,
    pipe: UnixStream,
    /// Answers that came too late are yet to be read.
    late: usize,
}

impl Clerk {
    fn start(group: &Group, waiter: &Waiter, limit: Duration) -> Result<Self> {
        let (pid, pipe) = process::spawn_with_socket(|pipe| {
            process::become_user(BYSTANDER)?;
            serve(pipe, group, waiter, limit)
        })?;
        // As long as it waits itself, and for a connection before that.
        pipe.set_read_timeout(Some(2 * limit))?;
        Ok(Self { pid, pipe, late: 0 })
    }

    /// Registers on this threshold, or, where it is 0, with an eventfd of its own on one
    /// that is out of reach, and ends that again.
    fn register(&mut self, threshold: u64) -> Result<Option<Duration>> {
        self.pipe.write_all(&threshold.to_ne_bytes()).context("the bystander's clerk died")?;
        self.late += 1;
        let mut took = [0; 8];
        while self.late > 0 {
            match self.pipe.read_exact(&mut took) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                other => other.context("the bystander's clerk died")?,
            }
            self.late -= 1;
        }
        let took = u64::from_ne_bytes(took);
        Ok((took != u64::MAX).then(|| Duration::from_nanos(took)))
    }
}

impl Drop for Clerk {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

fn serve(mut pipe: UnixStream, group: &Group, waiter: &Waiter, limit: Duration) -> Result<()> {
    let control = File::open(group.usage_file()).context("cannot open the bystander's usage file")?;
    let mut threshold = [0; 8];
    while pipe.read_exact(&mut threshold).is_ok() {
        let own = Waiter::new()?;
        let (event, threshold) = match u64::from_ne_bytes(threshold) {
            0 => (own.0.as_raw_fd(), 1 << 40),
            threshold => (waiter.0.as_raw_fd(), threshold),
        };
        let start = now()?;
        let line = format!("{event} {} {threshold}", control.as_raw_fd());
        let took = if registers(&line, limit)? { now()? - start } else { u64::MAX };
        pipe.write_all(&took.to_ne_bytes())?;
    }
    Ok(())
}

/// Whether it was taken in time.
fn registers(line: &str, limit: Duration) -> Result<bool> {
    let connection = connect(Path::new(SOCKET))?;
    setsockopt(&connection, ReceiveTimeout, &TimeVal::milliseconds(i64::try_from(limit.as_millis())?))?;
    send(connection.as_raw_fd(), line.as_bytes(), MsgFlags::MSG_NOSIGNAL).context("send failed")?;
    let mut answer = [0; 512];
    match recv(connection.as_raw_fd(), &mut answer, MsgFlags::empty()) {
        Ok(length) => {
            let answer = &answer[..length];
            if answer != b"0" {
                say!("the bystander was refused: {}", String::from_utf8_lossy(answer));
            }
            Ok(answer == b"0")
        }
        Err(nix::Error::EAGAIN) => Ok(false),
        Err(errno) => Err(errno).context("recv failed"),
    }
}
