//! Registering as an attacker does: again and again, whatever becomes of the agent.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use memcg_monitor::view::POINT;
use monitor_client::{SOCKET, connect};
use nix::sys::socket::{MsgFlags, recv, send};

/// Pause before an agent that is away is queried again.
const PAUSE: Duration = Duration::from_millis(2);

/// A connection to the registration socket.
#[derive(Debug, Default)]
pub(super) struct Requester(Option<OwnedFd>);

impl Requester {
    /// Registers; whether the agent took it. Waits for an agent that is away.
    pub(super) fn register(&mut self, line: &str) -> bool {
        loop {
            match self.request(line) {
                Ok(taken) => return taken,
                Err(_) => {
                    self.0 = None;
                    sleep(PAUSE);
                }
            }
        }
    }

    fn request(&mut self, line: &str) -> Result<bool> {
        if self.0.is_none() {
            self.0 = Some(connect(Path::new(SOCKET))?);
        }
        let connection = self.0.as_ref().context("no connection")?.as_raw_fd();
        send(connection, line.as_bytes(), MsgFlags::MSG_NOSIGNAL)?;
        let mut answer = [0; 512];
        match recv(connection, &mut answer, MsgFlags::empty())? {
            0 => bail!("the agent has ended"),
            length => Ok(&answer[..length] == b"0"),
        }
    }
}

/// The usage file of a group.
pub(super) fn usage_file(group: &Path) -> Result<File> {
    let path = group.join("memory.current");
    File::open(&path).with_context(|| format!("cannot open {}", path.display()))
}

/// Opens a group's directory.
pub(super) fn directory(group: &Path) -> Result<File> {
    File::open(group).with_context(|| format!("cannot open {}", group.display()))
}

/// A group in the view: its `cgroup.event_control`, and its usage file.
pub(super) fn in_view(group: &Path, root: &Path) -> Result<(File, File)> {
    let directory = Path::new(POINT).join(group.strip_prefix(root)?);
    let event_control = OpenOptions::new().write(true).open(directory.join("cgroup.event_control"))?;
    Ok((event_control, File::open(directory.join("memory.usage_in_bytes"))?))
}
