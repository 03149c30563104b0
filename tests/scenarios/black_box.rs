//! The black box: the curve up to an OOM kill in a file, what is in it, and what it outlives.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use memcg_monitor::black_box::{RecordReason, Recording};
use monitor_common::grammar::control_file::ControlFile;
use nix::sys::signal::Signal;

use super::restart::Supervised;
use crate::harness::MIB;
use crate::harness::agent::{Agent, BINARY, until};
use crate::harness::block;
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::test::vm_test;

/// A directory of the test's own for the files.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/run/black-box-{name}"));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn option(&self) -> String {
        format!("--black-box-dir={}", self.0.display())
    }

    /// The files of a group that there are, the oldest first.
    fn files(&self, group: &Group) -> Vec<PathBuf> {
        let name = group.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let all = fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_of_it = |path: &PathBuf| path.to_string_lossy().ends_with(&format!("-{name}.jsonl"));
        let mut files: Vec<PathBuf> = all.filter(is_of_it).collect();
        files.sort();
        files
    }

    /// Waits for a file of a group, and reads it.
    fn awaited(&self, group: &Group) -> Result<Recording> {
        until("the file is there", || Ok(!self.files(group).is_empty()))?;
        read(self.files(group).last().context("a file")?)
    }

    /// Waits for a file of a kill in a group, and reads the latest.
    fn awaited_of_kill(&self, group: &Group) -> Result<Recording> {
        let mut found = None;
        until("the file of the kill is there", || {
            let files = self.files(group).into_iter().rev().map(|file| read(&file));
            found = files.flatten().find(|file| file.header.reason == RecordReason::Oom);
            Ok(found.is_some())
        })?;
        found.context("a file")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn read(path: &Path) -> Result<Recording> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Recording::read(&text[..]).with_context(|| path.display().to_string())
}

fn command(arguments: &[&str]) -> Result<Output> {
    Command::new(BINARY).args(arguments).output().with_context(|| format!("cannot run {arguments:?}"))
}

/// Has the agent write a file of a group, and reads it.
fn recorded(group: &Group) -> Result<Recording> {
    let output = command(&["record", &group.path.to_string_lossy()])?;
    let (out, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{why}");
    read(Path::new(out.trim_end()))
}

/// Waits until a group is recorded, and returns what is by then.
fn is_recorded(group: &Group) -> Result<Recording> {
    let mut recording = None;
    until("the group is recorded", || {
        recording = recorded(group).ok();
        Ok(recording.is_some())
    })?;
    recording.context("a recording")
}

/// Grows by single megabytes, so that each is a step of its own.
fn grow_by_steps(charger: &mut Charger, megabytes: u64) -> Result<()> {
    (0..megabytes).try_for_each(|_| charger.grow(Kind::Anonymous, MIB))
}

vm_test!(
    black_box_of_an_oom_kill,
    "the file of an OOM kill has the curve up to the limit, the limit, the threshold, its signal and the victim",
    V2,
    [Kernel, Quick]
);
fn black_box_of_an_oom_kill() -> Result<()> {
    let place = Place::new("kill");
    let group = Group::new("boxed")?;
    group.set_limit(48 * MIB)?;
    let agent = Agent::start(&["--black-box=/boxed", &place.option()])?;
    is_recorded(&group)?;
    for file in place.files(&group) {
        fs::remove_file(file)?;
    }
    let waiter = Waiter::on(&group, "32M")?;
    let mut charger = Charger::start(&group)?;
    let pid = u32::try_from(charger.pid().as_raw())?;
    grow_by_steps(&mut charger, 40)?;
    charger.grow_to_death(128 * MIB)?;
    ensure!(waiter.wait()? >= 1, "signalled");
    let recording = place.awaited(&group)?;
    ensure!(recording.is_complete && recording.header.reason == RecordReason::Oom, "{:?}", recording.header);
    ensure!(recording.header.group == "/boxed" && recording.header.precision.as_deref() == Some("exact"));
    let kill = recording.kills.first().context("a kill")?;
    ensure!(kill.pid == Some(pid) && kill.limit_of.as_deref() == Some("/boxed"), "{kill:?}");
    ensure!(!recording.ooms.is_empty(), "an OOM");
    ensure!(
        recording.limits.last().and_then(|limit| limit.bytes) == Some(48 * MIB),
        "{:?}",
        recording.limits
    );
    ensure!(
        recording.registrations.iter().any(|one| one.bytes == Some(32 * MIB)),
        "{:?}",
        recording.registrations
    );
    ensure!(recording.signals.iter().any(|one| one.bytes >= Some(32 * MIB)), "{:?}", recording.signals);
    // The curve: no more than a few steps beside each megabyte, up to the limit, and down again.
    let step = recording.header.step.context("a step")?;
    let points: Vec<u64> = recording.usage.iter().map(|point| point.bytes).collect();
    let highest = points.iter().copied().max().unwrap_or(0);
    ensure!(highest + 2 * step >= 48 * MIB, "{highest} of {points:?}");
    for level in 2..40 {
        let (at, near) = (level * MIB, step + MIB);
        ensure!(
            points.iter().any(|bytes| bytes.abs_diff(at) <= near),
            "no point near {level} MiB: {points:?}"
        );
    }
    let report = command(&["report", "--format", "html", &place.files(&group)[0].to_string_lossy()])?;
    let page = String::from_utf8_lossy(&report.stdout).into_owned();
    ensure!(report.status.success() && page.contains(&format!("({pid})")), "{page}");
    ensure!(agent.end(Signal::SIGTERM)? == 0, "exit code");
    Ok(())
}

vm_test!(
    black_box_of_a_new_group,
    "a group that is made while the agent runs is recorded, one that no pattern is for is not; a box is free again",
    V2,
    [Kernel]
);
fn black_box_of_a_new_group() -> Result<()> {
    let place = Place::new("new");
    let agent = Agent::start(&["--black-box=/made-*", "--black-box-groups", "1", &place.option()])?;
    let (other, group) = (Group::new("other")?, Group::new("made-1")?);
    let mut charger = Charger::start(&group)?;
    let before = is_recorded(&group)?.usage.len();
    grow_by_steps(&mut charger, 8)?;
    let after = recorded(&group)?;
    ensure!(after.usage.len() >= before + 6 && after.header.reason == RecordReason::Request, "{after:?}");
    for (given, said) in [
        (&*other.path.to_string_lossy(), "/other is not recorded: no --black-box pattern"),
        // A directory of another file system is no group, whatever its inode.
        ("/", "/ is not recorded: the root group"),
        ("/proc", "ENOENT: No such file or directory; name a group by its directory"),
    ] {
        let refused = command(&["record", given])?;
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(1) && why.contains(said), "{given}: {why}");
    }
    let full = Group::new("made-2")?;
    until("the log says that no box is left", || Ok(Agent::log().contains("all 1 boxes are taken")))?;
    ensure!(!command(&["record", &full.path.to_string_lossy()])?.status.success(), "there is one box");
    ensure!(agent.end(Signal::SIGTERM)? == 0, "exit code");
    Ok(())
}

