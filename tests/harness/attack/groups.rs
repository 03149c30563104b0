//! Attacks by groups: limits, readings, many of them, deep ones.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context, Result};
use nix::errno::Errno;

use super::Size;
use super::estate::{Estate, enable, enter, make};
use super::requester::{Requester, usage_file};
use super::signals::{cross, in_threads};
use crate::harness::charger::Pages;
use crate::harness::client::Waiter;

/// A depth greater than the programs walk up in one go.
const LEVELS: usize = 70;

pub(super) fn limits(estate: &mut Estate, _size: Size) -> Result<()> {
    estate.other(|ground| {
        let waiter = Waiter::new()?;
        let control = usage_file(&ground.home)?;
        let line = format!("{} {} 80%", waiter.0.as_raw_fd(), control.as_raw_fd());
        Requester::default().register(&line);
        ground.ready();
        wait()
    })?;
    estate.attacker(|ground| {
        let path = ground.group("limited")?.join("memory.max");
        let file = OpenOptions::new().write(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        ground.ready();
        loop {
            for text in [&b"1G"[..], b"max"] {
                file.write_all_at(text, 0).with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
    })
}

pub(super) fn untracked(estate: &mut Estate, size: Size) -> Result<()> {
    estate.attacker(|ground| {
        let mut files = Vec::new();
        for number in 0..size.fill.max(2) {
            files.push(usage_file(&ground.group(&format!("full{number}"))?)?);
        }
        let last = &files[files.len() - 2..];
        ground.ready();
        in_threads(|at| {
            let mut text = [0; 32];
            while last[at].read_at(&mut text, 0).is_ok() {}
        });
        Ok(())
    })
}

pub(super) fn churn(estate: &mut Estate, size: Size) -> Result<()> {
    estate.attacker(|ground| {
        let waiter = Waiter::new()?;
        let mut requester = Requester::default();
        let mut left = VecDeque::new();
        let mut number = 0u64;
        loop {
            let group = ground.group(&format!("group{number}"))?;
            enter(&group)?;
            Pages::touch(64 << 10)?;
            left.push_back(page_of_a_file()?);
            if left.len() > size.dying {
                left.pop_front();
            }
            let control = usage_file(&group)?;
            requester.register(&format!("{} {} 32K", waiter.0.as_raw_fd(), control.as_raw_fd()));
            enter(&ground.home)?;
            fs::remove_dir(&group).with_context(|| format!("cannot remove {}", group.display()))?;
            if number == 1 {
                ground.ready();
            }
            number += 1;
        }
    })
}

pub(super) fn deep(estate: &mut Estate, size: Size) -> Result<()> {
    estate.other(|ground| {
        let waiter = Waiter::new()?;
        let mut requester = Requester::default();
        let mut controls = Vec::new();
        for number in 0..size.watched {
            let control = usage_file(&ground.group(&number.to_string())?)?;
            requester.register(&format!("{} {} 1G", waiter.0.as_raw_fd(), control.as_raw_fd()));
            controls.push(control);
        }
        ground.ready();
        wait()
    })?;
    estate.attacker(|ground| {
        let mut group = ground.group("deep")?;
        // Crossed all the time, so that the agent has something to look at.
        let waiter = Waiter::new()?;
        let control = usage_file(&group)?;
        for _ in 1..LEVELS {
            enable(&group)?;
            group.push("d");
            make(&group)?;
        }
        enter(&group)?;
        Pages::touch(1 << 20)?;
        let line = format!("{} {} 1M", waiter.0.as_raw_fd(), control.as_raw_fd());
        Requester::default().register(&line);
        ground.ready();
        cross()
    })
}

/// A page that stays charged to the group that this process is in, as long as it is held.
fn page_of_a_file() -> Result<File> {
    // SAFETY: a valid name; returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::memfd_create(c"left".as_ptr(), libc::MFD_CLOEXEC) });
    // SAFETY: the kernel just made it for us.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd.context("memfd_create failed")?) });
    file.write_all(&[1]).context("cannot write a page")?;
    Ok(file)
}

/// Until it is killed.
pub(super) fn wait() -> ! {
    loop {
        nix::unistd::pause();
    }
}
