//! Kills by the OOM killer: what is told of the victim, beside the line of the kernel's log.

use std::fs::{self, OpenOptions};
use std::hint::black_box;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use monitor_client::wire::{EventRow, VictimRow};
use monitor_client::{AdminConnection, CONTROL_SOCKET};
use nix::errno::Errno;
use nix::sched::CloneFlags;

use super::MIB;
use super::oom::{event, follow, name};
use crate::harness::agent::{Agent, PATIENCE, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::group::Family;
use crate::harness::process::{self, USER};
use crate::harness::test::vm_test;

/// The next kill; what comes before are OOMs.
pub(super) fn kill(connection: &AdminConnection) -> Result<(EventRow, VictimRow)> {
    loop {
        let mut row = event(connection)?;
        if row.event != "oom" {
            ensure!(row.signals == 0, "a kill signals nothing: {row:?}");
            let victim = row.victim.take().with_context(|| format!("no victim: {row:?}"))?;
            return Ok((row, victim));
        }
    }
}

/// The last kills, as `memcg-monitor kills` gets them.
pub(super) fn kept() -> Result<(Vec<EventRow>, u64)> {
    let connection = AdminConnection::connect(Path::new(CONTROL_SOCKET))?;
    connection.set_timeout(Some(PATIENCE))?;
    let (kills, status) = connection.kills()?;
    Ok((kills, status.kills))
}

/// The kernel's own line of a kill.
#[derive(Debug)]
pub(super) struct KernelLine(String);

impl KernelLine {
    fn find(pid: u64) -> Result<Option<Self>> {
        let log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
        let (wanted, mut record) = (format!("Killed process {pid} ("), [0; 8192]);
        loop {
            match nix::unistd::read(&log, &mut record) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    if text.contains(&wanted) {
                        return Ok(Some(Self(text.into_owned())));
                    }
                }
                // What was to be read next is overwritten.
                Err(Errno::EPIPE) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(errno) => return Err(errno).context("cannot read /dev/kmsg"),
            }
        }
    }

    /// Waits until it is there: it follows what is told.
    pub(super) fn of(pid: u64) -> Result<Self> {
        let mut found = None;
        until("the kernel logs the kill", || {
            found = Self::find(pid)?;
            Ok(found.is_some())
        })?;
        found.context("no line")
    }

    fn number(&self, name: &str) -> Result<i64> {
        let text = self.0.split_once(&format!("{name}:")).map(|(_, after)| after);
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(text.len());
        let text = text.map(|text| &text[..digits(text)]);
        text.and_then(|text| text.parse().ok()).with_context(|| format!("no {name}: {}", self.0))
    }

    pub(super) fn bytes(&self, name: &str) -> Result<u64> {
        Ok(u64::try_from(self.number(name)?)? * 1024)
    }
}

/// Compares all that the kernel says of a victim. Its memory by kind is counted on each processor, and
/// may move a little from one reading to the next.
fn is_as_the_kernel_says(victim: &VictimRow) -> Result<()> {
    const MOVED: u64 = MIB;
    let line = KernelLine::of(victim.pid.context("no pid")?)?;
    let context = || format!("{victim:?} beside {}", line.0);
    ensure!(victim.total_vm == Some(line.bytes("total-vm")?), context());
    ensure!(victim.page_tables.map(|bytes| bytes >> 10 << 10) == Some(line.bytes("pgtables")?), context());
    ensure!(victim.uid.map(i64::from) == Some(line.number("UID")?), context());
    ensure!(victim.oom_score_adj.map(i64::from) == Some(line.number("oom_score_adj")?), context());
    for (told, name) in
        [(victim.anon_rss, "anon-rss"), (victim.file_rss, "file-rss"), (victim.shmem_rss, "shmem-rss")]
    {
        let (told, said) = (told.with_context(context)?, line.bytes(name)?);
        ensure!(told.abs_diff(said) <= MOVED, "{name}: {}", context());
    }
    ensure!(victim.swap.is_some(), context());
    let comm = victim.comm.as_deref().unwrap_or_default();
    ensure!(line.0.contains(&format!("({comm})")), context());
    Ok(())
}

/// The command line of a process that is there.
fn command_of(pid: i32) -> Result<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline"))?;
    let text = String::from_utf8_lossy(bytes.strip_suffix(b"\0").unwrap_or(&bytes)).into_owned();
    Ok(text.split('\0').map(str::to_owned).collect())
}

