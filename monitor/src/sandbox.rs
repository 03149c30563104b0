//! What the agent gives up once everything is loaded, attached, mounted and bound.
//!
//! [`rights`] are the capabilities, [`calls`] the system calls, [`files`] what may be
//! opened. Capabilities and Landlock are a thread's own: the view's threads and those
//! that close descriptors take on theirs before they begin. The filter of system calls
//! comes last, and for all threads at once.

pub mod capabilities;
pub mod landlock;
pub mod seccomp;

use std::path::Path;

use caps::Capability;

/// How much is given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// Nothing.
    Off,
    /// Capabilities and files; of the system calls the kernel's log tells which would
    /// have been refused.
    Warn,
    /// All that is not needed.
    #[default]
    On,
}

impl Sandbox {
    /// As it is written on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Warn => "warn",
            Self::On => "on",
        }
    }
}

/// Duplicates of clients' descriptors, and what `/proc` says of clients.
const LOOK_AT_CLIENTS: Capability = Capability::CAP_SYS_PTRACE;
/// Directories by id (`open_by_handle_at`), and files of groups that are handed over
/// to other users.
const OPEN_BY_ID: Capability = Capability::CAP_DAC_READ_SEARCH;
/// Any question to the programs, on kernels that ask for it
/// ([`rights::needed_for`]).
pub const ASK: [Capability; 3] = [Capability::CAP_BPF, Capability::CAP_PERFMON, Capability::CAP_SYS_ADMIN];

/// The doors' thread and those that it starts, and with the filter of system calls every thread. `asks` says
/// whether the programs can only be asked with `CAP_BPF`.
pub fn agent(mode: Sandbox, asks: bool) {
    if mode == Sandbox::Off {
        return log::warn!("the agent keeps every right that it was started with (--sandbox off)");
    }
    let mut kept = vec![LOOK_AT_CLIENTS, OPEN_BY_ID];
    kept.extend(asks.then_some(Capability::CAP_BPF));
    keep(&kept);
    match seccomp::restrict(&seccomp::Set::agent(), mode) {
        Ok(()) => log::debug!("{} system calls are allowed", seccomp::Set::agent().len()),
        Err(error) => log::warn!("system calls are not filtered: {error}"),
    }
}

/// A thread that answers for the view, or starts those that do. They read groups'
/// files and `/proc/meminfo`.
pub fn view(mode: Sandbox, hierarchy: &Path) {
    if mode == Sandbox::Off {
        return;
    }
    match landlock::read_only([hierarchy, Path::new("/proc")]) {
        Ok(how) => log::debug!("the view's threads: Landlock {how}"),
        Err(error) => log::warn!("the view's threads may open any file: {error}"),
    }
    keep(&[OPEN_BY_ID]);
}

/// A thread that closes what clients sent.
pub fn deferred_close(mode: Sandbox) {
    if mode != Sandbox::Off {
        keep(&[]);
    }
}

/// The process that unmounts the view at the agent's end.
pub fn unmounter(mode: Sandbox) {
    if mode == Sandbox::Off {
        return;
    }
    keep(&[Capability::CAP_SYS_ADMIN]);
    if let Err(error) = seccomp::restrict(&seccomp::Set::unmounter(), mode) {
        log::warn!("system calls are not filtered: {error}");
    }
}

fn keep(kept: &[Capability]) {
    if let Err(error) = capabilities::keep(kept) {
        log::warn!("capabilities are not given up: {error}");
    }
}
