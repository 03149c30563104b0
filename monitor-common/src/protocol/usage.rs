//! Usage and peak of the groups that are followed, kept in their slots: exact whenever
//! nothing moves, whatever raced before.
//!
//! A charge that has changed a counter reads it, writes what it read into the slot (a full
//! barrier), and reads the counter again: where that differs, it writes again. So the value of
//! the last to write was the counter's at a moment after that; and a charge that changed the
//! counter later would have written later. After a few attempts it leaves [`UNKNOWN`]: the
//! kernel has to be queried.
//!
//! The agent does the same, by a program, after it published a group's first band: that
//! makes up for changes by charges that still saw no band, and, in a sweep, for charges that
//! the kernel kept from the programs.

use crate::protocol::{
    slot::{ATTEMPTS, Slot},
    word::Word,
};

/// Stands for an unknown number of pages: the kernel is to be queried.
pub const UNKNOWN: u64 = u64::MAX;

impl<W: Word> Slot<W> {
    /// Forgets usage and peak: the agent's part, before it publishes bands. What was kept when the
    /// group was followed last may have changed since.
    pub fn forget_kept(&self) {
        if !self.is_awaited() {
            self.usage.xchg(UNKNOWN);
            self.peak.xchg(UNKNOWN);
        }
    }

    /// Pages charged, as the programs keep them; `None` where they do not, or did not
    /// manage to: then the kernel has to be queried. Exact at rest.
    #[must_use]
    pub fn kept_usage(&self) -> Option<u64> {
        Some(self.usage.get()).filter(|pages| self.is_awaited() && *pages != UNKNOWN)
    }
}

/// Keeps in `word` what `read` reads of the kernel; [`UNKNOWN`] where that cannot be read,
/// or others keep changing it. `turns` hides a loop's turns from the compiler.
#[inline(always)]
pub fn keep<W: Word>(word: &W, read: impl Fn() -> Option<u64>, turns: impl FnOnce(usize) -> usize) {
    let mut value = read().unwrap_or(UNKNOWN);
    for _ in 0..turns(ATTEMPTS) {
        word.xchg(value);
        let again = read().unwrap_or(UNKNOWN);
        if again == value {
            return;
        }
        value = again;
    }
    word.xchg(UNKNOWN);
}
