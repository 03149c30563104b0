//! Attacks on the agent's frontends.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result};
use monitor_client::{AdminConnection, CONTROL_SOCKET, SOCKET, connect};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};

use super::Size;
use super::estate::Estate;
use super::groups::wait;
use super::requester::{in_view, usage_file};
use crate::harness::client::Waiter;
use crate::harness::group::Group;

/// Packets for one connection before the next has its turn.
const AT_ONCE: usize = 64;
const PAUSE: Duration = Duration::from_millis(2);
/// Stack size of a thread that does nothing but write.
const STACK: usize = 64 << 10;

pub(super) fn deaf(estate: &mut Estate, size: Size) -> Result<()> {
    estate.attacker(|ground| {
        let waiter = Waiter::new()?;
        let control = usage_file(&ground.home)?;
        let line = format!("{} {} 1G", waiter.0.as_raw_fd(), control.as_raw_fd());
        let mut connections: Vec<Option<OwnedFd>> = (0..size.connections).map(|_| None).collect();
        ground.ready();
        loop {
            for connection in &mut connections {
                if connection.is_none() {
                    *connection = connect(Path::new(SOCKET)).ok();
                }
                let Some(fd) = connection else { continue };
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                let mut packets = (0..AT_ONCE).map(|_| send(fd.as_raw_fd(), line.as_bytes(), flags));
                if packets.find_map(Result::err).is_some_and(|errno| errno != Errno::EAGAIN) {
                    *connection = None;
                }
            }
            let mut open: Vec<_> =
                connections.iter().flatten().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLOUT)).collect();
            // Or the agent is away: then it is requested again.
            poll(&mut open, PollTimeout::from(100u8)).context("poll failed")?;
        }
    })
}

pub(super) fn writers(estate: &mut Estate, size: Size) -> Result<()> {
    let root = Group::root()?;
    estate.attacker(|ground| {
        let waiter = Waiter::new()?;
        ground.ready();
        let write = || {
            loop {
                let Ok((event_control, control)) = in_view(&ground.home, &root.path) else {
                    sleep(PAUSE);
                    continue;
                };
                let line = format!("{} {} 1G", waiter.0.as_raw_fd(), control.as_raw_fd());
                while nix::unistd::write(&event_control, line.as_bytes()) != Err(Errno::ENOTCONN) {}
            }
        };
        thread::scope(|scope| -> Result<()> {
            for _ in 0..size.writers {
                let builder = thread::Builder::new().stack_size(STACK);
                builder.spawn_scoped(scope, write).context("cannot start a thread")?;
            }
            Ok(())
        })
    })
}

pub(super) fn lists(estate: &mut Estate, size: Size) -> Result<()> {
    estate.attacker(|ground| {
        for number in 0..size.groups {
            ground.group(&number.to_string())?;
        }
        ground.ready();
        wait()
    })?;
    estate.root(|ground| {
        ground.ready();
        loop {
            let answer =
                AdminConnection::connect(Path::new(CONTROL_SOCKET)).and_then(|control| control.list());
            if answer.is_err() {
                sleep(PAUSE);
            }
        }
    })
}
