//! Mount options of cgroup2 that change what the kernel's files count.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use monitor_common::grammar::control_file::ControlFile;
use nix::mount::{MsFlags, mount};

use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::charger::Charger;
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::test::vm_test;
use crate::scenarios::metrics;

/// Options of the host's hierarchy, taken away with the value.
struct MountOptions(PathBuf);

impl MountOptions {
    fn set(options: &str) -> Result<Self> {
        let root = Group::root()?.path.clone();
        let changed = Self(root);
        changed.remount(options).with_context(|| format!("cannot remount with {options:?}"))?;
        Ok(changed)
    }

    fn remount(&self, options: &str) -> nix::Result<()> {
        mount(Some("none"), &self.0, None::<&str>, MsFlags::MS_REMOUNT, Some(options))
    }
}

impl Drop for MountOptions {
    fn drop(&mut self) {
        let _ = self.remount("");
    }
}

vm_test!(
    hierarchy_mount_options,
    "with memory_localevents and memory_recursiveprot OOMs are signalled and counted as without",
    V2,
    [Kernel]
);
fn hierarchy_mount_options() -> Result<()> {
    for options in
        ["", "memory_recursiveprot", "memory_localevents", "memory_localevents,memory_recursiveprot"]
    {
        let _changed = MountOptions::set(options)?;
        for backend in ["fentry", "sampled"] {
            counts_ooms(options.contains("memory_localevents"), backend)
                .with_context(|| format!("options {options:?}, backend {backend}"))?;
        }
    }
    Ok(())
}

fn counts_ooms(are_local: bool, backend: &str) -> Result<()> {
    let top = Group::new("top")?;
    let middle = top.child("middle")?;
    let leaf = middle.child("leaf")?;
    let agent = Agent::start(&["--backend", backend, "--metrics", metrics::TCP])?;
    let waiters = [&top, &middle, &leaf].map(|group| Waiter::at(group, ControlFile::Oom, ""));
    let [on_top, on_middle, on_leaf] = waiters;
    let (on_top, on_middle, on_leaf) = (on_top?, on_middle?, on_leaf?);

    middle.set_limit(16 * MIB)?;
    Charger::start(&leaf)?.grow_to_death(64 * MIB)?;
    ensure!(on_middle.wait()? >= 1 && on_leaf.wait()? >= 1, "an OOM by the limit of the group in the middle");
    agent.settle()?;
    ensure!(on_top.take()? == 0, "the group above was signalled");

    let raw = |group: &Group, file, name| group.field(file, name);
    let kills = raw(&leaf, "memory.events.local", "oom_kill")?;
    let ooms = raw(&middle, "memory.events.local", "oom")?;
    ensure!(kills >= 1 && ooms >= 1, "{kills} killed in {ooms} OOMs: nothing was shown");
    let by_file = raw(&top, "memory.events", "oom_kill")?;
    ensure!((by_file == 0) == are_local, "the kernel's own file above has {by_file} killed");
    for (group, own) in [(&top, 0), (&middle, ooms), (&leaf, 0)] {
        let found = agent.row(&group.path)?.oom.context("no counts of OOMs")?;
        ensure!(
            (found.oom, found.oom_kill) == (Some(own), Some(kills)),
            "{}: {found:?}, not {own} OOMs and {kills} killed",
            group.path.display()
        );
    }
    let mut text = String::new();
    until("the metrics have the counts", || {
        text = metrics::text()?;
        Ok(metrics::value(&text, "container_memory_events_oom_total{id=\"/top\"}") == Some(ooms as f64))
    })
    .with_context(|| text.clone())?;
    for id in ["/top", "/top/middle", "/top/middle/leaf"] {
        let found = metrics::value(&text, &format!("container_memory_events_oom_kill_total{{id=\"{id}\"}}"));
        ensure!(found == Some(kills as f64), "{id} has {found:?} of {kills} killed, in: {text}");
    }
    drop(agent);
    leaf.remove()?;
    middle.remove()?;
    top.remove()
}
