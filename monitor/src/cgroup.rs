//! The host's memory cgroup hierarchy as files: its mount point, its directories by id, and
//! the enumeration at start.

pub mod error;
pub mod handle;
pub mod host;
pub mod v1_file;

use std::{
    collections::{HashMap, VecDeque},
    ffi::OsStr,
    fs::{self, File},
    io::Read as _,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use crate::{
    cgroup::{
        error::HierarchyError,
        handle::{Directories, Directory},
    },
    error::Result,
    mounts::{self, Mount},
};

/// The interface that the memory controller is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The memory hierarchy of cgroup v1.
    V1,
    /// The unified hierarchy of cgroup v2.
    V2,
}

impl Version {
    /// Name of the file with a group's usage.
    #[must_use]
    pub const fn usage_file(self) -> &'static str {
        match self {
            Self::V1 => "memory.usage_in_bytes",
            Self::V2 => "memory.current",
        }
    }

    /// The path of a process's group, from the text of its `/proc/PID/cgroup`, counted
    /// from the root of the reader's cgroup namespace: `0::/PATH` is v2's line,
    /// `ID:memory:/PATH` v1's.
    #[must_use]
    pub fn group_of(self, text: &[u8]) -> Option<&Path> {
        text.split(|byte| *byte == b'\n').find_map(|line| {
            let mut parts = line.splitn(3, |byte| *byte == b':');
            let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let is_it = match self {
                Self::V1 => controllers.split(|byte| *byte == b',').any(|name| name == b"memory"),
                Self::V2 => id == b"0" && controllers.is_empty(),
            };
            is_it.then(|| Path::new(OsStr::from_bytes(path)))
        })
    }
}

/// The mounted hierarchy with the memory controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Version of the hierarchy, v1 or v2.
    pub version: Version,
    /// Mount point of the hierarchy.
    pub root: PathBuf,
}

impl Hierarchy {
    /// Finds the hierarchy among this process's mounts; `root` names the mount point instead.
    ///
    /// # Errors
    /// No memory controller is mounted; the error names what to do.
    pub fn find(root: Option<&Path>) -> Result<Self> {
        let found = find_among(mounts::all()?, root, |mount| {
            fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default()
        });
        Ok(found.ok_or_else(|| match root {
            Some(root) => HierarchyError::NotMountedAt { root: root.into() },
            None => HierarchyError::NotMounted,
        })?)
    }

    /// Reads every group's usage file, from the root down. The programs give a slot to each
    /// group whose file is read. Returns the number of files read.
    ///
    /// # Errors
    /// The root cannot be opened, by its name or by its id.
    pub fn enumerate_groups(&self) -> Result<usize> {
        let mut read = 0;
        self.walk(|directory, _, _| {
            // Groups without the controller have no such file; groups removed meanwhile
            // were read before, or never had a slot.
            if let Ok(file) = directory.file(self.version.usage_file()) {
                read += usize::from(File::from(file).read(&mut [0; 32]).is_ok());
            }
        })?;
        Ok(read)
    }

    /// The paths of all directories, by id.
    #[must_use]
    pub fn paths(&self) -> HashMap<u64, String> {
        let mut paths = HashMap::new();
        let walked = self.walk(|_, id, path| {
            paths.insert(id, path.to_string_lossy().into_owned());
        });
        if let Err(error) = walked {
            log::debug!("groups are reported without names: {error}");
        }
        paths
    }

    /// Visits all directories, parents before children. Each is opened by its id, so that other
    /// mounts on it are skipped: another hierarchy, whose ids may be equal to these groups', or
    /// this one once more.
    fn walk(&self, mut visit: impl FnMut(&Directory, u64, &Path)) -> Result<()> {
        let directories = Directories::new(self)?;
        let mut waiting = VecDeque::from([(directories.root_id(), self.root.clone())]);
        while let Some((id, path)) = waiting.pop_front() {
            let Ok(directory) = directories.open(id) else { continue };
            visit(&directory, id, &path);
            let children = directory.children().unwrap_or_default();
            waiting.extend(children.into_iter().map(|(id, name)| (id, path.join(name))));
        }
        Ok(())
    }
}

/// Finds the hierarchy among `mounts`. v1 has priority: where both are mounted and v1 has the
/// controller, v2 does not.
fn find_among(
    mounts: Vec<Mount>,
    only: Option<&Path>,
    controllers: impl Fn(&Path) -> String,
) -> Option<Hierarchy> {
    let mut found = None;
    for Mount { point, kind, options, .. } in mounts {
        if only.is_some_and(|only| only != point) {
            continue;
        }
        match kind.as_str() {
            "cgroup" if options.split(',').any(|option| option == "memory") => {
                return Some(Hierarchy { version: Version::V1, root: point });
            }
            "cgroup2" if found.is_none() && controllers(&point).split_whitespace().any(|c| c == "memory") => {
                found = Some(Hierarchy { version: Version::V2, root: point });
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{Hierarchy, Version, find_among};
    use crate::mounts::parse;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
        32 23 0:28 / /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory\n";

    fn root(version: Version, root: &str) -> Hierarchy {
        Hierarchy { version, root: PathBuf::from(root) }
    }

    #[test]
    fn the_hierarchy_with_the_controller_is_found() {
        let all = |_: &Path| "cpu memory pids".to_owned();
        assert_eq!(find_among(parse(V2.as_bytes()), None, all), Some(root(Version::V2, "/sys/fs/cgroup")));
        assert_eq!(
            find_among(parse(HYBRID.as_bytes()), None, |_| String::new()),
            Some(root(Version::V1, "/sys/fs/cgroup/my memory"))
        );
        assert_eq!(find_among(parse(V2.as_bytes()), None, |_| "cpu".to_owned()), None);
        assert_eq!(find_among(parse(V2.as_bytes()), Some(Path::new("/elsewhere")), all), None);
    }
}
