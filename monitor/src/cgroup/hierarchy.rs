//! The mounted hierarchy with the memory controller: its version and its mount point.

use std::{
    ffi::OsStr,
    fmt::{self, Display, Formatter},
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use monitor_sys::stat::statx;
use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
};

use crate::{
    cgroup::error::{ControllerObstacle, HierarchyError},
    error::Result,
    kernel::settings::is_memory_disabled,
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

impl Display for Version {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "cgroup v1",
            Self::V2 => "cgroup v2",
        })
    }
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
        let mut mounts = mounts::all()?;
        // What another file system is mounted over cannot be reached by its path.
        mounts.retain(|mount| !mount.kind.starts_with("cgroup") || is_reached(mount));
        let found = find_among(&mounts, root, |mount| {
            fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default()
        });
        Ok(found.ok_or_else(|| missing_among(&mounts, root, is_memory_disabled(), beginning_of))?)
    }

    /// The mount points of the cgroup hierarchies beside this one: a host that has both versions is
    /// called hybrid.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn others(&self) -> Result<Vec<(Version, PathBuf)>> {
        Ok(others_among(&mounts::all()?, self))
    }

    /// The directory of a process's group, from the text of its `/proc/PID/cgroup`.
    #[must_use]
    pub fn directory_of(&self, text: &[u8]) -> Option<PathBuf> {
        let below = self.version.group_of(text)?.strip_prefix("/").ok()?;
        Some(if below.as_os_str().is_empty() { self.root.clone() } else { self.root.join(below) })
    }
}

/// Whether each group's `memory.events` counts that group alone: the mount option
/// `memory_localevents`, which all mounts of cgroup2 share (`CGRP_ROOT_MEMORY_LOCAL_EVENTS`).
#[must_use]
pub fn has_local_events() -> bool {
    mounts::all().unwrap_or_default().iter().any(|mount| {
        mount.kind == "cgroup2" && mount.options.split(',').any(|option| option == "memory_localevents")
    })
}

/// Finds the hierarchy among `mounts`. v1 has priority: where both are mounted and v1 has the
/// controller, v2 does not.
fn find_among(
    mounts: &[Mount],
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
                return Some(Hierarchy { version: Version::V1, root: point.clone() });
            }
            "cgroup2" if found.is_none() && controllers(point).split_whitespace().any(|c| c == "memory") => {
                found = Some(Hierarchy { version: Version::V2, root: point.clone() });
            }
            _ => {}
        }
    }
    found
}

/// The mounts of hierarchies other than `found`, each hierarchy once.
fn others_among(mounts: &[Mount], found: &Hierarchy) -> Vec<(Version, PathBuf)> {
    let of_found = mounts.iter().rev().find(|mount| mount.point == found.root).map(|mount| mount.device);
    let mut seen: Vec<_> = of_found.into_iter().collect();
    let mut others = Vec::new();
    for Mount { point, kind, device, .. } in mounts {
        let version = match kind.as_str() {
            "cgroup" => Version::V1,
            "cgroup2" => Version::V2,
            _ => continue,
        };
        if !seen.contains(device) {
            seen.push(*device);
            others.push((version, point.clone()));
        }
    }
    others
}

/// Whether the mount point of a hierarchy leads to that hierarchy. A file system that is mounted over
/// it is not queried: it may be the agent's own view (`AT_STATX_DONT_SYNC`).
fn is_reached(mount: &Mount) -> bool {
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    let opened = open(&mount.point, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let found = opened.and_then(|point| statx(&point, c"", flags, 0));
    found.is_ok_and(|found| (found.stx_dev_major, found.stx_dev_minor) == mount.device)
}

/// The first directory of a mount of cgroup2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beginning {
    /// The hierarchy's own root, which has no `cgroup.events` (`CFTYPE_NOT_ON_ROOT`).
    Root,
    /// A group that is a domain.
    Domain,
    /// A group in a threaded subtree of the host.
    Threaded,
}

fn beginning_of(point: &Path) -> Beginning {
    let kind = fs::read_to_string(point.join("cgroup.type")).unwrap_or_default();
    match kind.trim() {
        "threaded" | "domain invalid" => Beginning::Threaded,
        _ if point.join("cgroup.events").exists() => Beginning::Domain,
        _ => Beginning::Root,
    }
}

