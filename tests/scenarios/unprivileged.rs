//! Attempts from outside, each by an ordinary user: refused with the right errno, told
//! to the operator, and nothing else moves.

mod confined;
mod descriptors;
mod hung;
mod identity;

pub(crate) use descriptors::say;

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork};

use crate::harness::agent::Agent;
use crate::harness::client::Waiter;

/// An ordinary user.
const USER: u32 = 65_534;

/// Lets everybody come to both doors.
const OPEN: [&str; 4] = ["--socket-mode", "0666", "--event-control-mode", "0222"];

fn become_user(id: u32) -> Result<()> {
    nix::unistd::setgroups(&[])?;
    nix::unistd::setgid(Gid::from_raw(id))?;
    nix::unistd::setuid(Uid::from_raw(id)).with_context(|| format!("cannot become user {id}"))
}

/// Runs `work` in a child, which then ends.
fn begin(work: impl FnOnce() -> Result<()>) -> Result<Pid> {
    let _ = fs::remove_file("/tmp/child-failed");
    // SAFETY: a test has a single thread, so the child may go on as any program does.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Child => end_with(&work()),
        ForkResult::Parent { child } => Ok(child),
    }
}

/// Ends a child with the outcome of its work.
fn end_with(outcome: &Result<()>) -> ! {
    if let Err(error) = outcome {
        let _ = fs::write("/tmp/child-failed", format!("{error:#}"));
    }
    // SAFETY: ends the child without running the parent's exit work.
    unsafe { libc::_exit(i32::from(outcome.is_err())) }
}

fn finish(child: Pid) -> Result<()> {
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        other => {
            let why = fs::read_to_string("/tmp/child-failed").unwrap_or_default();
            bail!("{other:?}: {why}")
        }
    }
}

/// Runs `work` as an ordinary user.
fn as_user(work: impl FnOnce() -> Result<()>) -> Result<()> {
    finish(begin(|| become_user(USER).and_then(|()| work()))?)
}

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

/// Only `bystander` is registered, and it has heard nothing; the refusals were told.
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
