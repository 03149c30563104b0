//! The hierarchy as it is on a host: in a cgroup namespace, with threads, with other mounts in it and
//! beside it, with other mount options.

mod hybrid;
mod mounts;
pub(crate) mod namespace;
mod options;
mod threads;
