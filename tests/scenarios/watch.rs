//! `memcg-monitor watch`: all groups that match, those to come included.

mod users;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use monitor_client::wire::{Answer, EventRow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::MIB;
use crate::harness::agent::{Agent, BINARY, until};
use crate::harness::charger::{Charger, Kind, Pages};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::process::{self, Process};
use crate::harness::report::say;
use crate::harness::test::vm_test;
use crate::scenarios::restart::Supervised;

/// A `watch` that runs; killed with the value.
pub(super) struct Watcher {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watcher {
    /// Starts one, and waits until it watches all groups that there are.
    pub(super) fn start(arguments: &[&str]) -> Result<(Self, u64)> {
        Self::start_with(arguments, |_| {})
    }

    fn start_with(arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Result<(Self, u64)> {
        let mut watcher = Self::spawn(arguments, prepare)?;
        let groups = loop {
            match watcher.answer()? {
                Answer::Watching { groups } => break groups,
                other => ensure!(matches!(other, Answer::Event(_)), "{other:?} before the beginning"),
            }
        };
        Ok((watcher, groups))
    }

    fn spawn(arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Result<Self> {
        let mut command = Command::new(BINARY);
        command.args(["watch", "-o", "json"]).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        prepare(&mut command);
        process::kill_with_parent(&mut command);
        let mut child = command.spawn().context("cannot start watch")?;
        let lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        Ok(Self { child, lines })
    }

    fn line(&mut self) -> Result<String> {
        self.lines.next().context("watch ended")?.context("cannot read")
    }

    pub(super) fn answer(&mut self) -> Result<Answer> {
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("{line:?} is no answer"))
    }

    fn event(&mut self) -> Result<EventRow> {
        loop {
            match self.answer()? {
                Answer::Event(event) => return Ok(event),
                // The limit of some group is below one of the thresholds.
                Answer::Note(_) => {}
                Answer::Missed { why, .. } if is_told_later(&why) => {}
                other => bail!("{other:?} is no event"),
            }
        }
    }

    /// Waits for the next event in `group` of this kind, past those of others.
    fn event_of(&mut self, group: &Path, kind: &str) -> Result<EventRow> {
        loop {
            let event = self.event()?;
            if Path::new(&event.cgroup) == group && event.event == kind {
                return Ok(event);
            }
        }
    }

    /// Waits for these crossings in `group`, each a specification and a direction, in any order; and
    /// for no other. A kernel that steps back from a threshold crosses it more than once.
    fn crossings(&mut self, group: &Path, expected: &[&str]) -> Result<Vec<EventRow>> {
        let mut missing: BTreeSet<&str> = expected.iter().copied().collect();
        let mut found = Vec::new();
        while !missing.is_empty() {
            let event = self.event_of(group, "crossed")?;
            let (spec, direction) = (event.spec.as_deref(), event.direction.as_deref());
            let words = format!("{} {}", spec.unwrap_or_default(), direction.unwrap_or_default());
            ensure!(
                missing.remove(&*words) || expected.contains(&&*words),
                "{words} is not one of {expected:?}"
            );
            found.push(event);
        }
        Ok(found)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn id_of(group: &Group) -> Result<u64> {
    Ok(fs::metadata(&group.path)?.ino())
}

vm_test!(
    watch_existing_and_new,
    "watch tells of thresholds, percents, emptying and removal in groups that match, existing and new, and in no other",
    V2,
    [Kernel, Variant, Quick, Standing]
);
fn watch_existing_and_new() -> Result<()> {
    let tree = Group::new("watched")?;
    let (old, other) = (tree.child("old")?, Group::new("other")?);
    old.set_limit(64 * MIB)?;
    let agent = Agent::standing()?;
    let (mut watch, groups) = Watcher::start(&["/watched/*", "6M,up", "50%,up", "24M", "empty", "removed"])?;
    ensure!(groups == 1, "{groups} groups");
    let new = tree.child("new")?;
    new.set_limit(16 * MIB)?;
    // What comes while a registration is made may be told twice.
    until("the new group is registered on", || Ok(agent.status()?.registrations == 10))?;
    let mut in_other = Charger::start(&other)?;
    in_other.grow(Kind::Anonymous, 30 * MIB)?;
    for (group, limit, words) in
        [(&old, 64 * MIB, &["6M,up up"][..]), (&new, 16 * MIB, &["6M,up up", "50%,up up"])]
    {
        let mut charger = Charger::start(group)?;
        charger.grow(Kind::Anonymous, 8 * MIB)?;
        for crossed in watch.crossings(&group.path, words)? {
            ensure!(crossed.id == id_of(group)? && crossed.limit == Some(limit), "{crossed:?}");
            ensure!(crossed.usage >= Some(6 * MIB) && !crossed.late, "{crossed:?}");
        }
        charger.end()?;
        watch.event_of(&group.path, "empty")?;
    }
    let mut charger = Charger::start(&old)?;
    charger.grow(Kind::Anonymous, 40 * MIB)?;
    charger.shrink(Kind::Anonymous)?;
    watch.crossings(&old.path, &["6M,up up", "24M up", "50%,up up", "24M down"])?;
    charger.end()?;
    let id = id_of(&new)?;
    new.remove()?;
    let removed = watch.event_of(&new.path, "removed")?;
    ensure!(removed.id == id && removed.spec.as_deref() == Some("removed"), "{removed:?}");
    agent.settle()?;
    ensure!(agent.status()?.registrations == 5, "those of the group that is there");
    drop(watch);
    until("the registrations have ended", || Ok(agent.status()?.registrations == 0))
}

vm_test!(
    watch_oom,
    "an OOM is told once, of the group whose limit it was, with the one who was killed; of a new group, too",
    V2,
    [Kernel]
);
fn watch_oom() -> Result<()> {
    let tree = Group::new("ooms")?;
    let agent = Agent::start(&[])?;
    let (mut watch, _) = Watcher::start(&["/ooms", "/ooms/**", "oom"])?;
    let group = tree.child("limited")?;
    let below = group.child("below")?;
    group.set_limit(8 * MIB)?;
    // Who was killed is told to those who are registered.
    until("the new groups are registered on", || Ok(agent.status()?.registrations == 3))?;
    Charger::start(&below)?.grow_to_death(64 * MIB)?;
    loop {
        let event = watch.event()?;
        ensure!(Path::new(&event.cgroup) == group.path, "told of another group: {event:?}");
        ensure!(event.origin.as_deref().map(Path::new) == Some(&*group.path), "{event:?}");
        if event.event == "oom_kill" {
            let victim = event.victim.context("no victim")?;
            ensure!(Path::new(&victim.cgroup) == below.path, "{victim:?}");
            return Ok(());
        }
        ensure!(event.event == "oom" && event.usage.is_some(), "{event:?}");
    }
}

/// Whether groups were missed in a way that is only counted.
fn is_counted(why: &str) -> bool {
    why.contains("called no program") || why.contains("were gone before what they had done")
}

/// Whether groups are only told later, on a machine that is busy.
fn is_told_later(why: &str) -> bool {
    why.contains("had no name that could be read")
}

/// Groups that each worker makes.
const GROUPS: usize = 200;
/// Processes that make groups.
const WORKERS: usize = 3;

/// Makes groups below `tree`, one after another; every third passes the threshold. Returns once each
/// is gone again.
fn churn(tree: &Path, worker: usize) -> Result<()> {
    // Another run in this machine may have left them.
    for log in ["exceeding", "others"] {
        fs::write(format!("/run/churn-{log}-{worker}"), "")?;
    }
    for number in 0..GROUPS {
        let path = tree.join(format!("w{worker}-{number}"));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let id = fs::metadata(&path)?.ino();
        fs::write(path.join("cgroup.procs"), "0").context("cannot enter a group")?;
        let exceeds = number % 3 == 0;
        drop(Pages::touch(if exceeds { 6 << 20 } else { 1 << 20 })?);
        fs::write(tree.join("cgroup.procs"), "0").or_else(|_| {
            // A group with the controller for those below it takes no process.
            fs::write("/sys/fs/cgroup/cgroup.procs", "0")
        })?;
        let log = if exceeds { "exceeding" } else { "others" };
        let line = format!("{id}\n");
        let file = format!("/run/churn-{log}-{worker}");
        let mut all = fs::read_to_string(&file).unwrap_or_default();
        all.push_str(&line);
        fs::write(&file, all)?;
        fs::remove_dir(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

vm_test!(
    watch_churn,
    "of groups that are made and removed as fast as can be, each that passed the threshold is told, and no other",
    V2,
    []
);
fn watch_churn() -> Result<()> {
    let tree = Group::new("churn")?;
    tree.enable(true)?;
    let agent = Agent::start(&[])?;
    let (mut watch, _) = Watcher::start(&["/churn/*", "4M,up"])?;
    let workers = (0..WORKERS)
        .map(|worker| {
            let tree = tree.path.clone();
            Process::start(move || churn(&tree, worker))
        })
        .collect::<Result<Vec<_>>>()?;
    workers.into_iter().try_for_each(Process::end)?;
    let ids = |log: &str| -> Result<BTreeSet<u64>> {
        let mut ids = BTreeSet::new();
        for worker in 0..WORKERS {
            let text = fs::read_to_string(format!("/run/churn-{log}-{worker}"))?;
            ids.extend(text.lines().filter_map(|line| line.parse::<u64>().ok()));
        }
        Ok(ids)
    };
    let (exceeding, others) = (ids("exceeding")?, ids("others")?);
    ensure!(exceeding.len() == WORKERS * GROUPS.div_ceil(3), "{} groups", exceeding.len());
    let mut told = BTreeMap::<u64, u32>::new();
    // Groups that the kernel called no program for; counted, and told by the second.
    let mut unseen = 0;
    // In no order: what a group did that is leaving is told once the kernel has written it.
    while told.len() + unseen < exceeding.len() {
        let event = match watch.answer()? {
            Answer::Event(event) => event,
            Answer::Missed { count, why } if is_counted(&why) => {
                unseen += usize::try_from(count)?;
                continue;
            }
            Answer::Missed { why, .. } if is_told_later(&why) => continue,
            other => bail!("{other:?} is no event"),
        };
        ensure!(event.lost == 0, "events were lost: {event:?}");
        ensure!(!others.contains(&event.id), "told of a group that stayed below: {event:?}");
        ensure!(exceeding.contains(&event.id), "told of an unknown group: {event:?}");
        ensure!(event.event == "crossed" && event.threshold == Some(4 * MIB), "{event:?}");
        *told.entry(event.id).or_default() += 1;
    }
    agent.settle()?;
    let twice = told.values().filter(|count| **count > 1).count();
    say!("{} groups told, {twice} of them more than once; {unseen} counted", told.len());
    // A removal that the kernel called no program for is found by a sweep.
    until("no registration is left", || Ok(agent.status()?.registrations == 0))?;
    // The slots of all these groups are free again: as many groups find room as there were before.
    until("no group is left in the table", || {
        let (rows, _) = agent.list()?;
        Ok(rows.iter().all(|row| !row.cgroup.contains("/churn/")))
    })
}

vm_test!(
    watch_over_a_restart,
    "watch goes on with the next agent, says so, and tells once what was passed meanwhile",
    V2,
    [Kernel]
);
fn watch_over_a_restart() -> Result<()> {
    let tree = Group::new("restarted")?;
    let (above, rises, stays) = (tree.child("above")?, tree.child("rises")?, tree.child("stays")?);
    let mut agent = Supervised::start(&[])?;
    let (mut watch, groups) = Watcher::start(&["/restarted/*", "4M"])?;
    ensure!(groups == 3, "{groups} groups");
    let mut first = Charger::start(&above)?;
    first.grow(Kind::Anonymous, 8 * MIB)?;
    watch.event_of(&above.path, "crossed")?;
    let mut second = Charger::start(&rises)?;
    let mut third = Charger::start(&stays)?;
    third.grow(Kind::Anonymous, MIB)?;
    agent.killed_while(|| second.grow(Kind::Anonymous, 8 * MIB))?;
    let mut seen = Vec::new();
    loop {
        let line = watch.line()?;
        if line.contains("\"type\":\"event\"") {
            let Answer::Event(event) = serde_json::from_str(&line)? else { bail!("{line}") };
            // A kernel that steps back from a threshold crosses it more than once.
            let is_of_before = event.cgroup == above.path.to_string_lossy() && seen.is_empty();
            ensure!(is_of_before || event.cgroup == rises.path.to_string_lossy() && event.late, "{line}");
            if event.late {
                seen.push("late");
            }
        } else if line.contains("\"type\":\"away\"") {
            seen.push("away");
        } else if line.contains("\"type\":\"back\"") {
            seen.push("back");
        } else {
            ensure!(line.contains("\"type\":\"watching\""), "{line}");
            break;
        }
    }
    ensure!(seen == ["away", "back", "late"], "{seen:?}");
    first.shrink(Kind::Anonymous)?;
    let down = watch.event_of(&above.path, "crossed")?;
    ensure!(down.direction.as_deref() == Some("down") && !down.late, "{down:?}");
    Ok(())
}

vm_test!(
    watch_slow_reader,
    "a watch that is not read holds up no other client, and is told everything once it is read again",
    V2,
    []
);
fn watch_slow_reader() -> Result<()> {
    const GROUPS: usize = 300;
    const WORDS: [&str; 4] = ["removed"; 4];
    let tree = Group::new("slow")?;
    tree.enable(true)?;
    let other = Group::new("other")?;
    let agent = Agent::start(&[])?;
    let (mut watch, _) = Watcher::start(&[&["/slow/*"], &WORDS[..]].concat())?;
    let slow = Pid::from_raw(watch.child.id().try_into()?);
    kill(slow, Signal::SIGSTOP)?;
    let client = Waiter::on(&other, "4M,up")?;
    // Of more bytes than its socket holds, so the rest waits in the watch's queue.
    for number in 0..GROUPS {
        let path = tree.path.join(format!("g{number}"));
        fs::create_dir(&path)?;
        fs::remove_dir(&path)?;
    }
    // Groups are met in their order, so all those have been.
    let _last = tree.child("last")?;
    until("the last group is registered on", || Ok(agent.status()?.registrations == 5))?;
    let mut charger = Charger::start(&other)?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    client.receives(1, "another client is signalled meanwhile")?;
    kill(slow, Signal::SIGCONT)?;
    let mut told = 0;
    let mut unseen = 0;
    while told + unseen * WORDS.len() < GROUPS * WORDS.len() {
        match watch.answer()? {
            Answer::Event(event) => {
                ensure!(event.event == "removed" && event.lost == 0, "{event:?}");
                told += 1;
            }
            Answer::Missed { count, why } if is_counted(&why) => {
                unseen += usize::try_from(count)?;
            }
            Answer::Missed { why, .. } if is_told_later(&why) => {}
            other => bail!("{other:?} is no event"),
        }
    }
    Ok(())
}

vm_test!(
    watch_acts,
    "watch runs a command with the event, one at a time for a group, and signals a group's oldest process",
    V2,
    [Standing]
);
fn watch_acts() -> Result<()> {
    let tree = Group::new("acts")?;
    let group = tree.child("one")?;
    let _agent = Agent::standing()?;
    let out = Path::new("/run/watch-acts");
    let _ = fs::remove_dir_all(out);
    fs::create_dir(out)?;
    // Two that run at once would find the directory there.
    let command = "mkdir /run/watch-acts/lock && echo $MEMCG_EVENT $MEMCG_SPEC >> /run/watch-acts/events && \
        cat >> /run/watch-acts/events && rmdir /run/watch-acts/lock";
    let mut charger = Charger::start(&group)?;
    let words = ["/acts/*", "4M,up", "--exec", command, "--signal", "KILL", "--to", "main"];
    let (mut watch, _) = Watcher::start(&words)?;
    charger.begin_grow(Kind::Anonymous, 8 * MIB)?;
    let event = watch.event_of(&group.path, "crossed")?;
    until("the command has run", || Ok(out.join("events").exists() && !out.join("lock").exists()))?;
    let text = fs::read_to_string(out.join("events"))?;
    let (first, second) = text.split_once('\n').context("the event on the input")?;
    ensure!(first == "crossed 4M,up", "{text}");
    let Answer::Event(on_input) = serde_json::from_str(second)? else { bail!("{text}") };
    ensure!((on_input.id, on_input.usage) == (event.id, event.usage), "{text}");
    until("the process is killed", || Ok(crate::scenarios::restart::is_dead(charger.pid())))?;
    drop(watch);
    Ok(())
}
