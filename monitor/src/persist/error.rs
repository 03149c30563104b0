//! Errors of the state file that an earlier agent left.

/// Reasons why a state file cannot be taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateFileError {
    /// The file is too short, or longer than its records can be numbered.
    #[error("the state file of an earlier agent has {bytes} bytes, which is no valid length")]
    Length {
        /// Bytes that the file has.
        bytes: i64,
    },
    /// The file has another format than this agent's, or none.
    #[error(
        "the state file of an earlier agent is of format {format} (magic {magic:#x}), this agent's is {own}"
    )]
    Format {
        /// Number of the file's format.
        format: u64,
        /// Word at the file's start.
        magic: u64,
        /// Number of this agent's format.
        own: u64,
    },
}
