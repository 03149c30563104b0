//! Errors of files of the black box.

use std::io;

use crate::black_box::{MAJOR, MAX_ENTRIES, MAX_FILE, MAX_LINE};

/// The reason why a file of the black box cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BlackBoxError {
    /// The file could not be read.
    #[error("cannot read line {line}")]
    Read { line: u64, source: io::Error },
    /// The file could not be written.
    #[error("cannot write")]
    Write(#[from] io::Error),
    /// The first line is another one.
    #[error("line 1: no file of the black box, which begins with {{\"format\":\"memcg-monitor black box\"")]
    NoHeader,
    /// A later program wrote the file, in another way.
    #[error(
        "line 1: format {major} is newer than this program's {MAJOR}: read it with a newer memcg-monitor"
    )]
    Newer { major: u32 },
    /// A line is not what the format says.
    #[error("line {line}: {reason}")]
    Line { line: u64, reason: String },
    /// A line is longer than any that the black box writes.
    #[error("line {line}: longer than {MAX_LINE} bytes")]
    LongLine { line: u64 },
    /// The file is longer than any that the black box writes.
    #[error("line {line}: the file is longer than {MAX_FILE} bytes")]
    LongFile { line: u64 },
    /// The file has more entries of a kind than any that the black box writes.
    #[error("line {line}: more than {MAX_ENTRIES} entries of a kind")]
    ManyEntries { line: u64 },
    /// There are lines behind the last one.
    #[error("line {line}: behind the end that line {end} says")]
    BehindEnd { line: u64, end: u64 },
    /// The last line counts other entries than there are.
    #[error("line {line}: {said} entries are said, and {found} are there: lines are missing")]
    Count { line: u64, said: u64, found: u64 },
}

impl BlackBoxError {
    /// Tells which line is not what the format says. The parser was given that line alone and calls it 1, so
    /// the column alone is taken of the place that it names.
    pub(super) fn of_line(line: u64, error: &serde_json::Error) -> Self {
        let (text, column) = (error.to_string(), error.column());
        let place = format!(" at line {} column {column}", error.line());
        let reason = match text.strip_suffix(&place) {
            Some(reason) => format!("{reason} at column {column}"),
            None => text,
        };
        Self::Line { line, reason }
    }
}
