//! The sampled backend: what it says of itself, and how it finds what no file shows at once.

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::Version;
use monitor_common::grammar::control_file::ControlFile;
use nix::sys::signal::Signal;

use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::test::vm_test;

const SAMPLED: [&str; 2] = ["--backend", "sampled"];

vm_test!(
    sampled_says_so,
    "an agent that samples says so, and refuses a line that wants exact notifications",
    Any,
    [Kernel, Sampled]
);
fn sampled_says_so() -> Result<()> {
    let group = Group::new("said")?;
    let agent = Agent::start(&SAMPLED)?;
    let status = agent.status()?;
    ensure!((status.backend.as_str(), status.precision.as_str()) == ("sampled", "sampled"), "{status:?}");
    let waiter = Waiter::new()?;
    let refused = |args: &str| -> Result<String> {
        let error = waiter.register(&group, args).err().with_context(|| format!("{args} is registered"))?;
        Ok(format!("{error:#}"))
    };
    let text = refused("8M,exact")?;
    ensure!(text.contains("EOPNOTSUPP") && text.contains("sampled here, not exact"), "{text}");
    waiter.register(&group, "8M").context("the same without `exact`")?;
    ensure!(agent.end(Signal::SIGTERM)? == 0, "exit code");
    Ok(())
}

vm_test!(
    sampled_oom,
    "an OOM by the group's limit is signalled to the group and those below, not to others",
    Any,
    [Kernel, Sampled]
);
fn sampled_oom() -> Result<()> {
    let group = Group::new("out")?;
    let below = group.child("below")?;
    let other = Group::new("other")?;
    let agent = Agent::start(&SAMPLED)?;
    let on = |group: &Group| Waiter::at(group, ControlFile::Oom, "");
    let (on_group, on_below, on_other) = (on(&group)?, on(&below)?, on(&other)?);
    group.set_limit(16 * MIB)?;
    let mut charger = Charger::start(&below)?;
    charger.grow_to_death(64 * MIB)?;
    ensure!(on_group.wait()? >= 1 && on_below.wait()? >= 1, "signalled");
    agent.settle()?;
    ensure!(on_other.take()? == 0, "the other group was signalled");
    Ok(())
}

vm_test!(
    sampled_peak,
    "a spike between two readings that sets a new peak is signalled both ways",
    Any,
    [Kernel, Sampled]
);
/// v2's peak is in 5.19 and newer, v1's everywhere.
fn sampled_peak() -> Result<()> {
    let group = Group::new("spiky")?;
    if group.peak().is_err() {
        ensure!(group.version == Version::V2, "v1 has a peak");
        return Ok(());
    }
    let agent = Agent::start(&SAMPLED)?;
    let waiter = Waiter::on(&group, "32M")?;
    let mut charger = Charger::start(&group)?;
    charger.spike(Kind::Anonymous, 40 * MIB, 1)?;
    ensure!(waiter.wait()? >= 1, "signalled");
    until("both ways", || {
        agent.settle()?;
        Ok(agent.status()?.signals == 2)
    })?;
    charger.end()
}

vm_test!(
    sampled_restart,
    "registrations go on over a restart of an agent that samples",
    Any,
    [Kernel, Sampled]
);
fn sampled_restart() -> Result<()> {
    let group = Group::new("again")?;
    let options = [&SAMPLED[..], &["--supervised", "--no-mount"]].concat();
    let mut agent = Agent::start(&options)?;
    let waiter = Waiter::on(&group, "8M")?;
    agent.settle()?;
    nix::sys::signal::kill(agent.supervised()?, Signal::SIGKILL).context("kill")?;
    agent.ready()?;
    ensure!(agent.status()?.registrations == 1, "it is registered");
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 16 * MIB)?;
    ensure!(waiter.wait()? == 1, "up");
    charger.end()?;
    ensure!(waiter.wait()? == 1, "down");
    Ok(())
}

vm_test!(
    sampled_empty,
    "a group that has become empty is signalled, and one that was empty before the registration is not",
    V2,
    [Kernel, Sampled]
);
fn sampled_empty() -> Result<()> {
    let (group, before) = (Group::new("emptied")?, Group::new("empty_before")?);
    let agent = Agent::start(&SAMPLED)?;
    let charger = Charger::start(&group)?;
    Charger::start(&before)?.end()?;
    let (waiter, none) =
        (Waiter::at(&group, ControlFile::Procs, "")?, Waiter::at(&before, ControlFile::Procs, "")?);
    charger.end()?;
    ensure!(waiter.wait()? == 1, "signalled once");
    agent.settle()?;
    ensure!(none.take()? == 0, "it was empty before");
    Ok(())
}

vm_test!(
    sampled_oom_before,
    "an OOM before the first registration on OOMs is not signalled to it",
    Any,
    [Kernel, Sampled]
);
fn sampled_oom_before() -> Result<()> {
    let group = Group::new("early")?;
    let agent = Agent::start(&SAMPLED)?;
    // The group is in the table, and nothing is registered on OOMs.
    let _usage = Waiter::on(&group, "1G")?;
    group.set_limit(16 * MIB)?;
    Charger::start(&group)?.grow_to_death(64 * MIB)?;
    // v1 does not count them; there, one process more is one OOM at least.
    let counted = || match group.version {
        Version::V1 => Ok(0),
        Version::V2 => group.field("memory.events.local", "oom"),
    };
    let before = counted()?;
    let waiter = Waiter::at(&group, ControlFile::Oom, "")?;
    agent.settle()?;
    ensure!(waiter.take()? == 0, "signalled at registration");
    Charger::start(&group)?.grow_to_death(64 * MIB)?;
    let mut received = waiter.wait()?;
    if group.version == Version::V2 {
        let wanted = counted()? - before;
        until("each OOM is signalled", || {
            received += waiter.take()?;
            Ok(received >= wanted)
        })?;
        ensure!(received == wanted, "{received} signals for {wanted} OOMs");
    }
    Ok(())
}
