//! The agent dies and comes back: nothing is lost, nothing is doubled, nothing stays.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use memcg_monitor::fd_store::StoredDescriptors;
use memcg_monitor::programs::PINS_DIRECTORY;
use memcg_monitor::supervisor::{Mailbox, start};
use monitor_client::CONTROL_SOCKET;
use monitor_common::grammar::control_file::ControlFile;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, dup, dup2_stderr};

use crate::harness::MIB;
use crate::harness::agent::{Agent, BINARY, list, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, attached, page};
use crate::harness::group::Group;
use crate::harness::pinned;
use crate::harness::stopwatch;
use crate::harness::test::vm_test;

/// An agent that comes back, and may be kept from it for a while.
pub(crate) struct Supervised(pub(crate) Agent);

impl Supervised {
    pub(crate) fn start(options: &[&str]) -> Result<Self> {
        let options: Vec<&str> = ["--supervised"].into_iter().chain(options.iter().copied()).collect();
        Agent::start(&options).map(Self)
    }

    /// Kills it; what `meanwhile` does happens while there is none.
    pub(crate) fn killed_while(&mut self, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        // A signal that it has given, and not noted yet, would be given once more.
        self.0.settle()?;
        let pid = self.0.supervised()?;
        self.0.signal(Signal::SIGSTOP)?;
        kill(pid, Signal::SIGKILL).context("cannot kill the agent")?;
        until("the agent is dead", || Ok(is_dead(pid)))?;
        let done = meanwhile();
        self.0.signal(Signal::SIGCONT)?;
        done?;
        self.0.ready()
    }

    pub(crate) fn registrations(&self) -> Result<u64> {
        Ok(self.0.status()?.registrations)
    }
}

/// Whether a process is dead, reaped or not.
pub(crate) fn is_dead(process: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    status.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

vm_test!(
    restart_keeps_registrations,
    "kill -9: registered is registered, once; what happened meanwhile is signalled",
    Any,
    [Kernel, Preempt, Variant, Quick]
);
fn restart_keeps_registrations() -> Result<()> {
    let (group, gone) = (Group::new("kept")?, Group::new("gone")?);
    let mut agent = Supervised::start(&["--sweep-ms", "3600000"])?;
    let mut charger = Charger::start(&group)?;
    let crossed = Waiter::on(&group, "4M")?;
    crossed.register(&group, "4M")?;
    let spike = Waiter::on(&group, "30M")?;
    let quiet = Waiter::on(&group, "64M")?;
    let removed = Waiter::on(&gone, "4M")?;
    let closed = Waiter::on(&group, "4M")?;
    ensure!(agent.registrations()? == 6, "six are registered");
    agent.killed_while(|| {
        charger.grow(Kind::Anonymous, 6 * MIB)?;
        charger.grow(Kind::Anonymous, 30 * MIB)?;
        charger.shrink(Kind::Anonymous)?;
        drop(closed);
        gone.remove()
    })?;
    agent.0.settle()?;
    let received = [&crossed, &spike, &quiet, &removed].map(Waiter::take);
    let received: Vec<u64> = received.into_iter().collect::<Result<_>>()?;
    ensure!(received == [2, 2, 0, 1], "received {received:?}");
    ensure!(agent.registrations()? == 4, "the closed one and the removed one are gone");
    charger.shrink(Kind::Anonymous)?;
    crossed.receives(2, "both go on, once each")?;
    // And a new one beside them.
    let late = Waiter::on(&group, "4M")?;
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    ensure!(late.wait()? == 1, "a new one");
    agent.0.settle()?;
    crossed.receives(2, "beside the old ones")?;
    charger.end()
}

vm_test!(
    restart_again_and_again,
    "25 deaths amid crossings and removals: each is signalled, no descriptor and no slot leaks",
    Any,
    []
);
fn restart_again_and_again() -> Result<()> {
    let group = Group::new("busy")?;
    let mut agent = Supervised::start(&[])?;
    let mut charger = Charger::start(&group)?;
    let waiter = Waiter::on(&group, "4M")?;
    let mut before = None;
    for round in 0..25 {
        let child = Group::new(&format!("child{round}"))?;
        let leaving = Waiter::on(&child, "1M")?;
        let crossing = |charger: &mut Charger| charger.grow(Kind::Anonymous, 6 * MIB);
        match round % 3 {
            0 => agent.killed_while(|| crossing(&mut charger))?,
            1 => {
                crossing(&mut charger)?;
                agent.killed_while(|| child.remove())?;
            }
            _ => {
                kill(agent.0.supervised()?, Signal::SIGKILL)?;
                crossing(&mut charger)?;
                agent.0.ready()?;
            }
        }
        agent.0.settle()?;
        waiter.receives(1, &format!("round {round}: up, once"))?;
        charger.shrink(Kind::Anonymous)?;
        ensure!(waiter.wait()? == 1, "round {round}: down, once");
        if child.path.exists() {
            child.remove()?;
        }
        ensure!(leaving.wait()? == 1, "round {round}: removed, once");
        drop(leaving);
        until("one is left", || Ok(agent.registrations()? == 1))?;
        let held = || -> Result<_> { Ok((descriptors(agent.0.supervised()?)?, agent.0.descriptors()?)) };
        match &before {
            // The first ones have yet to settle.
            None if round < 3 => {}
            None => before = Some(held()?),
            // An eventfd that is let go is closed by a thread of its own.
            Some((ours, parents)) => until("no descriptor leaks", || {
                let (now, parents_now) = held()?;
                Ok(now.len() <= ours.len() && parents_now.len() <= parents.len())
            })
            .with_context(|| format!("before: {before:?}; after: {:?}", held()))?,
        }
    }
    let status = agent.0.status()?;
    ensure!(status.restarts == 25 && status.failed_signals == 0, "{status:?}");
    charger.end()
}

/// Descriptors of a process, by what they are; connections of a list linger.
pub(crate) fn descriptors(process: Pid) -> Result<Vec<String>> {
    let directory = format!("/proc/{process}/fd");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))?;
    let links = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    Ok(links
        .map(|link| link.to_string_lossy().into_owned())
        .filter(|link| !link.starts_with("socket"))
        .collect())
}

