//! cgroup v1's memory notifications on stock cgroup v2 kernels.
//!
//! The modules follow the data: a charge runs a program in the kernel
//! (`monitor-ebpf`), which keeps the [`table`](monitor_sys::table) and sends records to the agent through
//! [`programs`]; the [`watcher`] works out which thresholds were crossed, looks up their
//! registrations in its [`registry`], and adds to the [`eventfd`]s. Clients register at the
//! [`frontend`]s, one of which is the [`view`], the cgroup tree as v1 showed it; [`monitor_client`]
//! is a client's side of them. [`persist`] holds the state that outlives an agent, in the
//! descriptor store ([`fd_store`]).
//!
//! System calls that need `unsafe` code are in [`monitor_sys`]. [`kernel`] is the one place with the differences between kernels; only [`programs`]
//! uses aya; [`registry`] uses neither the kernel nor sockets.

#![forbid(unsafe_code)]

pub mod agent;
pub mod async_fd;
pub mod cgroup;
pub mod error;
pub mod eventfd;
pub mod fd_store;
pub mod frontend;
pub mod in_flight;
pub mod kernel;
pub mod logging;
pub mod malloc;
pub mod metrics;
pub mod mounts;
pub mod persist;
pub mod printable;
pub mod programs;
pub mod registry;
pub mod sandbox;
pub mod socket_activation;
pub mod source;
pub mod supervisor;
pub mod view;
pub mod watchdog;
pub mod watcher;

pub use error::Error;
