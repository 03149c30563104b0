//! Groups that are created and removed: what is removed costs nothing, whichever user's it was,
//! and what happens in groups is signalled to those above and below, whatever the order in
//! which they are made, read, watched and removed.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use memcg_monitor::cgroup::Version;
use memcg_monitor::view::POINT;
use monitor_common::grammar::control_file::ControlFile::{Oom, Pressure};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use nix::unistd::getpid;

use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::block;
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, agent_errno, register_line, write_event_control};
use crate::harness::group::{Family, Group};
use crate::harness::process::{Process, USER};
use crate::harness::report::say;
use crate::harness::test::vm_test;
use crate::scenarios::restart::Supervised;

/// A tmpfs of any user's, as long as it is held.
struct Files(PathBuf);

impl Files {
    fn mount() -> Result<Self> {
        let path = PathBuf::from("/tmp/groups");
        fs::create_dir_all(&path)?;
        mount(Some("none"), &path, Some("tmpfs"), MsFlags::empty(), Some("mode=1777"))
            .context("cannot mount a tmpfs")?;
        Ok(Self(path))
    }

    /// Leaves a file of this many bytes, charged to the group that the caller is in.
    fn leave(path: &Path, bytes: u64) -> Result<()> {
        let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        let pages = vec![1; 1 << 12];
        (0..bytes.div_ceil(1 << 12)).try_for_each(|n| file.write_all_at(&pages, n << 12))?;
        Ok(())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Gives a group, as systemd does, to an ordinary user.
fn delegate(group: &Group) -> Result<()> {
    for file in ["", "cgroup.procs", "cgroup.subtree_control"] {
        let path = group.path.join(file);
        if path.exists() {
            chown(&path, Some(USER), Some(USER))
                .with_context(|| format!("cannot give {}", path.display()))?;
        }
    }
    Ok(())
}

/// Moves the caller into a group.
fn enter(directory: &Path) -> Result<()> {
    fs::write(directory.join("cgroup.procs"), "0")
        .with_context(|| format!("cannot enter {}", directory.display()))
}

/// An ordinary user makes groups, each of which leaves a page of a file behind, and
/// removes them.
fn leave_dying(tree: &Group, home: &Group, files: &Files, count: usize) -> Result<()> {
    let process = Process::start(|| {
        home.add(getpid())?;
        crate::harness::process::become_user(USER)?;
        for n in 0..count {
            let group = tree.path.join(format!("z{n}"));
            fs::create_dir(&group).with_context(|| format!("cannot make {}", group.display()))?;
            enter(&group)?;
            Files::leave(&files.0.join(format!("{n}")), 1)?;
            enter(&home.path)?;
            fs::remove_dir(&group).with_context(|| format!("cannot remove {}", group.display()))?;
        }
        Ok(())
    })?;
    process.end()
}

fn lost(agent: &Agent, name: &str) -> Result<u64> {
    let losses = agent.status()?.losses;
    losses.get(name).copied().context("no such count")
}

vm_test!(
    groups_dying_cost_nothing,
    "a user leaves five times as many dying groups as there are places; the next group is watched",
    Any,
    [Kernel, Preempt]
);
fn groups_dying_cost_nothing() -> Result<()> {
    const GROUPS: usize = 320;
    let files = Files::mount()?;
    let agent = Agent::start(&["--max-groups", "64"])?;
    let tree = Group::new("user")?;
    let home = tree.child("home")?;
    delegate(&tree)?;
    delegate(&home)?;
    leave_dying(&tree, &home, &files, GROUPS)?;
    if tree.version == Version::V2 {
        // Newer kernels move what is left to the parent: there they die at once.
        say!("  {} dying", tree.field("cgroup.stat", "nr_dying_descendants")?);
    }
    let group = Group::new("next")?;
    let waiter = Waiter::on(&group, "4M")?;
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    ensure!(waiter.wait()? == 1, "the next group is watched as the first");
    ensure!(lost(&agent, "slots_exhausted")? == 0, "a group found no place");
    charger.end()
}

vm_test!(
    groups_dying_still_move_those_above,
    "what a removed group gives back is signalled above it, also after its place is another's",
    Any,
    [Kernel, Preempt]
);
fn groups_dying_still_move_those_above() -> Result<()> {
    let files = Files::mount()?;
    let top = Group::new("top")?;
    let middle = top.child("middle")?;
    let leaf = middle.child("leaf")?;
    let _agent = Agent::start(&["--max-groups", "16"])?;
    let waiter = Waiter::on(&top, "6M")?;
    let path = files.0.join("left");
    Process::start(|| {
        leaf.add(getpid())?;
        Files::leave(&path, 8 * MIB)
    })?
    .end()?;
    ensure!(waiter.wait()? == 1, "up");
    leaf.remove()?;
    middle.remove()?;
    // The places go round.
    for n in 0..48 {
        Group::new(&format!("other{n}"))?.remove()?;
    }
    let _others: Vec<_> = (0..8).map(|n| Group::new(&format!("stays{n}"))).collect::<Result<_>>()?;
    ensure!(waiter.take()? == 0, "nothing was given back yet");
    fs::remove_file(&path)?;
    ensure!(waiter.wait()? == 1, "down, from a group that is long gone");
    Ok(())
}

vm_test!(
    groups_that_found_no_place,
    "when there is room again: the group is watched, its parent known, an OOM above signalled",
    V2,
    [Kernel, Preempt]
);
fn groups_that_found_no_place() -> Result<()> {
    let agent = Agent::start(&["--max-groups", "16"])?;
    let fillers: Vec<_> = (0..24).map(|n| Group::new(&format!("fill{n}"))).collect::<Result<_>>()?;
    // None of these has a place, however often it is read.
    let family = Family::new("late")?;
    let refused = lost(&agent, "slots_exhausted")?;
    for _ in 0..50 {
        family.group.usage()?;
    }
    ensure!(Waiter::at(&family.child, Oom, "").is_err(), "there is no room");
    let counted = lost(&agent, "slots_exhausted")?;
    ensure!(counted == refused && counted >= 4, "each is counted once: {refused}, then {counted}");
    fillers.iter().try_for_each(Group::remove)?;
    let waiter = Waiter::new()?;
    until("there is room", || Ok(waiter.register_at(&family.child, Oom, "").is_ok()))?;
    let percent = Waiter::on(&family.child, "50%")?;
    family.parent.set_limit(16 * MIB)?;
    Charger::start(&family.child)?.grow_to_death(64 * MIB)?;
    let counted = family.parent.field("memory.events.local", "oom")?;
    ensure!(counted > 0, "the kernel saw no OOM: nothing was shown");
    let mut total = 0;
    until("the OOM of the group two levels up is signalled", || {
        total += waiter.take()?;
        Ok(total == counted)
    })?;
    ensure!(percent.wait()? > 0, "half of a limit two levels up was crossed");
    ensure!(lost(&agent, "parent_unknown")? == 0, "a parent was not found");
    Ok(())
}

vm_test!(
    groups_made_while_the_agent_starts,
    "groups that are made while it starts, again and again, are signalled for an OOM by a limit above",
    V2,
    [Kernel, Preempt]
);
fn groups_made_while_the_agent_starts() -> Result<()> {
    let top = Group::new("made")?;
    let middle = top.child("m")?;
    middle.enable(true)?;
    let mut groups = Vec::new();
    let mut make_during = |name: &str, work: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        let is_over = AtomicBool::new(false);
        let made = thread::scope(|scope| {
            let maker = scope.spawn(|| -> Result<Vec<Group>> {
                let mut made = Vec::new();
                while !is_over.load(Ordering::Relaxed) && made.len() < 24 {
                    let group = middle.child(&format!("{name}{}", made.len()))?;
                    group.usage()?;
                    made.push(group);
                }
                Ok(made)
            });
            let outcome = work();
            is_over.store(true, Ordering::Relaxed);
            let made = maker.join().map_err(|_| anyhow!("the maker panicked"))?;
            outcome.and(made)
        })?;
        ensure!(!made.is_empty(), "none was made meanwhile: nothing was shown");
        groups.extend(made);
        Ok(())
    };
    let mut agent = None;
    make_during("first", &mut || {
        agent = Some(Supervised::start(&[])?);
        Ok(())
    })?;
    let mut agent = agent.context("no agent")?;
    make_during("again", &mut || agent.killed_while(|| Ok(())))?;
    let waiters: Vec<_> = groups.iter().map(|group| Waiter::at(group, Oom, "")).collect::<Result<_>>()?;
    top.set_limit(16 * MIB)?;
    Charger::start(&groups[0])?.grow_to_death(64 * MIB)?;
    agent.0.settle()?;
    let counted = top.field("memory.events.local", "oom")?;
    ensure!(counted > 0, "the kernel saw no OOM: nothing was shown");
    for (waiter, group) in waiters.iter().zip(&groups) {
        let received = waiter.take()?;
        ensure!(received == counted, "{} received {received} of {counted}", group.path.display());
    }
    Ok(())
}

vm_test!(
    groups_gone_while_there_was_no_agent,
    "an OOM by the limit of a group, signalled below it although all of them were removed with no agent there",
    V2,
    [Kernel, Preempt]
);
fn groups_gone_while_there_was_no_agent() -> Result<()> {
    let family = Family::new("gone")?;
    let mut agent = Supervised::start(&[])?;
    let waiter = Waiter::at(&family.child, Oom, "")?;
    family.parent.set_limit(16 * MIB)?;
    let mut counted = 0;
    agent.killed_while(|| {
        Charger::start(&family.child)?.grow_to_death(64 * MIB)?;
        counted = family.parent.field("memory.events.local", "oom")?;
        for group in [&family.child, &family.group, &family.sibling, &family.parent] {
            group.remove()?;
        }
        // Other groups take what places are free.
        (0..32).try_for_each(|n| Group::new(&format!("after{n}"))?.remove())
    })?;
    ensure!(counted > 0, "the kernel saw no OOM: nothing was shown");
    let mut total = 0;
    until("the OOMs, and the removal", || {
        total += waiter.take()?;
        ensure!(total <= counted + 1, "{total} of {counted} and a removal");
        Ok(total == counted + 1)
    })
}

vm_test!(
    groups_gone_before_the_agent_looks,
    "pressure in a group that is not watched, removed and freed before the agent looks, is signalled above",
    V2,
    [Kernel, Preempt]
);
fn groups_gone_before_the_agent_looks() -> Result<()> {
    let disk = block::disk()?;
    let family = Family::new("windows")?;
    family.child.set_limit(8 * MIB)?;
    let agent = Agent::start(&[])?;
    let above = Waiter::at(&family.parent, Pressure, "low,hierarchy")?;
    agent.signal(Signal::SIGSTOP)?;
    let mut charger = Charger::start(&family.child)?;
    charger.read_disk(64 * MIB)?;
    charger.end()?;
    family.child.remove()?;
    family.group.remove()?;
    // With the last close its pages go, and then the groups.
    drop(disk);
    (0..16).try_for_each(|n| Group::new(&format!("after{n}"))?.remove())?;
    agent.signal(Signal::SIGCONT)?;
    ensure!(above.wait()? > 0, "received");
    Ok(())
}

vm_test!(
    groups_with_mounts_among_them,
    "a directory of the hierarchy with another mount on it is the group that it was",
    V2,
    [Kernel, Preempt]
);
fn groups_with_mounts_among_them() -> Result<()> {
    let covered = Group::new("covered")?;
    let below = covered.child("below")?;
    let others: Vec<_> = (0..20).map(|n| Group::new(&format!("other{n}"))).collect::<Result<_>>()?;
    // The same hierarchy once more; where the kernel has one, a hierarchy of v1 has ids of
    // its own, which groups here have, too.
    let mut mounted = Vec::new();
    mount(Some("none"), &covered.path, Some("cgroup2"), MsFlags::empty(), None::<&str>)
        .context("cannot mount cgroup2")?;
    mounted.push(covered.path.clone());
    let old = &others[0].path;
    match mount(Some("none"), old, Some("cgroup"), MsFlags::empty(), Some("none,name=memcgmon")) {
        Ok(()) => {
            mounted.push(old.clone());
            (0..40).try_for_each(|n| fs::create_dir(old.join(format!("x{n}"))))?;
        }
        Err(errno) => say!("  no v1 hierarchy here: {errno}"),
    }
    let outcome = see_through(&covered, &others);
    if old.join("x0").exists() {
        let _ = (0..40).try_for_each(|n| fs::remove_dir(old.join(format!("x{n}"))));
    }
    for path in mounted {
        umount2(&path, MntFlags::MNT_DETACH)?;
    }
    drop(below);
    outcome
}

vm_test!(
    groups_below_a_root_that_is_a_group,
    "where the root is a group, as in a cgroup namespace, it is watched and shown as one, not as the host",
    V2,
    []
);
fn groups_below_a_root_that_is_a_group() -> Result<()> {
    const ROOT: &str = "/tmp/part";
    let (part, beside) = (Group::new("part")?, Group::new("beside")?);
    let inner = part.child("inner")?;
    fs::create_dir(ROOT)?;
    mount(Some(&part.path), ROOT, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("cannot bind")?;
    let outcome = ["fentry", "sampled"].iter().try_for_each(|backend| {
        watch_part(Path::new(ROOT), &inner, &beside, backend).with_context(|| (*backend).to_owned())
    });
    umount2(ROOT, MntFlags::MNT_DETACH)?;
    fs::remove_dir(ROOT)?;
    drop(beside);
    outcome
}

fn watch_part(root: &Path, inner: &Group, beside: &Group, backend: &str) -> Result<()> {
    let agent = Agent::start(&["--cgroup-root", &root.to_string_lossy(), "--backend", backend])?;
    let (at_socket, at_view) = (Waiter::new()?, Waiter::new()?);
    let line =
        |waiter: &Waiter, control: &File| format!("{} {} 4M", waiter.0.as_raw_fd(), control.as_raw_fd());
    let control = File::open(root.join("memory.current"))?;
    register_line(line(&at_socket, &control).as_bytes()).context("at the socket")?;
    let shown = Path::new(POINT).join("memory.usage_in_bytes");
    let control = File::open(&shown)?;
    write_event_control(Path::new(POINT), line(&at_view, &control).as_bytes()).context("in the view")?;
    for control in [File::open(beside.usage_file())?, File::open(&beside.path)?] {
        let usage = if control.metadata()?.is_dir() { "memory.usage_in_bytes 4M" } else { "4M" };
        let line = format!("{} {} {usage}", at_socket.0.as_raw_fd(), control.as_raw_fd());
        let errno = agent_errno(line.as_bytes())?;
        ensure!(errno == libc::EINVAL, "a group outside, {line}: errno {errno}");
    }
    let mut charger = Charger::start(inner)?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    at_socket.crosses("the root's usage, by the socket")?;
    at_view.crosses("the root's usage, by the view")?;
    let (text, real) = (fs::read_to_string(&shown)?, fs::read_to_string(root.join("memory.current"))?);
    let (text, real): (u64, u64) = (text.trim().parse()?, real.trim().parse()?);
    ensure!(text.abs_diff(real) < 2 * MIB, "the view shows {text} bytes, the group has {real}");
    let (rows, _) = agent.list()?;
    let names: Vec<_> = rows.iter().map(|row| row.cgroup.as_str()).collect();
    ensure!(names.iter().all(|name| Path::new(name).starts_with(root)), "others are listed: {names:?}");
    let row = rows.iter().find(|row| Path::new(&row.cgroup) == root).context("the root is not listed")?;
    ensure!(row.usage >= 8 * MIB && row.usage < 64 * MIB, "{row:?}");
    charger.end()?;
    ensure!(agent.end(Signal::SIGTERM)? == 0, "exit code");
    Ok(())
}

fn see_through(covered: &Group, others: &[Group]) -> Result<()> {
    let agent = Agent::start(&[])?;
    let (rows, _) = agent.list()?;
    let names: Vec<_> = rows.iter().map(|row| row.cgroup.as_str()).collect();
    let is_listed = |path: &Path| names.iter().filter(|name| Path::new(name) == path).count() == 1;
    for path in others
        .iter()
        .map(|group| group.path.clone())
        .chain([covered.path.clone(), covered.path.join("below")])
    {
        ensure!(is_listed(&path), "{} is not listed once: {names:?}", path.display());
    }
    ensure!(!names.iter().any(|name| name.starts_with('#')), "groups without a name: {names:?}");
    let view = Path::new(POINT);
    let mut waiting = vec![view.to_owned()];
    while let Some(directory) = waiting.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            let entry = entry?;
            let metadata = fs::symlink_metadata(entry.path());
            let gone =
                metadata.as_ref().is_err_and(|error| error.raw_os_error() == Some(Errno::ENOENT as i32));
            if gone {
                continue;
            }
            if metadata.with_context(|| format!("cannot stat {}", entry.path().display()))?.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    ensure!(view.join("covered/below/memory.usage_in_bytes").exists(), "the covered group is in the view");
    Ok(())
}
