//! Registrations and eventfds that were added while an event was being delivered: what happened
//! before is not for them, though their record ids and addresses may be used again.

use std::collections::HashMap;

use crate::{persist::RecordId, registry::Subscriber, source::FileId};

/// The latest registrations and eventfds, numbered.
#[derive(Debug, Default)]
pub(super) struct Newcomers {
    count: u64,
    record_ids: HashMap<RecordId, u64>,
    files: HashMap<FileId, u64>,
}

impl Newcomers {
    /// The number of registrations and eventfds so far.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// Notes a registration; `is_idle`: no event is being delivered.
    pub(super) fn enter(&mut self, record_id: RecordId, is_idle: bool) {
        self.forget_if_idle(is_idle);
        self.count += 1;
        if !is_idle {
            self.record_ids.insert(record_id, self.count);
        }
    }

    /// Notes an eventfd that was taken in.
    pub(super) fn enter_file(&mut self, file: FileId, is_idle: bool) {
        self.forget_if_idle(is_idle);
        self.count += 1;
        if !is_idle {
            self.files.insert(file, self.count);
        }
    }

    fn forget_if_idle(&mut self, is_idle: bool) {
        if is_idle && !(self.record_ids.is_empty() && self.files.is_empty()) {
            (self.record_ids, self.files) = Default::default();
        }
    }

    /// Whether the registration or its eventfd is another than the one that was there when
    /// `count` had been made.
    pub(super) fn is_after(&self, to: &Subscriber, count: u64) -> bool {
        let is_later = |number: Option<&u64>| number.is_some_and(|number| *number > count);
        is_later(self.record_ids.get(&to.record_id)) || is_later(self.files.get(&to.file))
    }
}
