//! The host's memory cgroup hierarchy as files: its mount point, its directories by id, and
//! the enumeration at start.

pub(crate) mod controller;
mod enumerate;
pub(crate) mod error;
pub mod handle;
mod hierarchy;
pub mod host;
mod outside;
pub(crate) mod v1_file;
pub mod workload;

pub use error::HierarchyError;
pub use hierarchy::{Hierarchy, Version, has_local_events};
