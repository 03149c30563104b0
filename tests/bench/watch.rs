//! `cargo xtask bench watch`: `memcg-monitor watch '/**'` over 10,000 groups, each of which crosses a
//! threshold, while others are made and removed, 1,000 a second if the machine can: that all of it
//! is told, what agent and client run and hold for it, and what it adds to a page fault. The host boots us
//! with one CPU and icount: a nanosecond is an instruction.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use monitor_client::wire::Answer;
use nix::unistd::Pid;

use super::Scope;
use super::charge::settle;
use super::groups::{Groups, Rounds, Visitor};
use super::scale::cost::Held;
use super::subject::{Subject, Work};
use crate::harness::MIB;
use crate::harness::agent::{Agent, BINARY, until};
use crate::harness::charger::{Charger, Kind, Pages};
use crate::harness::client::page;
use crate::harness::group::Group;
use crate::harness::init::Hierarchy;
use crate::harness::process::{self, Process};
use crate::harness::report::{rounded, row, say};

const HELD: &str = "bytes for each group of a watch, with 2 words";
const RAN: &str = "instructions a second of a watch";
const TOLD: &str = "told by a watch";
const FAULT: &str = "a fault in a group of a watch, instructions";

/// The watch's words: groups cross upwards, and are removed.
const WORDS: [&str; 2] = ["300K,up", "removed"];
/// Pages of a group that crosses: more than the threshold, also where the kernel charges one by one.
const PAGES: u32 = 80;
/// The one of so many new groups that crosses.
const CROSSES: u64 = 10;
/// New groups between two looks at the clock.
const BATCH: u64 = 50;
/// New groups in a second, where the machine is fast enough.
const A_SECOND: u64 = 1000;

/// New groups between two lines of progress: emulated, 20,000 take minutes.
const SAID: u64 = 2000;

/// The file that the client writes to, and that of what was made.
const LINES: &str = "/run/watch.lines";
const MADE: &str = "/run/watch.made";

pub(crate) fn run(scope: Scope, _hierarchy: Hierarchy) -> Result<()> {
    let groups = Groups::make(scope.of(10_000, 20))?;
    let home = Group::new("home")?;
    let tree = Group::new("churn")?;
    tree.enable(true)?;
    let mut visitor = Visitor::start(&groups, &home)?;
    let faults = Group::new("faults")?;
    // Above the threshold for good, so that no fault crosses it.
    let mut above = Charger::start(&faults)?;
    above.grow(Kind::Anonymous, 8 * MIB)?;
    let mut subject = Subject::start(&faults)?;
    let agent = Agent::start(&[])?;
    let before = Held::by(&agent)?;
    let watch = Watch::start(&WORDS)?;
    let begun = watch.begun()?;
    let held = [Held::by(&agent)?, Held::of(watch.pid()?)?];
    let each = |bytes: u64| rounded(bytes as f64 / begun as f64, 0);
    row(
        HELD,
        &format!("{begun} groups"),
        &[("agent", each(held[0].anonymous - before.anonymous)), ("client, all", each(held[1].anonymous))],
    );
    row(
        RAN,
        "the beginning, for each group",
        &[("agent", each(held[0].ran - before.ran)), ("client", each(held[1].ran))],
    );

    say!("nothing happens");
    let still = scope.of(10, 1);
    // What was begun is to end.
    sleep(Duration::from_secs(2));
    let (before, start) = (watch.ran(&agent)?, Instant::now());
    sleep(Duration::from_secs(still));
    watch.report(&agent, "nothing happens", before, start)?;
    settle(&mut subject)?;
    let with = subject.measure(Work::Batch)?;

    say!("all groups cross");
    let seconds = scope.of(20, 1);
    let (before, start) = (watch.ran(&agent)?, Instant::now());
    let rounds = Rounds { count: 1, pages: PAGES, stay: false, time: Duration::from_secs(seconds) };
    visitor.begin(rounds)?;
    visitor.end()?;
    watch.report(
        &agent,
        &format!("{} groups a second cross", groups.leaves.len() as u64 / seconds),
        before,
        start,
    )?;

    let (before, start) = (watch.ran(&agent)?, Instant::now());
    let count = scope.of(A_SECOND, 50) * seconds;
    say!("all groups cross, and others come and go");
    let path = tree.path.clone();
    let maker = Process::start(move || churn(&path, count))?;
    visitor.begin(rounds)?;
    maker.end()?;
    let took = start.elapsed();
    visitor.end()?;
    say!("what is still to be told");
    watch.settled(&agent)?;
    let rate = count as f64 / took.as_secs_f64();
    say!("{count} groups were made and removed in {:.1} s of guest time", took.as_secs_f64());
    let what = format!("the same, and {rate:.0} groups a second that come and go");
    watch.report(&agent, &what, before, start)?;
    let after = Held::by(&agent)?;
    let grown = 100.0 * (after.resident as f64 - held[0].resident as f64) / held[0].resident as f64;
    row(TOLD, "resident memory of the agent afterwards, %", &[("", rounded(grown, 2))]);
    check(&groups, &[&home, &tree, &faults])?;

    // Last, since the kernel does not come to rest soon after 10,000 groups were made.
    drop(watch);
    until("the registrations have ended", || Ok(agent.status()?.registrations == 0))?;
    settle(&mut subject)?;
    let without = subject.measure(Work::Batch)?;
    let added = rounded(100.0 * (with - without) / without, 2);
    row(FAULT, &format!("watched, one of {begun} groups"), &[("", rounded(with, 1)), ("added, %", added)]);
    row(FAULT, "no threshold anywhere", &[("", rounded(without, 1))]);
    above.end()
}