vm_test!(
    event_victims_as_the_kernel_says,
    "a kill is told with the victim's memory by kind, user, score and command line, as in the kernel's log",
    V2,
    [Kernel, Preempt, Variant]
);
fn event_victims_as_the_kernel_says() -> Result<()> {
    is_told(&[])
}

vm_test!(
    event_victims_by_kprobes,
    "the backend kprobe tells of a victim what fentry does",
    V2,
    [Kernel, Preempt]
);
fn event_victims_by_kprobes() -> Result<()> {
    is_told(&["--backend", "kprobe"])
}

/// A process that is killed at its own charge is told of by an agent with these options.
fn is_told(options: &[&str]) -> Result<()> {
    let family = Family::new("told")?;
    family.group.set_limit(16 * MIB)?;
    let _agent = Agent::start(options)?;
    let (connection, _waiter) = follow(&family.child)?;
    let mut charger = Charger::start(&family.child)?;
    let pid = charger.pid().as_raw();
    fs::write(format!("/proc/{pid}/oom_score_adj"), "137")?;
    let (command, exe) = (command_of(pid)?, fs::read_link(format!("/proc/{pid}/exe"))?);
    charger.grow_to_death(64 * MIB)?;
    let (row, victim) = kill(&connection)?;
    ensure!((row.event.as_str(), row.reason.as_deref()) == ("oom_kill", Some("limit")), "{row:?}");
    ensure!(row.origin == Some(name(&family.group)) && victim.cgroup == name(&family.child), "{row:?}");
    let pid = u64::try_from(pid)?;
    ensure!(victim.pid == Some(pid) && victim.own_pid == Some(pid), "{victim:?}");
    ensure!(victim.oom_score_adj == Some(137), "{victim:?}");
    ensure!(victim.anon_rss.is_some_and(|bytes| bytes > 8 * MIB), "{victim:?}");
    // It was killed at its own charge, so that its command line was there.
    ensure!(victim.command.as_ref() == Some(&command) && !victim.command_cut, "{victim:?}, not {command:?}");
    if let Some(told) = &victim.exe {
        ensure!(Some(told.as_str()) == exe.to_str(), "{victim:?}");
    }
    is_as_the_kernel_says(&victim)
}

vm_test!(
    event_victims_in_a_pid_namespace,
    "a victim is named by its process id on the host and in its own namespace, and by its user",
    V2,
    [Kernel, Preempt, Standing]
);
fn event_victims_in_a_pid_namespace() -> Result<()> {
    let family = Family::new("inner")?;
    family.group.set_limit(16 * MIB)?;
    let _agent = Agent::standing()?;
    let (connection, _waiter) = follow(&family.group)?;
    let outcome = process::run_in(CloneFlags::CLONE_NEWPID, || {
        family.child.write("cgroup.procs", "0")?;
        process::become_user(USER)?;
        let mut memory = vec![0_u8; 64 << 20];
        memory.chunks_mut(4096).for_each(|page| page[0] = 1);
        black_box(memory);
        Ok(())
    });
    ensure!(outcome.is_err(), "it outlived its limit");
    let (_, victim) = kill(&connection)?;
    ensure!(victim.own_pid == Some(1) && victim.pid.is_some_and(|pid| pid > 1), "{victim:?}");
    ensure!(victim.uid == Some(USER), "{victim:?}");
    is_as_the_kernel_says(&victim)
}

vm_test!(
    event_victims_of_a_lowered_limit,
    "a kill by a limit that is written below usage is told as that, and signals nothing",
    V2,
    [Kernel, Preempt]
);
fn event_victims_of_a_lowered_limit() -> Result<()> {
    let family = Family::new("lowered")?;
    let agent = Agent::start(&[])?;
    let (connection, waiter) = follow(&family.child)?;
    let mut charger = Charger::start(&family.child)?;
    charger.grow(Kind::Anonymous, 24 * MIB)?;
    let pid = u64::try_from(charger.pid().as_raw())?;
    family.group.set_limit(8 * MIB)?;
    ensure!(charger.grow(Kind::Anonymous, MIB).is_err(), "the write killed no task");
    let (row, victim) = kill(&connection)?;
    ensure!(row.event == "oom_kill" && row.reason.as_deref() == Some("lowered_limit"), "{row:?}");
    ensure!(row.origin == Some(name(&family.group)) && victim.pid == Some(pid), "{row:?} {victim:?}");
    is_as_the_kernel_says(&victim)?;
    agent.settle()?;
    ensure!(waiter.take()? == 0, "the write signalled");
    let (kills, _) = kept()?;
    ensure!(kills.iter().all(|kill| kill.reason.as_deref() == Some("lowered_limit")), "{kills:?}");
    Ok(())
}

