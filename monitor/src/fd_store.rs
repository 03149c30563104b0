//! The descriptor store, which holds descriptors while no agent runs: a service manager's
//! (`FDSTORE=1`, systemd), or [`supervisor`](crate::supervisor), which speaks the same protocol.

use std::{
    env,
    os::fd::{BorrowedFd, OwnedFd},
};

use monitor_sys::inherited::listen_fds;
use nix::errno::Errno;
use sd_notify::NotifyState;

use crate::{
    error::{Error, Result},
    in_flight,
};

/// Name of the state file in the store.
pub const STATE: &str = "state";
/// Prefix of the stashes' names in the store.
pub const STASH: &str = "bag-";
/// Prefix of the names of the view's connection in the store.
pub const VIEW: &str = "view-";
/// Prefix of the names of the stashes of connections at the pressure socket.
pub const PRESSURE: &str = "pressure-";
/// Name of the black box's notes in the store.
pub const NOTES: &str = "black-box-notes";

/// Descriptors that the process was started with, each with its name.
pub type StoredDescriptors = Vec<(String, OwnedFd)>;

/// Takes the descriptors that a service manager has handed over (`LISTEN_FDS`): none the
/// second time.
#[must_use]
pub fn handed() -> StoredDescriptors {
    match listen_fds() {
        Ok(named) => named,
        Err(error) => {
            log::warn!(
                "the service manager's descriptors cannot be read (LISTEN_FDS): {error}; its sockets and kept registrations are not used"
            );
            Vec::new()
        }
    }
}

/// The descriptor store of this process's manager.
#[derive(Clone, Copy, Debug)]
pub struct FdStore(());

impl FdStore {
    /// Finds the service manager's store, where `FDSTORE` announces one (systemd 254 and newer,
    /// and the agent's own supervisor), or where it is `trusted` to be there.
    #[must_use]
    pub fn found(trusted: bool) -> Option<Self> {
        let room = env::var("FDSTORE").ok().and_then(|room| room.parse::<u32>().ok());
        let has_manager = env::var_os("NOTIFY_SOCKET").is_some();
        (has_manager && (trusted || room.is_some_and(|room| room > 0))).then_some(Self(()))
    }

    /// A store for tests: without `NOTIFY_SOCKET`, nothing is sent.
    #[cfg(test)]
    pub(crate) const fn of_tests() -> Self {
        Self(())
    }

    /// Gives the store a descriptor to keep.
    ///
    /// # Errors
    /// `sendmsg` to the notification socket failed.
    pub fn store(&self, name: &str, fd: BorrowedFd<'_>) -> Result<()> {
        // Not polled: a stash whose other end is closed would count as gone.
        let states = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
        in_flight::apart(|| sd_notify::notify_with_fds(&states, &[fd]))
            .map_err(|error| failed("FDSTORE", &error))
    }

    /// Removes all descriptors of that name from the store.
    ///
    /// # Errors
    /// The same errors as of [`FdStore::store`].
    pub fn forget(&self, name: &str) -> Result<()> {
        let states = [NotifyState::FdStoreRemove, NotifyState::FdName(name)];
        sd_notify::notify(&states).map_err(|error| failed("FDSTOREREMOVE", &error))
    }
}

fn failed(what: &str, error: &std::io::Error) -> Error {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
    Error::syscall(format!("sendmsg to the service manager ({what})"), errno)
}
