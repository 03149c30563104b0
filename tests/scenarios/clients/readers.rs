//! Programs that read a group's statistics as v1 had them, on the kernel's files and on the
//! view's.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::Version;
use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use serde_json::Value;

use super::{Place, Side};
use crate::harness::MIB;
use crate::harness::charger::{Charger, Kind};
use crate::harness::group::Group;
use crate::harness::process;
use crate::harness::test::vm_test;

const LIMIT: u64 = 64 * MIB;

vm_test!(
    clients_kernel_cgget,
    "libcgroup's cgget prints what the kernel's files of a group say, and exits with 0",
    V1,
    [Oracle]
);
fn clients_kernel_cgget() -> Result<()> {
    cgget(Side::Kernel)
}

vm_test!(
    clients_view_cgget,
    "libcgroup's cgget prints what the view's files of a group say, and exits with 0",
    Any,
    [Oracle, Kernel]
);
fn clients_view_cgget() -> Result<()> {
    cgget(Side::View)
}

vm_test!(
    clients_kernel_statistics,
    "the libraries of runc and containerd read a group's statistics from the kernel",
    V1,
    [Oracle]
);
fn clients_kernel_statistics() -> Result<()> {
    statistics(Side::Kernel)
}

vm_test!(
    clients_view_statistics,
    "the libraries of runc and containerd read a group's statistics from the view",
    Any,
    [Oracle, Kernel]
);
fn clients_view_statistics() -> Result<()> {
    statistics(Side::View)
}

fn limit(group: &Group) -> Result<()> {
    group.set_limit(LIMIT)?;
    match group.version {
        Version::V1 => group.write("memory.memsw.limit_in_bytes", &LIMIT.to_string()),
        Version::V2 => group.write("memory.swap.max", "0"),
    }
}

/// Returns the output of a program, whose end is to be a good one.
fn printed(words: &[&str]) -> Result<String> {
    let (program, args) = words.split_first().context("a program has a name")?;
    let output = Command::new(program).args(args).output().with_context(|| format!("{words:?}"))?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{words:?}: {output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn cgget(side: Side) -> Result<()> {
    let place = Place::new(side, "cgget")?;
    limit(&place.group)?;
    process::run_in(CloneFlags::CLONE_NEWNS, || {
        if side == Side::View {
            // It knows a group by where cgroup file systems are mounted.
            let from = Path::new(&place.directory);
            mount(Some(from), &place.group.path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
        let text = printed(&["/bin/clients/cgget", "-g", "memory", "cgget"])?;
        for line in [
            "cgget:".to_owned(),
            format!("memory.limit_in_bytes: {LIMIT}"),
            format!("memory.memsw.limit_in_bytes: {LIMIT}"),
            "memory.use_hierarchy: 1".to_owned(),
            "memory.failcnt: 0".to_owned(),
            "memory.oom_control: oom_kill_disable 0".to_owned(),
            "memory.kmem.tcp.failcnt: 0".to_owned(),
        ] {
            ensure!(text.lines().any(|found| found == line), "no {line:?} in {text:?}");
        }
        Ok(())
    })
}

fn statistics(side: Side) -> Result<()> {
    let place = Place::new(side, "statistics")?;
    limit(&place.group)?;
    let mut charger = Charger::start(&place.group)?;
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    let json = |words: &[&str]| -> Result<Value> {
        let text = printed(words)?;
        serde_json::from_str(&text).with_context(|| format!("{words:?}: {text:?}"))
    };
    let at_least = |value: &Value, path: &str, least: u64| -> Result<()> {
        let found = value.pointer(path).and_then(Value::as_u64);
        ensure!(found.is_some_and(|found| found >= least), "{path} is {found:?} in {value}");
        Ok(())
    };
    let runc = json(&["/bin/clients/runc", &place.directory])?;
    for path in ["/usage/usage", "/usage/max_usage", "/swap_usage/usage", "/swap_usage/max_usage"] {
        at_least(&runc, path, 6 * MIB)?;
    }
    for path in ["/usage/limit", "/swap_usage/limit"] {
        ensure!(runc.pointer(path).and_then(Value::as_u64) == Some(LIMIT), "{path} in {runc}");
    }
    ensure!(runc.pointer("/use_hierarchy") == Some(&Value::Bool(true)), "{runc}");
    at_least(&runc, "/page_usage_by_numa/total/total", 1)?;
    let containerd = json(&["/bin/clients/containerd", &place.directory, "stat"])?;
    for path in ["/usage/usage", "/usage/max", "/swap/usage"] {
        at_least(&containerd, path, 6 * MIB)?;
    }
    ensure!(containerd.pointer("/usage/limit").and_then(Value::as_u64) == Some(LIMIT), "{containerd}");
    charger.end()
}