/// A `watch` of all groups that writes to a file; killed with the value.
pub(super) struct Watch(Child);

impl Watch {
    pub(super) fn start(words: &[&str]) -> Result<Self> {
        let lines = File::create(LINES).with_context(|| format!("cannot make {LINES}"))?;
        let mut command = Command::new(BINARY);
        command.args(["watch", "-o", "json", "/**"]).args(words).stdin(Stdio::null()).stdout(lines);
        process::kill_with_parent(&mut command);
        Ok(Self(command.spawn().context("cannot start watch")?))
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(self.0.id().try_into()?))
    }

    /// Waits until it watches all groups that there are; returns how many.
    pub(super) fn begun(&self) -> Result<u64> {
        let mut found = None;
        until("the watch has begun", || {
            for answer in answers()? {
                if let Answer::Watching { groups } = answer {
                    found = Some(groups);
                }
            }
            Ok(found.is_some())
        })?;
        found.context("no number of groups")
    }

    /// Instructions so far, of the agent and of the client.
    fn ran(&self, agent: &Agent) -> Result<[u64; 2]> {
        Ok([agent.on_cpu()?, process::on_cpu(self.0.id())?])
    }

    fn report(&self, agent: &Agent, what: &str, before: [u64; 2], start: Instant) -> Result<()> {
        let (after, time) = (self.ran(agent)?, start.elapsed().as_secs_f64());
        let each = |at: usize| rounded((after[at] - before[at]) as f64 / time, 0);
        row(RAN, what, &[("agent", each(0)), ("client", each(1))]);
        Ok(())
    }

    /// Waits until nothing more is told.
    fn settled(&self, agent: &Agent) -> Result<()> {
        agent.settle()?;
        let length = || Ok::<_, anyhow::Error>(fs::metadata(LINES)?.len());
        let mut before = length()?;
        for _ in 0..60 {
            // Longer than what is counted waits to be told.
            sleep(Duration::from_secs(3));
            let now = length()?;
            if now == before {
                return Ok(());
            }
            before = now;
        }
        bail!("the watch goes on telling")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn answers() -> Result<Vec<Answer>> {
    let text = fs::read_to_string(LINES).with_context(|| format!("cannot read {LINES}"))?;
    // The last line may be on its way.
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    whole
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("{line:?} is no answer")))
        .collect()
}

