//! Errors about the running kernel: the parts that the programs need and it lacks.

use std::io;

use monitor_client::named;

use crate::kernel::btf::BtfError;

/// Reasons why the running kernel cannot be watched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The kernel's type information (BTF) cannot be read.
    #[error(
        "{path}: {}; it must be built with CONFIG_DEBUG_INFO_BTF=y (Debian's, Ubuntu's, Fedora's and RHEL's are)",
        named(error)
    )]
    NoBtf {
        /// Path of the type information.
        path: &'static str,
        /// Error of the read.
        error: io::Error,
    },
    /// The kernel's type information is malformed.
    #[error("{path}: {error}")]
    MalformedBtf {
        /// Path of the type information.
        path: &'static str,
        /// Fault of the type information.
        error: BtfError,
    },
    /// The kernel has refused a program that the agent needs.
    #[error("{function} cannot be watched ({release}); needed to see when {purpose}")]
    Refused {
        /// Kernel function of the program.
        function: &'static str,
        /// Release of the kernel, as in `uname -r`.
        release: String,
        /// Purpose of the program, in words.
        purpose: &'static str,
    },
    /// The kernel has no function of this name.
    #[error(
        "the function {function} is not in its BTF ({release}), so that it does not offer the function to tracing \
         (too old, or inlined); needed to see when {purpose}"
    )]
    NoFunction {
        /// Kernel function that is missing.
        function: &'static str,
        /// Release of the kernel, as in `uname -r`.
        release: String,
        /// Purpose of the program for it, in words.
        purpose: &'static str,
    },
    /// A field that the programs read has no known place.
    #[error("{error} ({release})")]
    Offset {
        /// Reason why the type information has no such field.
        error: BtfError,
        /// Release of the kernel, as in `uname -r`.
        release: String,
    },
    /// The kernel was built without the memory controller.
    #[error("no memory controller in its BTF ({release}); it must be built with CONFIG_MEMCG=y")]
    NoController {
        /// Release of the kernel, as in `uname -r`.
        release: String,
    },
    /// The programs read other reference counts than one from a fresh eventfd.
    #[error("a fresh eventfd seems to have {0:?} references, not one")]
    References(Vec<u64>),
}
