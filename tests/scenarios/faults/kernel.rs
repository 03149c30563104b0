//! Groups without the memory controller, and kernels whose settings forbid the programs: what is
//! refused is refused with its reason, and with what to write where.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use memcg_monitor::{cgroup::Version, programs::PINS_DIRECTORY};
use monitor_common::grammar::control_file::ControlFile;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

use crate::harness::MIB;
use crate::harness::agent::{Agent, BINARY, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, register_line};
use crate::harness::group::Group;
use crate::harness::test::vm_test;
use crate::scenarios::restart::Supervised;

/// The agent's text for a registration on this control file of a group, by its directory.
fn refusal(waiter: &Waiter, group: &Group, file: ControlFile) -> Result<String> {
    let directory = File::open(&group.path).context("cannot open the group")?;
    let args = match file {
        ControlFile::Oom | ControlFile::Procs => "",
        ControlFile::Pressure => "low",
        ControlFile::Usage | ControlFile::Memsw | ControlFile::WorkingSet | ControlFile::Anon => "1M",
    };
    let line = format!("{} {} {} {args}", waiter.0.as_raw_fd(), directory.as_raw_fd(), file.name());
    let error = register_line(line.as_bytes()).err().with_context(|| format!("{line:?} is registered"))?;
    ensure!(error.errno() == Some(Errno::EINVAL as i32), "{line:?}: {error}");
    Ok(error.to_string())
}

vm_test!(
    faults_no_controller,
    "on a group without the memory controller, a registration names the group and the file to write",
    V2,
    [Kernel, Quick]
);
fn faults_no_controller() -> Result<()> {
    let above = Group::new("above")?;
    let group = Group { path: above.path.join("group"), version: Version::V2 };
    let below = Group { path: group.path.join("below\u{1b}[2J"), version: Version::V2 };
    fs::create_dir(&group.path).and_then(|()| fs::create_dir(&below.path)).context("mkdir")?;
    ensure!(!group.usage_file().exists(), "the group has no controller");
    let agent = Agent::start(&[])?;
    let waiter = Waiter::new()?;
    let (root, inner) = (above.path.display(), group.path.display());
    for file in ControlFile::ALL {
        let text = refusal(&waiter, &group, file)?;
        let wanted =
            format!("{inner} has no memory controller; echo +memory > {root}/cgroup.subtree_control");
        ensure!(text.ends_with(&wanted), "{file:?}: {text}");
    }
    // The nearest that can pass it on is two levels above; the name is shown without its effect.
    let text = refusal(&waiter, &below, ControlFile::Usage)?;
    let wanted = format!(
        "{inner}/below\\x1b[2J has no memory controller; echo +memory > {root}/cgroup.subtree_control, then"
    );
    ensure!(text.contains(&wanted), "{text}");
    above.enable(true)?;
    group.enable(true)?;
    waiter.register(&below, "1M").context("as the text says")?;
    ensure!(agent.status()?.registrations == 1, "it is registered");
    drop((waiter, agent));
    fs::remove_dir(&below.path).and_then(|()| fs::remove_dir(&group.path)).context("rmdir")
}

/// `kernel.ftrace_enabled`, set to 0 as long as it is held.
pub(super) struct FtraceOff;

impl FtraceOff {
    const PATH: &str = "/proc/sys/kernel/ftrace_enabled";

    pub(super) fn set() -> Result<Self> {
        fs::write(Self::PATH, "0").context("cannot write kernel.ftrace_enabled")?;
        Ok(Self)
    }
}

impl Drop for FtraceOff {
    fn drop(&mut self) {
        let _ = fs::write(Self::PATH, "1");
    }
}

vm_test!(
    faults_ftrace_off,
    "with kernel.ftrace_enabled=0 an agent samples, one that runs finds by reading what it is not called for, and takes registrations; both name it",
    Any,
    [Kernel]
);
fn faults_ftrace_off() -> Result<()> {
    let (group, gone) = (Group::new("quiet")?, Group::new("gone")?);
    let off = FtraceOff::set()?;
    let error = Agent::start(&[]).err().context("the agent is ready")?;
    ensure!(format!("{error:#}").contains("sysctl kernel.ftrace_enabled=1"), "{error:#}");
    let agent = Agent::start(&["--backend", "auto"])?;
    ensure!(agent.status()?.backend == "sampled", "{:?}", agent.status()?);
    ensure!(Agent::log().contains("sysctl kernel.ftrace_enabled=1"), "{}", Agent::log());
    ensure!(agent.end(Signal::SIGTERM)? == 0, "exit code");
    drop(off);

    let agent = Agent::start(&[])?;
    let (waiter, removed) = (Waiter::on(&group, "4M")?, Waiter::on(&gone, "4M")?);
    let precision = |wanted: &str| until("the agent has noticed", || Ok(agent.status()?.precision == wanted));
    let off = FtraceOff::set()?;
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    waiter.crosses("by reading")?;
    precision("sampled")?;
    ensure!(Agent::log().contains("sysctl kernel.ftrace_enabled=1"), "{}", Agent::log());
    gone.remove()?;
    ensure!(removed.wait()? == 1, "the removal is signalled");
    // An eventfd and a group that no program was called for.
    let made = Group::new("made")?;
    let (new, newest) = (Waiter::on(&group, "5M")?, Waiter::on(&made, "4M")?);
    let error = Waiter::on(&group, "5M,exact").err().context("exact is registered")?;
    ensure!(format!("{error:#}").contains("EOPNOTSUPP"), "{error:#}");
    let mut other = Charger::start(&made)?;
    other.grow(Kind::Anonymous, 6 * MIB)?;
    newest.crosses("on a new group, by reading")?;
    ensure!(new.take()? == 0, "5M is not crossed");
    drop(off);
    precision("exact")?;
    charger.shrink(Kind::Anonymous)?;
    waiter.crosses("once they run again")?;
    new.crosses("registered while they did not run")?;
    other.end()?;
    newest.crosses("on that group, once they run again")?;
    made.remove()?;
    ensure!(newest.wait()? == 1, "and its removal");
    let late = Waiter::on(&group, "8M")?;
    charger.grow(Kind::Anonymous, 10 * MIB)?;
    late.crosses("registered once they run again")?;
    charger.end()?;
    ensure!(agent.end(Signal::SIGTERM)? == 0, "exit code");
    Ok(())
}

