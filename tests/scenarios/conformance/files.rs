//! Errnos by control file: what each takes, whose it may be, and what is ours.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::{Context, Result};
use memcg_monitor::view::POINT;
use monitor_common::grammar::{pressure, threshold};

use super::book::Book;
use super::errno::named;
use crate::harness::agent::Agent;
use crate::harness::client::{Waiter, agent_errno, kernel_errno};
use crate::harness::group::{Family, Group};
use crate::harness::test::vm_test;
use crate::scenarios::view::{register_in, shown};

const USAGE: &str = "memory.usage_in_bytes";
const MEMSW: &str = "memory.memsw.usage_in_bytes";
const OOM: &str = "memory.oom_control";
const PRESSURE: &str = "memory.pressure_level";

/// Errnos of one line, from the kernel and from the socket.
fn both(group: &Group, name: &str, args: &str) -> Result<(String, String)> {
    let path = group.path.join(name);
    // Opened in any way that is possible: only the right to read counts.
    let control = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let waiter = Waiter::new()?;
    let line = format!("{} {} {args}", waiter.0.as_raw_fd(), control.as_raw_fd());
    let kernel = kernel_errno(&group.path, line.as_bytes());
    Ok((named(kernel), named(agent_errno(line.as_bytes())?)))
}

vm_test!(
    conformance_errno_files,
    "the arguments of each control file, the root's files, files that notify nothing",
    V1,
    [Oracle, Standing]
);
fn conformance_errno_files() -> Result<()> {
    let _agent = Agent::standing()?;
    let group = Group::new("files")?;
    let mut book = Book::default();
    let mut check = |group: &Group, name: &str, args: &str, better: Option<&str>| -> Result<()> {
        let whose = if group.path.ends_with("files") { "" } else { ", the root's" };
        let (kernel, ours) = both(group, name, args)?;
        let what = if name.is_empty() { "the directory" } else { name };
        book.row(&format!("errno, {what}{whose}: {args:?}"), &kernel, &ours, better);
        Ok(())
    };
    // White space at the line's end is trimmed before the arguments are looked at.
    let inner = |args: &&&str| args.trim_ascii_end() == **args;
    let thresholds = threshold::ACCEPTED.iter().map(|(args, _)| args).chain(threshold::REFUSED);
    for args in thresholds.filter(inner) {
        check(&group, MEMSW, args, None)?;
    }
    for args in ["", "whatever foo", "1M"] {
        check(&group, OOM, args, None)?;
    }
    for args in pressure::ACCEPTED.iter().map(|(args, _)| args).chain(pressure::REFUSED).filter(inner) {
        check(&group, PRESSURE, args, None)?;
    }
    let silent = [
        "memory.limit_in_bytes",
        "cgroup.event_control",
        "tasks",
        "memory.stat",
        "memory.failcnt",
        "notify_on_release",
    ];
    for name in silent {
        for args in ["", "1M"] {
            check(&group, name, args, None)?;
        }
    }
    let root = Group::root()?;
    for (name, args) in [(USAGE, "1G"), (MEMSW, "1G"), (OOM, ""), (PRESSURE, "low")] {
        check(&root, name, args, None)?;
        check(&root, name, "x", None)?;
    }
    let more = Some("v1 refuses what is ours");
    for args in ["80%", "1M,up", "1M,down", "1M,hysteresis=64K"] {
        check(&group, USAGE, args, more)?;
    }
    check(&group, "cgroup.procs", "", more)?;
    for args in ["memory.oom_control", "memory.pressure_level low", "memory.working_set_bytes 1M"] {
        check(&group, "", args, more)?;
    }
    book.close()
}

vm_test!(
    conformance_errno_groups,
    "a control file of another group than event_control's, through the view",
    V1,
    [Oracle, Standing]
);
fn conformance_errno_groups() -> Result<()> {
    let _agent = Agent::standing()?;
    let family = Family::new("other")?;
    let mut book = Book::default();
    let directory = shown(&family.group.path)?;
    for (name, args) in [(USAGE, "1G"), (MEMSW, "1G"), (OOM, ""), (PRESSURE, "low")] {
        for (whose, other) in family.all() {
            let waiter = Waiter::new()?;
            let errno = |own: &Path, control: &Path| -> Result<String> {
                let control =
                    File::open(control).with_context(|| format!("cannot open {}", control.display()))?;
                let line = format!("{} {} {args}", waiter.0.as_raw_fd(), control.as_raw_fd());
                Ok(named(kernel_errno(own, line.as_bytes())))
            };
            let kernel = errno(&family.group.path, &other.path.join(name))?;
            let ours = errno(&directory, &shown(&other.path)?.join(name))?;
            book.row(
                &format!("errno, the group's event_control: {name} of the {whose}"),
                &kernel,
                &ours,
                None,
            );
        }
        let waiter = Waiter::new()?;
        let kernel = named(register_in(&family.root.path, name, &waiter, args)?);
        let ours = named(register_in(Path::new(POINT), name, &waiter, args)?);
        book.row(&format!("errno, the root's event_control: {name} of the root"), &kernel, &ours, None);
    }
    book.close()
}
