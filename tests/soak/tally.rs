//! Results of the soak, by count.

use std::time::Duration;

/// Counts of what was done, expected, received and lost.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) acts: u64,
    pub(super) registered: u64,
    /// Signals that the model expected.
    pub(super) expected: u64,
    pub(super) received: u64,
    pub(super) spikes: u64,
    pub(super) spikes_missed: u64,
    pub(super) kills: u64,
    pub(super) hand_overs: u64,
    pub(super) stops: u64,
    pub(super) attacks: u64,
    /// Time from the signal until the next agent was ready, in all.
    pub(super) away: Duration,
    pub(super) longest_away: Duration,
    /// Signals that never came.
    pub(super) lost: u64,
    /// Signals for nothing, where no agent died.
    pub(super) doubled: u64,
    /// Thresholds crossed to and fro on the way, by a counter that stepped back.
    pub(super) stepped_back: u64,
    /// Signals once more, for an agent that died before it could note them.
    pub(super) repeated: u64,
    pub(super) registrations_lost: u64,
    pub(super) registrations_doubled: u64,
}
