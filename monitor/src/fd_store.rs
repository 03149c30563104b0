//! Who holds descriptors while there is no agent: a service manager's descriptor store
//! (`FDSTORE=1`, systemd), or [`supervisor`](crate::supervisor), which speaks the same.

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

/// By this name the store keeps the state record.
pub const STATE: &str = "state";
/// Names of stashes begin so.
pub const STASH: &str = "bag-";

/// Descriptors that came with the process, each with its name.
pub type StoredDescriptors = Vec<(String, OwnedFd)>;

/// Takes the descriptors that a service manager has handed over (`LISTEN_FDS`): none the
/// second time.
#[must_use]
pub fn handed() -> StoredDescriptors {
    match listen_fds() {
        Ok(named) => named,
        Err(error) => {
            log::warn!("what the service manager hands over cannot be read (LISTEN_FDS): {error}");
            Vec::new()
        }
    }
}

/// A store of descriptors.
#[derive(Debug)]
pub struct FdStore(());

impl FdStore {
    /// The service manager, where it says that it keeps descriptors (`FDSTORE`, systemd
    /// 254 and newer, and our own supervisor), or `trusted` says so.
    #[must_use]
    pub fn found(trusted: bool) -> Option<Self> {
        let room = env::var("FDSTORE").ok().and_then(|room| room.parse::<u32>().ok());
        let speaks = env::var_os("NOTIFY_SOCKET").is_some();
        (speaks && (trusted || room.is_some_and(|room| room > 0))).then_some(Self(()))
    }

    /// One that tests stand in for: without `NOTIFY_SOCKET`, nothing is sent.
    #[cfg(test)]
    pub(crate) const fn of_tests() -> Self {
        Self(())
    }

    /// Gives it a descriptor to keep.
    ///
    /// # Errors
    /// `sendmsg` to the notification socket failed.
    pub fn store(&self, name: &str, fd: BorrowedFd<'_>) -> Result<()> {
        // Not polled: a stash whose mouth is closed would count as gone.
        let states = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
        in_flight::apart(|| sd_notify::notify_with_fds(&states, &[fd]))
            .map_err(|error| failed("FDSTORE", &error))
    }

    /// Lets it forget all of that name.
    ///
    /// # Errors
    /// As [`FdStore::store`].
    pub fn forget(&self, name: &str) -> Result<()> {
        let states = [NotifyState::FdStoreRemove, NotifyState::FdName(name)];
        sd_notify::notify(&states).map_err(|error| failed("FDSTOREREMOVE", &error))
    }
}

fn failed(what: &str, error: &std::io::Error) -> Error {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
    Error::syscall(format!("sendmsg to the service manager ({what})"), errno)
}
