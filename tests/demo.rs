//! What `cargo xtask run` shows: a group grows past three thresholds and back,
//! with a listener on each, and is then removed. Fails if anything was not heard.

use std::fs;
use std::io::{PipeReader, Read, pipe};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::agent::{Agent, BINARY, PATIENCE, until};
use crate::group::Group;
use crate::report::say;
use crate::worker::{Kind, Worker};

const MIB: u64 = 1 << 20;
/// Bytes of one step, and steps: usage rests a good MiB away from each threshold,
/// since the kernel charges up to 64 pages per CPU in advance.
const STEP: u64 = 5 * MIB;
const STEPS: usize = 5;
/// What each listener waits for, in MiB.
const THRESHOLDS: [u64; 3] = [8, 16, 24];
/// Right end of the bar, in MiB.
const SCALE: u64 = 30;
/// What a listener prints once its group is gone.
const REMOVED: [&str; 2] = ["The cgroup seems to have removed.", "\"event\":\"removed\""];

pub(crate) fn run() -> Result<()> {
    let agent = Agent::start(&[])?;
    let ready = Agent::log().lines().find_map(|line| Some(line.split_once("ready: ")?.1.to_owned()));
    tell("agent", &ready.unwrap_or_else(|| "ready".into()));
    let group = Group::new("demo")?;
    tell("mkdir", &format!("{} ({:?})", group.path.display(), group.version));
    // Started first: it forks, and it is idle until told.
    let mut worker = Worker::start(&group)?;

    let mut listeners = Vec::new();
    let names = ["memory.usage_in_bytes", group.version.usage_file(), group.version.usage_file()];
    let formats = [&[][..], &[], &["-o", "json"]];
    for ((threshold, name), options) in THRESHOLDS.into_iter().zip(names).zip(formats) {
        let file = group.path.join(name).to_string_lossy().into_owned();
        listeners.push(Listener::start(threshold, &file, options)?);
        let registered = listeners.len() as u64;
        until("the listener is registered and waits", || {
            Ok(agent.status()?.registrations == registered && listeners.last().is_some_and(Listener::sleeps))
        })?;
    }

    tell("", &scale());
    show("usage", &group)?;
    for _ in 0..STEPS {
        let before = group.usage()?;
        worker.grow(Kind::Anonymous, STEP)?;
        show("grow by 5M", &group)?;
        hear_crossings(&mut listeners, before, group.usage()?)?;
    }
    let list = Command::new(BINARY).arg("list").output().context("cannot start `memcg-monitor list`")?;
    ensure!(list.status.success(), "list: {}: {}", list.status, String::from_utf8_lossy(&list.stderr));
    tell("$", "memcg-monitor list");
    String::from_utf8_lossy(&list.stdout).lines().for_each(|line| tell("list", line));

    for _ in 0..STEPS {
        let before = group.usage()?;
        worker.shrink(Kind::Anonymous)?;
        show("give back", &group)?;
        hear_crossings(&mut listeners, before, group.usage()?)?;
    }
    worker.end()?;
    group.remove()?;
    tell("rmdir", &group.path.to_string_lossy());
    hear(&mut listeners, "every listener says that the group is gone, and ends", |listeners| {
        listeners.iter().all(|listener| listener.ended)
    })?;
    for listener in listeners {
        listener.finish()?;
    }

    let signals = agent.status()?.signals;
    let code = agent.end(Signal::SIGTERM)?;
    ensure!(code == 0, "the agent ended with exit code {code}: {}", Agent::log());
    tell("agent", &format!("ended by SIGTERM with exit code 0, after {signals} signals"));
    say!("Every crossing, up and down, and the removal were heard.");
    Ok(())
}

fn tell(who: &str, text: &str) {
    say!("{who:>10} | {text}");
}

/// The group's usage as a bar with a mark at each threshold.
fn show(what: &str, group: &Group) -> Result<()> {
    let usage = group.usage()?;
    let bar: String = (0..SCALE * 2)
        .map(|half| match half {
            _ if THRESHOLDS.iter().any(|threshold| threshold * 2 == half) => '|',
            _ if half * MIB / 2 < usage => '#',
            _ => '.',
        })
        .collect();
    tell(what, &format!("{bar} {:4.1}M", usage as f64 / MIB as f64));
    Ok(())
}