vm_test!(
    faults_ftrace_off_at_a_restart,
    "registrations go on when the next agent has to sample, and when the one after that has programs again",
    Any,
    [Kernel]
);
fn faults_ftrace_off_at_a_restart() -> Result<()> {
    let (group, gone) = (Group::new("on_and_off")?, Group::new("gone")?);
    let mut agent = Supervised::start(&["--backend", "auto", "--no-mount"])?;
    let has = |agent: &Supervised, backend: &str, registrations: u64| {
        let status = agent.0.status()?;
        let found = (status.backend.as_str(), status.registrations);
        ensure!(found == (backend, registrations), "{found:?} in place of {backend}, {registrations}");
        Ok(())
    };
    let mut charger = Charger::start(&group)?;
    let (waiter, removed) = (Waiter::on(&group, "4M")?, Waiter::on(&gone, "4M")?);
    has(&agent, "fentry", 2)?;
    for round in 0..2 {
        let mut off = None;
        agent.killed_while(|| {
            off = Some(FtraceOff::set()?);
            Ok(())
        })?;
        has(&agent, "sampled", 2 - round)?;
        charger.grow(Kind::Anonymous, 6 * MIB)?;
        waiter.crosses("up, sampled")?;
        agent.killed_while(|| {
            drop(off.take());
            if round == 0 { gone.remove() } else { Ok(()) }
        })?;
        if round == 0 {
            ensure!(removed.wait()? == 1, "the removal meanwhile is signalled");
        }
        has(&agent, "fentry", 1)?;
        agent.0.settle()?;
        ensure!(waiter.take()? == 0, "what was signalled is not signalled again");
        charger.shrink(Kind::Anonymous)?;
        waiter.crosses("down, by programs")?;
    }
    charger.end()?;
    // No agent has left a reference behind.
    drop(waiter);
    until("the closed eventfd is noticed", || Ok(agent.registrations()? == 0))
}

vm_test!(
    faults_ftrace_off_at_an_end,
    "programs stay attached while function tracing is off, and the end of a sampling agent detaches them",
    Any,
    [Kernel]
);
fn faults_ftrace_off_at_an_end() -> Result<()> {
    let are_pinned = || fs::read_dir(PINS_DIRECTORY).is_ok_and(|entries| entries.count() > 0);
    let group = Group::new("end")?;
    let mut charger = Charger::start(&group)?;
    let agent = Supervised::start(&["--no-mount"])?;
    let off = FtraceOff::set()?;
    ensure!(agent.0.end(Signal::SIGTERM)? == 0, "exit code");
    ensure!(are_pinned(), "to detach programs now keeps others from being attached");
    let log = Agent::log();
    ensure!(log.contains("kernel.ftrace_enabled is 0") && log.contains("rm -r"), "{log}");

    let agent = Supervised::start(&["--backend", "auto", "--no-mount"])?;
    ensure!(are_pinned() && agent.0.status()?.backend == "sampled", "{:?}", agent.0.status()?);
    drop(off);
    ensure!(agent.0.end(Signal::SIGTERM)? == 0, "exit code");
    ensure!(!are_pinned(), "what an agent leaves is removed by the next one's end");

    let agent = Supervised::start(&["--no-mount"])?;
    let waiter = Waiter::on(&group, "4M")?;
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    waiter.crosses("up, by programs that were attached after that")?;
    ensure!(agent.0.end(Signal::SIGTERM)? == 0, "exit code");
    charger.end()
}

vm_test!(
    faults_locked_down,
    "on a kernel locked down for confidentiality, check says once why the agent samples",
    Locked,
    [Sampled]
);
fn faults_locked_down() -> Result<()> {
    const POINT: &str = "/sys/kernel/security";
    mount(None::<&str>, POINT, Some("securityfs"), MsFlags::empty(), None::<&str>)
        .context("cannot mount securityfs")?;
    let output = Command::new(BINARY).arg("check").stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = text.lines().filter(|line| line.contains("lockdown=integrity")).collect();
    ensure!(output.status.code() == Some(0), "{}: {text}", output.status);
    // One line for all programs that are refused alike, and the paragraph at the end.
    ensure!(lines.len() == 2 && lines.iter().all(|line| line.contains("(confidentiality)")), "{text}");
    ensure!(text.contains("ok  trial of sampled"), "{text}");
    ensure!(text.contains("with less precision") && !text.contains("R10=fp0"), "{text}");
    let strict = Command::new(BINARY).args(["check", "--require", "exact"]).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&strict.stdout);
    ensure!(strict.status.code() == Some(1), "--require exact: {}", strict.status);
    let paragraph = said.lines().last().unwrap_or_default();
    ensure!(paragraph.contains("fails because of --require exact"), "{said}");
    ensure!(!text.contains("--require"), "{text}");
    let error = Agent::start(&["--backend", "fentry"]).err().context("the programs are loaded")?;
    ensure!(format!("{error:#}").contains("lockdown=integrity"), "{error:#}");
    let agent = Agent::start(&[])?;
    ensure!(
        agent.status()?.backend == "sampled" && Agent::log().contains("(confidentiality)"),
        "{}",
        Agent::log()
    );
    Ok(())
}
