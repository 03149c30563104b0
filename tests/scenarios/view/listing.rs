//! The names that a directory of the view has, as a v1 kernel lists them, and what happens to
//! writes that would set something.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::Version;
use memcg_monitor::view::POINT;

use super::{EVENT_CONTROL, files::OURS, shown};
use crate::harness::agent::Agent;
use crate::harness::group::Group;
use crate::harness::test::vm_test;

/// v1's files in the order of the kernel, with their modes on the newest kernels. What the view
/// lists on v2 is compared with this, and this with the real v1.
const FILES: [(&str, u32); 34] = [
    ("cgroup.procs", 0o644),
    ("memory.use_hierarchy", 0o644),
    ("memory.working_set_bytes", 0o444),
    ("memory.kmem.tcp.usage_in_bytes", 0o444),
    ("memory.soft_limit_in_bytes", 0o644),
    ("cgroup.sane_behavior", 0o444),
    ("memory.force_empty", 0o200),
    ("memory.pressure_level", 0o444),
    ("memory.move_charge_at_immigrate", 0o644),
    ("memory.memsw.failcnt", 0o644),
    ("memory.kmem.tcp.max_usage_in_bytes", 0o644),
    ("memory.max_usage_in_bytes", 0o644),
    ("memory.oom_control", 0o644),
    ("memory.stat", 0o444),
    ("memory.limit_in_bytes", 0o644),
    ("memory.swappiness", 0o644),
    ("memory.memsw.max_usage_in_bytes", 0o644),
    ("memory.numa_stat", 0o444),
    ("memory.kmem.failcnt", 0o644),
    ("memory.kmem.max_usage_in_bytes", 0o644),
    ("memory.usage_in_bytes", 0o444),
    ("tasks", 0o644),
    ("memory.memsw.limit_in_bytes", 0o644),
    ("memory.failcnt", 0o644),
    ("cgroup.event_control", 0o200),
    ("memory.kmem.tcp.failcnt", 0o644),
    ("memory.kmem.limit_in_bytes", 0o644),
    ("memory.memsw.usage_in_bytes", 0o444),
    ("notify_on_release", 0o644),
    ("release_agent", 0o644),
    ("memory.kmem.usage_in_bytes", 0o444),
    ("memory.anon_bytes", 0o444),
    ("memory.kmem.tcp.limit_in_bytes", 0o644),
    ("cgroup.clone_children", 0o644),
];

/// Files that the root alone has.
const OF_ROOT: [&str; 2] = ["cgroup.sane_behavior", "release_agent"];

/// The files of a directory, in the order of `readdir`, and their modes.
fn listed(directory: &Path) -> Result<Vec<(String, u32)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let mode = entry.metadata()?.mode() & 0o7777;
            files.push((entry.file_name().to_string_lossy().into_owned(), mode));
        }
    }
    Ok(files)
}

vm_test!(
    view_listing,
    "a directory lists the files of a v1 kernel, in its order and with its modes",
    Any,
    [Oracle, Kernel, Standing]
);
fn view_listing() -> Result<()> {
    let _agent = Agent::standing()?;
    let group = Group::new("listing")?;
    let root = Group::root()?;
    for (group, view, is_root) in
        [(&group, shown(&group.path)?, false), (&root, Path::new(POINT).to_path_buf(), true)]
    {
        let expected: Vec<_> = FILES
            .into_iter()
            .filter(|(name, _)| is_root || !OF_ROOT.contains(name))
            .map(|(name, mode)| (name.to_owned(), mode))
            .collect();
        let found = listed(&view)?;
        ensure!(found == expected, "the view lists {found:?}");
        for (name, _) in &found {
            let attributes = fs::symlink_metadata(view.join(name))?;
            ensure!(attributes.is_file() && attributes.len() == 0, "{name} is {attributes:?}");
        }
        if group.version == Version::V1 {
            // Ours alone; nothing is in it, and some kernels lack it.
            let ours: Vec<_> =
                expected.into_iter().filter(|(name, _)| !OURS.contains(&name.as_str())).collect();
            let kernel: Vec<_> = listed(&group.path)?
                .into_iter()
                .filter(|(name, _)| name != "memory.kmem.slabinfo")
                // Modes that newer kernels have changed.
                .map(|(name, mode)| match (name.as_str(), mode) {
                    (EVENT_CONTROL, 0o222) => (name, 0o200),
                    ("memory.pressure_level", 0) => (name, 0o444),
                    _ => (name, mode),
                })
                .collect();
            ensure!(kernel == ours, "the kernel lists {kernel:?}");
        }
    }
    Ok(())
}

