//! The identity of files and descriptors, as programs see it when this thread reads them.

use std::{
    fmt, fs,
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::{Arc, atomic::Ordering},
};

use monitor_common::protocol::{
    query::{Enumeration, READINGS},
    word::Word as _,
};
use monitor_sys::table::{SharedScratch, SharedSlot, Table};
use nix::sys::uio::pread;

use crate::{
    error::{Error, Result},
    programs::error::QueryError,
    source::{FileId, GroupId, Identify, Located, Slots},
};

/// Queries the programs by reading. They answer one thread, the one that started them.
#[derive(Clone)]
pub struct Identity {
    slots: Arc<Table<SharedSlot>>,
    scratch: Arc<Table<SharedScratch>>,
    root: u32,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Identity {
    pub(super) const fn new(
        slots: Arc<Table<SharedSlot>>,
        scratch: Arc<Table<SharedScratch>>,
        root: u32,
    ) -> Self {
        Self { slots, scratch, root }
    }

    fn cell(&self) -> Result<&SharedScratch> {
        let cell = self.scratch.get(READINGS as usize);
        Ok(cell.ok_or(QueryError::NoReadingsCell)?)
    }

    /// Does what a program watches, until the program has answered; false when it cannot be done,
    /// or is not watched.
    ///
    /// The kernel skips the program where another task, preempted in it, is on the same CPU: then
    /// that one has to go on first.
    fn until_answered(&self, done: impl Fn() -> Result<bool>) -> Result<bool> {
        const ATTEMPTS: u32 = 200;
        let cell = self.cell()?;
        for attempt in 0..ATTEMPTS {
            let before = cell.answers.get();
            if !done()? {
                return Ok(false);
            }
            if cell.answers.get() != before {
                return Ok(true);
            }
            if attempt < ATTEMPTS / 2 {
                std::thread::yield_now();
            } else {
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
        }
        Ok(false)
    }
}

impl Slots for Identity {
    fn slot(&self, index: u32) -> Option<&SharedSlot> {
        self.slots.get(index as usize)
    }

    fn root(&self) -> GroupId {
        let generation = self.slot(self.root).map_or(0, |slot| slot.state().generation());
        GroupId { slot: self.root, generation }
    }
}

impl Identify for Identity {
    fn locate(&self, fd: BorrowedFd<'_>) -> Result<Located> {
        let cell = self.cell()?;
        let answered = self.until_answered(|| {
            let mut text = [0; 32];
            // A failing read is an answer, too: the file has no group any more.
            Ok(matches!(pread(fd, &mut text, 0), Ok(length) if length > 0))
        })?;
        if !answered {
            return Ok(Located::Nobody);
        }
        Ok(match cell.slot.load(Ordering::Acquire) {
            Enumeration::ROOT => Located::Root,
            Enumeration::FULL => Located::TableFull,
            slot => match u32::try_from(slot) {
                Ok(slot) => {
                    Located::Group(GroupId { slot, generation: cell.generation.load(Ordering::Acquire) })
                }
                Err(_) => Located::Nobody,
            },
        })
    }

    fn file_of(&self, fd: BorrowedFd<'_>) -> Result<FileId> {
        let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
        let read = || fs::read(&path).map(|_| true).map_err(|error| Error::file("read", &path, error));
        if self.until_answered(read)? {
            return Ok(FileId(self.cell()?.file.load(Ordering::Acquire)));
        }
        Err(QueryError::UnknownEventfd.into())
    }
}
