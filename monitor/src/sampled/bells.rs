//! The queue of records: filled by the reader, emptied by the thread that signals.

use std::{
    collections::VecDeque,
    fmt,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, PoisonError},
};

use monitor_common::protocol::ring::Doorbell;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{
    error::{Error, Result},
    source::{DoorbellQueue, RingRecord},
};

struct Inner {
    records: Mutex<VecDeque<RingRecord>>,
    /// Readable while there are records.
    readiness: EventFd,
}

/// The sending end of the queue. Each slot has one record in the queue at most, and so has each reading that
/// found no place in its slot.
pub(super) struct Bells(Arc<Inner>);

/// The receiving end of the queue.
pub(super) struct Queue(Arc<Inner>);

/// Makes a queue, by its two ends.
pub(super) fn queue() -> Result<(Bells, Queue)> {
    let readiness = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|errno| Error::syscall("eventfd2", errno))?;
    let inner = Arc::new(Inner { records: Mutex::default(), readiness });
    Ok((Bells(Arc::clone(&inner)), Queue(inner)))
}

impl Bells {
    pub(super) fn ring(&self, bell: Doorbell) {
        let mut records = self.0.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.push_back(RingRecord::Bell(bell));
        // Full after 2^64 - 2 records that nobody took.
        let _ = self.0.readiness.write(1);
    }
}

impl Iterator for Queue {
    type Item = RingRecord;

    fn next(&mut self) -> Option<RingRecord> {
        let mut records = self.0.records.lock().unwrap_or_else(PoisonError::into_inner);
        if records.is_empty() {
            // Under the lock, so that no record is added whose readiness this takes.
            let _ = self.0.readiness.read();
        }
        records.pop_front()
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.readiness.as_fd()
    }
}

impl DoorbellQueue for Queue {}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}
