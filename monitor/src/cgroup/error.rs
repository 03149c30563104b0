//! Errors of the memory cgroup hierarchy, and of the host's own numbers.

use std::path::{Path, PathBuf};

/// Reasons why the hierarchy with the memory controller is not found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HierarchyError {
    /// The named mount point is not that of such a hierarchy.
    #[error("{root} is not a mounted cgroup hierarchy with the memory controller{}", place(.elsewhere.as_deref()))]
    NotMountedAt {
        /// Mount point that was named.
        root: PathBuf,
        /// Mount point of v1's memory hierarchy.
        elsewhere: Option<PathBuf>,
    },
    /// cgroup2 is mounted, without the controller.
    #[error("cgroup2 at {root} has no memory controller; {obstacle}")]
    NoController {
        /// Mount point of cgroup2.
        root: PathBuf,
        /// The reason, with its remedy.
        obstacle: ControllerObstacle,
    },
    /// No such hierarchy is mounted anywhere.
    #[error(
        "no cgroup hierarchy with the memory controller is mounted; boot with cgroup_enable=memory, or mount -t cgroup2 none /sys/fs/cgroup, or name one with --cgroup-root"
    )]
    NotMounted,
}

/// Reasons why a mounted cgroup2 has no memory controller, with their remedies.
#[derive(Debug, thiserror::Error)]
pub enum ControllerObstacle {
    /// The kernel was booted without the controller.
    #[error("remove cgroup_disable=memory from the kernel's command line")]
    Disabled,
    /// The controller is on cgroup v1.
    #[error("it is on cgroup v1: name that hierarchy with --cgroup-root {point}")]
    OnV1 {
        /// Mount point of v1's memory hierarchy.
        point: PathBuf,
    },
    /// The mount begins with a group that has no controller, as in a cgroup namespace.
    #[error(
        "that directory is a group of the host (as in a cgroup namespace): on the host, echo +memory > cgroup.subtree_control in the group above it"
    )]
    Withheld,
    /// The mount begins with a threaded group, which can have no memory controller.
    #[error(
        "that directory is a threaded group of the host (as in a cgroup namespace), whose memory is counted in the group that its threaded subtree begins with: run the agent there or above, or make this group anew as a domain (cgroup.type)"
    )]
    Threaded,
    /// Any other reason, which the host does not show.
    #[error("boot with cgroup_enable=memory, or leave the controller off cgroup v1")]
    Other,
}

/// The place of the hierarchy that was not named.
fn place(elsewhere: Option<&Path>) -> String {
    elsewhere.map(|point| format!("; that is at {}", point.display())).unwrap_or_default()
}

/// Faults in the text of `/proc/meminfo`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeminfoError {
    /// The file's bytes are not UTF-8.
    #[error("/proc/meminfo is not text")]
    NotText,
    /// A line of this name is missing, or has no number.
    #[error("/proc/meminfo has no {0}")]
    NoLine(&'static str),
}
