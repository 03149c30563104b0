//! An agent in a cgroup namespace, as on a node that is a container (kind, LXC, nested docker): the
//! namespace's root is a group, and is watched and shown as one.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::{Hierarchy, Version};
use memcg_monitor::view::POINT;
use monitor_common::grammar::control_file::ControlFile;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::unistd::getpid;

use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, register_line};
use crate::harness::group::{Group, read_number};
use crate::harness::process;
use crate::harness::test::vm_test;
use crate::scenarios::abuse::{fails, says};
use crate::scenarios::metrics;

/// Limit of the group that is the namespace's root.
const LIMIT: u64 = 256 * MIB;

/// Runs `work` in a cgroup namespace whose root is `node`, where that is all that is mounted of the
/// hierarchy. Its processes are in a group below, as systemd puts them.
pub(crate) fn run_in_namespace(node: &Group, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let Hierarchy { version, root } = Hierarchy::find(None)?;
    process::run(|| {
        // The agent and its test are below the root's limit, too.
        fs::write("/proc/self/oom_score_adj", "-1000").context("oom_score_adj")?;
        node.add(getpid())?;
        process::run_in(CloneFlags::CLONE_NEWCGROUP | CloneFlags::CLONE_NEWNS, || {
            umount2(&root, MntFlags::MNT_DETACH).context("cannot take the host's hierarchy away")?;
            let (kind, options) = match version {
                Version::V1 => ("cgroup", Some("memory")),
                Version::V2 => ("cgroup2", None),
            };
            mount(Some(kind), &root, Some(kind), MsFlags::empty(), options)
                .context("cannot mount the namespace's hierarchy")?;
            let own = root.join("init");
            fs::create_dir(&own).with_context(|| format!("cannot make {}", own.display()))?;
            for pid in fs::read_to_string(root.join("cgroup.procs"))?.split_whitespace() {
                fs::write(own.join("cgroup.procs"), pid).context("cannot move a process")?;
            }
            work()
        })
    })
}

vm_test!(
    hierarchy_in_a_cgroup_namespace,
    "in a cgroup namespace its root is watched and shown as the group that it is, and groups outside are not there",
    Any,
    [Oracle, Kernel]
);
fn hierarchy_in_a_cgroup_namespace() -> Result<()> {
    let (node, beside) = (Group::new("node")?, Group::new("beside")?);
    // A client outside may hold these, and pass them on.
    let outside = [
        File::open(&beside.path)?,
        File::open(beside.usage_file())?,
        File::open(beside.path.join("cgroup.procs"))?,
        File::open(&Group::root()?.path)?,
    ];
    run_in_namespace(&node, || {
        ["fentry", "sampled"].into_iter().try_for_each(|backend| {
            watch_namespace(&outside, backend).with_context(|| format!("backend {backend}"))
        })?;
        let (code, text) = fails(&["check"], |_| {})?;
        let parts = ["a cgroup namespace of its own", "signalled 4 of 4", "This host can be watched"];
        ensure!(code == 0 && parts.iter().all(|part| text.contains(part)), "{code}: {text}");
        Ok(())
    })
}

