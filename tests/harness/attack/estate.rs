//! The means of an attacker: a group that was delegated to it, as systemd does for a user,
//! and processes.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};

use super::{ATTACKER, OTHER};
use crate::harness::agent::until;
use crate::harness::group::Group;
use crate::harness::process::{Process, become_user, close_all_but};
use crate::harness::report::say;

/// Most descriptors that a process of the user may have, by the kernel's own default.
const DESCRIPTORS: u64 = 1 << 20;

/// After which it is said that an attack is still being prepared.
const PROGRESS: Duration = Duration::from_secs(10);

/// A user's group, and what runs in it.
#[derive(Debug)]
pub(super) struct Estate {
    processes: Vec<Process>,
    theirs: PathBuf,
    others: PathBuf,
    cleared: bool,
}

/// Groups that a process of an attack is given, and how it starts others.
#[derive(Debug)]
pub(super) struct Ground {
    /// The delegated group; processes are not in itself, but in `home`.
    pub(super) top: PathBuf,
    pub(super) home: PathBuf,
    starter: UnixStream,
}

impl Estate {
    pub(super) fn new() -> Result<Self> {
        let root = Group::root()?;
        let (theirs, others) = (root.path.join("attacker"), root.path.join("other"));
        let estate = Self { processes: Vec::new(), theirs, others, cleared: false };
        delegate(&estate.theirs, ATTACKER)?;
        delegate(&estate.others, OTHER)?;
        // A limit, of which a percentage can be waited for.
        let path = estate.others.join("memory.max");
        fs::write(&path, "1G").with_context(|| format!("cannot write {}", path.display()))?;
        Ok(estate)
    }

    /// Starts a process of the attacker's; returns when that says that it is under way.
    pub(super) fn attacker(&mut self, work: impl FnOnce(&Ground) -> Result<()>) -> Result<()> {
        let process = start(ATTACKER, &self.theirs, work)?;
        self.processes.push(process);
        Ok(())
    }

    /// Starts a process of another user's, which does no harm.
    pub(super) fn other(&mut self, work: impl FnOnce(&Ground) -> Result<()>) -> Result<()> {
        let process = start(OTHER, &self.others, work)?;
        self.processes.push(process);
        Ok(())
    }

    /// Starts a process of root's.
    pub(super) fn root(&mut self, work: impl FnOnce(&Ground) -> Result<()>) -> Result<()> {
        let process = start(0, &self.others, work)?;
        self.processes.push(process);
        Ok(())
    }

    pub(super) fn clear(mut self) -> Result<()> {
        self.cleared = true;
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        // All at once: one that waits for the agent may have to wait for the others.
        for process in &self.processes {
            let _ = kill(process.pid(), Signal::SIGKILL);
        }
        self.processes.clear();
        for top in [&self.theirs, &self.others] {
            // What they have started themselves is theirs, too.
            let _ = fs::write(top.join("cgroup.kill"), "1");
            until("the attackers' groups can be removed", || Ok(!top.exists() || remove(top)))?;
        }
        Ok(())
    }
}

impl Drop for Estate {
    fn drop(&mut self) {
        if !self.cleared {
            let _ = self.end();
        }
    }
}

impl Ground {
    /// Reports to the starter that the attack is under way.
    pub(super) fn ready(&self) {
        // The second time there is no listener any more.
        let _ = (&self.starter).write_all(&[1]);
    }

    /// Makes a group below the delegated one.
    pub(super) fn group(&self, name: &str) -> Result<PathBuf> {
        let path = self.top.join(name);
        make(&path)?;
        Ok(path)
    }
}

/// Makes a group, or takes the one that is there.
pub(super) fn make(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot make {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Moves the process that calls into a group.
pub(super) fn enter(group: &Path) -> Result<()> {
    let path = group.join("cgroup.procs");
    fs::write(&path, "0").with_context(|| format!("cannot write {}", path.display()))
}

/// Turns the memory controller on for the groups below.
pub(super) fn enable(group: &Path) -> Result<()> {
    let path = group.join("cgroup.subtree_control");
    fs::write(&path, "+memory").with_context(|| format!("cannot write {}", path.display()))
}

fn delegate(top: &Path, user: u32) -> Result<()> {
    make(top)?;
    enable(top)?;
    let home = top.join("home");
    make(&home)?;
    for directory in [top, &home] {
        for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            let path = directory.join(name);
            chown(&path, Some(user), Some(user))
                .with_context(|| format!("cannot give {} to {user}", path.display()))?;
        }
    }
    Ok(())
}

fn start(user: u32, top: &Path, work: impl FnOnce(&Ground) -> Result<()>) -> Result<Process> {
    let (mut ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
    let home = top.join("home");
    let process = Process::start(|| {
        close_all_but(theirs.as_raw_fd());
        setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).context("setrlimit failed")?;
        enter(&home)?;
        become_user(user)?;
        // After that: a process that changes its user is no longer killed with its parent.
        set_pdeathsig(Signal::SIGKILL)?;
        work(&Ground { top: top.to_owned(), home: home.clone(), starter: theirs })
    })?;
    // The child's end was closed here with the closure.
    ours.set_read_timeout(Some(PROGRESS))?;
    loop {
        match ours.read_exact(&mut [0]) {
            Ok(()) => return Ok(process),
            // The host takes a guest that is silent for one that hangs.
            Err(error) if error.kind() == ErrorKind::WouldBlock => say!("  not yet under way"),
            Err(_) => {
                process.end()?;
                bail!("it ended before it was under way")
            }
        }
    }
}

/// Removes a group and all below; whether that is done.
fn remove(group: &Path) -> bool {
    if let Ok(entries) = fs::read_dir(group) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path());
            }
        }
    }
    fs::remove_dir(group).is_ok()
}
