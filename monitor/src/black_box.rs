//! Files of the black box: what happened in a group until it was OOM-killed, or until somebody
//! requested it. Lines of JSON, which `docs/reference/black-box-format.md` describes.

mod error;
mod format;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use error::BlackBoxError;
pub use format::{
    BlackBoxEntry, BlackBoxHeader, FORMAT, KillEntry, LimitEntry, MAJOR, MINOR, OomEntry, PressureEntry,
    RecordReason, RegistrationEntry, SignalEntry, UsagePoint,
};
pub use read::Recording;

/// Bytes of one line at most.
pub const MAX_LINE: usize = 64 << 10;
/// Bytes of one file at most.
pub const MAX_FILE: u64 = 64 << 20;
/// Most entries of a kind but points in a file: 60 times as many as the black box writes. Short ones take
/// twenty times their length in memory.
pub const MAX_ENTRIES: usize = 16_384;
