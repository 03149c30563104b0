//! Many registrations by one connection.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use monitor_client::{SOCKET, connect};
use monitor_common::grammar::control_file::ControlFile;
use nix::sys::socket::{MsgFlags, recv, send};

use crate::harness::client::{Waiter, open_control};
use crate::harness::group::Group;

/// The most on one group.
pub(crate) const MANY: u64 = 10_000;

/// Registers each of the thresholds, in bytes, one after the other.
pub(crate) fn all(waiter: &Waiter, group: &Group, thresholds: impl Iterator<Item = u64>) -> Result<()> {
    // The root has no file of usage on v2; then its directory stands for it.
    let (control, file) = open_control(group, ControlFile::Usage, "")?;
    let connection = connect(Path::new(SOCKET))?;
    for threshold in thresholds {
        let line = format!("{} {} {file}{threshold}", waiter.0.as_raw_fd(), control.as_raw_fd());
        one(&connection, &line)?;
    }
    Ok(())
}

/// Registers each of many eventfds on one threshold, in bytes.
pub(crate) fn each(waiters: &[Waiter], group: &Group, threshold: u64) -> Result<()> {
    let (control, file) = open_control(group, ControlFile::Usage, "")?;
    let connection = connect(Path::new(SOCKET))?;
    for waiter in waiters {
        one(&connection, &format!("{} {} {file}{threshold}", waiter.0.as_raw_fd(), control.as_raw_fd()))?;
    }
    Ok(())
}

fn one(connection: &OwnedFd, line: &str) -> Result<()> {
    let mut answer = [0; 512];
    send(connection.as_raw_fd(), line.as_bytes(), MsgFlags::MSG_NOSIGNAL).context("send failed")?;
    let length = recv(connection.as_raw_fd(), &mut answer, MsgFlags::empty()).context("recv failed")?;
    let answer = String::from_utf8_lossy(&answer[..length]);
    ensure!(answer == "0", "the agent refused {line:?}: {answer}");
    Ok(())
}
