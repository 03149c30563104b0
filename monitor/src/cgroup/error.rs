//! Errors of the memory cgroup hierarchy, and of the host's own numbers.

use std::path::PathBuf;

/// Reasons why the hierarchy with the memory controller is not found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HierarchyError {
    /// The named mount point is not that of such a hierarchy.
    #[error("{root} is not a mounted cgroup hierarchy with the memory controller")]
    NotMountedAt {
        /// Mount point that was named.
        root: PathBuf,
    },
    /// No such hierarchy is mounted anywhere.
    #[error(
        "no cgroup hierarchy with the memory controller is mounted; boot with cgroup_enable=memory, or mount -t cgroup2 none /sys/fs/cgroup, or name one with --cgroup-root"
    )]
    NotMounted,
}

/// Faults in the text of `/proc/meminfo`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeminfoError {
    /// The file's bytes are not UTF-8.
    #[error("/proc/meminfo is no text")]
    NotText,
    /// A line of this name is missing, or has no number.
    #[error("/proc/meminfo has no {0}")]
    NoLine(&'static str),
}
