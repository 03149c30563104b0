//! Programs that were written for cgroup v1, unmodified: on the kernel's own
//! files, which shows what is to be expected, and on our view of a group.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::Version;
use memcg_monitor::client::Builder;

use crate::agent::{Agent, until};
use crate::group::Group;
use crate::program::Program;
use crate::runner::{On, Test};
use crate::worker::{Kind, Worker};

const MIB: u64 = 1 << 20;

/// Where the agent shows groups as v1 did.
const VIEW: &str = "/run/memcg-monitor/cgroup";

/// Whether there is such a view yet.
const HAS_VIEW: bool = true;

/// What `cgroup_event_listener` says last.
const REMOVED: &str = "The cgroup seems to have removed.";

pub(crate) fn tests() -> Vec<Test> {
    let kernel = [
        Test {
            name: "clients_kernel_listener",
            what: "the kernel's sample hears every kind, and the removal, from the kernel",
            on: On::V1,
            run: || listener(Side::Kernel),
        },
        Test {
            name: "clients_kernel_containerd",
            what: "containerd's library hears every kind, and the removal, from the kernel",
            on: On::V1,
            run: || containerd(Side::Kernel),
        },
        Test {
            name: "clients_kernel_kubelet",
            what: "kubelet's notifier hears crossings from the kernel, and registers anew",
            on: On::V1,
            run: || kubelet(Side::Kernel),
        },
        Test {
            name: "clients_kernel_cgroups_rs",
            what: "the crate cgroups-rs hears OOM and pressure from the kernel",
            on: On::V1,
            run: || cgroups_rs(Side::Kernel),
        },
    ];
    let view = [
        Test {
            name: "clients_view_listener",
            what: "the kernel's sample hears from the view what it hears from v1",
            on: On::Any,
            run: || listener(Side::View),
        },
        Test {
            name: "clients_view_containerd",
            what: "containerd's library hears from the view what it hears from v1",
            on: On::Any,
            run: || containerd(Side::View),
        },
        Test {
            name: "clients_view_kubelet",
            what: "kubelet's notifier hears from the view, and leaves nothing registered",
            on: On::Any,
            run: || kubelet(Side::View),
        },
        Test {
            name: "clients_view_cgroups_rs",
            what: "the crate cgroups-rs hears from the view what it hears from v1",
            on: On::Any,
            run: || cgroups_rs(Side::View),
        },
    ];
    let mut tests = on_both(kernel, view);
    tests.push(Test {
        name: "clients_library",
        what: "our library's registrations are signalled, told the cause, and end with the group",
        on: On::Any,
        run: library,
    });
    tests
}

/// The tests on the kernel's files, and those on the view once there is one.
pub(crate) fn on_both<const N: usize>(kernel: [Test; N], view: [Test; N]) -> Vec<Test> {
    kernel.into_iter().chain(view.into_iter().filter(|_| HAS_VIEW)).collect()
}

/// Whose files a client is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Kernel,
    View,
}

/// A group, and the directory that has v1's files of it.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) group: Group,
    directory: String,
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
    fn registered(&self, count: u64) -> Result<()> {
        let Some(agent) = &self.agent else { return Ok(()) };
        until("the agent holds what clients hold", || Ok(agent.status()?.registrations == count))
    }

    /// Has a process hit the group's limit and be killed for it.
    pub(crate) fn out_of_memory(&self) -> Result<()> {
        let limit = match self.group.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        let mut worker = Worker::start(&self.group)?;
        self.group.write(limit, "40M")?;
        ensure!(worker.grow(Kind::Anonymous, 80 * MIB).is_err(), "no process was killed at the limit");
        Ok(())
    }
}

/// Grows past 20 MiB and shrinks below; each program says a line more with this
/// text, both times.
pub(crate) fn up_and_down(group: &Group, programs: &mut [(&mut Program, &str)]) -> Result<()> {
    let mut worker = Worker::start(group)?;
    for up in [true, false] {
        let mut before = Vec::new();
        for (program, text) in &mut *programs {
            before.push(program.count(text)?);
        }
        if up {
            worker.grow(Kind::Anonymous, 30 * MIB)?;
        } else {
            worker.shrink(Kind::Anonymous)?;
        }
        for ((program, text), before) in programs.iter_mut().zip(before) {
            program.says_more(text, before)?;
        }
    }
    worker.end()
}

