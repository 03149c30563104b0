//! The rights that the agent gives up once everything is loaded, attached, mounted and bound.
//!
//! They are [`capabilities`], system calls ([`seccomp`]) and files ([`landlock`]). Capabilities
//! and Landlock are a thread's own: the view's threads and those that close descriptors restrict
//! themselves before they begin. The filter of system calls is installed last, and for all
//! threads at once.

pub mod capabilities;
pub(crate) mod error;
pub mod landlock;
pub mod needed;
pub mod seccomp;

use std::{
    path::Path,
    sync::mpsc,
    thread::{self, JoinHandle},
};

use caps::Capability;

use crate::error::{Error, Result};

/// The extent to which rights are given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// All rights are kept.
    Off,
    /// Capabilities and files are given up; system calls that would be refused are allowed, and
    /// named in the kernel's log.
    Warn,
    /// All rights that are not needed are given up.
    #[default]
    On,
}

impl Sandbox {
    /// The mode's word on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Warn => "warn",
            Self::On => "on",
        }
    }
}

/// Needed for duplicates of clients' descriptors, and for clients' `/proc`.
const LOOK_AT_CLIENTS: Capability = Capability::CAP_SYS_PTRACE;
/// Needed for directories by id (`open_by_handle_at`), and for files of groups that are
/// delegated to other users.
const OPEN_BY_ID: Capability = Capability::CAP_DAC_READ_SEARCH;
/// Needed for queries to the programs, on kernels that require it
/// ([`capabilities::needed_for`]).
pub const QUERY: [Capability; 3] = [Capability::CAP_BPF, Capability::CAP_PERFMON, Capability::CAP_SYS_ADMIN];

/// Restricts the frontends' thread and threads that it starts, and with the filter of system
/// calls every thread. `needs_bpf`: whether queries to the programs need `CAP_BPF`.
pub fn agent(mode: Sandbox, needs_bpf: bool, writes: seccomp::Writes) {
    if mode == Sandbox::Off {
        return log::warn!("the agent keeps every right that it was started with (--sandbox off)");
    }
    let mut kept = vec![LOOK_AT_CLIENTS, OPEN_BY_ID];
    kept.extend(needs_bpf.then_some(Capability::CAP_BPF));
    keep(&kept);
    let set = seccomp::Set::agent(writes);
    match seccomp::restrict(&set, mode) {
        Ok(()) => log::debug!("{} system calls are allowed", set.len()),
        Err(error) => log::warn!("system calls are not filtered: {error}"),
    }
}

/// Restricts a thread that answers for the view, or starts threads that do. They read groups'
/// files and `/proc/meminfo`.
pub fn view(mode: Sandbox, hierarchy: &Path) {
    reader(mode, hierarchy, "the view's threads");
}

/// Restricts a thread that opens groups' files and those of `/proc`, and these to read alone; `who`: the
/// words for it.
pub fn reader(mode: Sandbox, hierarchy: &Path, who: &str) {
    if mode == Sandbox::Off {
        return;
    }
    match landlock::read_only([hierarchy, Path::new("/proc")]) {
        Ok(how) => log::debug!("{who}: Landlock {how}"),
        Err(error) => log::warn!("{who} may open any file: {error}"),
    }
    keep(&[OPEN_BY_ID]);
}

/// Starts a thread that has restricted itself when this returns: the filter of system calls that follows
/// does not let a thread do that. `begin` restricts it, and returns the thread's work; `what`: the words
/// for the thread.
///
/// # Errors
/// There is no thread left.
pub fn start_thread<W: FnOnce()>(
    name: &str,
    what: &str,
    begin: impl FnOnce() -> W + Send + 'static,
) -> Result<JoinHandle<()>> {
    let (restricted, is_restricted) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name(name.into()).spawn(move || {
        let work = begin();
        // Without a receiver the start has failed.
        let _ = restricted.send(());
        work();
    });
    let thread = thread.map_err(|error| Error::start(what, error))?;
    // An error is a thread that has ended, which its join reports.
    let _ = is_restricted.recv();
    Ok(thread)
}

/// Restricts the thread that records: it reads groups' files, and writes to one directory.
pub fn recorder(mode: Sandbox, hierarchy: &Path, directory: &Path, needs_bpf: bool) {
    if mode == Sandbox::Off {
        return;
    }
    match landlock::restrict([hierarchy, Path::new("/proc")], Some(directory)) {
        Ok(how) => log::debug!("the thread that records: Landlock {how}"),
        Err(error) => log::warn!("the thread that records may open any file: {error}"),
    }
    let mut kept = vec![OPEN_BY_ID];
    kept.extend(needs_bpf.then_some(Capability::CAP_BPF));
    keep(&kept);
}

/// Restricts the thread that lists a group's tasks for readers in other pid namespaces: it
/// looks at the readers and the tasks.
pub fn task_lists(mode: Sandbox) {
    if mode != Sandbox::Off {
        keep(&[LOOK_AT_CLIENTS, OPEN_BY_ID]);
    }
}

/// Restricts a thread that closes clients' descriptors.
pub fn deferred_close(mode: Sandbox) {
    if mode != Sandbox::Off {
        keep(&[]);
    }
}

/// Restricts the process that unmounts the view at the agent's end.
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
