//! Errors of the device plugin.

use std::{io, path::PathBuf};

use monitor_client::named;

/// Reasons why the kubelet cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// The path names something other than a socket.
    #[error("{path} exists and is not a socket; remove it")]
    NotASocket {
        /// Path of the plugin's socket.
        path: PathBuf,
    },
    /// The plugin's socket cannot be made.
    #[error("bind {path}: {}; give --plugins the kubelet's directory of device plugins", named(error))]
    Directory {
        /// Path of the plugin's socket.
        path: PathBuf,
        /// Error of the call.
        error: io::Error,
    },
    /// The kubelet cannot be connected to.
    #[error("connect {path}: {}; is the kubelet running?", named(error))]
    Connect {
        /// Path of the kubelet's socket.
        path: PathBuf,
        /// Error of the call.
        error: io::Error,
    },
    /// The connection to the kubelet failed.
    #[error("the call to {path} failed: {why}")]
    Call {
        /// Path of the kubelet's socket.
        path: PathBuf,
        /// The transport's own words.
        why: String,
    },
    /// The kubelet refused the call.
    #[error("the kubelet refused the call at {path}: gRPC status {status} {message}")]
    Refused {
        /// Path of the kubelet's socket.
        path: PathBuf,
        /// Number of the status.
        status: String,
        /// The kubelet's own words.
        message: String,
    },
}
