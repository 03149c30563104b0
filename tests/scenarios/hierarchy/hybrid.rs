//! Hosts with hierarchies of both versions: the one with the memory controller is found, and named.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::{Hierarchy, Version};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;

use crate::harness::MIB;
use crate::harness::agent::Agent;
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::process;
use crate::harness::test::vm_test;
use crate::scenarios::abuse::{fails, says};

/// Checks that an agent finds the hierarchy with the memory controller beside `other`, and that
/// it and `check` say which that is.
fn is_found(version: Version, other: &str) -> Result<()> {
    let root = Hierarchy::find(None)?.root;
    let agent = Agent::start(&[])?;
    let place = format!("groups below {} ({version},", root.display());
    ensure!(Agent::log().contains(&place), "{place:?} is not in: {}", Agent::log());
    let group = Group::new("hybrid")?;
    ensure!(group.version == version, "{:?}", group.version);
    let waiter = Waiter::on(&group, "4M")?;
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    waiter.crosses("its usage")?;
    charger.end()?;
    drop(agent);
    let (code, text) = fails(&["check"], |_| {})?;
    let line = text.lines().find(|line| line.contains("memory controller")).unwrap_or_default();
    let wanted = [format!("{version} at {}", root.display()), "mode hybrid".into(), other.to_owned()];
    ensure!(code == 0 && wanted.iter().all(|part| line.contains(part)), "{code}: {line}, in: {text}");
    Ok(())
}

vm_test!(
    hierarchy_hybrid_with_memory_on_v1,
    "beside cgroup2 without the memory controller v1's hierarchy is found, and named where the other is given",
    V1,
    [Oracle]
);
fn hierarchy_hybrid_with_memory_on_v1() -> Result<()> {
    const UNIFIED: &str = "/sys/fs/cgroup/unified";
    const ELSEWHERE: &str = "/tmp/memory";
    process::run_in(CloneFlags::CLONE_NEWNS, || {
        fs::create_dir_all(UNIFIED)?;
        mount(Some("none"), UNIFIED, Some("cgroup2"), MsFlags::empty(), None::<&str>)
            .context("cannot mount cgroup2")?;
        is_found(Version::V1, &format!("cgroup v2 at {UNIFIED}"))?;
        let memory = Hierarchy::find(None)?.root;
        let remedy = format!("--cgroup-root {}", memory.display());
        says(fails(&["agent", "--cgroup-root", UNIFIED], |_| {})?, &[UNIFIED, &remedy])?;

        // All of that covered, and the hierarchy mounted elsewhere once more.
        mount(Some("none"), "/sys/fs/cgroup", Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .context("cannot mount a tmpfs")?;
        fs::create_dir_all(ELSEWHERE)?;
        mount(Some("none"), ELSEWHERE, Some("cgroup"), MsFlags::empty(), Some("memory"))
            .context("cannot mount v1's memory hierarchy")?;
        let found = Hierarchy::find(None)?;
        ensure!(found.root == Path::new(ELSEWHERE), "{found:?} is covered");
        let _agent = Agent::start(&[])?;
        let group = Group::new("elsewhere")?;
        Waiter::on(&group, "4M").map(drop)
    })
}

vm_test!(
    hierarchy_hybrid_with_memory_on_v2,
    "beside a hierarchy of v1 without the memory controller cgroup2 is found; a directory that is no hierarchy is named",
    V2,
    [Kernel]
);
fn hierarchy_hybrid_with_memory_on_v2() -> Result<()> {
    const NAMED: &str = "/tmp/named";
    process::run_in(CloneFlags::CLONE_NEWNS, || {
        fs::create_dir_all(NAMED)?;
        mount(Some("none"), NAMED, Some("cgroup"), MsFlags::empty(), Some("none,name=memcgmon"))
            .context("cannot mount a hierarchy of v1")?;
        is_found(Version::V2, &format!("cgroup v1 at {NAMED}"))?;
        says(fails(&["agent", "--cgroup-root", NAMED], |_| {})?, &[NAMED, "is not a mounted"])?;
        // The directory is to blame, not the host.
        let outcome = fails(&["check", "--cgroup-root", "/tmp"], |_| {})?;
        ensure!(!outcome.1.contains("This host cannot"), "{}", outcome.1);
        says(outcome, &["/tmp cannot be watched", "--cgroup-root"])?;
        umount2(Path::new(NAMED), MntFlags::MNT_DETACH).context("umount")
    })
}
