//! The grammar of one registration line, `<event_fd> <control_fd> <args>`.
//!
//! Every frontend parses with this module, so that all of them accept and
//! refuse the same bytes as cgroup v1's `cgroup.event_control`. The rules are
//! those of `memcg_write_event_control` and the helpers it calls (`strstrip`,
//! `simple_strtoul`), identical in Linux 5.15 to 7.2:
//!
//! 1. The line ends at its first NUL. Leading and trailing space, `\t`, `\n`,
//!    `\v`, `\f`, `\r` and byte 0xA0 are trimmed.
//! 2. `event_fd` is decimal digits, then exactly one space.
//! 3. `control_fd` is decimal digits, then the end of the line or one space.
//! 4. Whatever follows is `args`, untouched: inner spaces are significant.
//!
//! A number may have no digits at all (its value is 0), so two spaces before
//! the control fd mean control fd 0. Signs and `0x` are refused. Values wrap at
//! 64 bits and keep their low 32, hence `4294967300` is fd 4.
//!
//! | line | event_fd | control_fd | args |
//! |---|---|---|---|
//! | `4 5 1M\n` | 4 | 5 | `1M` |
//! | `4 5` or `4 5 ` | 4 | 5 | empty |
//! | `0004 5` | 4 | 5 | empty |
//! | `4  5 1M` | 4 | 0 | `5 1M` |
//! | `4 5  1M` | 4 | 5 | ` 1M` |
//! | `4`, `-1 5`, `+4 5`, `0x4 5`, `4x 5`, `4,5`, `4\t5` | refused | | |

use core::{error, fmt};

/// Longest line accepted, in bytes: one 4 KiB page.
///
/// `kernfs_fop_write_iter` answers a longer write to a cgroup file with E2BIG.
pub const MAX_LINE: usize = 4096;

/// errno of a line that does not follow the grammar (Linux value).
const EINVAL: i32 = 22;
/// errno of a line longer than [`MAX_LINE`] (Linux value).
const E2BIG: i32 = 7;

/// One parsed registration line. The descriptors are the writer's, not ours,
/// and nothing says yet that they are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Descriptor number of the eventfd, 0..=`u32::MAX`.
    pub event_fd: u32,
    /// Descriptor number of the control file, 0..=`u32::MAX`.
    pub control_fd: u32,
    /// The text that follows the control fd; never contains NUL, never ends in white
    /// space. Its meaning depends on the control file.
    pub args: &'a [u8],
}

/// Why a line was refused. Offsets count bytes from the start of the line as
/// it was written, before trimming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineError {
    /// The write had length 0. The kernel returns 0 for it and parses nothing,
    /// so the caller treats it as nothing to do, not as a failure.
    Empty,
    /// The line has `len` bytes, more than [`MAX_LINE`].
    TooLong {
        /// Length of the line in bytes.
        len: usize,
    },
    /// Nothing is left after trimming.
    Blank,
    /// `event_fd` is not digits followed by one space.
    EventFd {
        /// Offset of the first wrong byte.
        at: usize,
        /// The wrong byte itself.
        found: u8,
    },
    /// The line ends right after `event_fd`.
    NoControlFd {
        /// Offset of the end, where a space and the control fd should follow.
        at: usize,
    },
    /// `control_fd` is not digits followed by one space or the end.
    ControlFd {
        /// Offset of the first wrong byte.
        at: usize,
        /// The wrong byte itself.
        found: u8,
    },
}

impl LineError {
    /// The errno (positive, Linux value) the kernel gives: E2BIG for
    /// [`TooLong`](Self::TooLong), else EINVAL.
    ///
    /// [`Empty`](Self::Empty) is EINVAL too, for a frontend that cannot answer "0
    /// bytes written"; the others check for it first.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::TooLong { .. } => E2BIG,
            Self::Empty
            | Self::Blank
            | Self::EventFd { .. }
            | Self::NoControlFd { .. }
            | Self::ControlFd { .. } => EINVAL,
        }
    }
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty => write!(f, "the write is empty; expected \"<event_fd> <control_fd> <args>\""),
            Self::TooLong { len } => {
                write!(f, "the line is {len} bytes; at most {MAX_LINE} are allowed")
            }
            Self::Blank => write!(f, "the line is blank; expected \"<event_fd> <control_fd> <args>\""),
            Self::EventFd { at, found } => write!(
                f,
                "event fd: wrong byte '{}' at offset {at}; expected decimal digits, then one space",
                found.escape_ascii()
            ),
            Self::NoControlFd { at } => write!(
                f,
                "the line ends at offset {at}, after the event fd; expected one space and the control fd"
            ),
            Self::ControlFd { at, found } => write!(
                f,
                "control fd: wrong byte '{}' at offset {at}; expected decimal digits, then one space or the end",
                found.escape_ascii()
            ),
        }
    }
}

impl error::Error for LineError {}

/// Parses one registration line, the whole content of one write.
///
/// Total: any bytes give a [`Line`] or an error. Linux 5.15 reads past the
/// buffer for a line without args; here its args are empty, as from 6.1 on.
///
/// # Errors
///
/// [`LineError::Empty`] for length 0, which the caller treats as nothing to do;
/// [`LineError::TooLong`] above [`MAX_LINE`] bytes, whatever they hold; else
/// the first part of the grammar that does not match.
pub fn parse(line: &[u8]) -> Result<Line<'_>, LineError> {
    if line.is_empty() {
        return Err(LineError::Empty);
    }
    if line.len() > MAX_LINE {
        return Err(LineError::TooLong { len: line.len() });
    }
    let (text, trimmed) = strip(line);
    if text.is_empty() {
        return Err(LineError::Blank);
    }
    let offset = |rest: &[u8]| trimmed + (text.len() - rest.len());

    let (event_fd, rest) = digits(text);
    let text = match rest {
        [b' ', after @ ..] => after,
        [found, ..] => {
            let at = offset(rest);
            return Err(LineError::EventFd { at, found: *found });
        }
        [] => return Err(LineError::NoControlFd { at: offset(rest) }),
    };

    let (control_fd, rest) = digits(text);
    let args = match rest {
        [] => rest,
        [b' ', after @ ..] => after,
        [found, ..] => {
            let at = offset(rest);
            return Err(LineError::ControlFd { at, found: *found });
        }
    };
    Ok(Line { event_fd, control_fd, args })
}

/// `strstrip` on a C string: the trimmed text and how many bytes were dropped
/// in front of it.
fn strip(line: &[u8]) -> (&[u8], usize) {
    let mut text = until_nul(line);
    let mut dropped = 0;
    while let [first, tail @ ..] = text
        && is_space(*first)
    {
        text = tail;
        dropped += 1;
    }
    while let [head @ .., last] = text
        && is_space(*last)
    {
        text = head;
    }
    (text, dropped)
}

/// A C string's text: what comes before the first NUL.
pub(crate) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The kernel's `isspace`: ASCII white space including `\v`, and Latin-1 NBSP.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r' | 0xa0)
}

/// `simple_strtoul` base 10 stored to an `unsigned int`. Keeping 32 bits at
/// every step gives the same low 32 bits as wrapping at 64 first.
fn digits(mut text: &[u8]) -> (u32, &[u8]) {
    let mut value = 0_u32;
    while let [digit @ b'0'..=b'9', tail @ ..] = text {
        value = value.wrapping_mul(10).wrapping_add(u32::from(*digit - b'0'));
        text = tail;
    }
    (value, text)
}

#[cfg(test)]
mod tests;