vm_test!(
    event_victims_once_and_kept,
    "each kill is kept once however many follow it, by the victim's group, also when that is removed",
    V2,
    [Kernel, Preempt]
);
fn event_victims_once_and_kept() -> Result<()> {
    let family = Family::new("kept")?;
    family.group.set_limit(16 * MIB)?;
    family.group.write("memory.oom.group", "1")?;
    let agent = Agent::start(&[])?;
    let follower = follow(&family.group)?;
    let _others = [follow(&family.child)?, follow(&family.parent)?];
    let mut other = Charger::start(&family.child)?;
    let mut charger = Charger::start(&family.child)?;
    let mut wanted = [other.pid(), charger.pid()].map(|pid| u64::try_from(pid.as_raw()).unwrap_or(0));
    charger.grow_to_death(64 * MIB)?;
    ensure!(other.grow(Kind::Anonymous, MIB).is_err(), "the other process of the group lives on");
    let (mut told, mut groups) = (Vec::new(), 0);
    while told.len() < 2 || groups == 0 {
        let (row, victim) = kill(&follower.0)?;
        if row.event == "oom_group_kill" {
            ensure!(
                victim.cgroup == name(&family.group) && row.reason.as_deref() == Some("limit"),
                "{row:?}"
            );
            groups += 1;
        } else {
            told.extend(victim.pid);
        }
    }
    let child = name(&family.child);
    drop((other, charger));
    family.child.remove()?;
    let (kills, total) = kept()?;
    let mut pids: Vec<_> = kills.iter().filter_map(|kill| kill.victim.as_ref()?.pid).collect();
    pids.sort_unstable();
    told.sort_unstable();
    wanted.sort_unstable();
    ensure!(pids == wanted && told == wanted && total == 2, "{pids:?}, {told:?}, {total}, not {wanted:?}");
    ensure!(kills.iter().all(|kill| kill.cgroup == child && kill.event == "oom_kill"), "{kills:?}");
    ensure!(agent.status()?.losses.get("victims_dropped") == Some(&0));
    Ok(())
}

vm_test!(
    event_victims_of_the_host,
    "a kill by the host is an event of its own in the victim's group and above, and signals nothing",
    V2,
    [Kernel, Preempt]
);
fn event_victims_of_the_host() -> Result<()> {
    let family = Family::new("hosts")?;
    let agent = Agent::start(&[])?;
    let (connection, waiter) = follow(&family.group)?;
    let (elsewhere, _other) = follow(&family.sibling)?;
    let mut charger = Charger::start(&family.child)?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    let pid = charger.pid().as_raw();
    // Whom the OOM killer chooses of all processes.
    fs::write(format!("/proc/{pid}/oom_score_adj"), "1000")?;
    fs::write("/proc/sysrq-trigger", "f").context("no OOM of the host on request")?;
    ensure!(charger.finish().is_err(), "it lives on");
    let (row, victim) = kill(&connection)?;
    ensure!(row.event == "host_oom_kill" && row.reason.as_deref() == Some("host"), "{row:?}");
    ensure!(row.origin.is_none() && row.cgroup == name(&family.group), "{row:?}");
    ensure!(victim.pid == Some(u64::try_from(pid)?) && victim.cgroup == name(&family.child), "{victim:?}");
    is_as_the_kernel_says(&victim)?;
    agent.settle()?;
    ensure!(waiter.take()? == 0, "an OOM of the host signalled");
    // Elsewhere the next event is the first.
    family.sibling.set_limit(8 * MIB)?;
    Charger::start(&family.sibling)?.grow_to_death(64 * MIB)?;
    let first = event(&elsewhere)?;
    ensure!(first.event == "oom", "told elsewhere: {first:?}");
    let (kills, _) = kept()?;
    ensure!(kills.first().is_some_and(|kill| kill.event == "host_oom_kill"), "{kills:?}");
    let log = Agent::log();
    ensure!(log.contains("the host ran out of memory"), "the log: {log}");
    Ok(())
}