vm_test!(
    restart_for_another_version,
    "SIGHUP hands all over; SIGTERM leaves no pin, no program and no socket",
    Any,
    []
);
fn restart_for_another_version() -> Result<()> {
    let group = Group::new("handed")?;
    let mut agent = Supervised::start(&[])?;
    let mut charger = Charger::start(&group)?;
    let waiter = Waiter::on(&group, "4M")?;
    let first = agent.0.supervised()?;
    agent.0.signal(Signal::SIGHUP)?;
    agent.0.ready()?;
    ensure!(agent.0.supervised()? != first, "the agent is another process");
    ensure!(Path::new(PINS_DIRECTORY).exists(), "the pins stay");
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    ensure!(waiter.wait()? == 1, "still registered");
    let code = agent.0.end(Signal::SIGTERM)?;
    ensure!(code == 0, "exit code {code}");
    nothing_is_left()?;
    charger.end()
}

/// A service manager with a descriptor store, as small as can be.
struct Manager {
    mailbox: Mailbox,
    kept: StoredDescriptors,
    agent: Option<Pid>,
}

impl Manager {
    fn new() -> Result<Self> {
        let mailbox = Mailbox::new("/run/store".into())?;
        Ok(Self { mailbox, kept: Vec::new(), agent: None })
    }

    /// Starts an agent with what is kept, and waits until it is ready.
    fn start(&mut self, options: &[&str]) -> Result<()> {
        let _span = stopwatch::starting();
        stopwatch::agent_starts();
        let options: Vec<_> = ["agent"].iter().chain(options).map(|option| (*option).into()).collect();
        let process = start(Path::new(BINARY), &options, &self.kept, self.mailbox.path(), 64)?;
        self.agent = Some(process.pid);
        let mut ready = false;
        until("the agent is ready", || {
            ensure!(!is_dead(process.pid), "the agent has died");
            while let Some(message) = self.mailbox.receive(Some(process.pid)) {
                ready |= message.ready;
                let name = message.name.unwrap_or_default();
                if message.forget {
                    self.kept.retain(|(kept, _)| *kept != name);
                } else if message.store {
                    self.kept.extend(message.descriptors.into_iter().map(|fd| (name.clone(), fd)));
                }
            }
            Ok(ready)
        })
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let Some(agent) = self.agent.take() else { return Ok(()) };
        kill(agent, signal).context("cannot end the agent")?;
        waitpid(agent, None).map(drop).context("cannot wait for the agent")
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.end(Signal::SIGKILL);
    }
}

/// Does `work`; processes that it starts log to a file.
fn logging_to(path: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let (ours, file) = (dup(std::io::stderr())?, fs::File::create(path)?);
    dup2_stderr(&file)?;
    let done = work();
    dup2_stderr(&ours)?;
    done
}