/// Makes groups and removes them, at most [`A_SECOND`] in a second, and writes which crossed.
fn churn(tree: &Path, count: u64) -> Result<()> {
    let start = Instant::now();
    let mut made = String::new();
    for number in 0..count {
        let path = tree.join(number.to_string());
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let (id, crosses) = (fs::metadata(&path)?.ino(), number % CROSSES == 0);
        if crosses {
            fs::write(path.join("cgroup.procs"), "0").context("cannot enter a group")?;
            drop(Pages::touch(usize::try_from(u64::from(PAGES) * page())?)?);
            fs::write("/sys/fs/cgroup/cgroup.procs", "0").context("cannot leave a group")?;
        }
        fs::remove_dir(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        made += &format!("{id} {crosses}\n");
        if number > 0 && number % SAID == 0 {
            say!("{number} of {count}");
        }
        if number % BATCH == 0 {
            let due = start + Duration::from_millis(1000 * number / A_SECOND);
            sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    fs::write(MADE, made).with_context(|| format!("cannot write {MADE}"))
}

/// Compares what was told with what has happened; `others` may cross, too, as may the parents.
fn check(groups: &Groups, others: &[&Group]) -> Result<()> {
    let (mut crossed, mut removed) = (BTreeSet::new(), BTreeSet::new());
    let (mut missed, mut lost) = (BTreeMap::<String, u64>::new(), 0);
    let mut twice = 0_u64;
    for answer in answers()? {
        match answer {
            Answer::Event(event) => {
                lost += event.lost;
                match event.event.as_str() {
                    "crossed" => drop(crossed.insert(event.id)),
                    "removed" => twice += u64::from(!removed.insert(event.id)),
                    other => bail!("told of {other}, which was not asked for"),
                }
            }
            Answer::Missed { count, why } => *missed.entry(why).or_default() += count,
            Answer::Watching { .. } => {}
            other => bail!("{other:?} is no answer of a watch"),
        }
    }
    let id = |group: &Group| Ok::<_, anyhow::Error>(fs::metadata(&group.path)?.ino());
    let leaves = groups.leaves.iter().map(id).collect::<Result<BTreeSet<_>>>()?;
    let others =
        groups.parents.iter().chain(others.iter().copied()).map(id).collect::<Result<BTreeSet<_>>>()?;
    let made = fs::read_to_string(MADE).with_context(|| format!("cannot read {MADE}"))?;
    let (mut made_all, mut made_crossing) = (BTreeSet::new(), BTreeSet::new());
    for line in made.lines() {
        let (id, crosses) = line.split_once(' ').context("a group has an id")?;
        let id: u64 = id.parse()?;
        made_all.insert(id);
        if crosses == "true" {
            made_crossing.insert(id);
        }
    }
    let counted = lost + missed.values().sum::<u64>();
    let mut missing = 0;
    for (what, expected, told) in [
        ("groups that cross", &leaves, &crossed),
        ("new groups that cross", &made_crossing, &crossed),
        ("removals", &made_all, &removed),
    ] {
        let found = expected.intersection(told).count();
        missing += (expected.len() - found) as u64;
        row(TOLD, what, &[("happened", expected.len().into()), ("told", found.into())]);
    }
    row(TOLD, "counted as missed or lost", &[("told", counted.into())]);
    for (why, count) in &missed {
        say!("missed {count}: {why}");
    }
    ensure!(missing <= counted, "{missing} things were not told, {counted} counted");
    ensure!(twice == 0, "{twice} removals were told twice");
    let is_known = |id: &&u64| leaves.contains(id) || made_crossing.contains(id) || others.contains(id);
    let wrong = crossed.iter().filter(|id| !is_known(id)).count();
    ensure!(wrong == 0, "{wrong} crossings were told of groups that did not cross");
    ensure!(removed.is_subset(&made_all), "removals were told of groups that are there");
    Ok(())
}
