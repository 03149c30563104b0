//! The kernel's own notices, which make the reader read at once instead of when it is due: files
//! of a group that have changed, and groups that have gone (inotify).

use std::{
    collections::HashMap,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use crate::{
    cgroup::handle::Directory,
    error::{Error, Result},
};

/// Files whose changes are noticed, where a group has them: of v2 all, of v1 none.
const FILES: [&str; 3] = ["memory.events.local", "cgroup.events", "memory.max"];

/// The notices of all groups.
pub(super) struct Notices {
    inotify: Inotify,
    slots: HashMap<WatchDescriptor, u32>,
    watches: HashMap<u32, Vec<WatchDescriptor>>,
}

impl Notices {
    pub(super) fn new() -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|errno| Error::syscall("inotify_init1", errno))?;
        Ok(Self { inotify, slots: HashMap::new(), watches: HashMap::new() })
    }

    /// Watches a group's directory, for groups below that go, and its files.
    pub(super) fn watch(&mut self, slot: u32, directory: &Directory) {
        if self.watches.contains_key(&slot) {
            return;
        }
        let path = format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd());
        let going = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_DELETE_SELF;
        let files = FILES.iter().map(|name| (format!("{path}/{name}"), AddWatchFlags::IN_MODIFY));
        let mut watches = Vec::new();
        for (path, flags) in [(format!("{path}/."), going)].into_iter().chain(files) {
            // Without (ENOSPC, fs.inotify.max_user_watches) the reader finds it when it is due.
            if let Ok(watch) = self.inotify.add_watch(path.as_str(), flags) {
                self.slots.insert(watch, slot);
                watches.push(watch);
            }
        }
        self.watches.insert(slot, watches);
    }

    /// Ends the watches of a group that has gone.
    pub(super) fn forget(&mut self, slot: u32) {
        for watch in self.watches.remove(&slot).unwrap_or_default() {
            self.slots.remove(&watch);
            let _ = self.inotify.rm_watch(watch);
        }
    }

    /// Takes what was noticed; true where there was anything.
    pub(super) fn take(&mut self) -> bool {
        let mut any = false;
        while let Ok(events) = self.inotify.read_events() {
            any |= events.iter().any(|event| self.slots.contains_key(&event.wd));
        }
        any
    }

    /// The groups that are watched.
    pub(super) fn watched(&self) -> Vec<u32> {
        self.watches.keys().copied().collect()
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
