//! The agent as a child process, started with the descriptors that are kept for it, like by a
//! service manager (`LISTEN_FDS`).

use std::{
    ffi::{CString, OsStr, OsString},
    os::{
        fd::AsFd as _,
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::Path,
    time::Instant,
};

use monitor_sys::process;
use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{SigSet, Signal},
    },
    unistd::{ForkResult, Pid, getpid},
};

use crate::{
    error::{Error, Result},
    fd_store::StoredDescriptors,
    supervisor::oom_score,
};

/// A running agent's process.
#[derive(Debug)]
pub struct Worker {
    /// Process id of the agent.
    pub pid: Pid,
    /// Time of its start.
    pub began: Instant,
}

/// Starts an agent, which may have up to `room` descriptors kept by messages to `notify`. The
/// caller has a single thread.
///
/// # Errors
/// `fork` failed: `EBUSY` where there is a second thread.
pub fn start(
    program: &Path,
    arguments: &[OsString],
    kept: &StoredDescriptors,
    notify: &Path,
    room: usize,
) -> Result<Worker> {
    let began = Instant::now();
    let room = room.to_string();
    let more = [("NOTIFY_SOCKET", notify.as_os_str()), ("FDSTORE", OsStr::new(&room))];
    match process::fork().map_err(|errno| Error::syscall("fork", errno))? {
        ForkResult::Parent { child } => Ok(Worker { pid: child, began }),
        ForkResult::Child => {
            // With a killed parent the kept descriptors are lost: then the agent is to end, too.
            let _ = prctl::set_pdeathsig(Signal::SIGTERM);
            let errno = become_with(program, arguments, kept, &more);
            eprintln!("memcg-monitor: execve {}: {errno}", program.display());
            std::process::exit(1)
        }
    }
}

/// Executes the program as it is now, with the kept descriptors. Returns only on failure.
pub(super) fn begin_again(program: &Path, kept: &StoredDescriptors) -> Error {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let errno = become_with(program, &arguments, kept, &[]);
    Error::syscall(format!("execve {}", program.display()), errno)
}

fn become_with(
    program: &Path,
    arguments: &[OsString],
    kept: &StoredDescriptors,
    more: &[(&str, &OsStr)],
) -> Errno {
    let names: Vec<&str> = kept.iter().map(|(name, _)| name.as_str()).collect();
    let (names, count, pid) = (names.join(":"), kept.len().to_string(), getpid().to_string());
    // Without descriptors there would be a name too many: the empty one.
    let named = (!kept.is_empty()).then_some(("LISTEN_FDNAMES", OsStr::new(&names)));
    let ours: Vec<(&str, &OsStr)> = [("LISTEN_PID", OsStr::new(&pid)), ("LISTEN_FDS", OsStr::new(&count))]
        .into_iter()
        .chain(named)
        .chain(more.iter().copied())
        .collect();
    let inherited = std::env::vars_os().filter(|(name, _)| !ours.iter().any(|(own, _)| name == own));
    let mut environment: Vec<CString> = inherited.map(|(name, value)| pair(&name, &value)).collect();
    environment.extend(ours.iter().map(|(name, value)| pair(OsStr::new(name), value)));
    let program = text(program.as_os_str().to_owned());
    let arguments: Vec<CString> =
        std::iter::once(program.clone()).chain(arguments.iter().cloned().map(text)).collect();
    oom_score::put_back();
    if let Err(errno) = SigSet::all().thread_unblock() {
        return errno;
    }
    // Where they are expected, open for the program to come.
    let descriptors: Vec<_> = kept.iter().map(|(_, fd)| fd.as_fd()).collect();
    process::execute(&program, &arguments, &environment, &descriptors)
}

fn pair(name: &OsStr, value: &OsStr) -> CString {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(b'=');
    bytes.extend_from_slice(value.as_bytes());
    CString::new(bytes).unwrap_or_default()
}

fn text(from: OsString) -> CString {
    CString::new(from.into_vec()).unwrap_or_default()
}
