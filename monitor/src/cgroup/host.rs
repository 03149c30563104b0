//! The host's own numbers, and those of its groups that only files have.

use std::{fs::File, io::Read as _, os::unix::fs::FileExt as _, time::Instant};

use nix::errno::Errno;

use crate::{
    cgroup::{Hierarchy, Version, error::MeminfoError, handle::Directories},
    error::{Error, Result},
    kernel::page_size,
};

/// Source of the numbers that the watcher needs and no program can read.
pub trait Host {
    /// Milliseconds since an arbitrary start.
    fn clock(&self) -> u64;

    /// The root group's usage in pages, as v1 counted it: file and anonymous pages
    /// of the whole host, no kernel memory (`mem_cgroup_usage`).
    ///
    /// # Errors
    /// The files could not be read.
    fn usage(&self) -> Result<u64>;

    /// The root group's usage and the swap in use together, in pages.
    ///
    /// # Errors
    /// The files could not be read.
    fn sum(&self) -> Result<u64>;

    /// The host's memory in pages.
    ///
    /// # Errors
    /// The file could not be read.
    fn ram(&self) -> Result<u64>;

    /// Inactive file pages of a group and all below it; `None` when it is removed.
    ///
    /// # Errors
    /// The file could not be read.
    fn inactive_file(&self, cgroup_id: u64) -> Result<Option<u64>>;

    /// Whether a group is certainly removed, or its memory controller turned off.
    fn is_gone(&self, cgroup_id: u64) -> bool;

    /// Counts of OOMs and kills in a group.
    fn oom_counts(&self, cgroup_id: u64) -> OomCounts;
}

/// Counts of OOMs and kills in a group, by the kernel. `None` where the kernel does not
/// count that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OomCounts {
    /// Charges of the group, by its own limit, that found no memory.
    pub oom: Option<u64>,
    /// Processes of the group and those below that were killed for it; on v1 of the
    /// group alone.
    pub oom_kill: Option<u64>,
    /// Groups, this one and below, that were killed as a whole.
    pub oom_group_kill: Option<u64>,
}

/// The running host, read from its files.
#[derive(Debug)]
pub struct Files {
    directories: Directories,
    /// `/proc/meminfo`, read ten times a second while there are registrations on the root.
    meminfo: File,
    start: Instant,
}

impl Files {
    /// Reads the host's files, and those of groups in `hierarchy`.
    ///
    /// # Errors
    /// Those of [`Directories::new`], or `/proc/meminfo` cannot be opened.
    pub fn new(hierarchy: &Hierarchy) -> Result<Self> {
        let meminfo = File::open(MEMINFO).map_err(|error| Error::file("open", MEMINFO, error))?;
        Ok(Self { directories: Directories::new(hierarchy)?, meminfo, start: Instant::now() })
    }

    /// Reads `/proc/meminfo` from its start, in one read with more room than it ever needs.
    fn meminfo(&self) -> Result<String> {
        let mut text = vec![0; 8192];
        let length =
            self.meminfo.read_at(&mut text, 0).map_err(|error| Error::file("read", MEMINFO, error))?;
        text.truncate(length);
        Ok(String::from_utf8(text).map_err(|_| MeminfoError::NotText)?)
    }

    fn file(&self, cgroup_id: u64, name: &str) -> Option<String> {
        let file = self.directories.open(cgroup_id).and_then(|directory| directory.file(name)).ok()?;
        let mut text = String::new();
        File::from(file).read_to_string(&mut text).ok()?;
        Some(text)
    }
}

impl Host for Files {
    fn clock(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn usage(&self) -> Result<u64> {
        root_usage(&self.meminfo()?).map(|bytes| bytes / page_size())
    }

    fn sum(&self) -> Result<u64> {
        let text = self.meminfo()?;
        Ok((root_usage(&text)? + swap_used(&text)) / page_size())
    }

    fn ram(&self) -> Result<u64> {
        total(&self.meminfo()?).map(|bytes| bytes / page_size())
    }

    fn inactive_file(&self, cgroup_id: u64) -> Result<Option<u64>> {
        // v2 counts all below a group in its own line; v1 has separate lines.
        let name = match self.directories.version() {
            Version::V1 => "total_inactive_file",
            Version::V2 => "inactive_file",
        };
        // Otherwise the group was removed meanwhile, or its controller turned off.
        let text = self.file(cgroup_id, "memory.stat");
        Ok(text.and_then(|text| field(&text, name)).map(|bytes| bytes / page_size()))
    }

    fn is_gone(&self, cgroup_id: u64) -> bool {
        let usage = self.directories.version().usage_file();
        let found = self.directories.open(cgroup_id).and_then(|directory| directory.stat_file(usage));
        matches!(found, Err(Errno::ENOENT | Errno::ENODEV))
    }

    fn oom_counts(&self, cgroup_id: u64) -> OomCounts {
        let count = |file: &str, name: &str| field(&self.file(cgroup_id, file)?, name);
        match self.directories.version() {
            Version::V1 => {
                OomCounts { oom_kill: count("memory.oom_control", "oom_kill"), ..OomCounts::default() }
            }
            Version::V2 => OomCounts {
                oom: count("memory.events.local", "oom"),
                oom_kill: count("memory.events", "oom_kill"),
                oom_group_kill: count("memory.events", "oom_group_kill"),
            },
        }
    }
}

const MEMINFO: &str = "/proc/meminfo";

/// The root's usage in bytes, from `/proc/meminfo`: file and anonymous pages, what the
/// kernel's `mem_cgroup_usage` adds up for it. The kernel shows its `NR_FILE_PAGES` in
/// three parts (`meminfo_proc_show`).
///
/// # Errors
/// The error names the missing line.
pub fn root_usage(meminfo: &str) -> Result<u64> {
    ["Cached:", "Buffers:", "SwapCached:", "AnonPages:"].into_iter().try_fold(0, |sum, name| {
        let kib = field(meminfo, name).ok_or(MeminfoError::NoLine(name))?;
        Ok(sum + kib * 1024)
    })
}

/// Bytes of the host's memory.
///
/// # Errors
/// `/proc/meminfo` cannot be read, or has no `MemTotal`.
pub fn memory() -> Result<u64> {
    let text = std::fs::read_to_string(MEMINFO).map_err(|error| Error::file("read", MEMINFO, error))?;
    total(&text)
}

fn total(meminfo: &str) -> Result<u64> {
    let kib = field(meminfo, "MemTotal:").ok_or(MeminfoError::NoLine("MemTotal"))?;
    Ok(kib * 1024)
}

/// Bytes of swap in use, from `/proc/meminfo`.
#[must_use]
pub fn swap_used(meminfo: &str) -> u64 {
    let kib = |name| field(meminfo, name).unwrap_or(0);
    kib("SwapTotal:").saturating_sub(kib("SwapFree:")) * 1024
}

/// The number after `name` at the start of a line.
#[must_use]
pub fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix([' ', '\t'])?.split_whitespace().next())?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn a_field_is_a_whole_word_at_the_start_of_a_line() {
        let text = "nr_file_pages_x 1\n nr_file_pages 2\nnr_file_pages 34\nMemTotal:      5 kB\n";
        assert_eq!(field(text, "nr_file_pages"), Some(34));
        assert_eq!(field(text, "MemTotal:"), Some(5));
        assert_eq!(field(text, "nr_file"), None);
    }
}
