//! Watches of several users and processes at once, over upgrades, in a cgroup namespace; what happened before
//! a group was registered on, and what cannot happen.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use monitor_client::wire::{AdminRequest, Answer, NoteRow, WatchRequest};
use monitor_client::{AdminConnection, CONTROL_SOCKET};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::pause;

use super::{Watcher, id_of, is_counted, is_told_later};
use crate::harness::MIB;
use crate::harness::agent::{Agent, BINARY, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::group::Group;
use crate::harness::process::{self, Process};
use crate::harness::test::vm_test;
use crate::scenarios::hierarchy::namespace::run_in_namespace;
use crate::scenarios::restart::Supervised;

/// Registrations that each user may have.
const QUOTA: usize = 64;
/// The user whose watches nobody reads.
const FLOODER: u32 = 1001;
/// Another user, who is an operator, too.
const OTHER: u32 = FLOODER + 1;

/// Begins a watch of `request`; its answers are to be read from the connection.
fn begin(request: WatchRequest, eventfd: &EventFd) -> Result<AdminConnection> {
    let connection = AdminConnection::connect(Path::new(CONTROL_SOCKET))?;
    connection.send(&AdminRequest::Watch(request), &[eventfd.as_fd()])?;
    Ok(connection)
}

fn request(pattern: &str, specs: &[String]) -> WatchRequest {
    WatchRequest { patterns: vec![pattern.into()], specs: specs.to_vec(), ..WatchRequest::default() }
}

/// Watches everything as often as may be, reads nothing, and runs commands that do not end.
fn flood() -> Result<()> {
    const WATCHES: usize = 16;
    let specs: Vec<_> = (1..=16).map(|at| format!("{at}M")).collect();
    let longest = format!("/**{}", "[!x]*/**".repeat(400)).replace("**[", "**/[");
    let mut kept = Vec::new();
    for pattern in ["/two/*", "/**", &longest] {
        for _ in 0..WATCHES {
            let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
            kept.push((begin(request(pattern, &specs), &eventfd)?, eventfd));
        }
    }
    let mut hanging = Command::new(BINARY);
    hanging.args(["watch", "/two/*", "4M,up", "removed", "--exec", "exec sleep 60"]);
    process::kill_with_parent(&mut hanging);
    let _hanging = hanging.spawn().context("cannot start watch")?;
    loop {
        pause();
    }
}

vm_test!(
    watch_two_operators,
    "an operator who floods the agent with watches that nobody reads has a quota, and another's watch misses nothing",
    V2,
    [Kernel, Variant]
);
fn watch_two_operators() -> Result<()> {
    const GROUPS: usize = 12;
    let tree = Group::new("two")?;
    tree.enable(true)?;
    let quota = QUOTA.to_string();
    let agent = Agent::start(&["--control-mode", "0666", "--max-per-user", &quota])?;
    let flooding = Process::start_as(FLOODER, flood)?;
    let old = tree.child("old")?;
    until("the flood has all that it may", || Ok(agent.status()?.registrations >= QUOTA as u64))?;
    let own = |command: &mut Command| {
        command.uid(OTHER).gid(OTHER);
    };
    let (mut watch, groups) = Watcher::start_with(&["/two/*", "4M,up", "removed"], own)?;
    ensure!(groups == 1, "{groups} groups");
    let mut first = Charger::start(&old)?;
    first.grow(Kind::Anonymous, 8 * MIB)?;
    watch.crossings(&old.path, &["4M,up up"])?;
    for number in 0..GROUPS {
        let group = tree.child(&format!("g{number}"))?;
        let mut charger = Charger::start(&group)?;
        charger.grow(Kind::Anonymous, 8 * MIB)?;
        let crossed = watch.event_of(&group.path, "crossed")?;
        ensure!(crossed.threshold == Some(4 * MIB) && crossed.lost == 0, "{crossed:?}");
        charger.end()?;
        let path = group.path.clone();
        group.remove()?;
        watch.event_of(&path, "removed")?;
    }
    ensure!(agent.status()?.registrations >= QUOTA as u64, "the flood has gone on");
    drop(flooding);
    until("the flood's registrations have ended", || Ok(agent.status()?.registrations == 2))?;
    first.end()
}

vm_test!(
    watch_socket_handed_on,
    "a watch goes on at whichever process has its connection, and ends with the last of them, whoever holds the eventfd",
    V2,
    [Kernel, Variant, Standing]
);
fn watch_socket_handed_on() -> Result<()> {
    let tree = Group::new("handed")?;
    let group = tree.child("one")?;
    let agent = Agent::standing()?;
    let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let connection = begin(request("/handed/*", &["4M,up".into(), "8M,up".into()]), &eventfd)?;
    let Some(Answer::Watching { groups: 1 }) = connection.next()? else { bail!("not watching") };
    // A process of its own has the same connection, and ends after one event.
    let heir = Process::start(|| match connection.next()? {
        Some(Answer::Event(event)) if event.spec.as_deref() == Some("4M,up") => Ok(()),
        other => bail!("{other:?}"),
    })?;
    drop(connection);
    let mut charger = Charger::start(&group)?;
    ensure!(agent.status()?.registrations == 2, "the heir has the connection");
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    heir.end()?;
    until("the watch has ended", || Ok(agent.status()?.registrations == 0))?;
    // It is still ours, and was signalled by then, more than once where the kernel stepped back.
    ensure!(eventfd.read()? >= 1, "not signalled");
    charger.grow(Kind::Anonymous, 12 * MIB)?;
    agent.settle()?;
    ensure!(eventfd.read() == Err(Errno::EAGAIN), "signalled after the end of the watch");
    charger.end()
}

vm_test!(
    watch_over_upgrades,
    "while agents follow one another and groups come and go, each group that stays is told once",
    V2,
    [Kernel, Variant]
);
fn watch_over_upgrades() -> Result<()> {
    const ROUNDS: usize = 4;
    let tree = Group::new("upgraded")?;
    tree.enable(true)?;
    let mut agent = Supervised::start(&[])?;
    let (mut watch, _) = Watcher::start(&["/upgraded/*", "4M,up", "removed"])?;
    for round in 0..ROUNDS {
        let (stays, comes) = (tree.child(&format!("s{round}"))?, tree.path.join(format!("c{round}")));
        let mut charger = Charger::start(&stays)?;
        agent.killed_while(|| {
            charger.grow(Kind::Anonymous, 8 * MIB)?;
            fs::create_dir(&comes)?;
            fs::remove_dir(&comes)?;
            Ok(())
        })?;
        let (mut told, mut notes) = (BTreeMap::<u64, u32>::new(), 0);
        let mut is_back = false;
        loop {
            let line = watch.line()?;
            if line.contains("\"type\":\"away\"") {
                continue;
            }
            if line.contains("\"type\":\"back\"") {
                is_back = true;
                continue;
            }
            match serde_json::from_str(&line).with_context(|| line.clone())? {
                Answer::Event(event) if event.event == "crossed" => *told.entry(event.id).or_default() += 1,
                Answer::Note(note) if note.reason == "again" => notes += 1,
                Answer::Missed { why, .. } if is_counted(&why) || is_told_later(&why) => {}
                Answer::Watching { .. } if is_back => break,
                other => bail!("{other:?}"),
            }
        }
        let id = id_of(&stays)?;
        ensure!(told == BTreeMap::from([(id, 1)]) && notes == 1, "round {round}, {id}: {told:?}, {notes}");
        charger.end()?;
        let path = stays.path.clone();
        stays.remove()?;
        watch.event_of(&path, "removed")?;
    }
    let last = tree.child("last")?;
    let mut charger = Charger::start(&last)?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    watch.event_of(&last.path, "crossed")?;
    charger.end()
}

vm_test!(
    watch_in_a_cgroup_namespace,
    "patterns are of paths below the namespace's root, and no group outside is told of",
    V2,
    [Kernel, Variant]
);
fn watch_in_a_cgroup_namespace() -> Result<()> {
    let (node, beside) = (Group::new("node")?, Group::new("beside")?);
    let mut outside = Charger::start(&beside)?;
    run_in_namespace(&node, || {
        let root = Group::root()?;
        let old = root.child("inner")?;
        let _agent = Agent::start(&[])?;
        let (mut watch, groups) = Watcher::start(&["/inner*", "/node/**", "/beside", "4M,up", "removed"])?;
        ensure!(groups == 1, "{groups} groups");
        outside.grow(Kind::Anonymous, 8 * MIB)?;
        let new = root.child("inner-new")?;
        let mut told: Vec<PathBuf> = Vec::new();
        for group in [&old, &new] {
            let mut charger = Charger::start(group)?;
            charger.grow(Kind::Anonymous, 8 * MIB)?;
            // A kernel that steps back from a threshold crosses it more than once.
            while told.last() != Some(&group.path) {
                let event = watch.event()?;
                ensure!(event.event == "crossed", "{event:?}");
                told.push(event.cgroup.into());
            }
            charger.end()?;
        }
        new.remove()?;
        let removed = loop {
            let event = watch.event()?;
            told.push(PathBuf::from(&event.cgroup));
            if event.event == "removed" {
                break event;
            }
        };
        ensure!(removed.cgroup.ends_with("/inner-new"), "{removed:?}");
        let is_of_these = |path: &PathBuf| *path == old.path || path.ends_with("inner-new");
        ensure!(told.iter().all(is_of_these), "{told:?}");
        Ok(())
    })
}

/// Makes groups below `tree`, each of which a process enters and leaves; returns their ids.
fn populate_and_remove(tree: &Path, count: usize) -> Result<Vec<u64>> {
    let mut ids = Vec::new();
    for number in 0..count {
        let path = tree.join(format!("g{number}"));
        fs::create_dir(&path)?;
        ids.push(fs::metadata(&path)?.ino());
        process::run(|| Ok(fs::write(path.join("cgroup.procs"), "0")?))?;
        fs::remove_dir(&path)?;
    }
    Ok(ids)
}

vm_test!(
    watch_early_events,
    "a group that was populated and removed before it was registered on is told as empty, and as removed",
    V2,
    [Kernel, Variant, Standing]
);
fn watch_early_events() -> Result<()> {
    const GROUPS: usize = 60;
    let tree = Group::new("early")?;
    tree.enable(true)?;
    let _agent = Agent::standing()?;
    let (mut watch, _) = Watcher::start(&["/early/*", "empty", "removed"])?;
    let _never = tree.child("never")?;
    let ids = populate_and_remove(&tree.path, GROUPS)?;
    let (mut empty, mut removed, mut unseen, mut late) = (BTreeMap::<u64, u32>::new(), 0, 0, 0);
    // In no order: what a group did that is leaving is told once the kernel has written it.
    let missing = |empty: &BTreeMap<u64, u32>| ids.iter().filter(|id| !empty.contains_key(id)).count();
    while missing(&empty) > unseen || removed + unseen < GROUPS {
        match watch.answer()? {
            Answer::Event(event) => match event.event.as_str() {
                "removed" => removed += 1,
                "empty" => {
                    late += usize::from(event.late);
                    *empty.entry(event.id).or_default() += 1;
                }
                _ => bail!("{event:?}"),
            },
            Answer::Missed { count, why } if is_counted(&why) || why.contains("were found late") => {
                unseen += usize::try_from(count)?;
            }
            Answer::Missed { why, .. } if is_told_later(&why) => {}
            other => bail!("{other:?}"),
        }
    }
    let others = empty.keys().filter(|id| !ids.contains(id)).count();
    ensure!(others == 0, "{others} groups that no process was in");
    crate::harness::report::say!("{late} told late, {unseen} counted");
    Ok(())
}

vm_test!(
    watch_notes,
    "a threshold above the limit, also one that is lowered later, or above the host's memory is noted once for a group",
    V2,
    [Kernel, Standing]
);
fn watch_notes() -> Result<()> {
    let tree = Group::new("noted")?;
    let (first, second) = (tree.child("a")?, tree.child("b")?);
    let _agent = Agent::standing()?;
    let (mut watch, _) = Watcher::start(&["/noted/*", "32M", "8192G,up"])?;
    let mut note = || -> Result<NoteRow> {
        loop {
            match watch.answer()? {
                Answer::Note(note) => return Ok(note),
                other => ensure!(matches!(other, Answer::Event(_)), "{other:?}"),
            }
        }
    };
    let host = note()?;
    ensure!(host.reason == "above_host" && host.groups == 2, "{host:?}");
    ensure!(host.spec.as_deref() == Some("8192G,up"), "{host:?}");
    for group in [&first, &second] {
        group.set_limit(16 * MIB)?;
        // Nothing is noted again of those before; the limit is what 8192G are above now, too.
        let low = note()?;
        ensure!(low.reason == "above_limit" && low.limit == Some(16 * MIB) && low.groups == 1, "{low:?}");
        ensure!(low.cgroup.as_deref().map(Path::new) == Some(&*group.path), "{low:?}");
        ensure!(low.spec.as_deref() == Some("32M"), "{low:?}");
    }
    let third = tree.child("c")?;
    third.set_limit(16 * MIB)?;
    let new = note()?;
    ensure!(new.cgroup.as_deref().map(Path::new) == Some(&*third.path), "{new:?}");
    Ok(())
}
