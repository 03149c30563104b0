//! The contents of the view's files, read from the real files at that moment.

use std::{
    fs::File,
    io::{Error as IoError, Read as _},
};

use nix::errno::Errno;

use crate::{
    cgroup::{
        Version,
        handle::{Directories, Directory},
        v1_file::V1File,
    },
    kernel::page_size,
    view::values,
};

/// Reads the text of `file` of the group `id`, whose directory is `directory`.
///
/// # Errors
/// `EINVAL` where there is nothing to read; `ENODEV` when the group is removed, like on a
/// kernel's file that is still open.
pub fn read(
    directories: &Directories,
    id: u64,
    directory: &Directory,
    file: V1File,
) -> Result<Vec<u8>, Errno> {
    if !file.readable() {
        return Err(Errno::EINVAL);
    }
    let group = Group { directories, directory, is_root: id == directories.root_id() };
    match directories.version() {
        Version::V1 => group.v1(file),
        Version::V2 => group.v2(file),
    }
}

struct Group<'a> {
    directories: &'a Directories,
    directory: &'a Directory,
    is_root: bool,
}

impl Group<'_> {
    fn v1(&self, file: V1File) -> Result<Vec<u8>, Errno> {
        let source = file.v1_source().ok_or(Errno::EINVAL)?;
        let bytes = read_file(self.directory, source)?;
        if file != V1File::WorkingSet {
            return Ok(bytes);
        }
        let usage = String::from_utf8_lossy(&bytes).trim().parse().map_err(|_| Errno::EIO)?;
        let inactive = values::keyed(&self.text("memory.stat")?, "total_inactive_file");
        Ok(values::line(values::working_set(usage, inactive)).into_bytes())
    }

    fn v2(&self, file: V1File) -> Result<Vec<u8>, Errno> {
        let text = match file {
            V1File::EventControl | V1File::PressureLevel => return Err(Errno::EINVAL),
            V1File::Usage => values::line(self.usage()?),
            V1File::MemswUsage => values::line(self.usage()?.saturating_add(self.swap()?)),
            V1File::WorkingSet => {
                let inactive = values::keyed(&self.text("memory.stat")?, "inactive_file");
                values::line(values::working_set(self.usage()?, inactive))
            }
            // The root has no peak, nor had kernels before 5.19.
            V1File::MaxUsage => match self.optional("memory.peak")? {
                Some(peak) if !self.is_root => peak,
                _ => values::line(self.usage()?),
            },
            V1File::Limit => values::line(self.limits(self.directory)?.0),
            V1File::MemswLimit => values::line(self.limits(self.directory)?.1),
            V1File::OomControl => values::oom_control(&self.events()?),
            V1File::FailCount => values::line(values::keyed(&self.events()?, "max")),
            V1File::Stat => {
                let (limit, with_swap) = self.lowest_limits()?;
                values::stat(&self.text("memory.stat")?, self.swap()?, limit, with_swap)
            }
            V1File::Procs => return read_file(self.directory, "cgroup.procs"),
            V1File::Tasks => return read_file(self.directory, "cgroup.threads"),
            V1File::NotifyOnRelease => values::line(0),
        };
        Ok(text.into_bytes())
    }

    fn usage(&self) -> Result<u64, Errno> {
        if self.is_root {
            return values::root_usage(&host("/proc/meminfo")?).map_err(|_| Errno::EIO);
        }
        self.text("memory.current")?.trim().parse().map_err(|_| Errno::EIO)
    }

    /// Bytes swapped out. Kernels without swap have no such file.
    fn swap(&self) -> Result<u64, Errno> {
        if self.is_root {
            return Ok(values::swap_used(&host("/proc/meminfo")?));
        }
        let text = self.optional("memory.swap.current")?;
        text.map_or(Ok(0), |text| text.trim().parse().map_err(|_| Errno::EIO))
    }

    fn events(&self) -> Result<String, Errno> {
        Ok(self.optional("memory.events.local")?.unwrap_or_default())
    }

    /// Limits in bytes of memory, and of memory and swap. A directory without
    /// limits is the root, or lies above the memory controller.
    fn limits(&self, directory: &Directory) -> Result<(u64, u64), Errno> {
        let page = page_size();
        let of = |name: &str| match read_file(directory, name) {
            Ok(bytes) => values::limit(&String::from_utf8_lossy(&bytes), page).ok_or(Errno::EIO),
            Err(Errno::ENODEV) => Ok(values::unlimited(page)),
            Err(errno) => Err(errno),
        };
        let memory = of("memory.max")?;
        Ok((memory, values::limit_with_swap(memory, of("memory.swap.max")?, page)))
    }

    /// The lowest limits on the way to the root.
    fn lowest_limits(&self) -> Result<(u64, u64), Errno> {
        let mut lowest = self.limits(self.directory)?;
        let mut parent = self.directory.parent()?;
        let mut below = self.directory.stat()?.st_ino;
        while parent.stat()?.st_ino != below && below != self.directories.root_id() {
            let limits = self.limits(&parent)?;
            lowest = (lowest.0.min(limits.0), lowest.1.min(limits.1));
            below = parent.stat()?.st_ino;
            parent = parent.parent()?;
        }
        Ok(lowest)
    }

    fn text(&self, name: &str) -> Result<String, Errno> {
        text(self.directory, name)
    }

    fn optional(&self, name: &str) -> Result<Option<String>, Errno> {
        match self.text(name) {
            Ok(text) => Ok(Some(text)),
            // Either this kernel has no such file, or the group is removed: then
            // the next file that is read fails.
            Err(Errno::ENODEV) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// The text of a real file.
///
/// # Errors
/// `ENODEV` when the file is not there, or no longer.
pub fn text(directory: &Directory, name: &str) -> Result<String, Errno> {
    read_file(directory, name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn read_file(directory: &Directory, name: &str) -> Result<Vec<u8>, Errno> {
    let file = directory.file(name).map_err(|errno| match errno {
        Errno::ENOENT => Errno::ENODEV,
        other => other,
    })?;
    let mut bytes = Vec::with_capacity(4096);
    File::from(file).read_to_end(&mut bytes).map_err(|error| errno(&error))?;
    Ok(bytes)
}

fn host(path: &str) -> Result<String, Errno> {
    std::fs::read_to_string(path).map_err(|error| errno(&error))
}

fn errno(error: &IoError) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