fn watch_namespace(outside: &[File], backend: &str) -> Result<()> {
    let root = Group::root()?;
    let inner = root.child("inner")?;
    root.set_limit(LIMIT)?;
    let agent = Agent::start(&["--backend", backend, "--metrics", metrics::TCP])?;

    let shown = Path::new(POINT);
    let usage_in_view = File::open(shown.join("memory.usage_in_bytes"))?;
    let by_usage = Waiter::on(&root, &(root.usage()? + 32 * MIB).to_string())?;
    let by_percent = Waiter::on(&root, "50%")?;
    let by_view = Waiter::new()?;
    let line = |waiter: &Waiter, control: &File, args: &str| {
        format!("{} {} {args}", waiter.0.as_raw_fd(), control.as_raw_fd())
    };
    let level = (root.usage()? + 32 * MIB).to_string();
    let written = line(&by_view, &usage_in_view, &level);
    crate::harness::client::write_event_control(shown, written.as_bytes()).context("in the view")?;
    let by_sum = Waiter::at(&root, ControlFile::WorkingSet, &level)?;
    let by_oom = Waiter::at(&root, ControlFile::Oom, "")?;
    // v1 has no such notification.
    let is_v2 = root.version == Version::V2;
    let _empty = is_v2.then(|| Waiter::at(&root, ControlFile::Procs, "")).transpose()?;
    let registrations = if is_v2 { 6 } else { 5 };
    for control in outside {
        let args = if control.metadata()?.is_dir() { "memory.usage_in_bytes 4M" } else { "4M" };
        let line = line(&by_oom, control, args);
        let answer = register_line(line.as_bytes()).err().context("it is registered")?;
        let text = format!("{answer:#}");
        ensure!(
            text.contains("EINVAL") && text.contains("outside the part of the hierarchy"),
            "{line}: {text}"
        );
    }

    // Its usage is read: an agent that sees the whole host has a place for it.
    outside[1].read_at(&mut [0; 32], 0)?;

    let mut charger = Charger::start(&inner)?;
    fs::write(format!("/proc/{}/oom_score_adj", charger.pid()), "1000")?;
    charger.grow(Kind::Anonymous, LIMIT / 2)?;
    by_usage.crosses("the root's usage, by the socket")?;
    by_view.crosses("the root's usage, by the view")?;
    by_percent.crosses("half of the root's limit")?;
    by_sum.crosses("the root's working set")?;

    let used = read_number(&shown.join("memory.usage_in_bytes"))?;
    ensure!(used.abs_diff(root.usage()?) < 16 * MIB, "the view shows {used} of {}", root.usage()?);
    let limit = read_number(&shown.join("memory.limit_in_bytes"))?;
    ensure!(limit == LIMIT, "the view shows a limit of {limit}");
    let peak = read_number(&shown.join("memory.max_usage_in_bytes"))?;
    ensure!((LIMIT / 2..=LIMIT).contains(&peak), "the view shows a peak of {peak}");
    for name in ["release_agent", "cgroup.sane_behavior"] {
        ensure!(!shown.join(name).exists(), "{name} is the host's root's alone");
    }
    let mut below = Vec::new();
    for entry in fs::read_dir(shown)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            below.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    below.sort();
    let has_init = inner.version == Version::V1 || root.path.join("init/memory.current").exists();
    ensure!(has_init && below == ["init", "inner"], "the view has {below:?}");

    let (rows, status) = agent.list()?;
    let names: Vec<_> = rows.iter().map(|row| row.cgroup.as_str()).collect();
    ensure!(names.iter().all(|name| Path::new(name).starts_with(&root.path)), "listed: {names:?}");
    let row =
        rows.iter().find(|row| Path::new(&row.cgroup) == root.path).context("the root is not listed")?;
    ensure!((LIMIT / 2..=LIMIT).contains(&row.usage) && row.peak >= row.usage, "{row:?}");
    ensure!(row.oom.is_some(), "no counts of OOMs: {row:?}");
    ensure!(status.registrations == registrations, "{status:?}");

    let text = metrics::text()?;
    let value = |name: &str| metrics::value(&text, name).with_context(|| format!("no {name} in: {text}"));
    let used = value("container_memory_usage_bytes{id=\"/\"}")?;
    ensure!((LIMIT / 2..=LIMIT).contains(&(used as u64)), "usage {used} in: {text}");
    ensure!(value("container_spec_memory_limit_bytes{id=\"/\"}")? == LIMIT as f64, "limit, in: {text}");
    ensure!(
        value("memcg_monitor_group_registrations{id=\"/\"}")? == registrations as f64,
        "registrations, in: {text}"
    );
    ensure!(!text.contains("beside"), "a group outside, in: {text}");
    let groups = value("memcg_monitor_groups")?;
    let most = names.len() as f64;
    ensure!(groups <= most, "{groups} groups, {names:?}, in: {text}");

    ensure!(by_oom.take()? == 0, "an OOM too early");
    charger.grow_to_death(LIMIT)?;
    ensure!(by_oom.wait().context("the OOM by the root's limit")? >= 1, "a signal of none");
    // v1 counts those killed where they were alone.
    let counted = if is_v2 { &root } else { &inner };
    let killed = agent.row(&root.path)?.oom.context("no counts of OOMs")?.oom_kill;
    let real = counted.field(if is_v2 { "memory.events" } else { "memory.oom_control" }, "oom_kill")?;
    ensure!(real >= 1 && (!is_v2 || killed == Some(real)), "{killed:?} of {real} killed are listed");
    ensure!(agent.end(Signal::SIGTERM)? == 0, "exit code");
    until("the group below can be removed", || Ok(fs::remove_dir(&inner.path).is_ok()))
}

