//! The files of one group, as numbers.

use std::{
    fs::File,
    io,
    os::{fd::AsFd as _, unix::fs::FileExt as _},
    sync::atomic::{AtomicU64, Ordering},
};

use nix::errno::Errno;

use crate::{
    cgroup::{Version, handle::Directory, host::field},
    error::is_shortage,
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
    /// The limit that was compared last, in pages.
    pub(super) known_limit: AtomicU64,
    /// The peak that was compared last, in pages.
    pub(super) known_peak: AtomicU64,
    /// The usage, and the pages of swap, that were read last.
    known_usage: AtomicU64,
    known_swap: AtomicU64,
}

/// The number that was read, which is known from now on; while the agent or the host is short of
/// descriptors or memory the one known before, since the group is there all the same. `None` for other
/// failures.
fn or_known(read: Result<u64, Errno>, known: &AtomicU64) -> Option<u64> {
    match read {
        Ok(number) => {
            known.store(number, Ordering::Relaxed);
            Some(number)
        }
        Err(errno) if is_shortage(errno) => Some(known.load(Ordering::Relaxed)),
        Err(_) => None,
    }
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
    /// `ENOENT`: the group has no memory controller. `EMFILE`, `ENFILE`, `ENOMEM`: a shortage.
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
            known_usage: AtomicU64::new(0),
            known_swap: AtomicU64::new(0),
        };
        let limit = match files.own_limit() {
            Err(errno) if is_shortage(errno) => return Err(errno),
            limit => limit.unwrap_or(NO_LIMIT),
        };
        files.known_limit.store(limit, Ordering::Relaxed);
        files.known_peak.store(files.peak().unwrap_or(0), Ordering::Relaxed);
        Ok(files)
    }

    /// The directory of the group.
    pub(super) const fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Pages charged now; `None` when the group is gone.
    pub(super) fn usage(&self) -> Option<u64> {
        or_known(read_again(&self.usage).map(pages), &self.known_usage)
    }

    /// The highest number of pages charged so far; `None` where the kernel does not keep it.
    pub(super) fn peak(&self) -> Option<u64> {
        self.peak.as_ref().and_then(|peak| read_again(peak).ok()).map(pages)
    }

    /// Pages of memory and swap charged now; `None` when the group is gone.
    pub(super) fn sum(&self) -> Option<u64> {
        let usage = self.usage()?;
        let swap = match self.version {
            Version::V1 => self.pages_of("memory.memsw.usage_in_bytes").map(|sum| sum.saturating_sub(usage)),
            Version::V2 => match self.pages_of("memory.swap.current") {
                // Without swap there is no such file, and the sum is memory.
                Err(errno) if !is_shortage(errno) => Ok(0),
                read => read,
            },
        };
        or_known(swap, &self.known_swap).map(|swap| usage + swap)
    }

    /// The group's own limit in pages; `None` when the group is gone.
    pub(super) fn limit(&self) -> Option<u64> {
        match self.own_limit() {
            // It is noted as known by whoever compares it.
            Err(errno) if is_shortage(errno) => Some(self.known_limit.load(Ordering::Relaxed)),
            limit => limit.ok(),
        }
    }

    fn own_limit(&self) -> Result<u64, Errno> {
        match self.version {
            Version::V1 => {
                let bytes = self.number_of("memory.limit_in_bytes")?;
                Ok(if bytes >= V1_NO_LIMIT { NO_LIMIT } else { pages(bytes) })
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

    fn pages_of(&self, name: &str) -> Result<u64, Errno> {
        self.number_of(name).map(pages)
    }

    fn number_of(&self, name: &str) -> Result<u64, Errno> {
        let text = self.directory.text(name).map_err(|error| errno_of(&error))?;
        number(&text).ok_or(Errno::EINVAL)
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
fn read_again(file: &File) -> Result<u64, Errno> {
    let mut text = [0; 32];
    let length = file.read_at(&mut text, 0).map_err(|error| errno_of(&error))?;
    let text = text.get(..length).and_then(|text| str::from_utf8(text).ok());
    text.and_then(number).ok_or(Errno::EINVAL)
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use nix::errno::Errno;

    use super::{NO_LIMIT, number, or_known, pages};
    use crate::kernel::page_size;

    #[test]
    fn a_shortage_is_no_end_of_the_group() {
        let known = AtomicU64::new(0);
        assert_eq!(or_known(Ok(7), &known), Some(7));
        for shortage in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM] {
            assert_eq!(or_known(Err(shortage), &known), Some(7));
        }
        assert_eq!(or_known(Err(Errno::ENODEV), &known), None);
        assert_eq!(or_known(Ok(8), &known), Some(8));
    }

    #[test]
    fn a_files_number_is_bytes_or_max() {
        assert_eq!(number("8192\n"), Some(8192));
        assert_eq!(number("max\n"), Some(NO_LIMIT));
        assert_eq!((number(""), number("low 1\n")), (None, None));
        assert_eq!((pages(NO_LIMIT), pages(3 * page_size() + 1)), (NO_LIMIT, 3));
    }
}
