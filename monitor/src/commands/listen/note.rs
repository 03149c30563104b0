//! A note about a threshold that cannot be crossed as things are: above the limit of its group or of one
//! above it, or a percentage where there is no limit.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use memcg_monitor::{kernel::page_size, printable};
use monitor_common::grammar::{
    control_file::{self, ControlFile, Trigger, split_exact},
    threshold::{At, Pages, Threshold},
};
use nix::poll::PollTimeout;

use super::words;
use crate::commands::{deadline, human::human, say, top::host::HostMemory};

/// The lowest limit that the files show, from a group up.
#[derive(Debug, PartialEq, Eq)]
struct Limit {
    /// Bytes of the limit, if there is one.
    bytes: Option<u64>,
    /// Group that has it, where its file is known.
    group: Option<PathBuf>,
    /// Whether all groups up to the host's root were seen: in a cgroup namespace they are not.
    is_whole: bool,
}

/// Time between two looks for a limit that was lowered.
const AGAIN: Duration = Duration::from_secs(5);

/// Notes once that a threshold cannot be crossed, at the beginning or when a limit is lowered later.
pub struct Noter<'a> {
    /// The registration, until that is noted; nothing for one without a threshold.
    of: Option<(&'a Path, ControlFile, &'a str)>,
    next: Instant,
}

impl<'a> Noter<'a> {
    pub fn new(of: Option<(&'a Path, ControlFile, &'a str)>) -> Self {
        let of = of.filter(|(_, file, args)| threshold(*file, args).is_some());
        Self { of, next: Instant::now() }
    }

    /// The note, where it is needed by now and was not given.
    fn take(&mut self) -> Option<String> {
        let (directory, file, args) = self.of.filter(|_| Instant::now() >= self.next)?;
        self.next = Instant::now() + AGAIN;
        let note = on(directory, file, args, HostMemory::read().total)?;
        self.of = None;
        Some(note)
    }

    /// Says the note, where it is needed by now and was not said.
    pub fn tell(&mut self) {
        if let Some(note) = self.take() {
            say(&format!("note: {}", printable(&note)));
        }
    }

    /// The longest that a poll may take: until the deadline, or the next look for a limit that was lowered.
    pub fn limit(&self, deadline: Option<Instant>) -> PollTimeout {
        deadline::left([deadline, self.next()].into_iter().flatten().min())
    }

    /// The time of the next look; `None`: there is none.
    fn next(&self) -> Option<Instant> {
        self.of.map(|_| self.next)
    }
}

fn threshold(file: ControlFile, args: &str) -> Option<Threshold> {
    let (args, _) = split_exact(args.as_bytes());
    match control_file::parse(file, args, page_size()) {
        Ok(Trigger::Threshold(threshold)) => Some(threshold),
        _ => None,
    }
}

/// The note for a registration on this control file of the group in `directory`, where one is needed; the
/// host has `ram` bytes.
fn on(directory: &Path, file: ControlFile, args: &str, ram: u64) -> Option<String> {
    const WAITS: &str = "it waits all the same, since limits may change";
    let threshold = threshold(file, args)?;
    let shown = directory.display();
    match threshold.at {
        At::Pages(Pages(0)) | At::Percent(0) => {
            return Some(
                "a threshold below one page is never crossed: only the group's removal is signalled".into(),
            );
        }
        // The kernel's way to wait for the removal alone.
        At::Pages(pages) if pages == Pages::counter_max(page_size()) => return None,
        _ => {}
    }
    if let At::Pages(pages) = threshold.at {
        let wanted = pages.0.saturating_mul(page_size());
        // Memory and swap together may be more.
        if file != ControlFile::Memsw && ram > 0 && wanted > ram {
            return Some(format!(
                "usage cannot reach {}: this host has {}; give a lower threshold or a percentage (80%)",
                human(wanted),
                human(ram)
            ));
        }
    }
    if is_root(directory) {
        return None;
    }
    let limit = lowest_limit(directory)?;
    match (threshold.at, limit.bytes) {
        (At::Percent(_), None) if limit.is_whole => Some(format!(
            "neither {shown} nor a group above it has a limit, so a percentage cannot be crossed now: set one (echo \
             512M > {shown}/{}), or give a number of bytes; {WAITS}",
            limit_file(directory)
        )),
        (At::Pages(pages), Some(bytes)) if file != ControlFile::Memsw => {
            let wanted = pages.0.saturating_mul(page_size());
            let is_below = words::usage(directory).is_none_or(|usage| usage < wanted);
            (wanted > bytes && is_below).then(|| {
                let whose = limit.group.map_or_else(
                    || "the lowest limit from the group up".into(),
                    |group| format!("the limit of {}", group.display()),
                );
                format!(
                    "usage cannot reach {} now: {whose} is {}; give a lower threshold or a percentage (80%), or \
                     raise the limit; {WAITS}",
                    human(wanted),
                    human(bytes)
                )
            })
        }
        _ => None,
    }
}

/// Whether it is the hierarchy's own root, whose limit is the host's memory.
fn is_root(directory: &Path) -> bool {
    directory.join("release_agent").exists()
        || directory.join("cgroup.procs").exists()
            && !["cgroup.events", "memory.usage_in_bytes"].iter().any(|name| directory.join(name).exists())
}