/// The errno of a write, 0 for none.
fn written(path: &Path, text: &str) -> Result<i32> {
    let file = OpenOptions::new().write(true).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    Ok(nix::unistd::write(&file, text.as_bytes()).err().map_or(0, |errno| errno as i32))
}

vm_test!(
    view_sets_nothing,
    "what v1 would set is not permitted, what v1 would refuse is refused with the kernel's errno",
    Any,
    [Oracle, Kernel, Standing]
);
fn view_sets_nothing() -> Result<()> {
    const TEXTS: [&str; 16] = [
        "x",
        "-1",
        "-2",
        "0",
        "1",
        "9",
        "201",
        "4096",
        "1k",
        "0x10",
        "1 x",
        " 1",
        "1\n",
        "max",
        "1E",
        "99999999999999999999",
    ];
    let _agent = Agent::standing()?;
    let group = Group::new("settings")?;
    let view = shown(&group.path)?;
    for (name, _) in listed(&view)? {
        if [EVENT_CONTROL, "cgroup.procs", "tasks"].contains(&name.as_str()) {
            continue;
        }
        for text in TEXTS {
            let ours = written(&view.join(&name), text)?;
            let real = group.path.join(&name);
            if group.version == Version::V2 || OURS.contains(&name.as_str()) {
                ensure!([0, libc::EPERM, libc::EINVAL, libc::ERANGE].contains(&ours), "{name}: {ours}");
                continue;
            }
            let expected = match written(&real, text)? {
                // The only value, as it has been since 5.11.
                0 if name == "memory.use_hierarchy" => 0,
                0 => libc::EPERM,
                // This limit may not be below the one without swap: of no account where neither
                // can be set.
                libc::EINVAL if name == "memory.memsw.limit_in_bytes" && ours == libc::EPERM => ours,
                errno => errno,
            };
            ensure!(ours == expected, "{text:?} to {name}: errno {ours} instead of {expected}");
        }
    }
    for (name, text, errno) in [
        ("memory.limit_in_bytes", "64M", libc::EPERM),
        ("memory.limit_in_bytes", "64 M", libc::EINVAL),
        ("memory.memsw.limit_in_bytes", "64M", libc::EPERM),
        ("memory.max_usage_in_bytes", "0", libc::EPERM),
        ("memory.failcnt", "0", libc::EPERM),
        ("memory.force_empty", "0", libc::EPERM),
        ("memory.oom_control", "1", libc::EPERM),
        ("memory.oom_control", "2", libc::EINVAL),
        ("memory.swappiness", "201", libc::EINVAL),
        ("memory.use_hierarchy", "1", 0),
        ("memory.use_hierarchy", "0", libc::EINVAL),
        ("memory.usage_in_bytes", "0", libc::EINVAL),
        ("cgroup.procs", "1", libc::EPERM),
        ("cgroup.procs", "x", libc::EINVAL),
        ("tasks", "1", libc::EPERM),
        ("notify_on_release", "1", libc::EPERM),
    ] {
        let found = written(&view.join(name), text)?;
        ensure!(found == errno, "{text:?} to {name}: errno {found} instead of {errno}");
    }
    let before = fs::read_to_string(group.path.join("cgroup.procs"))?;
    ensure!(before.is_empty(), "a process was moved: {before:?}");
    for name in ["memory.limit_in_bytes", "memory.oom_control"] {
        let found = written(&Path::new(POINT).join(name), "1")?;
        ensure!(found == libc::EINVAL, "the root's {name}: errno {found}");
    }
    Ok(())
}
