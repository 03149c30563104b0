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
    pub fn leave(&mut self, ticket: RecordId) {
        self.free.push(ticket);
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
        let mut tickets = Unrecorded::default();
        let [first, second] = [tickets.enter(), tickets.enter()];
        assert_ne!(first, second);
        assert!(!first.is_recorded() && RecordId(0).is_recorded());
        tickets.leave(first);
        assert_eq!(tickets.enter(), first);
        tickets.leave(first);
        tickets.leave(second);
        assert_eq!(tickets.enter(), first, "from the beginning");
    }
}