fn limit_file(directory: &Path) -> &'static str {
    if directory.join("memory.limit_in_bytes").exists() { "memory.limit_in_bytes" } else { "memory.max" }
}

fn lowest_limit(directory: &Path) -> Option<Limit> {
    let read = |path: PathBuf| fs::read_to_string(path).ok();
    // v1, and the view: the kernel's own sum of all groups above.
    if directory.join("memory.limit_in_bytes").exists() {
        let text = read(directory.join("memory.stat"))?;
        let limit = text.lines().find_map(|line| line.strip_prefix("hierarchical_memory_limit "))?;
        let limit: u64 = limit.trim().parse().ok()?;
        let endless = Pages::counter_max(page_size()).0.saturating_mul(page_size());
        return Some(Limit { bytes: (limit < endless).then_some(limit), group: None, is_whole: true });
    }
    let mut found = Limit { bytes: None, group: None, is_whole: false };
    let directory = directory.canonicalize().ok()?;
    for group in directory.ancestors().take_while(|group| group.join("cgroup.procs").exists()) {
        found.is_whole = !group.join("cgroup.events").exists();
        // The root has no such file; "max" is no number.
        let limit = read(group.join("memory.max")).and_then(|text| text.trim().parse::<u64>().ok());
        if let Some(limit) = limit.filter(|limit| found.bytes.is_none_or(|lowest| *limit < lowest)) {
            (found.bytes, found.group) = (Some(limit), Some(group.to_owned()));
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Instant};

    use monitor_common::grammar::control_file::ControlFile::{self, Memsw, Oom, Usage};

    use super::{Noter, on};

    /// Two groups below a root, with these texts as `memory.max`.
    fn tree(root: &Path, outer: &str, inner: &str) {
        let group = root.join("a/b");
        fs::create_dir_all(&group).expect("directories");
        for (directory, limit) in [(root.join("a"), outer), (group, inner)] {
            fs::write(directory.join("memory.max"), limit).expect("a file");
            fs::write(directory.join("memory.current"), "4096\n").expect("a file");
            fs::write(directory.join("cgroup.events"), "").expect("a file");
            fs::write(directory.join("cgroup.procs"), "").expect("a file");
        }
        fs::write(root.join("cgroup.procs"), "").expect("a file");
    }

    #[test]
    fn a_limit_that_is_lowered_later_is_noted_once() {
        let root = tempfile::tempdir().expect("a directory");
        let group = root.path().join("a/b");
        tree(root.path(), "max\n", "67108864\n");
        let mut noter = Noter::new(Some((&group, Usage, "32M")));
        assert_eq!(noter.take(), None);
        assert!(noter.next().is_some_and(|next| next > Instant::now()));
        tree(root.path(), "max\n", "16777216\n");
        noter.next = Instant::now();
        assert!(noter.take().is_some_and(|note| note.contains("is 16M")));
        assert_eq!((noter.take(), noter.next()), (None, None), "once");
        assert!(Noter::new(Some((&group, Oom, ""))).next().is_none(), "no threshold");
    }

    #[test]
    fn what_cannot_be_crossed_is_noted_with_a_remedy() {
        let root = tempfile::tempdir().expect("a directory");
        let note = |file: ControlFile, args| on(&root.path().join("a/b"), file, args, 1 << 40);
        tree(root.path(), "67108864\n", "max\n");
        let above = note(Usage, "128M").expect("above the limit of the outer group");
        assert!(
            above.contains("cannot reach 128M now: the limit of ") && above.contains("/a is 64M"),
            "{above}"
        );
        assert_eq!((note(Usage, "64M"), note(Usage, "80%,up"), note(Memsw, "128M")), (None, None, None));
        assert_eq!((note(Usage, "-1"), note(Oom, "x"), note(Usage, "1MB")), (None, None, None));
        assert!(note(Usage, "0").is_some_and(|text| text.contains("never crossed")));
        tree(root.path(), "max\n", "max\n");
        let percent = note(Usage, "80%,exact").expect("of no limit");
        assert!(percent.contains("has a limit") && percent.contains("/a/b/memory.max)"), "{percent}");
        assert_eq!(note(Usage, "128M"), None);
        // In a cgroup namespace a limit may be above what is seen.
        fs::write(root.path().join("cgroup.events"), "").expect("a file");
        assert_eq!(note(Usage, "80%"), None);
        fs::remove_file(root.path().join("cgroup.events")).expect("a file");
        assert_eq!(on(root.path(), Usage, "80%", 1 << 40), None, "of the host's memory");
        let host = on(root.path(), Usage, "128M", 64 << 20).expect("more than there is");
        assert!(host.contains("cannot reach 128M: this host has 64M"), "{host}");
        assert_eq!(on(root.path(), Memsw, "128M", 64 << 20), None, "with swap");
        tree(root.path(), "4096\n", "max\n");
        fs::write(root.path().join("a/b/memory.current"), "1048576\n").expect("a file");
        assert_eq!(note(Usage, "1M"), None, "usage may fall below it");
    }
}