/// The thresholds above their marks in the bar.
fn scale() -> String {
    THRESHOLDS.iter().fold(String::new(), |line, threshold| {
        format!("{line:width$}{threshold}M", width = usize::try_from(threshold * 2).unwrap_or(0))
    })
}

/// Waits until each listener whose threshold lies between the two usages has
/// said so.
fn hear_crossings(listeners: &mut [Listener], before: u64, after: u64) -> Result<()> {
    let direction = if before < after { "up" } else { "down" };
    let (low, high) = (before.min(after), before.max(after));
    let heard: Vec<_> = listeners.iter().map(|listener| listener.lines.len()).collect();
    hear(listeners, &format!("the listener says that its threshold was crossed {direction}"), |listeners| {
        listeners.iter().zip(&heard).all(|(listener, &heard)| {
            let crossed = (low + 1..=high).contains(&(listener.threshold * MIB));
            !crossed || listener.lines[heard..].iter().any(|line| listener.is_crossing(line, direction))
        })
    })
}

/// Shows what listeners say until `holds`.
fn hear(listeners: &mut [Listener], what: &str, holds: impl Fn(&[Listener]) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for listener in &mut *listeners {
            listener.read()?;
        }
        if holds(listeners) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "still not so: {what}; the agent: {}", Agent::log());
        let open = listeners.iter().filter(|listener| !listener.ended);
        let mut pipes: Vec<_> =
            open.map(|listener| PollFd::new(listener.pipe.as_fd(), PollFlags::POLLIN)).collect();
        ensure!(!pipes.is_empty(), "all listeners ended, and it is still not so: {what}");
        poll(&mut pipes, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)).context("poll failed")?;
    }
}

/// A `memcg-monitor listen`, and what it has said.
#[derive(Debug)]
struct Listener {
    threshold: u64,
    child: Child,
    pipe: PipeReader,
    partial: Vec<u8>,
    lines: Vec<String>,
    ended: bool,
}

impl Listener {
    fn start(threshold: u64, file: &str, options: &[&str]) -> Result<Self> {
        let threshold_args = format!("{threshold}M");
        let args = [&["listen", file, &threshold_args], options].concat();
        tell("$", &format!("memcg-monitor {}", args.join(" ")));
        let (reader, writer) = pipe().context("cannot make a pipe")?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("fcntl failed")?;
        let mut command = Command::new(BINARY);
        // What it complains of is shown, too.
        command.args(&args).stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let child = command.spawn().with_context(|| format!("cannot start {BINARY}"))?;
        Ok(Self { threshold, child, pipe: reader, partial: Vec::new(), lines: Vec::new(), ended: false })
    }

    /// Whether it waits for something.
    fn sleeps(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
    }

    /// Takes and shows what it has said.
    fn read(&mut self) -> Result<()> {
        let mut bytes = [0; 4096];
        while !self.ended {
            match self.pipe.read(&mut bytes) {
                Ok(0) => self.ended = true,
                Ok(length) => self.partial.extend(&bytes[..length]),
                Err(error) if error.raw_os_error() == Some(Errno::EAGAIN as i32) => break,
                Err(error) => return Err(error).context("cannot read what a listener says"),
            }
        }
        while let Some(end) = self.partial.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            tell(&format!("listen {}M", self.threshold), &line);
            self.lines.push(line);
        }
        Ok(())
    }

    /// Whether a line says that the threshold was crossed; only JSON says which way.
    fn is_crossing(&self, line: &str, direction: &str) -> bool {
        line.ends_with(&format!("{}M: crossed", self.threshold))
            || line.contains(&format!("\"threshold\":{},\"direction\":\"{direction}\"", self.threshold * MIB))
    }

    /// It has ended by itself, and its last word was the removal.
    fn finish(mut self) -> Result<()> {
        let status = self.child.wait().context("cannot wait for a listener")?;
        let said = self.lines.last().map_or("", String::as_str);
        if !status.success() || !REMOVED.iter().any(|removed| said.contains(removed)) {
            bail!("the listener on {}M ended with {status}, its last word {said:?}", self.threshold);
        }
        Ok(())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
