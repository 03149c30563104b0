//! Ids of registrations that are recorded nowhere.

use crate::persist::RecordId;

/// The first of these ids; no state file has room for so many registrations.
const FIRST: u32 = 1 << 31;

impl RecordId {
    /// Whether the registration outlives the agent.
    #[must_use]
    pub const fn is_recorded(self) -> bool {
        self.0 < FIRST
    }
}

/// Assigns ids to registrations without a record: all where there is no descriptor store,
/// and the agent's own. Each id is one registration's at a time.
#[derive(Debug, Default)]
pub struct Unrecorded {
    free: Vec<RecordId>,
    used: u32,
}

impl Unrecorded {
    /// Assigns an id that no registration has.
    pub fn enter(&mut self) -> RecordId {
        self.free.pop().unwrap_or_else(|| {
            self.used += 1;
            RecordId(FIRST + self.used - 1)
        })
    }

    /// Frees the id of a registration that ended.
    pub fn leave(&mut self, record_id: RecordId) {
        self.free.push(record_id);
        if self.free.len() == self.used as usize {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{RecordId, Unrecorded};

    #[test]
    fn each_is_given_to_one() {
        let mut record_ids = Unrecorded::default();
        let [first, second] = [record_ids.enter(), record_ids.enter()];
        assert_ne!(first, second);
        assert!(!first.is_recorded() && RecordId(0).is_recorded());
        record_ids.leave(first);
        assert_eq!(record_ids.enter(), first);
        record_ids.leave(first);
        record_ids.leave(second);
        assert_eq!(record_ids.enter(), first, "from the beginning");
    }
}
