//! The view, as unmodified clients of cgroup v1 use it.

mod directories;
mod files;
mod keeping;
mod listing;
mod mounting;
mod tasks;
mod writers;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::{Hierarchy, Version};
use memcg_monitor::view::POINT;
use monitor_common::grammar::line::MAX_LINE;

use crate::harness::MIB;
use crate::harness::agent::Agent;
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::process::check_as_user;
use crate::harness::test::vm_test;
use crate::scenarios::conformance::errno::{DESCRIPTORS, Fixture, GRAMMAR, NOBODY};

const EVENT_CONTROL: &str = "cgroup.event_control";
const USAGE: &str = "memory.usage_in_bytes";

/// The path at which the view shows a directory.
pub(crate) fn shown(directory: &Path) -> Result<PathBuf> {
    let root = Hierarchy::find(None)?.root;
    Ok(Path::new(POINT).join(directory.strip_prefix(root)?))
}

/// A registration as the kernel's sample makes it: the errno, 0 for success.
pub(crate) fn register_in(directory: &Path, control: &str, waiter: &Waiter, args: &str) -> Result<i32> {
    let path = directory.join(control);
    let control = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let line = format!("{} {} {args}\0", waiter.0.as_raw_fd(), control.as_raw_fd());
    write_line(directory, line.as_bytes())
}

/// One write to a directory's event_control: the errno, 0 when all was taken.
fn write_line(directory: &Path, line: &[u8]) -> Result<i32> {
    let path = directory.join(EVENT_CONTROL);
    let file = OpenOptions::new().write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    written(nix::unistd::write(&file, line), line.len())
}

fn written(outcome: nix::Result<usize>, length: usize) -> Result<i32> {
    match outcome {
        Ok(taken) => {
            ensure!(taken == length, "{taken} of {length} bytes were taken");
            Ok(0)
        }
        Err(errno) => Ok(errno as i32),
    }
}

/// Registered through the view.
fn waiter_on(group: &Group, args: &str) -> Result<Waiter> {
    let waiter = Waiter::new()?;
    let errno = register_in(&shown(&group.path)?, USAGE, &waiter, args)?;
    ensure!(errno == 0, "errno {errno}");
    Ok(waiter)
}

fn errno_of<T>(outcome: io::Result<T>) -> i32 {
    outcome.err().map_or(0, |error| error.raw_os_error().unwrap_or(-1))
}

vm_test!(
    view_wakes_both_ways,
    "a line written to cgroup.event_control registers; crossings wake the eventfd",
    Any,
    [Oracle, Kernel, Variant, Quick, Standing]
);
fn view_wakes_both_ways() -> Result<()> {
    let agent = Agent::standing()?;
    let group = Group::new("both")?;
    let mut charger = Charger::start(&group)?;
    let waiter = waiter_on(&group, "8M")?;
    charger.grow(Kind::Anonymous, 12 * MIB)?;
    ensure!(waiter.wait()? == 1, "up: one signal");
    charger.shrink(Kind::Anonymous)?;
    ensure!(waiter.wait()? == 1, "down: one signal");
    ensure!(agent.status()?.registrations == 1, "one is registered");
    drop(waiter);
    crate::harness::agent::until("the last close ends it", || Ok(agent.status()?.registrations == 0))?;
    charger.end()
}

vm_test!(
    view_removal,
    "a removed group's files are gone, then each registration is signalled exactly once",
    Any,
    [Oracle, Kernel, Standing]
);
fn view_removal() -> Result<()> {
    let agent = Agent::standing()?;
    let parent = Group::new("parent")?;
    let group = parent.child("gone")?;
    let directory = shown(&group.path)?;
    let (one, three) = (waiter_on(&group, "8M")?, waiter_on(&group, "8M")?);
    for args in ["16M", "0"] {
        ensure!(register_in(&directory, USAGE, &three, args)? == 0, "one more");
    }
    let usage = File::open(directory.join(USAGE))?;
    let control = OpenOptions::new().write(true).open(directory.join(EVENT_CONTROL))?;
    let listed = fs::read_dir(&directory)?;
    group.remove()?;
    for path in [directory.clone(), directory.join(EVENT_CONTROL), directory.join(USAGE)] {
        let errno = errno_of(fs::metadata(&path));
        ensure!(errno == libc::ENOENT, "{}: errno {errno} once rmdir has returned", path.display());
    }
    ensure!(one.wait()? == 1, "one registration, one signal");
    three.receives(3, "three registrations, three signals")?;
    agent.settle()?;
    ensure!(one.take()? == 0 && three.take()? == 0, "and no more");
    let errno = errno_of(usage.read_at(&mut [0; 32], 0));
    ensure!(errno == libc::ENODEV, "reading an open file: errno {errno}");
    let errno = errno_of(control.write_at(b"3 4 1M", 0));
    ensure!(errno == libc::ENODEV, "writing an open file: errno {errno}");
    drop(listed);
    let names: Vec<_> =
        fs::read_dir(shown(&parent.path)?)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(!names.iter().any(|name| name == "gone"), "it is still listed: {names:?}");
    ensure!(agent.status()?.registrations == 0, "all ended");
    Ok(())
}

vm_test!(
    view_controller_off,
    "a group whose controller is turned off leaves the view, and is signalled",
    V2,
    [Kernel, Standing]
);
fn view_controller_off() -> Result<()> {
    let _agent = Agent::standing()?;
    let parent = Group::new("parent")?;
    let group = parent.child("off")?;
    let directory = shown(&group.path)?;
    let waiter = waiter_on(&group, "8M")?;
    let usage = File::open(directory.join(USAGE))?;
    parent.enable(false)?;
    ensure!(errno_of(fs::metadata(&directory)) == libc::ENOENT, "it has left the view");
    ensure!(waiter.wait()? == 1, "its registration's end");
    ensure!(errno_of(usage.read_at(&mut [0; 32], 0)) == libc::ENODEV, "an open file of it has gone");
    ensure!(fs::read_dir(shown(&parent.path)?)?.flatten().all(|e| e.file_name() != "off"), "not listed");
    parent.enable(true)?;
    ensure!(directory.is_dir(), "it is back");
    waiter_on(&group, "8M").map(drop)
}

