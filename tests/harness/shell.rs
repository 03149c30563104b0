//! A prompt in the VM, with the agent running.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::harness::child;

const AGENT: &str = "/bin/memcg-monitor";
const AGENT_LOG: &str = "/run/memcg-monitor.log";
const ENVIRONMENT: [(&str, &str); 4] =
    [("PATH", "/bin"), ("HOME", "/root"), ("TERM", "linux"), ("PS1", "memcg-vm:\\w# ")];
/// The machine's first serial line.
const CONSOLE: &str = if cfg!(target_arch = "aarch64") { "/dev/ttyAMA0" } else { "/dev/ttyS0" };
/// Until the user has enough.
const FOREVER: Duration = Duration::from_secs(30 * 24 * 3600);

/// Returns when the shell ends.
pub(crate) fn run() -> Result<()> {
    let log = File::create(AGENT_LOG).with_context(|| format!("cannot create {AGENT_LOG}"))?;
    Command::new(AGENT)
        .arg("agent")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {AGENT}"))?;

    // It ends as the user likes: with what code does not matter.
    child::run(FOREVER, || {
        let terminal =
            OpenOptions::new().read(true).write(true).open(CONSOLE).context("cannot open the console")?;
        control(&terminal).context("cannot take control of the console")?;
        let error = Command::new("/bin/busybox")
            .args(["sh", "-c", "cat /etc/motd; exec sh -l"])
            .env_clear()
            .envs(ENVIRONMENT)
            .current_dir("/root")
            .stdin(terminal.try_clone()?)
            .stdout(terminal.try_clone()?)
            .stderr(terminal)
            .exec();
        Err(error).context("cannot start the shell")
    })?;
    Ok(())
}

/// Makes it the controlling terminal of this session, for Ctrl-C and job control.
fn control(terminal: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the request takes a plain number.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
