//! The files of one group, as numbers.

use std::{
    fs::File,
    os::{fd::AsFd as _, unix::fs::FileExt as _},
    sync::atomic::{AtomicU64, Ordering},
};

use nix::errno::Errno;

use crate::{
    cgroup::{Version, handle::Directory, host::field},
    kernel::page_size,
};

/// Value of a limit that is none.
const NO_LIMIT: u64 = u64::MAX;

/// The highest number of pages that a v1 counter may have (`PAGE_COUNTER_MAX`), in bytes: v1
/// shows it for no limit.
const V1_NO_LIMIT: u64 = i64::MAX as u64 / 65_536 * 65_536;

/// A group's directory, and those of its files that are read often.
#[derive(Debug)]
pub(super) struct GroupFiles {
    version: Version,
    directory: Directory,
    usage: File,
    /// The peak's file, where this kernel has it (5.19 and newer on v2).
    peak: Option<File>,
    /// The limit that was read last, in pages.
    pub(super) known_limit: AtomicU64,
    /// The peak that was compared last, in pages.
    pub(super) known_peak: AtomicU64,
}

/// The bytes of a memory file's only number; `max` is no limit.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    if text == "max" { Some(NO_LIMIT) } else { text.parse().ok() }
}

fn pages(bytes: u64) -> u64 {
    if bytes == NO_LIMIT { NO_LIMIT } else { bytes / page_size() }
}

impl GroupFiles {
    /// Opens the files of a group.
    ///
    /// # Errors
    /// `ENOENT`: the group has no memory controller.
    pub(super) fn open(directory: Directory, version: Version) -> Result<Self, Errno> {
        let peak = match version {
            Version::V1 => "memory.max_usage_in_bytes",
            Version::V2 => "memory.peak",
        };
        let usage = File::from(directory.file(version.usage_file())?);
        let peak = directory.file(peak).ok().map(File::from);
        let files = Self {
            version,
            directory,
            usage,
            peak,
            known_limit: AtomicU64::new(NO_LIMIT),
            known_peak: AtomicU64::new(0),
        };
        files.known_limit.store(files.limit().unwrap_or(NO_LIMIT), Ordering::Relaxed);
        files.known_peak.store(files.peak().unwrap_or(0), Ordering::Relaxed);
        Ok(files)
    }

    /// The directory of the group.
    pub(super) const fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Pages charged now; `None` when the group is gone.
    pub(super) fn usage(&self) -> Option<u64> {
        read_again(&self.usage).map(pages)
    }

    /// The highest number of pages charged so far; `None` where the kernel does not keep it.
    pub(super) fn peak(&self) -> Option<u64> {
        self.peak.as_ref().and_then(read_again).map(pages)
    }

    /// Pages of memory and swap charged now.
    pub(super) fn sum(&self) -> Option<u64> {
        match self.version {
            Version::V1 => self.pages_of("memory.memsw.usage_in_bytes"),
            // Without swap there is no such file, and the sum is memory.
            Version::V2 => Some(self.usage()? + self.pages_of("memory.swap.current").unwrap_or(0)),
        }
    }

    /// The group's own limit in pages.
    pub(super) fn limit(&self) -> Option<u64> {
        match self.version {
            Version::V1 => {
                let bytes = number(&self.text("memory.limit_in_bytes")?)?;
                Some(if bytes >= V1_NO_LIMIT { NO_LIMIT } else { pages(bytes) })
            }
            Version::V2 => self.pages_of("memory.max"),
        }
    }

    /// OOMs by the group's own limit, as the kernel counts them. Not on v1.
    pub(super) fn ooms(&self) -> Option<u64> {
        match self.version {
            Version::V1 => None,
            Version::V2 => field(&self.text("memory.events.local")?, "oom"),
        }
    }

    /// Groups at and above this one that are out of memory now; on v1 alone.
    pub(super) fn under_oom(&self) -> Option<u64> {
        match self.version {
            Version::V1 => field(&self.text("memory.oom_control")?, "under_oom"),
            Version::V2 => Some(0),
        }
    }

    /// Whether a task is in the group or below it; on v2 alone.
    pub(super) fn populated(&self) -> Option<bool> {
        match self.version {
            Version::V1 => None,
            Version::V2 => field(&self.text("cgroup.events")?, "populated").map(|populated| populated != 0),
        }
    }

    fn pages_of(&self, name: &str) -> Option<u64> {
        number(&self.text(name)?).map(pages)
    }

    fn text(&self, name: &str) -> Option<String> {
        self.directory.text(name).ok()
    }

    /// Whether the group is gone: its files answer `ENODEV` then.
    pub(super) fn is_gone(&self) -> bool {
        let mut byte = [0; 1];
        matches!(nix::sys::uio::pread(self.usage.as_fd(), &mut byte, 0), Err(Errno::ENODEV))
    }
}

/// Reads an open file's number anew.
fn read_again(file: &File) -> Option<u64> {
    let mut text = [0; 32];
    let length = file.read_at(&mut text, 0).ok()?;
    number(str::from_utf8(text.get(..length)?).ok()?)
}

#[cfg(test)]
mod tests {
    use super::{NO_LIMIT, number, pages};
    use crate::kernel::page_size;

    #[test]
    fn a_files_number_is_bytes_or_max() {
        assert_eq!(number("8192\n"), Some(8192));
        assert_eq!(number("max\n"), Some(NO_LIMIT));
        assert_eq!((number(""), number("low 1\n")), (None, None));
        assert_eq!((pages(NO_LIMIT), pages(3 * page_size() + 1)), (NO_LIMIT, 3));
    }
}