vm_test!(
    black_box_outlives_the_agent,
    "kill -9: points from before, and from while there was no agent, are in the next one's file",
    V2,
    [Kernel]
);
fn black_box_outlives_the_agent() -> Result<()> {
    let place = Place::new("again");
    let group = Group::new("again")?;
    let mut agent = Supervised::start(&["--black-box=/again", &place.option()])?;
    is_recorded(&group)?;
    let mut charger = Charger::start(&group)?;
    grow_by_steps(&mut charger, 8)?;
    let before = recorded(&group)?;
    agent.killed_while(|| grow_by_steps(&mut charger, 8))?;
    let after = is_recorded(&group)?;
    ensure!(after.limits == before.limits, "{before:?} {after:?}");
    // The last one is usage as it was then, less than a step from a point.
    let points = before.usage.split_last().map_or(&[][..], |(_, points)| points);
    ensure!(points.iter().all(|point| after.usage.contains(point)), "{before:?} {after:?}");
    ensure!(
        after.usage.len() >= before.usage.len() + 6,
        "{} after {}",
        after.usage.len(),
        before.usage.len()
    );
    Ok(())
}

vm_test!(black_box_is_off, "without --black-box nothing is recorded, and the message says so", Any, [Kernel]);
fn black_box_is_off() -> Result<()> {
    let group = Group::new("off")?;
    let agent = Agent::start(&[])?;
    let refused = command(&["record", &group.path.to_string_lossy()])?;
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && why.contains("the agent runs without --black-box"), "{why}");
    ensure!(agent.end(Signal::SIGTERM)? == 0, "exit code");
    Ok(())
}

vm_test!(
    black_box_below_a_recorded_group,
    "usage of a recorded group is seen from groups below it, with thresholds there or not",
    V2,
    [Kernel]
);
fn black_box_below_a_recorded_group() -> Result<()> {
    let place = Place::new("below");
    let group = Group::new("above")?;
    let (one, two) = (group.child("one")?, group.child("two")?);
    let agent = Agent::start(&["--black-box=/above", &place.option()])?;
    is_recorded(&group)?;
    let (mut first, mut second) = (Charger::start(&one)?, Charger::start(&two)?);
    let waiter = Waiter::at(&two, ControlFile::Usage, "4M")?;
    let before = recorded(&group)?.usage.len();
    grow_by_steps(&mut first, 8)?;
    grow_by_steps(&mut second, 8)?;
    ensure!(waiter.wait()? >= 1, "signalled");
    drop(waiter);
    let after = recorded(&group)?.usage.len();
    ensure!(after >= before + 12, "{after} after {before}");
    ensure!(agent.end(Signal::SIGTERM)? == 0, "exit code");
    Ok(())
}

