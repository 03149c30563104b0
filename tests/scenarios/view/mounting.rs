//! How the view comes and goes.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use memcg_monitor::mounts;
use memcg_monitor::view::POINT;
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::{Signal, kill};

use super::{EVENT_CONTROL, USAGE, errno_of, register_in, shown, waiter_on};
use crate::harness::agent::{Agent, until};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::test::vm_test;
use crate::scenarios::abuse::{fails, says};

/// Views that are mounted, dead ones among them.
fn views() -> Result<usize> {
    Ok(mounts::all()?.iter().filter(|mount| mount.kind == "fuse").count())
}

vm_test!(
    view_goes_with_the_agent,
    "SIGTERM and SIGINT leave no mount and no directory, whatever clients hold open",
    Any,
    []
);
fn view_goes_with_the_agent() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let agent = Agent::start(&[])?;
        ensure!(views()? == 1, "ready means mounted");
        let group = Group::new("goes")?;
        let directory = shown(&group.path)?;
        let _waiter = waiter_on(&group, "1M")?;
        let usage = File::open(directory.join(USAGE))?;
        let control = OpenOptions::new().write(true).open(directory.join(EVENT_CONTROL))?;
        let _listing = fs::read_dir(&directory)?;
        std::env::set_current_dir(&directory)?;
        let code = agent.end(signal)?;
        std::env::set_current_dir("/")?;
        ensure!(code == 0, "exit code {code}");
        ensure!(views()? == 0, "the view is still mounted");
        ensure!(errno_of(fs::metadata(POINT)) == libc::ENOENT, "the directory is still there");
        let errno = errno_of(usage.read_at(&mut [0; 8], 0));
        ensure!(errno == libc::ENOTCONN || errno == libc::ECONNABORTED, "an open file: errno {errno}");
        let errno = errno_of(control.write_at(b"1 2 3", 0));
        ensure!(errno == libc::ENOTCONN || errno == libc::ECONNABORTED, "an open file: errno {errno}");
    }
    // A directory that was there before stays.
    fs::create_dir_all("/run/own/view")?;
    let agent = Agent::start(&["--mount", "/run/own/view"])?;
    ensure!(Path::new("/run/own/view").join(EVENT_CONTROL).exists(), "mounted where it was requested");
    ensure!(agent.end(Signal::SIGTERM)? == 0 && Path::new("/run/own/view").is_dir(), "the directory went");
    let agent = Agent::start(&["--no-mount"])?;
    ensure!(views()? == 0, "mounted with --no-mount");
    drop(agent);
    Ok(())
}

vm_test!(
    view_after_a_kill,
    "a killed agent's view is unmounted, or cleared away by the next one, and works",
    Any,
    []
);
fn view_after_a_kill() -> Result<()> {
    let group = Group::new("kill")?;
    let directory = shown(&group.path)?;
    // Its own process unmounts for it.
    let agent = Agent::start(&[])?;
    waiter_on(&group, "1M")?;
    agent.signal(Signal::SIGKILL)?;
    drop(agent);
    until("the view of a killed agent goes", || Ok(views()? == 0))?;
    // Unless that one was killed, too.
    let agent = Agent::start(&[])?;
    ensure!(views()? == 1, "one view");
    waiter_on(&group, "1M")?;
    for child in agent.children()? {
        kill(child, Signal::SIGKILL)?;
    }
    agent.signal(Signal::SIGKILL)?;
    drop(agent);
    let errno = errno_of(fs::metadata(&directory));
    ensure!(errno == libc::ENOTCONN || errno == libc::ECONNABORTED, "a dead view: errno {errno}");
    let agent = Agent::start(&[])?;
    ensure!(views()? == 1, "the dead one was cleared away");
    waiter_on(&group, "1M")?;
    ensure!(agent.end(Signal::SIGTERM)? == 0 && views()? == 0, "and it ends as any other");
    Ok(())
}

vm_test!(view_in_the_way, "what else is at the mount point stays, and is named", Any, []);
fn view_in_the_way() -> Result<()> {
    let point = "/run/in-the-way";
    fs::create_dir_all(point)?;
    let file = format!("{point}/precious");
    fs::write(&file, "precious")?;
    let arguments = ["agent", "--mount", point];
    says(fails(&arguments, |_| {})?, &[point, "not empty", "--mount"])?;
    ensure!(fs::read_to_string(&file)? == "precious", "the file was touched");
    fs::remove_file(&file)?;
    mount(Some("tmpfs"), point, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    says(fails(&arguments, |_| {})?, &[point, "tmpfs", "--mount"])?;
    umount(point).context("the tmpfs is gone")?;

    // Another agent's view, alive and stopped.
    let agent = Agent::start(&["--mount", point])?;
    let others = ["--socket", "/run/other/a.sock", "--control-socket", "/run/other/b.sock"];
    let arguments = [&arguments[..], &others[..]].concat();
    says(fails(&arguments, |_| {})?, &[point, "another agent", "--mount"])?;
    agent.signal(Signal::SIGSTOP)?;
    says(fails(&arguments, |_| {})?, &[point, "another agent", "--mount"])?;
    agent.signal(Signal::SIGCONT)?;
    let group = Group::new("there")?;
    let directory = Path::new(point).join("there");
    ensure!(register_in(&directory, USAGE, &Waiter::new()?, "1M")? == 0, "the first one's view works");
    drop((agent, group));
    Ok(())
}

vm_test!(
    view_without_fuse,
    "without FUSE: a warning by default, an error where a directory was named",
    Any,
    []
);
fn view_without_fuse() -> Result<()> {
    fs::rename("/dev/fuse", "/dev/fuse-away")?;
    let outcome = (|| {
        says(fails(&["agent", "--mount", "/run/requested"], |_| {})?, &["/dev/fuse", "ENOENT", "module"])?;
        let agent = Agent::start(&[])?;
        let log = Agent::log();
        ensure!(log.contains("/dev/fuse") && log.contains("without"), "it is not said: {log}");
        let group = Group::new("socket")?;
        Waiter::on(&group, "1M")?;
        ensure!(agent.end(Signal::SIGTERM)? == 0, "it ends as any other");
        Ok(())
    })();
    fs::rename("/dev/fuse-away", "/dev/fuse")?;
    outcome
}

vm_test!(view_mount_options, "the mount says whose it is, and lets nothing be run", Any, [Standing]);
fn view_mount_options() -> Result<()> {
    let _agent = Agent::standing()?;
    let found = mounts::on(Path::new(POINT))?.context("there is no view")?;
    ensure!(found.source == "memcg-monitor", "{found:?}");
    for option in ["default_permissions", "allow_other"] {
        ensure!(found.options.split(',').any(|found| found == option), "{option}: {found:?}");
    }
    let text = fs::read_to_string("/proc/self/mounts")?;
    let line = text.lines().find(|line| line.starts_with("memcg-monitor ")).context("not in /proc/mounts")?;
    for flag in ["nosuid", "nodev", "noexec"] {
        ensure!(line.contains(flag), "{flag}: {line}");
    }
    Ok(())
}
