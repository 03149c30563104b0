//! Runs a function in a process of its own, so that a crash of it is a result.

use std::fmt::{self, Display, Formatter};
use std::panic;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{self, SigSet, SigmaskHow, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};

use crate::harness::process::Process;
use crate::harness::standing;

/// How the function ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    Passed,
    /// The error it returned, or what it panicked with.
    Failed(String),
    Killed(String),
    TimedOut(Duration),
}

impl Display for End {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("ok"),
            Self::Failed(text) => f.write_str(text),
            Self::Killed(signal) => write!(f, "killed by {signal}"),
            Self::TimedOut(limit) => write!(f, "not done after {} s", limit.as_secs()),
        }
    }
}

/// Runs `function` in a child, which leads a session of its own, and
/// returns once it has ended. We are the first process: nothing else of the
/// guest runs before and after, so all that is left over is killed.
pub(crate) fn run(limit: Duration, function: impl FnOnce() -> Result<()>) -> Result<End> {
    let child_signals = SigSet::from(Signal::SIGCHLD);
    signal::sigprocmask(SigmaskHow::SIG_BLOCK, Some(&child_signals), None).context("cannot block SIGCHLD")?;
    let process = Process::start(|| {
        lead_session();
        panic::set_hook(Box::new(|_| {}));
        function()
    })?;
    let status = wait(process.pid(), limit);
    if !matches!(status, Some(WaitStatus::Exited(_, 0))) {
        standing::forget();
    }
    kill_others();
    let reason = process.into_reason().replace('\n', " | ");
    Ok(match status {
        None => End::TimedOut(limit),
        Some(WaitStatus::Exited(_, 0)) => End::Passed,
        Some(WaitStatus::Exited(_, code)) if reason.is_empty() => {
            End::Failed(format!("exited with code {code}"))
        }
        Some(WaitStatus::Exited(..)) => End::Failed(reason),
        Some(WaitStatus::Signaled(_, signal, _)) => End::Killed(signal.to_string()),
        Some(other) => End::Failed(format!("{other:?}")),
    })
}

/// Reaps children, ours and adopted ones, until `child` has ended.
fn wait(child: Pid, limit: Duration) -> Option<WaitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return None;
                }
                sleep_until_child(left);
            }
            Ok(status) if status.pid() == Some(child) => return Some(status),
            Ok(_) | Err(Errno::EINTR) => {}
            // No child is left to wait for: it was reaped already.
            Err(_) => return None,
        }
    }
}

/// Sleeps until a child changes, without polling: a benchmark is running.
fn sleep_until_child(limit: Duration) {
    let set = SigSet::from(Signal::SIGCHLD);
    let limit = libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(limit.subsec_nanos()),
    };
    // SAFETY: set and limit outlive the call, and a null siginfo is allowed.
    unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), &raw const limit) };
}

/// Kills every process but this first one and those that stand from test to test, and reaps them.
fn kill_others() {
    // On a host in a pid namespace of its own; elsewhere it would end the host.
    assert_eq!(std::process::id(), 1, "only the first process may kill all others");
    let Some(agent) = standing::left() else {
        let _ = signal::kill(Pid::from_raw(-1), Signal::SIGKILL);
        while !matches!(waitpid(None, None), Err(Errno::ECHILD)) {}
        return;
    };
    // One that is killed may have begun another, which the next look finds.
    while let others @ [_, ..] = &*others_than(agent) {
        for pid in others {
            let _ = signal::kill(*pid, Signal::SIGKILL);
        }
        reap_those_that_ended();
    }
}

/// All processes but this one, kernel threads, and the agent with its children.
fn others_than(agent: Pid) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_other = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let says = |line: &str| status.lines().any(|other| other == line);
        let is_of_agent = *pid == agent.as_raw() || says(&format!("PPid:\t{agent}"));
        // Kernel threads have no memory; those that have ended are their parents' to reap.
        let is_process = status.contains("VmSize:") || says("State:\tZ (zombie)") && says("PPid:\t1");
        *pid != 1 && is_process && !is_of_agent
    };
    numbers.filter(is_other).map(Pid::from_raw).collect()
}

fn reap_those_that_ended() {
    while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status.pid().is_some()) {}
}

/// A session of its own has no terminal, and signals go as in any program.
fn lead_session() {
    // A child just forked leads nothing yet, so it may; the mask is valid.
    let _ = setsid();
    let _ = signal::sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&SigSet::all()), None);
}
