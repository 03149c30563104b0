//! The process that builds. It stays in its group, so that moving it there, which
//! waits for the kernel, is no part of a build.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::harness::group::Group;
use crate::harness::process;

/// Directories where the host put the project, and where a build of it is: a tmpfs.
const SOURCES: &str = "/usr/src/project";
const BUILD: &str = "/tmp/build";
const LOG: &str = "/run/make.log";

/// Cost of one build.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Nanoseconds of guest time, that is instructions.
    pub(crate) instructions: u64,
    pub(crate) faults: u64,
}

/// The process that builds.
#[derive(Debug)]
pub(crate) struct Builder {
    pid: Pid,
    pipe: UnixStream,
    files: u8,
}

impl Builder {
    /// Starts it in `group`, idle until it gets an order. It makes `goals`.
    pub(crate) fn start(group: Option<&Group>, goals: &[&str]) -> Result<Self> {
        let (pid, pipe) = process::spawn_with_socket(|pipe| serve(pipe, goals))?;
        let builder = Self { pid, pipe, files: u8::try_from(goals.len())? };
        if let Some(group) = group {
            group.add(pid)?;
        }
        Ok(builder)
    }

    /// Builds all goals anew.
    pub(crate) fn build(&mut self) -> Result<Cost> {
        self.build_some(self.files)
    }

    /// Brings compiler and sources into memory, and waits until nothing else runs on
    /// the only CPU: what the kernel began at boot goes on for seconds.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.build()?;
        let mut before = u64::MAX;
        for _ in 0..50 {
            let cost = self.build_some(1)?.instructions;
            if cost.abs_diff(before) <= before / 500 {
                return Ok(());
            }
            before = cost;
        }
        bail!("the machine does not come to rest: something else runs on its CPU")
    }

    /// Builds the first files anew.
    fn build_some(&mut self, files: u8) -> Result<Cost> {
        // Outside the measured group, and before the clock starts.
        lay_out()?;
        self.pipe.write_all(&[files]).context("the building process died")?;
        let mut answer = [0; 16];
        let read = self.pipe.read_exact(&mut answer);
        read.with_context(|| format!("make failed: {}", fs::read_to_string(LOG).unwrap_or_default()))?;
        let word =
            |at: usize| answer[at..at + 8].iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        Ok(Cost { instructions: word(0), faults: word(8) })
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// A fresh copy of the sources, nothing built.
fn lay_out() -> Result<()> {
    let build = Path::new(BUILD);
    if build.exists() {
        fs::remove_dir_all(build).context("cannot remove the last build")?;
    }
    fs::create_dir(build).context("cannot make the directory to build in")?;
    let entries = fs::read_dir(SOURCES).with_context(|| format!("there is no {SOURCES}"))?;
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let name = path.file_name().context("it has a name")?;
        fs::copy(&path, build.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
    }
    Ok(())
}

fn serve(mut pipe: UnixStream, goals: &[&str]) -> Result<()> {
    let mut order = [0];
    while pipe.read_exact(&mut order).is_ok() {
        let before = (now()?, faults()?);
        make(goals.get(..order[0].into()).context("so many files there are not")?)?;
        let mut answer = [0; 16];
        answer[..8].copy_from_slice(&(now()? - before.0).to_le_bytes());
        answer[8..].copy_from_slice(&(faults()? - before.1).to_le_bytes());
        pipe.write_all(&answer)?;
    }
    Ok(())
}

fn make(goals: &[&str]) -> Result<()> {
    let mut make = Command::new("/usr/bin/make");
    // The makefile is what the project's configure script would begin with; what
    // that would find out is given here.
    make.args(["-s", "-j2", "-f", "Makefile.in", "CFLAGS=-O2 -DHAVE_HIDDEN -DHAVE_UNISTD_H"]).args(goals);
    make.current_dir(BUILD).env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
    make.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(LOG)?);
    ensure!(make.status()?.success(), "make failed");
    Ok(())
}

/// Page faults of all that has ended.
fn faults() -> Result<u64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage failed")?;
    Ok(u64::try_from(usage.minor_page_faults())?)
}

fn now() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("clock_gettime failed")?;
    Ok(u64::try_from(now.tv_sec())? * 1_000_000_000 + u64::try_from(now.tv_nsec())?)
}
