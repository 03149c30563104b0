//! The agent's end of the ring buffer.

use std::{
    fmt,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use aya::maps::{MapData, RingBuf};
use monitor_common::protocol::ring::{Doorbell, Victim};

use crate::source::{DoorbellQueue, RingRecord};

/// The ring buffer: the agent waits on it, and takes doorbells from it.
pub struct Doorbells(pub(super) RingBuf<MapData>);

impl fmt::Debug for Doorbells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Doorbells").field(&self.0.as_raw_fd()).finish()
    }
}

impl Iterator for Doorbells {
    type Item = RingRecord;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let item = self.0.next()?;
            let record = match Doorbell::from_bytes(&item) {
                Some(bell) if bell.kind == Doorbell::VICTIM => {
                    Victim::from_bytes(&item).map(RingRecord::Victim)
                }
                bell => bell.map(RingRecord::Bell),
            };
            match record {
                Some(record) => return Some(record),
                None => log::error!("a record in the ring buffer is too short, and is ignored"),
            }
        }
    }
}

impl DoorbellQueue for Doorbells {}

impl AsRawFd for Doorbells {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Doorbells {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
