//! cgroup v1's memory notifications on stock cgroup v2 kernels.
//!
//! The modules follow the data: a charge runs a program in the kernel (`monitor-ebpf`), which
//! keeps the [`table`](monitor_sys::table) and sends records to the agent through
//! [`programs`]; the `watcher` works out which thresholds were crossed, looks up their
//! registrations in its `registry`, and adds to the eventfds (`eventfd`). Clients register at
//! the `frontend`s, one of which is the [`view`], the cgroup tree as v1 showed it;
//! [`monitor_client`] is a client's side of them. `persist` holds the state that outlives an
//! agent, in the descriptor store ([`fd_store`]).
//!
//! System calls that need `unsafe` code are in [`monitor_sys`]. [`kernel`] is the one place
//! with the differences between kernels; only [`programs`] uses aya; `registry` uses neither
//! the kernel nor sockets.
//!
//! Public is what the command `memcg-monitor` and the VM tests use; it is no interface for
//! others, who use [`monitor_client`].

#![forbid(unsafe_code)]

pub mod agent;
mod async_fd;
pub mod backend;
pub mod black_box;
mod boxes;
pub mod cgroup;
pub mod device_plugin;
mod error;
mod eventfd;
pub mod fd_store;
mod frontend;
pub mod in_flight;
pub mod kernel;
mod kills;
pub mod logging;
pub mod malloc;
mod metrics;
pub mod mounts;
mod persist;
mod printable;
mod procfs;
pub mod programs;
mod recorder;
mod registry;
mod sampled;
pub mod sandbox;
mod socket_activation;
mod socket_file;
mod source;
pub mod supervisor;
pub mod view;
mod watchdog;
mod watcher;

pub use error::{Error, Result};
pub use frontend::{
    metrics_http::{Address, MetricsOptions},
    pressure_text,
    seqpacket::Access,
};
pub use metrics::{Pattern, Selection};
pub use printable::printable;
pub use recorder::{BlackBoxOptions, DIRECTORY as BLACK_BOX_DIRECTORY};
pub use source::Precision;
pub use watcher::Limits;

/// Modules that the fuzz targets reach, beside those that are public.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    pub mod async_fd {
        pub use crate::async_fd::*;
    }
    pub mod cgroup {
        pub use crate::cgroup::v1_file::V1File;
    }
    pub mod error {
        pub use crate::error::*;
    }
    pub mod frontend {
        pub use crate::frontend::*;
    }
    pub mod persist {
        pub use crate::persist::*;
    }
    pub mod source {
        pub use crate::source::*;
    }
    pub mod view {
        pub use crate::view::{
            fs::View,
            tree::{MountedTree, Node, Tree},
        };
    }
    pub mod watcher {
        pub use crate::watcher::*;
    }
}
