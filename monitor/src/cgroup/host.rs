//! The host's own numbers, and those of its groups that only files have.

use std::{fs::File, io, os::unix::fs::FileExt as _, time::Instant};

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

    /// Pages of a group and all below it that reclaim cannot free where there is no swap: anonymous memory, shared
    /// memory, and the kernel's own less its reclaimable caches; `None` when it is removed.
    ///
    /// # Errors
    /// The file could not be read.
    fn unreclaimable(&self, cgroup_id: u64) -> Result<Option<u64>>;

    /// Whether a group is certainly removed, or its memory controller turned off.
    fn is_gone(&self, cgroup_id: u64) -> bool;
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

    /// The text of a group's file; `None` where the group is removed, or has no such file.
    fn file(&self, cgroup_id: u64, name: &'static str) -> Result<Option<String>> {
        let directory = self.directories.open(cgroup_id).map_err(io::Error::from);
        let read = directory.and_then(|directory| directory.text(name));
        unless_short(read.map_err(|error| Error::file("read", name, error)))
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
        let text = self.file(cgroup_id, "memory.stat")?;
        Ok(text.and_then(|text| field(&text, name)).map(|bytes| bytes / page_size()))
    }

    fn unreclaimable(&self, cgroup_id: u64) -> Result<Option<u64>> {
        let Some(stat) = self.file(cgroup_id, "memory.stat")? else { return Ok(None) };
        let bytes = match self.directories.version() {
            // Without the file the kernel accounts no kernel memory.
            Version::V1 => {
                let kernel = self.file(cgroup_id, "memory.kmem.usage_in_bytes")?;
                unreclaimable_v1(&stat, kernel.as_deref().unwrap_or("0"))
            }
            Version::V2 => unreclaimable(&stat),
        };
        Ok(Some(bytes / page_size()))
    }

    fn is_gone(&self, cgroup_id: u64) -> bool {
        self.directories.is_gone(cgroup_id)
    }
}

/// Turns a failed read into `None`, since there is no such file; but not a shortage of the agent's own,
/// which says nothing of the file.
fn unless_short(read: Result<String>) -> Result<Option<String>> {
    match read {
        Err(error) if error.shortage().is_some() => Err(error),
        read => Ok(read.ok()),
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

/// Bytes that reclaim cannot free where there is no swap, from v2's `memory.stat`.
#[must_use]
pub fn unreclaimable(stat: &str) -> u64 {
    let bytes = |name| field(stat, name).unwrap_or(0);
    // `kernel` is one line since 5.18; before, it is the sum of these.
    let parts = || ["kernel_stack", "pagetables", "percpu", "slab"].map(bytes).iter().sum();
    let kernel = field(stat, "kernel").unwrap_or_else(parts);
    bytes("anon") + bytes("shmem") + kernel.saturating_sub(bytes("slab_reclaimable"))
}

/// Bytes that reclaim cannot free where there is no swap, from v1's `memory.stat` and
/// `memory.kmem.usage_in_bytes`; v1 does not say which part of the kernel's it could reclaim.
#[must_use]
pub fn unreclaimable_v1(stat: &str, kernel: &str) -> u64 {
    let bytes = |name| field(stat, name).unwrap_or(0);
    bytes("total_rss") + bytes("total_shmem") + kernel.trim().parse().unwrap_or(0)
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
    use nix::errno::Errno;

    use super::{field, unless_short, unreclaimable, unreclaimable_v1};
    use crate::error::Error;

    #[test]
    fn a_shortage_is_no_removal_of_the_group() {
        let read = |errno: Errno| unless_short(Err(Error::file("read", "memory.stat", errno.into())));
        assert!(matches!(read(Errno::ENOENT), Ok(None)));
        assert!(matches!(read(Errno::ENODEV), Ok(None)));
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM] {
            assert!(read(errno).is_err(), "{errno}");
        }
        assert!(matches!(unless_short(Ok("text".into())), Ok(Some(_))));
    }

    #[test]
    fn what_is_not_reclaimable_is_added_up() {
        let stat = "anon 100\nfile 70\nkernel 50\nkernel_stack 5\nshmem 30\nslab_reclaimable 20\nslab 40\n";
        assert_eq!(unreclaimable(stat), 100 + 30 + 50 - 20);
        let older =
            "anon 100\nkernel_stack 5\npagetables 3\npercpu 2\nshmem 30\nslab_reclaimable 20\nslab 40\n";
        assert_eq!(unreclaimable(older), 100 + 30 + 5 + 3 + 2 + 40 - 20);
        let v1 = "rss 1\nshmem 1\ntotal_rss 100\ntotal_shmem 30\n";
        assert_eq!(unreclaimable_v1(v1, "50\n"), 180);
        assert_eq!(unreclaimable_v1(v1, ""), 130);
    }

    #[test]
    fn a_field_is_a_whole_word_at_the_start_of_a_line() {
        let text = "nr_file_pages_x 1\n nr_file_pages 2\nnr_file_pages 34\nMemTotal:      5 kB\n";
        assert_eq!(field(text, "nr_file_pages"), Some(34));
        assert_eq!(field(text, "MemTotal:"), Some(5));
        assert_eq!(field(text, "nr_file"), None);
    }
}
