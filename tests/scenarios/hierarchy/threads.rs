//! Threaded groups, whose memory the kernel counts in the group that their subtree begins with.

use std::fs;

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::Version;
use monitor_common::grammar::control_file::ControlFile;

use crate::harness::MIB;
use crate::harness::agent::Agent;
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::test::vm_test;

vm_test!(
    hierarchy_threaded,
    "a registration on a threaded group is refused with the name of the group that counts its memory, where it works",
    V2,
    [Kernel]
);
fn hierarchy_threaded() -> Result<()> {
    let domain = Group::new("domain")?;
    let threaded = Group { path: domain.path.join("threaded"), version: Version::V2 };
    let below = Group { path: threaded.path.join("below"), version: Version::V2 };
    fs::create_dir(&threaded.path)?;
    threaded.write("cgroup.type", "threaded")?;
    fs::create_dir(&below.path)?;
    let kind = fs::read_to_string(below.path.join("cgroup.type"))?;
    ensure!(kind.trim() == "domain invalid", "a group below a threaded one is {kind}");
    ensure!(domain.enable(true).is_err(), "the kernel lets +memory be written: no other remedy is needed");

    for backend in ["fentry", "sampled"] {
        let agent = Agent::start(&["--backend", backend])?;
        let waiter = Waiter::new()?;
        for group in [&threaded, &below] {
            for file in ControlFile::ALL {
                let answer = waiter.register_at(group, file, "").err().context("it is registered")?;
                let text = format!("{answer:#}");
                let wanted = format!(
                    "EINVAL: control_fd {{}}: {} is threaded, so the kernel counts its memory in {}",
                    group.path.display(),
                    domain.path.display()
                );
                let (before, after) = wanted.split_once("{}").context("no number")?;
                ensure!(text.contains(before) && text.contains(after), "{file:?}: {text}");
                ensure!(!text.contains("subtree_control"), "{file:?}: {text}");
            }
        }
        let waiter = Waiter::on(&domain, "4M").context("as the text says")?;
        let mut charger = Charger::start(&domain)?;
        threaded.add(charger.pid())?;
        charger.grow(Kind::Anonymous, 8 * MIB)?;
        waiter.crosses("the memory of a process in the threaded group")?;
        charger.end()?;
        drop(agent);
    }
    fs::remove_dir(&below.path).and_then(|()| fs::remove_dir(&threaded.path)).context("rmdir")
}