/// The reason why none of `mounts` is the hierarchy.
fn missing_among(
    mounts: &[Mount],
    only: Option<&Path>,
    is_disabled: bool,
    beginning_of: impl Fn(&Path) -> Beginning,
) -> HierarchyError {
    let is_wanted = |point: &Path| only.is_none_or(|only| only == point);
    let unified = mounts.iter().find(|mount| mount.kind == "cgroup2" && is_wanted(&mount.point));
    let elsewhere = find_among(mounts, None, |_| String::new()).map(|found| found.root);
    match (unified, only) {
        (Some(mount), _) => {
            let obstacle = match (elsewhere, beginning_of(&mount.point)) {
                _ if is_disabled => ControllerObstacle::Disabled,
                (Some(point), _) => ControllerObstacle::OnV1 { point },
                (None, Beginning::Threaded) => ControllerObstacle::Threaded,
                (None, Beginning::Domain) => ControllerObstacle::Withheld,
                (None, Beginning::Root) => ControllerObstacle::Other,
            };
            HierarchyError::NoController { root: mount.point.clone(), obstacle }
        }
        (None, Some(root)) => HierarchyError::NotMountedAt { root: root.into(), elsewhere },
        (None, None) => HierarchyError::NotMounted,
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{Hierarchy, Version, find_among, missing_among, others_among};
    use crate::mounts::parse;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
        32 23 0:28 / /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory\n";

    fn root(version: Version, root: &str) -> Hierarchy {
        Hierarchy { version, root: PathBuf::from(root) }
    }

    #[test]
    fn the_own_group_is_that_of_the_memory_controller() {
        let text = "5:cpu,memory:/a/b:c\n2:pids:/x\n0::/system.slice/y.service\n";
        let group = |version| root(version, "/sys/fs/cgroup").directory_of(text.as_bytes());
        assert_eq!(group(Version::V1), Some(PathBuf::from("/sys/fs/cgroup/a/b:c")));
        assert_eq!(group(Version::V2), Some(PathBuf::from("/sys/fs/cgroup/system.slice/y.service")));
        let root = root(Version::V2, "/cg");
        assert_eq!(root.directory_of(b"0::/\n"), Some(PathBuf::from("/cg")));
        assert_eq!(root.directory_of(b""), None);
    }

    #[test]
    fn the_hierarchy_with_the_controller_is_found() {
        let all = |_: &Path| "cpu memory pids".to_owned();
        assert_eq!(find_among(&parse(V2.as_bytes()), None, all), Some(root(Version::V2, "/sys/fs/cgroup")));
        assert_eq!(
            find_among(&parse(HYBRID.as_bytes()), None, |_| String::new()),
            Some(root(Version::V1, "/sys/fs/cgroup/my memory"))
        );
        assert_eq!(find_among(&parse(V2.as_bytes()), None, |_| "cpu".to_owned()), None);
        assert_eq!(find_among(&parse(V2.as_bytes()), Some(Path::new("/elsewhere")), all), None);
    }

    #[test]
    fn what_stands_in_the_way_of_the_hierarchy_is_named() {
        use super::Beginning::{Domain, Root, Threaded};
        let why = |mounts: &str, only: Option<&str>, is_disabled, beginning| {
            missing_among(&parse(mounts.as_bytes()), only.map(Path::new), is_disabled, |_| beginning)
                .to_string()
        };
        let disabled = why(V2, None, true, Root);
        assert_eq!(
            disabled,
            "cgroup2 at /sys/fs/cgroup has no memory controller; remove cgroup_disable=memory from the kernel's command line"
        );
        assert_eq!(why(V2, Some("/sys/fs/cgroup"), true, Domain), disabled);
        let without = why(V2, None, false, Root);
        assert!(without.ends_with("boot with cgroup_enable=memory, or leave the controller off cgroup v1"));
        let withheld = why(V2, None, false, Domain);
        assert!(
            withheld.contains("is a group of the host") && withheld.contains("echo +memory"),
            "{withheld}"
        );
        let threaded = why(V2, None, false, Threaded);
        assert!(threaded.contains("is a threaded group") && !threaded.contains("+memory"), "{threaded}");
        // v1's own mount is named, whichever other is given.
        let on_v1 = why(HYBRID, Some("/sys/fs/cgroup/unified"), false, Root);
        assert!(on_v1.contains("at /sys/fs/cgroup/unified") && on_v1.ends_with("/sys/fs/cgroup/my memory"));
        let other = why(HYBRID, Some("/sys/fs/cgroup/cpu"), false, Root);
        assert!(
            other.starts_with("/sys/fs/cgroup/cpu is not a mounted")
                && other.ends_with("is at /sys/fs/cgroup/my memory"),
            "{other}"
        );
        assert!(why(V2, Some("/elsewhere"), true, Root).starts_with("/elsewhere is not a mounted"));
        assert!(why("", None, true, Root).contains("mount -t cgroup2"), "nothing is mounted");
    }

    #[test]
    fn each_hierarchy_beside_it_is_found_once() {
        let twice = format!("{HYBRID}33 23 0:27 / /mnt rw - cgroup cgroup rw,cpu,cpuacct\n");
        let found = others_among(&parse(twice.as_bytes()), &root(Version::V1, "/sys/fs/cgroup/my memory"));
        let at = |version, path: &str| (version, PathBuf::from(path));
        assert_eq!(found, [at(Version::V2, "/sys/fs/cgroup/unified"), at(Version::V1, "/sys/fs/cgroup/cpu")]);
        assert!(others_among(&parse(V2.as_bytes()), &root(Version::V2, "/sys/fs/cgroup")).is_empty());
    }
}
