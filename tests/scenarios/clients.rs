//! Programs that were written for cgroup v1, unmodified: on the kernel's own
//! files, which shows what is to be expected, and on our view of a group.

pub(crate) mod examples;
mod readers;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::Version;
use monitor_client::Builder;

use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::group::Group;
use crate::harness::program::Program;
use crate::harness::test::vm_test;

/// Directory in which the agent shows groups as v1 did.
const VIEW: &str = "/run/memcg-monitor/cgroup";

/// The last line of `cgroup_event_listener`.
const REMOVED: &str = "The cgroup seems to have removed.";

vm_test!(
    clients_kernel_listener,
    "the kernel's sample receives every kind, and the removal, from the kernel",
    V1,
    [Oracle]
);
fn clients_kernel_listener() -> Result<()> {
    listener(Side::Kernel)
}

vm_test!(
    clients_kernel_containerd,
    "containerd's library receives every kind, and the removal, from the kernel",
    V1,
    [Oracle]
);
fn clients_kernel_containerd() -> Result<()> {
    containerd(Side::Kernel)
}

vm_test!(
    clients_kernel_kubelet,
    "kubelet's notifier receives crossings from the kernel, and registers anew",
    V1,
    [Oracle]
);
fn clients_kernel_kubelet() -> Result<()> {
    kubelet(Side::Kernel)
}

vm_test!(
    clients_kernel_cgroups_rs,
    "the crate cgroups-rs receives OOM and pressure from the kernel",
    V1,
    [Oracle]
);
fn clients_kernel_cgroups_rs() -> Result<()> {
    cgroups_rs(Side::Kernel)
}

vm_test!(
    clients_view_listener,
    "the kernel's sample receives from the view what it receives from v1",
    Any,
    [Kernel]
);
fn clients_view_listener() -> Result<()> {
    listener(Side::View)
}

vm_test!(
    clients_view_containerd,
    "containerd's library receives from the view what it receives from v1",
    Any,
    [Kernel]
);
fn clients_view_containerd() -> Result<()> {
    containerd(Side::View)
}

vm_test!(
    clients_view_kubelet,
    "kubelet's notifier receives from the view, and leaves nothing registered",
    Any,
    [Kernel]
);
fn clients_view_kubelet() -> Result<()> {
    kubelet(Side::View)
}

vm_test!(
    clients_view_cgroups_rs,
    "the crate cgroups-rs receives from the view what it receives from v1",
    Any,
    [Kernel]
);
fn clients_view_cgroups_rs() -> Result<()> {
    cgroups_rs(Side::View)
}

/// Kinds of registrations that a client can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notice {
    Usage,
    Memsw,
    Oom,
    Pressure,
}

impl Notice {
    pub(crate) const ALL: &[Self] = &[Self::Usage, Self::Memsw, Self::Oom, Self::Pressure];

    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::Usage => "memory.usage_in_bytes",
            Self::Memsw => "memory.memsw.usage_in_bytes",
            Self::Oom => "memory.oom_control",
            Self::Pressure => "memory.pressure_level",
        }
    }

    pub(crate) fn argument(self) -> &'static str {
        match self {
            Self::Usage | Self::Memsw => "20M",
            Self::Oom => "",
            Self::Pressure => "critical",
        }
    }

    /// Signalled by what `up_and_down` does; the others by `out_of_memory`.
    pub(crate) fn is_threshold(self) -> bool {
        matches!(self, Self::Usage | Self::Memsw)
    }
}

/// Sources of the files that a client is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Kernel,
    View,
}

/// A group, and the directory that has v1's files of it.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) group: Group,
    pub(crate) directory: String,
    agent: Option<Agent>,
}

impl Place {
    pub(crate) fn new(side: Side, name: &str) -> Result<Self> {
        let agent = (side == Side::View).then(|| Agent::start(&[])).transpose()?;
        let group = Group::new(name)?;
        let directory = match side {
            Side::Kernel => group.path.clone(),
            Side::View => Path::new(VIEW).join(name),
        };
        Ok(Self { group, directory: directory.to_string_lossy().into_owned(), agent })
    }

