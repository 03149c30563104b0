//! The contents of the view's files, read from the real files at that moment.

use std::{
    fs::File,
    io::{Error as IoError, Read as _},
    path::Path,
};

use nix::errno::Errno;

use crate::{
    cgroup::{
        Version,
        handle::{Directories, Directory},
        host::{unreclaimable, unreclaimable_v1},
        v1_file::V1File,
    },
    kernel::page_size,
    view::{pid_namespace::PidNamespace, values},
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
    if file.lists_tasks() {
        let text = text(directory, task_file(directories, file)?)?;
        return Ok(values::task_list(values::ids(&text)).into_bytes());
    }
    let group = Group { directories, directory, is_root: directories.host_root() == Some(id) };
    match directories.version() {
        Version::V1 => group.v1(file),
        Version::V2 => group.v2(file),
    }
}

/// Reads a list of tasks with the numbers that they have in `namespace`. Tasks outside it are
/// left out, and so is a task that ended meanwhile.
///
/// # Errors
/// `ENODEV` when the group is removed; those of [`PidNamespace::number`].
pub fn read_tasks(
    directories: &Directories,
    directory: &Directory,
    file: V1File,
    mut namespace: PidNamespace,
) -> Result<Vec<u8>, Errno> {
    let ids = || Ok::<_, Errno>(values::ids(&text(directory, task_file(directories, file)?)?));
    let mut numbers = Vec::new();
    for id in ids()? {
        if let Some(number) = namespace.number(id)? {
            numbers.push((id, number));
        }
    }
    // A number of a task that ended may have become that of a task in another group.
    let still = ids()?;
    numbers.retain(|(id, _)| still.binary_search(id).is_ok());
    Ok(values::task_list(numbers.into_iter().map(|(_, number)| number).collect()).into_bytes())
}

/// Whether a group of v2 has a file in the view, as it would have it on v1.
///
/// # Errors
/// The real directory could not be read.
pub fn has(directories: &Directories, id: u64, directory: &Directory, file: V1File) -> Result<bool, Errno> {
    let is_root = directories.host_root() == Some(id);
    match file {
        file if file.is_of_root() => Ok(is_root),
        file if file.needs_swap() => has_swap(directory, is_root),
        V1File::NumaStat => is_there(directory, "memory.numa_stat"),
        _ => Ok(true),
    }
}

/// Whether the kernel accounts swap. The root has no file that says so.
fn has_swap(directory: &Directory, is_root: bool) -> Result<bool, Errno> {
    if is_root {
        return Ok(Path::new("/proc/swaps").exists());
    }
    is_there(directory, "memory.swap.current")
}

fn is_there(directory: &Directory, name: &str) -> Result<bool, Errno> {
    match directory.stat_file(name) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The real file that lists a group's processes, or its threads.
fn task_file(directories: &Directories, file: V1File) -> Result<&'static str, Errno> {
    let source = match directories.version() {
        Version::V1 => file.v1_source(),
        Version::V2 => file.v2_source(),
    };
    source.filter(|_| file.lists_tasks()).ok_or(Errno::EINVAL)
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
        let text = String::from_utf8_lossy(&bytes);
        let value = match file {
            V1File::WorkingSet => {
                let usage = text.trim().parse().map_err(|_| Errno::EIO)?;
                values::working_set(usage, values::keyed(&self.text("memory.stat")?, "total_inactive_file"))
            }
            V1File::Anon => {
                let kernel = self.optional(V1File::KmemUsage.name())?.unwrap_or_default();
                unreclaimable_v1(&text, &kernel)
            }
            _ => return Ok(bytes),
        };
        Ok(values::line(value).into_bytes())
    }

    fn v2(&self, file: V1File) -> Result<Vec<u8>, Errno> {
        let text = match file {
            V1File::EventControl
            | V1File::PressureLevel
            | V1File::ForceEmpty
            | V1File::Procs
            | V1File::Tasks => return Err(Errno::EINVAL),
            V1File::Usage => values::line(self.usage()?),
            V1File::MemswUsage => values::line(self.usage()?.saturating_add(self.swap()?)),
            V1File::KmemUsage | V1File::KmemMaxUsage => values::line(values::kernel(&self.stat()?)),
            V1File::TcpUsage | V1File::TcpMaxUsage => values::line(values::keyed(&self.stat()?, "sock")),
            V1File::Anon => values::line(unreclaimable(&self.stat()?)),
            V1File::WorkingSet => {
                let inactive = values::keyed(&self.stat()?, "inactive_file");
                values::line(values::working_set(self.usage()?, inactive))
            }
            V1File::MaxUsage => values::line(self.max_usage()?),
            // v2 keeps the peaks of memory and of swap apart, which need not be of one time.
            V1File::MemswMaxUsage => {
                values::line(self.max_usage()?.max(self.usage()?.saturating_add(self.swap()?)))
            }
            V1File::Limit => values::line(self.limits(self.directory)?.0),
            V1File::MemswLimit => values::line(self.limits(self.directory)?.1),
            V1File::SoftLimit | V1File::KmemLimit | V1File::TcpLimit => {
                values::line(values::unlimited(page_size()))
            }
            V1File::OomControl => values::oom_control(&self.events()?),
            V1File::FailCount => values::line(values::keyed(&self.events()?, "max")),
            V1File::MemswFailCount => {
                let events = self.optional("memory.swap.events")?.unwrap_or_default();
                values::line(values::keyed(&events, "max"))
            }
            V1File::Stat => {
                let (limit, with_swap) = self.lowest_limits()?;
                let swap = match has_swap(self.directory, self.is_root)? {
                    true => Some((self.swap()?, with_swap)),
                    false => None,
                };
                values::stat(&self.stat()?, limit, swap)
            }
            V1File::NumaStat => values::numa_stat(&self.text("memory.numa_stat")?, page_size()),
            V1File::Swappiness => host("/proc/sys/vm/swappiness")?,
            V1File::UseHierarchy => values::line(1),
            V1File::KmemFailCount
            | V1File::TcpFailCount
            | V1File::MoveCharge
            | V1File::CloneChildren
            | V1File::NotifyOnRelease
            | V1File::SaneBehavior => values::line(0),
            V1File::ReleaseAgent => "\n".to_owned(),
        };
        Ok(text.into_bytes())
    }

    /// Most bytes charged at once. The root has no peak, nor had kernels before 5.19.
    fn max_usage(&self) -> Result<u64, Errno> {
        match self.optional("memory.peak")? {
            Some(peak) if !self.is_root => peak.trim().parse().map_err(|_| Errno::EIO),
            _ => self.usage(),
        }
    }

    fn stat(&self) -> Result<String, Errno> {
        self.text("memory.stat")
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
