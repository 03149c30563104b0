//! The agent that stands while tests come and go: a start costs more than most tests do by
//! themselves, above all in the verifier and in attaching the programs.
//!
//! Only a test that passed leaves one, with the usual options, and the next test takes it up if it
//! has the tag `Standing`. Before all others it is ended, and they begin without any.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::harness::until::until;

/// The file that names its process.
const FILE: &str = "/run/standing-agent";

/// Names the process that stands from now on.
pub(crate) fn leave(pid: Pid) -> Result<()> {
    fs::write(FILE, pid.to_string()).with_context(|| format!("cannot write {FILE}"))
}

/// The process that stands, if there is one.
pub(crate) fn left() -> Option<Pid> {
    let pid = fs::read_to_string(FILE).ok()?.parse().ok()?;
    is_alive(pid).then(|| Pid::from_raw(pid))
}

/// The failure where it has ended by itself, which no test has to ask of it.
pub(crate) fn ended() -> Option<String> {
    let pid: i32 = fs::read_to_string(FILE).ok()?.parse().ok()?;
    if is_alive(pid) {
        return None;
    }
    forget();
    Some(format!("the standing agent, process {pid}, ended after the test"))
}

/// Ends it, so that another agent may begin.
pub(crate) fn end() -> Result<()> {
    let Some(pid) = left() else { return Ok(()) };
    let _ = fs::remove_file(FILE);
    kill(pid, Signal::SIGKILL).with_context(|| format!("cannot kill the standing agent, process {pid}"))?;
    // The first process has to wait for it; a test is not its parent.
    let _ = waitpid(pid, None);
    until("the standing agent has ended", || Ok(!is_alive(pid.as_raw())))
}

/// True until it has been waited for, which the first process does: until then a thread of it
/// may still hold what it held.
fn is_alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Forgets it: it is killed with all else that a test left.
pub(crate) fn forget() {
    let _ = fs::remove_file(FILE);
}