    pub(crate) fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.directory)
    }

    /// Once nothing else runs, this many are registered, by the agent's word;
    /// the kernel gives none.
    fn registered(&self, count: usize) -> Result<()> {
        let Some(agent) = &self.agent else { return Ok(()) };
        until("the agent holds what clients hold", || Ok(agent.status()?.registrations == count as u64))
    }

    /// Makes a process hit the group's limit and be killed for it.
    pub(crate) fn out_of_memory(&self) -> Result<()> {
        let limit = match self.group.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        let mut charger = Charger::start(&self.group)?;
        self.group.write(limit, "40M")?;
        ensure!(charger.grow(Kind::Anonymous, 80 * MIB).is_err(), "no process was killed at the limit");
        Ok(())
    }
}

/// Grows past 20 MiB and shrinks below; each program says a line more with this
/// text, both times.
pub(crate) fn up_and_down<'a>(
    group: &Group,
    text: &str,
    programs: impl IntoIterator<Item = &'a mut Program>,
) -> Result<()> {
    let mut programs: Vec<_> = programs.into_iter().collect();
    let mut charger = Charger::start(group)?;
    for up in [true, false] {
        let before = programs.iter_mut().map(|program| program.count(text)).collect::<Result<Vec<_>>>()?;
        if up {
            charger.grow(Kind::Anonymous, 30 * MIB)?;
        } else {
            charger.shrink(Kind::Anonymous)?;
        }
        for (program, before) in programs.iter_mut().zip(before) {
            program.says_more(text, before)?;
        }
    }
    charger.end()
}

/// One program for each notice is signalled for its own, and for nothing else.
pub(crate) fn each_its_own(place: &Place, text: &str, programs: &mut [(Notice, Program)]) -> Result<()> {
    let thresholds = programs.iter_mut().filter(|(notice, _)| notice.is_threshold());
    up_and_down(&place.group, text, thresholds.map(|(_, program)| program))?;
    let mut others: Vec<_> = programs.iter_mut().filter(|(notice, _)| !notice.is_threshold()).collect();
    for (notice, program) in &mut others {
        ensure!(program.count(text)? == 0, "{notice:?}, although there is no limit");
    }
    place.out_of_memory()?;
    others.iter_mut().try_for_each(|(_, program)| program.says(text))
}

fn listener(side: Side) -> Result<()> {
    let place = Place::new(side, "listener")?;
    let mut programs = Vec::new();
    for &notice in Notice::ALL {
        let words = ["/bin/clients/cgroup_event_listener", &place.file(notice.file()), notice.argument()];
        let program = Program::start(&words)?;
        program.reads_eventfd()?;
        programs.push((notice, program));
    }
    place.registered(programs.len())?;
    each_its_own(&place, ": crossed", &mut programs)?;
    place.group.remove()?;
    for (notice, program) in programs {
        let (code, last) = program.end()?;
        ensure!(code == 0 && last == REMOVED, "{notice:?}: exit code {code} after {last:?}");
    }
    place.registered(0)
}

fn containerd(side: Side) -> Result<()> {
    let place = Place::new(side, "containerd")?;
    let mut words = vec!["/bin/clients/containerd", &place.directory];
    words.extend(Notice::ALL.iter().map(|notice| match notice {
        Notice::Usage => "usage:20971520",
        Notice::Memsw => "memsw:20971520",
        Notice::Oom => "oom",
        Notice::Pressure => "pressure:critical",
    }));
    let mut program = Program::start(&words)?;
    program.says("registered")?;
    place.registered(Notice::ALL.len())?;
    // One program says all; each kind gets a round of its own.
    for text in ["usage ", "memsw "] {
        up_and_down(&place.group, text, [&mut program])?;
    }
    ensure!(program.count("oom")? == 0, "an OOM, although there is no limit");
    place.out_of_memory()?;
    // One, or more at once: a dying task may meet the limit again.
    program.says("oom ")?;
    program.says("pressure ")?;

    place.group.remove()?;
    // One more for each registration, and the directory is gone by then.
    for word in &words[2..] {
        let kind = word.split(':').next().unwrap_or_default();
        program.says(&format!("{kind} gone {}", if kind == "oom" { "1" } else { "" }))?;
    }
    let (code, last) = program.end()?;
    ensure!(code == 0, "exit code {code} after {last:?}");
    place.registered(0)
}