vm_test!(
    black_box_sampled,
    "an agent that samples records what it samples, and says so",
    Any,
    [Kernel, Sampled]
);
fn black_box_sampled() -> Result<()> {
    let place = Place::new("sampled");
    let group = Group::new("slow")?;
    let path = format!("--black-box=/**/{}", "slow");
    let agent = Agent::start(&["--backend", "sampled", &path, &place.option()])?;
    let mut charger = Charger::start(&group)?;
    let before = is_recorded(&group)?;
    ensure!(before.header.precision.as_deref() == Some("sampled"), "{:?}", before.header);
    charger.grow(Kind::Anonymous, 16 * MIB)?;
    until("a sample is a point", || {
        let usage = recorded(&group)?.usage;
        Ok(usage.last().is_some_and(|point| point.bytes >= 16 * MIB))
    })?;
    ensure!(Agent::log().contains("the black box samples usage every 100 ms"), "{}", Agent::log());
    ensure!(agent.end(Signal::SIGTERM)? == 0, "exit code");
    Ok(())
}

vm_test!(
    black_box_of_a_logged_kill,
    "an agent that samples writes a file at a kill, with the victim as the kernel logged it",
    V2,
    [Kernel, Sampled]
);
fn black_box_of_a_logged_kill() -> Result<()> {
    let place = Place::new("logged");
    let group = Group::new("logged")?;
    group.set_limit(24 * MIB)?;
    let agent = Agent::start(&["--backend", "sampled", "--black-box=/logged", &place.option()])?;
    is_recorded(&group)?;
    for file in place.files(&group) {
        fs::remove_file(file)?;
    }
    let mut charger = Charger::start(&group)?;
    let pid = u32::try_from(charger.pid().as_raw())?;
    charger.grow_to_death(64 * MIB)?;
    let recording = place.awaited_of_kill(&group)?;
    ensure!(recording.is_complete, "{:?}", recording.header);
    let kill = recording.kills.first().context("a kill")?;
    ensure!(recording.kills.len() == 1 && kill.pid == Some(pid), "{:?}", recording.kills);
    ensure!(kill.limit_of.as_deref() == Some("/logged"), "{kill:?}");
    ensure!(kill.victim_group.as_deref() == Some("/logged") && kill.anon_rss > Some(8 * MIB), "{kill:?}");
    ensure!(agent.end(Signal::SIGTERM)? == 0, "exit code");
    Ok(())
}

vm_test!(
    black_box_of_reclaim,
    "windows of reclaim in a recorded group are noted without a registration, and those of others are not looked at",
    V2,
    [Kernel]
);
fn black_box_of_reclaim() -> Result<()> {
    let _disk = block::disk()?;
    let place = Place::new("reclaim");
    let (group, other) = (Group::new("squeezed")?, Group::new("elsewhere")?);
    let agent = Agent::start(&["--black-box=/squeezed", &place.option()])?;
    is_recorded(&group)?;
    for group in [&group, &other] {
        group.set_limit(8 * MIB)?;
        // Pages of the disk, which reclaim frees.
        Charger::start(group)?.read_disk(64 * MIB)?;
    }
    until("a window is noted", || Ok(!recorded(&group)?.pressure.is_empty()))?;
    let recording = recorded(&group)?;
    ensure!(recording.signals.is_empty(), "nothing is registered: {:?}", recording.signals);
    ensure!(agent.end(Signal::SIGTERM)? == 0, "exit code");
    Ok(())
}

vm_test!(
    black_box_notes_outlive_the_agent,
    "kill -9: signals, limits and kills from before are in the next one's file once, and the file that was due is written",
    V2,
    [Kernel]
);
fn black_box_notes_outlive_the_agent() -> Result<()> {
    let place = Place::new("notes");
    let group = Group::new("noted")?;
    group.set_limit(32 * MIB)?;
    let mut agent = Supervised::start(&["--black-box=/noted", &place.option()])?;
    is_recorded(&group)?;
    let waiter = Waiter::on(&group, "8M")?;
    let mut charger = Charger::start(&group)?;
    let pid = u32::try_from(charger.pid().as_raw())?;
    charger.grow_to_death(64 * MIB)?;
    ensure!(waiter.wait()? >= 1, "signalled");
    // The file of the kill has what was noted by then.
    place.awaited_of_kill(&group)?;
    let before = recorded(&group)?;
    ensure!(before.kills.len() == 1 && !before.signals.is_empty() && !before.limits.is_empty(), "{before:?}");
    for _ in 0..2 {
        agent.killed_while(|| Ok(()))?;
        let after = is_recorded(&group)?;
        ensure!(after.kills == before.kills && after.limits == before.limits, "{before:?} {after:?}");
        ensure!(after.signals.starts_with(&before.signals), "{before:?} {after:?}");
    }
    ensure!(before.kills.first().is_some_and(|kill| kill.pid == Some(pid)), "{:?}", before.kills);
    // A file that is due when the agent is killed is the next one's.
    for file in place.files(&group) {
        fs::remove_file(file)?;
    }
    Charger::start(&group)?.grow_to_death(64 * MIB)?;
    agent.killed_while(|| Ok(()))?;
    let file = place.awaited_of_kill(&group)?;
    ensure!(file.kills.len() == 2, "{:?}", file.kills);
    Ok(())
}
