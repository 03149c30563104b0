//! A separate process that unmounts the view when the agent ends, in whatever way, unless the
//! view's connection is kept for the next agent. So the agent itself needs no right to mount.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
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

/// The command of this program that calls [`serve`].
pub const VERB: &str = "unmount";
/// The byte by which the process reports that it holds the mount.
const HELD: u8 = b'.';
/// The byte by which the agent says that the view outlives it.
const KEPT: u8 = b'k';
/// The byte by which the agent says that the view ends with it.
const LET_GO: u8 = b'e';

/// The unmounting process, from the agent's side.
#[derive(Debug)]
pub struct Unmounter {
    child: Child,
    pipe: UnixStream,
}

impl Unmounter {
    /// Starts the process for the view just mounted on `point`.
    ///
    /// # Errors
    /// This program could not be started, or could not open `point`.
    pub fn start(point: &Path, mode: sandbox::Sandbox) -> Result<Self> {
        let failed = |error| Error::start(format!("the process that unmounts {}", point.display()), error);
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

    /// Makes the process leave the view mounted at the end of the agent.
    pub fn keep(&mut self) {
        self.say(KEPT);
    }

    /// Makes the process unmount at the end of the agent, which is how it begins.
    pub fn let_go(&mut self) {
        self.say(LET_GO);
    }

    fn say(&mut self, byte: u8) {
        if let Err(error) = self.pipe.write_all(&[byte]) {
            log::warn!("write to the process that unmounts: {error}");
        }
    }

    /// Makes the process unmount, unless the view is kept, and waits for that.
    pub fn end(&mut self) {
        let _ = self.pipe.shutdown(std::net::Shutdown::Both);
        if let Err(error) = self.child.wait() {
            log::warn!("wait for the process that unmounts: {error}");
        }
    }
}

/// Waits for the end of the agent, which has the other end of the socket at standard input,
/// then unmounts the view that is on `point` at the call, unless it is kept.
///
/// # Errors
/// `umount2` failed.
pub fn serve(point: &Path, mode: sandbox::Sandbox) -> Result<()> {
    // These signals reach all processes of a service or a terminal, and end the agent.
    for ends in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals::ignore(ends).map_err(|errno| Error::syscall("sigaction", errno))?;
    }
    // Holds this very mount, whatever is mounted there later.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mount = open(point, flags, Mode::empty())
        .map_err(|errno| Error::syscall(format!("open {}", point.display()), errno))?;
    let failed = |call: &str, error: io::Error| {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Error::syscall(format!("{call} (the agent's socket at standard input)"), errno)
    };
    let socket =
        io::stdin().as_fd().try_clone_to_owned().map_err(|error| failed("fcntl F_DUPFD_CLOEXEC", error))?;
    let mut socket = File::from(socket);
    sandbox::unmounter(mode);
    socket.write_all(&[HELD]).map_err(|error| failed("write", error))?;
    let (mut kept, mut byte) = (false, [0]);
    // At the end of the agent there is nothing more to read.
    while socket.read_exact(&mut byte).is_ok() {
        kept = byte[0] == KEPT;
    }
    if kept {
        return Ok(());
    }
    // Detached: clients may hold files open on it.
    match umount2(format!("/proc/self/fd/{}", mount.as_raw_fd()).as_str(), MntFlags::MNT_DETACH) {
        // EINVAL: it is unmounted already.
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(Error::syscall(format!("umount2 {}", point.display()), errno)),
    }
}