fn kubelet(side: Side) -> Result<()> {
    const ROUNDS: usize = 20;
    let place = Place::new(side, "kubelet")?;
    let mut program = Program::start(&["/bin/clients/kubelet", &place.directory, &(20 * MIB).to_string()])?;
    program.says("registered")?;
    program.polls_eventfd()?;
    // Nothing has crossed yet: a kernel that steps back from a threshold signals more than once.
    for round in 1..=ROUNDS {
        program.write_line("")?;
        program.says_more("registered", round)?;
        program.polls_eventfd()?;
    }
    place.registered(1)?;
    // Its `Stop` closes the epoll descriptor that another of its goroutines may be about to wait on.
    let is_its_own = |line: &str| line == "registered" || line.ends_with("memcg events: bad file descriptor");
    let others: Vec<_> = program.lines()?.iter().filter(|line| !is_its_own(line)).collect();
    ensure!(others.is_empty(), "a registration was signalled for being one, or failed: {others:?}");
    for _ in 0..2 {
        up_and_down(&place.group, "event", [&mut program])?;
    }

    let received = program.count("event")?;
    place.group.remove()?;
    // It cannot distinguish a removal, until it registers anew.
    program.says_more("event", received)?;
    program.write_line("")?;
    let (code, last) = program.end()?;
    ensure!(code == 1 && last == "failed: no such file or directory", "exit code {code} after {last:?}");
    place.registered(0)
}

fn cgroups_rs(side: Side) -> Result<()> {
    let place = Place::new(side, "cgroups-rs")?;
    let mut program = Program::start(&["/bin/clients/cgroups-rs", &place.directory, "critical"])?;
    program.says("registered")?;
    place.registered(2)?;
    place.out_of_memory()?;
    program.says("oom ")?;
    program.says("pressure 1")?;
    place.group.remove()?;
    let (code, last) = program.end()?;
    ensure!(code == 0 && last.starts_with("closed"), "exit code {code} after {last:?}");
    place.registered(0)
}

vm_test!(
    clients_library,
    "our library's registrations are signalled, receive the cause, and end with the group",
    Any,
    [Standing]
);
fn clients_library() -> Result<()> {
    let agent = Agent::standing()?;
    let group = Group::new("library")?;
    let builder = Builder::new(group.usage_file()).args("4M");
    let registration = builder.register()?;
    let mut follower = builder.follow()?;
    drop(builder.register()?);
    until("a dropped one ends", || Ok(agent.status()?.registrations == 2))?;
    let mut charger = Charger::start(&group)?;
    for direction in ["up", "down"] {
        match direction {
            "up" => charger.grow(Kind::Anonymous, 8 * MIB)?,
            _ => charger.shrink(Kind::Anonymous)?,
        }
        ensure!(registration.wait()?.is_some_and(|signals| signals > 0), "no signal {direction}");
        let event = follower.wait_event()?.context("the follower ended")?;
        ensure!(event.direction.as_deref() == Some(direction), "{direction}: {event:?}");
    }
    charger.end()?;
    group.remove()?;
    let event = follower.wait_event()?.context("the follower ended without a word")?;
    ensure!(event.event == "removed" && follower.wait_event()?.is_none(), "the last event is {event:?}");
    ensure!(registration.wait()?.is_none(), "the removal is the end");
    Ok(())
}