vm_test!(
    hierarchy_namespace_without_the_controller,
    "where the namespace's root has no memory controller, a registration and a new agent are refused with the remedy",
    V2,
    [Kernel]
);
fn hierarchy_namespace_without_the_controller() -> Result<()> {
    const REMEDY: [&str; 2] = ["has no memory controller", "in the group above"];
    let top = Group::new("top")?;
    let node = top.child("node")?;
    let switch = OpenOptions::new().write(true).open(top.path.join("cgroup.subtree_control"))?;
    run_in_namespace(&node, || {
        let root = Group::root()?;
        let agent = Agent::start(&[])?;
        nix::unistd::write(&switch, b"-memory").context("cannot take the controller away")?;
        let init = Group { path: root.path.join("init"), version: Version::V2 };
        let waiter = Waiter::new()?;
        for group in [&root, &init] {
            let answer = waiter.register_at(group, ControlFile::Oom, "").err().context("it is registered")?;
            let text = format!("{answer:#}");
            let is_named = text.contains(&*group.path.to_string_lossy());
            ensure!(is_named && REMEDY.iter().all(|part| text.contains(part)), "{text}");
        }
        drop(agent);
        says(fails(&["agent"], |_| {})?, &REMEDY)?;
        nix::unistd::write(&switch, b"+memory").context("cannot give the controller back")?;
        let agent = Agent::start(&[])?;
        waiter.register(&root, "1G").context("as the text says")?;
        ensure!(agent.end(Signal::SIGTERM)? == 0, "exit code");
        Ok(())
    })
}

vm_test!(
    hierarchy_namespace_threaded,
    "where the namespace's root is a threaded group, a registration is refused with a remedy that works there",
    V2,
    []
);
fn hierarchy_namespace_threaded() -> Result<()> {
    let (top, beside) = (Group::new("top")?, Group::new("beside")?);
    let node = top.child("node")?;
    let open = |path: &Path| OpenOptions::new().write(true).open(path);
    let switch = open(&top.path.join("cgroup.subtree_control"))?;
    let (kind, others) = (open(&node.path.join("cgroup.type"))?, open(&beside.path.join("cgroup.procs"))?);
    run_in_namespace(&node, || {
        let root = Group::root()?;
        let agent = Agent::start(&[])?;
        // A group with processes does not become threaded, nor does one whose parent passes memory on.
        for pid in fs::read_to_string(root.path.join("init/cgroup.procs"))?.split_whitespace() {
            nix::unistd::write(&others, pid.as_bytes()).context("cannot move a process out")?;
        }
        nix::unistd::write(&switch, b"-memory").context("cannot take the controller away")?;
        nix::unistd::write(&kind, b"threaded").context("cannot make the group threaded")?;
        let answer =
            Waiter::new()?.register_at(&root, ControlFile::Oom, "").err().context("it is registered")?;
        let text = format!("{answer:#}");
        ensure!(text.contains("is threaded: the kernel counts its memory above"), "{text}");
        ensure!(!text.contains("+memory"), "{text}");
        drop(agent);
        says(fails(&["agent"], |_| {})?, &["is a threaded group of the host", "cgroup.type"])
    })
}
