//! Lists of tasks, as readers in other pid namespaces have them.

use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::Version;
use memcg_monitor::view::values::{ids, task_list};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getpid, pause};

use super::shown;
use crate::harness::agent::{Agent, until};
use crate::harness::group::Group;
use crate::harness::process::{self, Process, USER};
use crate::harness::test::vm_test;

/// Starts a process of two threads in the group; it ends with the value.
fn member(group: &Group) -> Result<Process> {
    let process = Process::start(|| {
        thread::spawn(|| {
            loop {
                pause();
            }
        });
        loop {
            pause();
        }
    })?;
    group.add(process.pid())?;
    Ok(process)
}

/// Starts a process in the group that is the first one of a pid namespace of its own.
fn member_elsewhere(group: &Group) -> Result<Process> {
    Process::start(|| {
        unshare(CloneFlags::CLONE_NEWPID).context("cannot make a pid namespace")?;
        let _member = member(group)?;
        loop {
            pause();
        }
    })
}

/// Waits until a reader sees so many processes in the group, by the kernel's files and by the
/// view's, with the same numbers: those of its own pid namespace.
fn sees(group: &Group, processes: usize) -> Result<()> {
    let threads = if group.version == Version::V1 { "tasks" } else { "cgroup.threads" };
    let view = shown(&group.path)?;
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("{}", path.display()));
    for (ours, kernels) in [("cgroup.procs", "cgroup.procs"), ("tasks", threads)] {
        let mut last = Default::default();
        let outcome = until("the view lists what the kernel does", || {
            // v2 shows tasks outside the namespace as 0, and is not sorted.
            let kernels = ids(&read(&group.path.join(kernels))?);
            let count = kernels.len();
            last = (read(&view.join(ours))?, task_list(kernels));
            Ok(last.0 == last.1 && (ours == "tasks" || count == processes))
        });
        outcome.with_context(|| format!("{processes} processes, {ours}: {last:?}"))?;
    }
    Ok(())
}

vm_test!(
    view_pid_namespaces,
    "lists of tasks have the numbers of the reader's pid namespace, and no others",
    Any,
    [Oracle, Kernel, Standing]
);
fn view_pid_namespaces() -> Result<()> {
    let _agent = Agent::standing()?;
    let group = Group::new("numbered")?;
    let view = shown(&group.path)?;
    sees(&group, 0)?;
    let outside = member(&group)?;
    // As deep as the reader's, and with the same numbers.
    let beside = member_elsewhere(&group)?;
    sees(&group, 2)?;
    process::run_in(CloneFlags::CLONE_NEWPID, || {
        sees(&group, 0)?;
        let child = member(&group)?;
        sees(&group, 1).context("its own")?;
        let below = member_elsewhere(&group)?;
        sees(&group, 2).context("its own, and one in a namespace below")?;
        process::run_as(USER, || sees(&group, 2)).context("an ordinary user")?;
        process::run_in(CloneFlags::CLONE_NEWPID, || {
            sees(&group, 0)?;
            let _member = member(&group)?;
            sees(&group, 1)
        })
        .context("a namespace below")?;
        // Children of the reader are in the group from now on.
        group.add(getpid())?;
        sees(&group, 3).context("the reader, too")?;
        let text = fs::read_to_string(view.join("cgroup.procs"))?;
        ensure!(text.starts_with("1\n"), "the reader is the first of its namespace: {text:?}");

        // Tasks that end between the list and the look at them.
        let forker = Process::start(|| {
            loop {
                process::run(|| Ok(()))?;
            }
        })?;
        group.add(forker.pid())?;
        for _ in 0..200 {
            let text = fs::read_to_string(view.join("tasks")).context("while tasks come and go")?;
            ensure!(ids(&text).first() == Some(&1), "tasks {text:?}");
        }
        drop(forker);
        drop((child, below));
        Ok(())
    })?;
    drop((outside, beside));
    Ok(())
}
