//! Other mounts on the groups' directories, made after the agent has started: the groups stay what
//! they were.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use memcg_monitor::view::POINT;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;

use crate::harness::MIB;
use crate::harness::agent::Agent;
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, register_line};
use crate::harness::group::Group;
use crate::harness::process;
use crate::harness::test::vm_test;

/// Mounts that go on a group's directory: file system, source, flags and options.
const MOUNTS: [(&str, Option<&str>, &str, Option<&str>); 4] = [
    ("cgroup2 once more", Some("cgroup2"), "none", None),
    ("a hierarchy of v1", Some("cgroup"), "none", Some("none,name=memcgmon")),
    ("a tmpfs", Some("tmpfs"), "none", None),
    ("the view itself", None, POINT, None),
];

vm_test!(
    hierarchy_with_mounts_in_it,
    "groups whose directories are covered by other mounts, the view's too, are registered, shown and listed as before",
    V2,
    [Kernel]
);
fn hierarchy_with_mounts_in_it() -> Result<()> {
    for backend in ["fentry", "sampled"] {
        process::run_in(CloneFlags::CLONE_NEWNS, || {
            let agent = Agent::start(&["--backend", backend])?;
            MOUNTS.iter().try_for_each(|(what, kind, source, options)| {
                is_seen_through(&agent, |point| {
                    let flags = if kind.is_some() { MsFlags::empty() } else { MsFlags::MS_BIND };
                    mount(Some(*source), point, *kind, flags, *options).context("cannot mount")
                })
                .with_context(|| format!("{what}, backend {backend}"))
            })
        })?;
    }
    Ok(())
}

fn is_seen_through(agent: &Agent, cover: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let covered = Group::new("covered")?;
    let below = covered.child("below")?;
    let mut charger = Charger::start(&below)?;
    let controls = [File::open(covered.usage_file())?, File::open(below.usage_file())?];
    let tasks = File::open(below.path.join("cgroup.procs"))?;
    cover(&covered.path)?;
    let outcome = (|| {
        let waiters = [Waiter::new()?, Waiter::new()?];
        for (waiter, control) in waiters.iter().zip(&controls) {
            let line = format!("{} {} 4M", waiter.0.as_raw_fd(), control.as_raw_fd());
            register_line(line.as_bytes()).context("a file that was opened before")?;
        }
        let empty = Waiter::new()?;
        let line = format!("{} {} ", empty.0.as_raw_fd(), tasks.as_raw_fd());
        register_line(line.as_bytes()).context("cgroup.procs, opened before")?;
        charger.grow(Kind::Anonymous, 8 * MIB)?;
        waiters[0].crosses("the covered group")?;
        waiters[1].crosses("the group below it")?;

        let (rows, _) = agent.list()?;
        let names: Vec<_> = rows.iter().map(|row| row.cgroup.as_str()).collect();
        for path in [&covered.path, &below.path] {
            let count = names.iter().filter(|name| Path::new(name) == path).count();
            ensure!(count == 1, "{} is listed {count} times: {names:?}", path.display());
        }
        ensure!(!names.iter().any(|name| name.starts_with('#')), "groups without a name: {names:?}");
        let mut real = [0; 32];
        let length = controls[1].read_at(&mut real, 0)?;
        let real: u64 = std::str::from_utf8(&real[..length])?.trim().parse()?;
        let shown = fs::read_to_string(Path::new(POINT).join("covered/below/memory.usage_in_bytes"))?;
        let shown: u64 = shown.trim().parse()?;
        ensure!(shown.abs_diff(real) < 2 * MIB, "the view shows {shown} of {real}");
        Ok(())
    })();
    umount2(&covered.path, MntFlags::MNT_DETACH)?;
    outcome?;
    charger.end()?;
    below.remove()?;
    covered.remove()
}
