//! cgroup v1's memory notifications on stock cgroup v2 kernels.
//!
//! The modules follow the data: a charge runs a program in the kernel
//! (`monitor-ebpf`), which keeps the [`table`] and rings the agent through
//! [`programs`]; the [`watcher`] works out which thresholds were crossed, looks
//! up who waits in its [`registry`], and adds to their [`eventfd`]s. Clients come
//! in by the [`door`]s, one of which is the [`view`], the cgroup tree as v1 showed it;
//! [`client`] is a door's other end. What has to outlive an agent is in its [`vault`],
//! which a [`keeper`] holds.
//!
//! [`kernel`] is the one place that knows what kernels differ in; only
//! [`programs`] names aya; [`registry`] knows neither kernel nor sockets.

pub mod agent;
pub mod ancillary;
pub mod cgroup;
pub mod client;
pub mod confine;
pub mod door;
pub mod error;
pub mod eventfd;
pub mod handed;
pub mod heap;
pub mod in_flight;
pub mod keeper;
pub mod kernel;
pub mod logging;
pub mod metrics;
pub mod mounts;
pub mod printable;
pub mod programs;
pub mod ready;
pub mod registry;
pub mod source;
pub mod supervisor;
pub mod table;
pub mod vault;
pub mod view;
pub mod watchdog;
pub mod watcher;

pub use error::Error;
