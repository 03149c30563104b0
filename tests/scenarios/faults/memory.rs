//! Memory runs out: the host's, and that of the agent's own group.

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use monitor_client::{SOCKET, connect};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

use super::{MIB, crosses};
use crate::harness::agent::until;
use crate::harness::charger::Charger;
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::process;
use crate::harness::test::vm_test;
use crate::scenarios::abuse::answer;
use crate::scenarios::restart::{Supervised, is_dead};

/// Takes all memory there is, in `group`, until it is killed: after the agent, for its
/// size. Anonymous memory: that of files would be held until the hog has exited, and others
/// be killed meanwhile.
fn hog(group: &Group) -> Result<Pid> {
    process::spawn(|| {
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
        group.add(getpid())?;
        score(getpid(), 0)?;
        let block = NonZeroUsize::new(16 << 20).context("not 0")?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
        loop {
            // SAFETY: new memory, to which there is no other reference.
            unsafe { mmap_anonymous(None, block, ProtFlags::PROT_WRITE, flags) }?;
        }
    })
}

/// The kernel's order of killing: from -1000, never, to 1000, first.
fn score(process: Pid, score: i32) -> Result<()> {
    let path = format!("/proc/{process}/oom_score_adj");
    fs::write(&path, score.to_string()).with_context(|| format!("cannot write {path}"))
}

vm_test!(
    faults_host_out_of_memory,
    "killed first in a host's OOM, the agent comes back and has lost nothing",
    Any,
    []
);
fn faults_host_out_of_memory() -> Result<()> {
    let (hogs, quiet) = (Group::new("hogs")?, Group::new("quiet")?);
    let mut agent = Supervised::start(&[])?;
    let mut charger = Charger::start(&quiet)?;
    let (waiter, other) = (Waiter::on(&hogs, "64M")?, Waiter::on(&quiet, "4M")?);
    let first = agent.0.supervised()?;
    score(first, 1000)?;
    // Before the hog's memory is free the kernel may look for more, and finds them here.
    let next = (0..4).map(|_| Charger::start(&quiet)).collect::<Result<Vec<_>>>()?;
    next.iter().try_for_each(|charger| score(charger.pid(), 500))?;
    score(getpid(), -1000)?;
    score(charger.pid(), -1000)?;
    let child = hog(&hogs)?;
    match waitpid(child, None)? {
        WaitStatus::Signaled(_, Signal::SIGKILL, _) => {}
        other => bail!("the hog was not killed: {other:?}"),
    }
    ensure!(is_dead(first), "the agent was not killed first");
    agent.0.ready()?;
    let mut signals = 0;
    until("up and down were signalled", || {
        signals += waiter.take()?;
        Ok(signals == 2)
    })
    .with_context(|| format!("{signals} signals"))?;
    ensure!(agent.registrations()? == 2 && agent.0.status()?.restarts > 0, "nothing is lost");
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", agent.0.supervised()?))?;
    ensure!(score.trim() == "0", "the new agent's score is the administrator's: {score}");
    crosses(&mut charger, &other)?;
    charger.end()
}

/// Registers until the agent is no more; how many it has taken.
fn register_until_it_dies(many: &Waiter, control: &File) -> Result<u64> {
    let mut taken = 0;
    let connection: OwnedFd = connect(Path::new(SOCKET))?;
    for threshold in 0..200_000u64 {
        let line = format!("{} {} {}", many.0.as_raw_fd(), control.as_raw_fd(), (1 << 40) + threshold * 4096);
        match answer(&connection, line.as_bytes(), &[]) {
            Ok(said) if said == "0" => taken += 1,
            Ok(said) if said.starts_with("-12 ") || said.is_empty() => return Ok(taken),
            Ok(said) => bail!("refused: {said}"),
            Err(_) => return Ok(taken),
        }
    }
    bail!("{taken} registrations fit")
}

vm_test!(
    faults_own_limit,
    "at its own group's limit the agent is killed until the limit is raised; what it took is kept",
    V2,
    []
);
fn faults_own_limit() -> Result<()> {
    let (own, group) = (Group::new("own")?, Group::new("watched")?);
    let mut agent = Supervised::start(&["--no-mount"])?;
    let mut charger = Charger::start(&group)?;
    let (waiter, many) = (Waiter::on(&group, "4M")?, Waiter::new()?);
    let control = File::open(group.usage_file())?;
    // What they have was charged elsewhere and stays there.
    own.add(agent.0.supervised()?)?;
    own.add(agent.0.pid())?;
    own.set_limit(MIB)?;
    let taken = register_until_it_dies(&many, &control)?;
    // Its successors do not get far, and the parent is spared.
    until("successors were killed, too", || Ok(own.field("memory.events", "oom_kill")? >= 3))?;
    own.write("memory.max", "max")?;
    agent.0.ready()?;
    let kept = agent.registrations()?;
    crate::harness::report::say!("  {taken} taken within {} KiB; {kept} kept", MIB / 1024);
    ensure!((taken + 1..=taken + 2).contains(&kept), "{taken} and one were taken, {kept} are kept");
    crosses(&mut charger, &waiter)?;
    charger.end()
}
