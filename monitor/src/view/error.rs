//! Errors of the view's mount point.

use std::path::PathBuf;

/// Reasons why the view cannot be mounted on a directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// The directory has entries, which the view would hide.
    #[error("{point} is not empty; give the view another directory with --mount, or none with --no-mount")]
    NotEmpty {
        /// Path of the directory.
        point: PathBuf,
    },
    /// The directory is in a cgroup hierarchy, whose groups the view would hide.
    #[error(
        "{point} is in a cgroup hierarchy ({kind}), which the view would hide; give the view a directory outside with \
         --mount, or none with --no-mount"
    )]
    InHierarchy {
        /// Path of the directory.
        point: PathBuf,
        /// Type of the hierarchy's file system: `cgroup` or `cgroup2`.
        kind: &'static str,
    },
    /// Another file system is mounted on the directory.
    #[error("{kind} is mounted on {point}; give the view another directory with --mount")]
    OtherMount {
        /// Type of that file system.
        kind: String,
        /// Path of the directory.
        point: PathBuf,
    },
    /// Another agent shows its view there.
    #[error("another agent shows its view on {point}; stop it, or give this one another --mount")]
    InUse {
        /// Path of the directory.
        point: PathBuf,
    },
}
