//! The identity of files and descriptors, as programs see it when this thread reads them. While no
//! program is called, the program that answers queries finds the same by the descriptor's number.

use std::{
    fmt, fs,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use monitor_common::protocol::{
    query::{Enumeration, Query, READINGS},
    word::Word as _,
};
use monitor_sys::{
    bpf_run,
    table::{SharedScratch, SharedSlot, Table},
};
use nix::sys::{
    eventfd::{EfdFlags, EventFd},
    uio::pread,
};

use crate::{
    error::{Error, Result},
    kernel::settings::is_ftrace_off,
    programs::error::{BpfStep, QueryError},
    source::{FileId, GroupId, Identify, Located, Slots},
};

/// Queries the programs by reading. They answer one thread, the one that started them.
#[derive(Clone)]
pub struct Identity {
    slots: Arc<Table<SharedSlot>>,
    scratch: Arc<Table<SharedScratch>>,
    root: u32,
    /// The program that answers queries.
    ask: Arc<OwnedFd>,
    /// Whether attached programs were not called when they were last tried.
    is_silent: Arc<AtomicBool>,
}

/// The outcome of doing something that a program watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    /// The program has answered.
    Answered,
    /// It was done, and no program has answered.
    Unanswered,
    /// It cannot be done.
    Failed,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Identity {
    pub(super) fn new(
        slots: Arc<Table<SharedSlot>>,
        scratch: Arc<Table<SharedScratch>>,
        root: u32,
        ask: OwnedFd,
    ) -> Self {
        Self { slots, scratch, root, ask: Arc::new(ask), is_silent: Arc::default() }
    }

    fn cell(&self) -> Result<&SharedScratch> {
        let cell = self.scratch.get(READINGS as usize);
        Ok(cell.ok_or(QueryError::NoReadingsCell)?)
    }

    /// Does what a program watches, until the program has answered; only once where no program is
    /// called.
    ///
    /// The kernel skips the program where another task, preempted in it, is on the same CPU: then
    /// that one has to go on first.
    fn until_answered(&self, is_silent: bool, done: impl Fn() -> Result<bool>) -> Result<Watched> {
        const ATTEMPTS: u32 = 200;
        let cell = self.cell()?;
        for attempt in 0..if is_silent { 1 } else { ATTEMPTS } {
            let before = cell.answers.get();
            if !done()? {
                return Ok(Watched::Failed);
            }
            if cell.answers.get() != before {
                return Ok(Watched::Answered);
            }
            if attempt < ATTEMPTS / 2 {
                std::thread::yield_now();
            } else {
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
        }
        Ok(Watched::Unanswered)
    }

    fn is_silent(&self) -> bool {
        self.is_silent.load(Ordering::SeqCst)
    }

    /// Queries what a descriptor of this process is; false where it is nothing of the kind. The
    /// calling thread is the one that started the programs.
    fn ask(&self, query: u64, fd: BorrowedFd<'_>) -> Result<bool> {
        /// Newer kernels skip a run while another is under way on the processor.
        const ATTEMPTS: usize = 64;
        let cell = self.cell()?;
        let before = cell.answers.get();
        let number = u64::from(fd.as_raw_fd().unsigned_abs());
        for _ in 0..ATTEMPTS {
            bpf_run::run_raw_tracepoint(self.ask.as_fd(), &[query, number, 0])
                .map_err(|errno| BpfStep::Run.failed(&std::io::Error::from(errno)))?;
            if cell.answers.get() != before {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the file that the eventfd `fd` refers to, by a program that is attached.
    ///
    /// # Errors
    /// No program has answered.
    pub(super) fn shown_file(&self, fd: BorrowedFd<'_>) -> Result<FileId> {
        self.file_by_reading(fd, false)?.ok_or_else(|| {
            if is_ftrace_off() { QueryError::FtraceOff } else { QueryError::UnknownEventfd }.into()
        })
    }

    fn file_by_reading(&self, fd: BorrowedFd<'_>, is_silent: bool) -> Result<Option<FileId>> {
        let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
        let read = || fs::read(&path).map(|_| true).map_err(|error| Error::file("read", &path, error));
        match self.until_answered(is_silent, read)? {
            Watched::Answered => Ok(Some(FileId(self.cell()?.file.load(Ordering::Acquire)))),
            Watched::Unanswered | Watched::Failed => Ok(None),
        }
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
    fn locate(&self, usage: BorrowedFd<'_>, directory: BorrowedFd<'_>, _: u64) -> Result<Located> {
        let cell = self.cell()?;
        let outcome = self.until_answered(self.is_silent(), || {
            let mut text = [0; 32];
            // A failing read is an answer, too: the file has no group any more.
            Ok(matches!(pread(usage, &mut text, 0), Ok(length) if length > 0))
        })?;
        let is_answered = match outcome {
            Watched::Answered => true,
            Watched::Unanswered => self.ask(Query::GROUP, directory)?,
            Watched::Failed => false,
        };
        if !is_answered {
            return Ok(Located::NoGroup);
        }
        Ok(match cell.slot.load(Ordering::Acquire) {
            Enumeration::ROOT => Located::Root,
            Enumeration::FULL => Located::TableFull,
            slot => match u32::try_from(slot) {
                Ok(slot) => {
                    Located::Group(GroupId { slot, generation: cell.generation.load(Ordering::Acquire) })
                }
                Err(_) => Located::NoGroup,
            },
        })
    }

    fn file_of(&self, fd: BorrowedFd<'_>) -> Result<FileId> {
        if let Some(file) = self.file_by_reading(fd, self.is_silent())? {
            return Ok(file);
        }
        if self.ask(Query::FILE, fd)? {
            return Ok(FileId(self.cell()?.file.load(Ordering::Acquire)));
        }
        Err(QueryError::UnknownEventfd.into())
    }

    fn is_alive(&self) -> bool {
        /// A task that is preempted in the program for so long is no reason to raise an alarm.
        const TRIES: usize = 5;
        let Ok(eventfd) = EventFd::from_flags(EfdFlags::EFD_CLOEXEC) else { return true };
        let is_alive = (0..TRIES).any(|_| self.shown_file(eventfd.as_fd()).is_ok());
        self.is_silent.store(!is_alive, Ordering::SeqCst);
        is_alive
    }
}
