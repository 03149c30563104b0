//! The ground of tests, benchmarks and the soak: the machine, the agent under test, and
//! the processes that charge memory and wait for signals.

pub(crate) mod agent;
pub(crate) mod attack;
pub(crate) mod block;
pub(crate) mod charger;
pub(crate) mod child;
pub(crate) mod client;
pub(crate) mod group;
pub(crate) mod init;
pub(crate) mod modules;
pub(crate) mod native;
pub(crate) mod pinned;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod random;
pub(crate) mod report;
pub(crate) mod runner;
pub(crate) mod screen;
pub(crate) mod select;
pub(crate) mod shared;
pub(crate) mod shell;
pub(crate) mod standing;
pub(crate) mod stopwatch;
pub(crate) mod test;
pub(crate) mod trace;
pub(crate) mod until;

/// Bytes in a mebibyte.
pub(crate) const MIB: u64 = 1 << 20;
