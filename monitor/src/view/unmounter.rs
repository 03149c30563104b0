//! A process of its own that unmounts the view when the agent ends, however that
//! comes about. So the agent itself needs no right to mount.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::Path,
    process::{Child, Command, Stdio},
};

use monitor_sys::signals;
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MntFlags, umount2},
    sys::{signal::Signal, stat::Mode},
};

use crate::{
    error::{Error, Result},
    sandbox,
};

/// The verb of our own program that [`serve`]s.
pub const VERB: &str = "unmount";
/// Says that the process holds the mount.
const HELD: u8 = b'.';

/// That process, seen from the agent.
#[derive(Debug)]
pub struct Unmounter {
    child: Child,
    pipe: UnixStream,
}

impl Unmounter {
    /// Starts it for what was just mounted on `point`.
    ///
    /// # Errors
    /// Our own program could not be started, or could not look at `point`.
    pub fn start(point: &Path, mode: sandbox::Sandbox) -> Result<Self> {
        let failed = |error| Error::file("start the process that unmounts", point, error);
        let (mut pipe, theirs) = UnixStream::pair().map_err(failed)?;
        let child = Command::new("/proc/self/exe")
            .arg0("memcg-monitor")
            .args([VERB, "--sandbox", mode.as_str()])
            .arg(point)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let mut held = [0];
        pipe.read_exact(&mut held).map_err(failed)?;
        Ok(Self { child, pipe })
    }

    /// Has it unmount, and waits for that.
    pub fn end(&mut self) {
        let _ = self.pipe.shutdown(std::net::Shutdown::Both);
        if let Err(error) = self.child.wait() {
            log::warn!("wait for the process that unmounts: {error}");
        }
    }
}

/// Waits for the end of the agent, whose end of a socket is our standard input, then
/// unmounts what is on `point` now.
///
/// # Errors
/// `umount2` failed.
pub fn serve(point: &Path, mode: sandbox::Sandbox) -> Result<()> {
    // They go to all processes of a service or a terminal, and the agent ends by them.
    for ends in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals::ignore(ends).map_err(|errno| Error::syscall("sigaction", errno))?;
    }
    // This very mount, whatever is mounted there later.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mount = open(point, flags, Mode::empty())
        .map_err(|errno| Error::syscall(format!("open {}", point.display()), errno))?;
    let failed = |error| Error::file("use", "the agent's socket", error);
    let socket = std::io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    let mut socket = File::from(socket);
    sandbox::unmounter(mode);
    socket.write_all(&[HELD]).map_err(failed)?;
    // Nothing comes but the end.
    let _ = socket.read(&mut [0]);
    // Detached: clients may hold files open on it.
    match umount2(format!("/proc/self/fd/{}", mount.as_raw_fd()).as_str(), MntFlags::MNT_DETACH) {
        // Somebody else has.
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(Error::syscall(format!("umount2 {}", point.display()), errno)),
    }
}