fn listener(side: Side) -> Result<()> {
    let place = Place::new(side, "listener")?;
    let start = |file: &str, args: &str| -> Result<Program> {
        let program = Program::start(&["/bin/clients/cgroup_event_listener", &place.file(file), args])?;
        program.reads_eventfd()?;
        Ok(program)
    };
    let mut usage = start("memory.usage_in_bytes", "20M")?;
    let mut memsw = start("memory.memsw.usage_in_bytes", "20M")?;
    let mut oom = start("memory.oom_control", "")?;
    let mut pressure = start("memory.pressure_level", "critical")?;
    place.registered(4)?;

    up_and_down(&place.group, &mut [(&mut usage, ": crossed"), (&mut memsw, ": crossed")])?;
    ensure!(oom.count("")? == 0, "an OOM, although there is no limit");
    ensure!(pressure.count("")? == 0, "pressure, although there is no limit");
    place.out_of_memory()?;
    // Its dirname() cuts the path short, so it names the group, not the file.
    oom.says("listener : crossed")?;
    pressure.says("listener critical: crossed")?;

    place.group.remove()?;
    for program in [usage, memsw, oom, pressure] {
        let (code, last) = program.end()?;
        ensure!(code == 0 && last == REMOVED, "exit code {code} after {last:?}");
    }
    place.registered(0)
}

fn containerd(side: Side) -> Result<()> {
    let place = Place::new(side, "containerd")?;
    let threshold = (20 * MIB).to_string();
    let words = ["/bin/clients/containerd", &place.directory, &threshold, &threshold, "critical"];
    let mut program = Program::start(&words)?;
    program.says("registered")?;
    place.registered(4)?;
    // One program says both; each kind gets a round of its own.
    up_and_down(&place.group, &mut [(&mut program, "usage ")])?;
    up_and_down(&place.group, &mut [(&mut program, "memsw ")])?;
    ensure!(program.count("oom")? == 0, "an OOM, although there is no limit");
    place.out_of_memory()?;
    program.says("oom 1")?;
    program.says("pressure ")?;

    place.group.remove()?;
    // One more for each registration, and the directory is gone by then.
    program.says("oom gone 1")?;
    for kind in ["usage", "memsw", "pressure"] {
        program.says(&format!("{kind} gone "))?;
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
    up_and_down(&place.group, &mut [(&mut program, "event")])?;

    let heard = program.count("event")?;
    for round in 1..=ROUNDS {
        program.tell("")?;
        program.says_more("registered", round)?;
        program.polls_eventfd()?;
    }
    place.registered(1)?;
    ensure!(program.count("event")? == heard, "a registration was signalled for being one");
    ensure!(program.count("warning")? == 0, "the notifier complained");
    up_and_down(&place.group, &mut [(&mut program, "event")])?;

    let heard = program.count("event")?;
    place.group.remove()?;
    // It cannot tell a removal apart, until it registers anew.
    program.says_more("event", heard)?;
    program.tell("")?;
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
    program.says("oom 1")?;
    program.says("pressure 1")?;
    place.group.remove()?;
    let (code, last) = program.end()?;
    ensure!(code == 0 && last.starts_with("closed"), "exit code {code} after {last:?}");
    place.registered(0)
}

fn library() -> Result<()> {
    let agent = Agent::start(&[])?;
    let group = Group::new("library")?;
    let builder = Builder::new(group.usage_file()).args("4M");
    let registration = builder.register()?;
    let mut follower = builder.follow()?;
    drop(builder.register()?);
    until("a dropped one ends", || Ok(agent.status()?.registrations == 2))?;
    let mut worker = Worker::start(&group)?;
    for direction in ["up", "down"] {
        match direction {
            "up" => worker.grow(Kind::Anonymous, 8 * MIB)?,
            _ => worker.shrink(Kind::Anonymous)?,
        }
        ensure!(registration.wait()?.is_some_and(|signals| signals > 0), "no signal {direction}");
        let event = follower.wait_event()?.context("the follower ended")?;
        ensure!(event.direction.as_deref() == Some(direction), "{direction}: {event:?}");
    }
    worker.end()?;
    group.remove()?;
    let event = follower.wait_event()?.context("the follower ended without a word")?;
    ensure!(event.event == "removed" && follower.wait_event()?.is_none(), "the last event is {event:?}");
    ensure!(registration.wait()?.is_none(), "the removal is the end");
    Ok(())
}