vm_test!(
    restart_other_sizes,
    "the next agent's tables are of other sizes: loaded anew, nothing is lost on the way",
    Any,
    []
);
fn restart_other_sizes() -> Result<()> {
    let group = Group::new("sizes")?;
    let mut manager = Manager::new()?;
    manager.start(&["--max-groups", "64"])?;
    let mut charger = Charger::start(&group)?;
    let crossed = Waiter::on(&group, "4M")?;
    let spike = Waiter::on(&group, "30M")?;
    for groups in ["128", "32", "32"] {
        // A signal that it has given, and not noted yet, would be given once more.
        list(Path::new(CONTROL_SOCKET))?;
        manager.end(Signal::SIGKILL)?;
        charger.grow(Kind::Anonymous, 6 * MIB)?;
        charger.grow(Kind::Anonymous, 30 * MIB)?;
        charger.shrink(Kind::Anonymous)?;
        manager.start(&["--max-groups", groups])?;
        let received = (crossed.wait()?, spike.wait()?);
        ensure!(received == (1, 2), "up, and up and down meanwhile: {received:?}, with {groups} groups");
        charger.shrink(Kind::Anonymous)?;
        let received = crossed.wait()?;
        ensure!(received == 1, "down: {received}, with {groups} groups");
    }
    manager.end(Signal::SIGTERM)?;
    ensure!(!Path::new(PINS_DIRECTORY).exists(), "the pins of all sizes are gone");
    charger.end()
}

vm_test!(
    restart_from_another_layout,
    "programs of the layout before are pinned: what they saw is signalled; of an unknown one it is said to be lost",
    Any,
    []
);
fn restart_from_another_layout() -> Result<()> {
    // Layout 4: a slot's state, its group, what was seen of it; what a cell says of the table.
    const SLOT: usize = 24;
    const LOG: &str = "/run/layout.log";
    let group = Group::new("layout")?;
    let mut manager = Manager::new()?;
    manager.start(&[])?;
    let mut charger = Charger::start(&group)?;
    let spike = Waiter::on(&group, "30M")?;
    let oom = Waiter::at(&group, ControlFile::Oom, "")?;
    list(Path::new(CONTROL_SOCKET))?;
    manager.end(Signal::SIGKILL)?;
    fs::remove_dir_all(PINS_DIRECTORY)?;
    let before = Path::new(PINS_DIRECTORY).join("4");
    fs::create_dir_all(&before)?;
    let id = fs::metadata(&group.path)?.ino();
    let seen = [(4, 1), (5, id), (8, 40 * MIB / page()), (9, u64::MAX), (10, 1), (12, u64::MAX), (13, 3)];
    let seen = seen.map(|(word, value)| (SLOT + word, value));
    pinned::array(&before.join("map-SLOTS"), SLOT, 3, &seen)?;
    pinned::array(&before.join("map-SCRATCH"), 16, 1, &[(7, 1), (10, 2)])?;
    manager.start(&[])?;
    let received = (spike.wait()?, oom.wait()?);
    ensure!(received == (2, 3), "a spike and three OOMs: {received:?}");
    ensure!(!before.exists(), "the pins before are gone");
    charger.grow(Kind::Anonymous, 32 * MIB)?;
    ensure!(spike.wait()? == 1, "and on");

    list(Path::new(CONTROL_SOCKET))?;
    manager.end(Signal::SIGKILL)?;
    let unknown = Path::new(PINS_DIRECTORY).join("99");
    fs::create_dir(&unknown)?;
    pinned::array(&unknown.join("map-SCRATCH"), 16, 1, &[])?;
    logging_to(LOG, || manager.start(&[]))?;
    charger.shrink(Kind::Anonymous)?;
    ensure!(spike.wait()? == 1 && !unknown.exists(), "those of an unknown layout are removed");
    manager.end(Signal::SIGTERM)?;
    let said = fs::read_to_string(LOG)?;
    ensure!(said.contains("layout 99") && said.contains("lost"), "it is not said: {said}");
    charger.end()
}

vm_test!(restart_without_a_supervisor, "a supervisor that is killed takes everything along", Any, []);
fn restart_without_a_supervisor() -> Result<()> {
    let agent = Supervised::start(&[])?;
    ensure!(Path::new(PINS_DIRECTORY).exists(), "pinned");
    agent.0.signal(Signal::SIGKILL)?;
    nothing_is_left()
}

pub(crate) fn nothing_is_left() -> Result<()> {
    until("no program is attached", || {
        Ok(!attached()?.iter().any(|name| name == "page_counter_try_charge"))
    })?;
    until("no pin and no socket is left", || {
        // A supervisor that was killed could not remove its own.
        let names = fs::read_dir("/run/memcg-monitor")?.flatten().map(|entry| entry.file_name());
        let left = names.filter(|name| name != "event_control.sock.notify").count();
        Ok(!Path::new(PINS_DIRECTORY).exists() && left == 0)
    })
}
