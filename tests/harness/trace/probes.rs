//! The probes behind the trace, and the buffer they write to.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::{Hierarchy, Version};

const PROBES: &str = "/sys/kernel/tracing/kprobe_events";
const PROFILE: &str = "/sys/kernel/tracing/kprobe_profile";
/// A trace buffer of our own, whose clock and options no other tracer sets.
const DIRECTORY: &str = "/sys/kernel/tracing/instances/conformance";
/// The group of our probes, and so a directory of `events`.
const GROUP: &str = "conformance";
/// A group three deep, and the root.
pub(super) const LEVELS: usize = 4;

/// The one that may refuse.
pub(super) const TRY: &str = "page_counter_try_charge";
/// The functions that change a counter, and the sign of the change.
pub(super) const CHANGES: [(&str, i64); 3] =
    [(TRY, 1), ("page_counter_charge", 1), ("page_counter_uncharge", -1)];

/// The probes, as long as they are in.
#[derive(Debug)]
pub(super) struct Probes;

impl Probes {
    /// The offsets are those of `page_counter`.
    pub(super) fn insert(parent: u64, usage: u64) -> Result<Self> {
        // What a killed test left.
        remove();
        let inserted = Self;
        let counters = fetch(parent, usage);
        for (function, _) in CHANGES {
            probe(&format!("p:{GROUP}/{function} {function} pages=$arg2:u64{counters}"))?;
            // The others return nothing, and newer kernels refuse to fetch that.
            let returned = if function == TRY { " returned=$retval:u8" } else { "" };
            // As many at once as there could be tasks: none must go unseen.
            probe(&format!("r100:{GROUP}/{function}_end {function}{returned}"))?;
        }
        let read = match Hierarchy::find(None)?.version {
            Version::V1 => "mem_cgroup_read_u64",
            Version::V2 => "memory_current_read",
        };
        probe(&format!("p:{GROUP}/usage_read {read} css=$arg1:x64"))?;

        fs::create_dir(DIRECTORY).with_context(|| format!("cannot make {DIRECTORY}"))?;
        // No filter: with one, the kernel would fetch first and count later.
        // A count, not a time: one order for all processors.
        set("trace_clock", "counter")?;
        set("buffer_size_kb", "8192")?;
        set(&format!("events/{GROUP}/enable"), "1")?;
        Ok(inserted)
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        remove();
    }
}

/// Opens what the probes wrote; reading takes it away and never waits.
pub(super) fn pipe() -> Result<File> {
    let path = format!("{DIRECTORY}/trace_pipe");
    let pipe = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
    pipe.with_context(|| format!("cannot open {path}"))
}

/// The arguments to fetch of a counter and those above it.
fn fetch(parent: u64, usage: u64) -> String {
    let mut text = String::new();
    let mut at = "$arg1".to_owned();
    for level in 0..LEVELS {
        let _ = write!(text, " c{level}={at}:x64 u{level}=+{usage}({at}):s64");
        at = format!("+{parent}({at})");
    }
    text
}

/// Adds to the probes or takes away; truncating the file would take all away.
fn probe(definition: &str) -> Result<()> {
    let file = OpenOptions::new().append(true).open(PROBES);
    let mut file = file.with_context(|| format!("cannot open {PROBES}"))?;
    file.write_all(definition.as_bytes())
        .with_context(|| format!("the kernel refused the probe {definition:?}"))
}

fn set(file: &str, value: &str) -> Result<()> {
    let path = format!("{DIRECTORY}/{file}");
    fs::write(&path, value).with_context(|| format!("cannot write {value:?} to {path}"))
}

/// Fails where a buffer was too small.
pub(super) fn ensure_whole() -> Result<()> {
    let directory = format!("{DIRECTORY}/per_cpu");
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot list {directory}"))? {
        let path = entry?.path().join("stats");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for line in text.lines() {
            let lost = line.contains("overrun") || line.contains("dropped");
            ensure!(!lost || line.ends_with(": 0"), "the trace lost events: {} says {line}", path.display());
        }
    }
    Ok(())
}

/// Calls that our probes missed so far: `EVENT HITS MISSES`.
pub(super) fn missed() -> Result<u64> {
    let profile = fs::read_to_string(PROFILE).with_context(|| format!("cannot read {PROFILE}"))?;
    let misses = |line: &str| line.split_whitespace().nth(2)?.parse::<u64>().ok();
    profile.lines().map(|line| misses(line).with_context(|| format!("{PROFILE} says {line:?}"))).sum()
}

/// Ours only, and none is no failure: it may be what a killed test left.
fn remove() {
    let _ = set(&format!("events/{GROUP}/enable"), "0");
    let _ = fs::remove_dir(DIRECTORY);
    for (function, _) in CHANGES {
        let _ = probe(&format!("-:{GROUP}/{function}"));
        let _ = probe(&format!("-:{GROUP}/{function}_end"));
    }
    let _ = probe(&format!("-:{GROUP}/usage_read"));
}
