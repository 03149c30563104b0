//! Errors of the frontends at their start: sockets, the metrics' address, and accounts.

use std::{io, net::SocketAddr, path::PathBuf};

use monitor_client::named;

/// Reasons why the agent cannot have a socket's path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The path names something other than a socket.
    #[error("{path} exists and is not a socket")]
    NotASocket {
        /// Path of the socket.
        path: PathBuf,
    },
    /// Another agent holds the socket's lock.
    #[error("another agent (process {holder}) serves {path}; stop it, or give this one other sockets")]
    InUse {
        /// Process id of the other agent; empty where it is not written yet.
        holder: String,
        /// Path of the socket.
        path: PathBuf,
    },
    /// Two of the agent's sockets would have one path.
    #[error("{first} and {second} are the same path, {path}; give each a path of its own")]
    SamePath {
        /// Option of the one socket.
        first: &'static str,
        /// Option of the other socket.
        second: &'static str,
        /// Path that both sockets would have.
        path: PathBuf,
    },
}

/// Reasons why metrics cannot be served at an address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// A system call on the loopback address failed.
    #[error("{call} {address}: {}; give the agent another --metrics address", named(error))]
    Address {
        /// System call that failed.
        call: &'static str,
        /// Address that was to be served.
        address: SocketAddr,
        /// Error of the call.
        error: io::Error,
    },
    /// The path names something other than a socket.
    #[error("{path} exists and is not a socket; remove it, or give the agent another --metrics address")]
    NotASocket {
        /// Path of the socket.
        path: PathBuf,
    },
    /// A process listens on the socket already.
    #[error("another program serves {path}; give this agent another --metrics address")]
    InUse {
        /// Path of the socket.
        path: PathBuf,
    },
}

/// Reasons why clients cannot be counted by their groups.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccountingError {
    /// The agent's own group is not in the hierarchy, so that clients' groups would not be found.
    #[error(
        "the agent's own group, as /proc/self/cgroup names it, is not below {root}, so clients' groups cannot be found; mount the host's hierarchy there, or let users pay (--quota-by user)"
    )]
    NoOwnGroup {
        /// Mount point of the hierarchy.
        root: PathBuf,
    },
}
