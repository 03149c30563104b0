//! Attacks by eventfds, thresholds and OOMs.

use std::fs;
use std::hint::black_box;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use monitor_common::grammar::control_file::ControlFile;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::wait::waitpid;

use super::Size;
use super::estate::{Estate, Ground, enter};
use super::groups::wait;
use super::requester::{Requester, directory, usage_file};
use crate::harness::charger::Pages;
use crate::harness::client::Waiter;
use crate::harness::group::read_number;
use crate::harness::process;

/// Threads of those attacks that have several.
const THREADS: usize = 2;
/// Bytes that a crossing takes: so far above usage at rest, and beyond that.
const LEVEL: u64 = 256 << 10;
const REACH: usize = 1 << 20;
/// A threshold out of reach.
const HIGH: &str = "1G";
/// Time from one OOM to the next.
const BETWEEN_OOMS: Duration = Duration::from_millis(100);

pub(super) fn compute(estate: &mut Estate, _size: Size) -> Result<()> {
    estate.attacker(|ground| {
        ground.ready();
        in_threads(|_| {
            let mut number = 0u64;
            loop {
                number = black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
            }
        });
        Ok(())
    })
}

pub(super) fn dup2(estate: &mut Estate, _size: Size) -> Result<()> {
    estate.attacker(|ground| {
        let waiter = Waiter::new()?;
        let control = usage_file(&ground.home)?;
        let event = waiter.0.as_raw_fd();
        Requester::default().register(&format!("{event} {} {HIGH}", control.as_raw_fd()));
        let spares = (0..THREADS).map(|_| waiter.0.as_fd_cloned()).collect::<Result<Vec<OwnedFd>>>()?;
        ground.ready();
        in_threads(|at| {
            let spare = spares[at].as_raw_fd();
            loop {
                // SAFETY: both are open, and the spare one is used nowhere else.
                unsafe { libc::dup2(event, spare) };
            }
        });
        Ok(())
    })
}

pub(super) fn thresholds(estate: &mut Estate, size: Size) -> Result<()> {
    estate.attacker(|ground| {
        let waiter = Waiter::new()?;
        let line = on_a_level(ground, &waiter)?;
        let mut requester = Requester::default();
        (0..size.thresholds).take_while(|_| requester.register(&line.text)).for_each(drop);
        ground.ready();
        cross()
    })
}

pub(super) fn epoll(estate: &mut Estate, size: Size) -> Result<()> {
    estate.attacker(|ground| {
        let waiter = Waiter::new()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create failed")?;
        let mut duplicates = Vec::new();
        for _ in 0..size.duplicates {
            let duplicate = waiter.0.as_fd_cloned()?;
            epoll
                .add(&duplicate, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))
                .context("epoll_ctl failed")?;
            duplicates.push(duplicate);
        }
        let line = on_a_level(ground, &waiter)?;
        Requester::default().register(&line.text);
        ground.ready();
        cross()
    })
}

pub(super) fn exit(estate: &mut Estate, size: Size) -> Result<()> {
    estate.attacker(|ground| {
        let group = ground.group("exit")?;
        loop {
            let client = process::spawn(|| {
                let _waiters = listen(&group, size.listeners)?;
                ground.ready();
                Ok(())
            })?;
            waitpid(client, None).context("cannot wait for a client")?;
        }
    })
}

pub(super) fn listeners(estate: &mut Estate, count: usize) -> Result<()> {
    estate.attacker(|ground| {
        let _waiters = listen(&ground.group("listeners")?, count)?;
        ground.ready();
        wait()
    })
}

/// Registers so many OOM listeners with an eventfd each, or as many as the agent takes.
fn listen(group: &Path, count: usize) -> Result<Vec<Waiter>> {
    let control = directory(group)?;
    let mut requester = Requester::default();
    let mut waiters = Vec::new();
    for _ in 0..count {
        let waiter = Waiter::new()?;
        let (event, control) = (waiter.0.as_raw_fd(), control.as_raw_fd());
        if !requester.register(&format!("{event} {control} {}", ControlFile::Oom.name())) {
            break;
        }
        waiters.push(waiter);
    }
    Ok(waiters)
}

pub(super) fn ooms(estate: &mut Estate, size: Size) -> Result<()> {
    estate.attacker(|ground| {
        let group = ground.group("dies")?;
        let limit = group.join("memory.max");
        fs::write(&limit, "2M").with_context(|| format!("cannot write {}", limit.display()))?;
        let waiter = Waiter::new()?;
        let control = directory(&group)?;
        let (event, control) = (waiter.0.as_raw_fd(), control.as_raw_fd());
        let line = format!("{event} {control} {}", ControlFile::Oom.name());
        let mut requester = Requester::default();
        (0..size.listeners).take_while(|_| requester.register(&line)).for_each(drop);
        ground.ready();
        loop {
            let next = Instant::now() + BETWEEN_OOMS;
            let victim = process::spawn(|| {
                enter(&group)?;
                Pages::touch(8 << 20).map(drop)
            })?;
            waitpid(victim, None).context("cannot wait for a victim")?;
            sleep(next.saturating_duration_since(Instant::now()));
        }
    })
}

/// A line, and the control file that it names.
struct Line {
    text: String,
    _control: fs::File,
}

/// Enters a group of its own; the line that registers on a level a little above what it
/// uses there.
fn on_a_level(ground: &Ground, waiter: &Waiter) -> Result<Line> {
    let group = ground.group("level")?;
    enter(&group)?;
    // What it needs for itself is charged by then.
    Pages::touch(REACH)?;
    line_in(&group, waiter)
}

fn line_in(group: &Path, waiter: &Waiter) -> Result<Line> {
    let control = usage_file(group)?;
    let level = read_number(&group.join("memory.current"))? + LEVEL;
    let text = format!("{} {} {level}", waiter.0.as_raw_fd(), control.as_raw_fd());
    Ok(Line { text, _control: control })
}

/// Crosses that level to and fro.
pub(super) fn cross() -> Result<()> {
    loop {
        Pages::touch(REACH)?;
    }
}

/// Does the work in several threads, by number.
pub(super) fn in_threads(work: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for at in 0..THREADS {
            let work = &work;
            scope.spawn(move || work(at));
        }
    });
}

/// Duplicates the descriptor of an open file.
trait Cloned {
    fn as_fd_cloned(&self) -> Result<OwnedFd>;
}

impl<T: std::os::fd::AsFd> Cloned for T {
    fn as_fd_cloned(&self) -> Result<OwnedFd> {
        // SAFETY: the descriptor is open.
        let fd = Errno::result(unsafe { libc::dup(self.as_fd().as_raw_fd()) }).context("dup failed")?;
        // SAFETY: the kernel just made it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