vm_test!(
    view_errno,
    "every bad line gets the kernel's errno, with control files on the view and beside it",
    Any,
    [Oracle, Kernel, Quick]
);
fn view_errno() -> Result<()> {
    let options = ["--event-control-mode", "0222"];
    let on_view = |group: &Group| shown(&group.path).unwrap_or_default();
    let mut wrong = Vec::new();
    for place in ["on the view", "beside it"] {
        let fixture = match place {
            "on the view" => Fixture::on(&options, on_view, Some(Version::V1))?,
            _ => Fixture::on(&options, |group| group.path.clone(), None)?,
        };
        let directory = shown(&fixture.group.path)?;
        let check = |what: &str, line: &[u8], expected: i32| -> Result<Option<String>> {
            let errno = write_line(&directory, line)?;
            let right = errno == expected;
            Ok((!right).then(|| format!("{what}, {place}: expected {expected}, got {errno}")))
        };
        for (what, line, errno) in GRAMMAR.iter().chain(DESCRIPTORS) {
            wrong.extend(check(what, &fixture.fill(line)?, *errno)?);
        }
        wrong.extend(check_as_user(|| {
            let mut wrong = Vec::new();
            for (what, line, errno) in NOBODY {
                wrong.extend(check(&format!("nobody: {what}"), &fixture.fill(line)?, *errno)?);
            }
            Ok(wrong.join("; "))
        })?);
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

vm_test!(view_other_groups, "a control file of another group is EINVAL", Any, [Standing]);
fn view_other_groups() -> Result<()> {
    let agent = Agent::standing()?;
    let parent = Group::new("own")?;
    let child = parent.child("child")?;
    let sibling = Group::new("sibling")?;
    let waiter = Waiter::new()?;
    let directory = shown(&parent.path)?;
    for other in [&child.path, &sibling.path] {
        for control in [shown(other)?.join(USAGE), other.join(parent.version.usage_file())] {
            let file = File::open(&control)?;
            // Another group comes before bad arguments.
            for args in ["1M", "x"] {
                let line = format!("{} {} {args}", waiter.0.as_raw_fd(), file.as_raw_fd());
                let errno = write_line(&directory, line.as_bytes())?;
                ensure!(errno == libc::EINVAL, "{}: errno {errno}", control.display());
            }
        }
    }
    for control in ["memory.limit_in_bytes", "memory.stat", "tasks"] {
        let errno = register_in(&directory, control, &waiter, "1M")?;
        ensure!(errno == libc::EINVAL, "{control}: errno {errno}");
    }
    ensure!(agent.status()?.registrations == 0, "nothing was registered");
    // The root is a group as any other, here as on v1.
    let errno = register_in(Path::new(POINT), USAGE, &waiter, "1M")?;
    ensure!(errno == 0, "the root's usage: errno {errno}");
    // The socket takes the view's files, too, and closing them waits for no process.
    for (control, expected) in [(EVENT_CONTROL, libc::EINVAL), (USAGE, 0)] {
        let file = File::open(directory.join(control))?;
        let line = format!("{} {} 1M", waiter.0.as_raw_fd(), file.as_raw_fd());
        let errno = crate::harness::client::agent_errno(line.as_bytes())?;
        ensure!(errno == expected, "{control} at the socket: errno {errno}");
    }
    // The very same file, by its real name.
    let file = File::open(parent.usage_file())?;
    let line = format!("{} {} 1M", waiter.0.as_raw_fd(), file.as_raw_fd());
    ensure!(write_line(&directory, line.as_bytes())? == 0, "the group's own file of v2 is taken");
    ensure!(agent.status()?.registrations == 3, "three were");
    Ok(())
}

vm_test!(
    view_long_writes,
    "a page is a line, more is E2BIG however much, and nothing of it registers",
    Any,
    [Standing]
);
fn view_long_writes() -> Result<()> {
    let agent = Agent::standing()?;
    let group = Group::new("long")?;
    let directory = shown(&group.path)?;
    let waiter = Waiter::new()?;
    let control = File::open(directory.join(USAGE))?;
    let mut line = format!("{} {} 1M", waiter.0.as_raw_fd(), control.as_raw_fd()).into_bytes();
    for (length, expected) in
        [(MAX_LINE, 0), (MAX_LINE + 1, libc::E2BIG), (1 << 20, libc::E2BIG), ((1 << 22) + 5, libc::E2BIG)]
    {
        line.resize(length, b' ');
        let errno = write_line(&directory, &line)?;
        ensure!(errno == expected, "{length} bytes: errno {errno}");
    }
    ensure!(write_line(&directory, b"")? == 0, "nothing is nothing");
    ensure!(agent.status()?.registrations == 1, "one line, one registration");

    // One open file, several lines: the position that grows means nothing.
    let file =
        OpenOptions::new().append(true).custom_flags(libc::O_NONBLOCK).open(directory.join(EVENT_CONTROL))?;
    for args in ["1M\n", "2M", "3M \0"] {
        let line = format!("{} {} {args}", waiter.0.as_raw_fd(), control.as_raw_fd());
        ensure!(written(nix::unistd::write(file.as_fd(), line.as_bytes()), line.len())? == 0, "{args:?}");
    }
    ensure!(agent.status()?.registrations == 4, "each was taken");
    Ok(())
}
