//! Attempts from outside, each by an ordinary user: refused with the right errno, shown
//! to the operator, and nothing else moves.

mod confined;
mod descriptors;
mod hung;
mod identity;

pub(crate) use descriptors::say;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use crate::harness::agent::Agent;
use crate::harness::client::Waiter;

/// Options that open both frontends to every user.
const OPEN: [&str; 4] = ["--socket-mode", "0666", "--event-control-mode", "0222"];

/// The agent's next answer on a connection.
fn answer_on(connection: &OwnedFd) -> Result<String> {
    let mut text = [0; 512];
    let length = recv(connection.as_raw_fd(), &mut text, MsgFlags::empty())?;
    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
}

fn is_errno(answer: &str, errno: i32) -> Result<()> {
    let expected = if errno == 0 { "0".to_owned() } else { format!("-{errno} ") };
    let right = if errno == 0 { answer == expected } else { answer.starts_with(&expected) };
    ensure!(right, "{answer:?} instead of {:?}", Errno::from_raw(errno));
    Ok(())
}

/// Checks that only `bystander` is registered and has received nothing; the refusals were logged.
fn nothing_moved(agent: &Agent, bystander: &Waiter) -> Result<()> {
    let registrations = agent.status()?.registrations;
    ensure!(registrations == 1, "{registrations} registrations instead of the bystander's");
    ensure!(bystander.take()? == 0, "the bystander was signalled");
    let log = Agent::log();
    ensure!(log.contains("refused uid"), "no refusal in the log: {log}");
    Ok(())
}

/// Puts a copy of a descriptor at a number that is free otherwise.
fn at_number(fd: &impl AsRawFd, number: i32) -> Result<OwnedFd> {
    // SAFETY: takes two numbers.
    Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), number) })?;
    // SAFETY: made just now, for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
