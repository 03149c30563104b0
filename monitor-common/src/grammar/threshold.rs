//! Arguments of `memory.usage_in_bytes`, `memory.memsw.usage_in_bytes`,
//! `memory.working_set_bytes` and `memory.anon_bytes`: one threshold, `LEVEL[,OPTION]...`.
//!
//! LEVEL in bytes follows `page_counter_memparse(args, "-1")`, which calls
//! `memparse` and `simple_strtoull` base 0 (identical in Linux 5.15 to 7.2):
//!
//! - Exactly `-1` is the highest threshold there is. It never fires.
//! - Else a number, possibly without digits (value 0): hexadecimal if it starts
//!   with `0x` or `0X` *and a hex digit*, octal if it starts with another `0`,
//!   else decimal. It wraps at 64 bits.
//! - Then at most one suffix letter of `KMGTPE`, any case: 2^10 to 2^60. That
//!   wraps too. In hexadecimal `E` is a digit, so no hex number has suffix `E`.
//! - Anything after that is refused, white space included.
//! - Pages are bytes / page size rounded down, at most `i64::MAX` / page size.
//!
//! | accepted | bytes | refused | because of |
//! |---|---|---|---|
//! | `4096`, `4K`, `4k`, `0x1000`, `010000` | 4096 | `0x` | `x`: no hex digit after it, so `0` is octal |
//! | empty, `0`, `K`, `0E`, `16E` (wraps) | 0 | `08` | `8`: not an octal digit |
//! | `010` | 8 | `1KB` | `B`: one suffix letter only |
//! | `0x1E` | 30 | `1.5M`, `1_000` | not an integer |
//! | `1E` | 2^60 | `1 M`, `5M 6M`, ` 1M` | a space anywhere |
//! | `18446744073709555712` (wraps) | 4096 | `-2`, `+1`, `max` | only `-1` is special |
//!
//! The rest is ours. The kernel refuses every text that holds `,` or `%`, so
//! nothing that it accepts means anything else here.
//!
//! - LEVEL may be `N%`, `N.D%` or `N.DD%` of the limit, 0 to 100, in decimal and
//!   without needless leading zeros (in bytes, `010` would be octal).
//! - `up`, `down`: signal this direction only; both or none means both.
//! - `hysteresis=SIZE`: having come up to the level, count as below it only when
//!   usage falls by SIZE below it. SIZE is in bytes as above, but begins with a
//!   digit, so it is neither `-1` nor empty. It is rounded down to pages.
//! - Each option at most once, in any order, in lower case.
//!
//! [`ACCEPTED`], [`REFUSED`], [`EXTENDED`] and [`EXTENDED_REFUSED`] hold the same
//! for the tests of every frontend.

use core::{error, fmt};

use crate::{grammar::line::until_nul, protocol::crossing::Direction};
use memparse::memparse;
pub use table::{ACCEPTED, EXTENDED, EXTENDED_REFUSED, REFUSED};

mod memparse;
mod table;

/// errno of refused arguments (Linux value).
const EINVAL: i32 = 22;

/// A number of pages of memory usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pages(pub u64);

impl Pages {
    /// The highest number of pages a counter holds, `i64::MAX` / `page_size`
    /// rounded down: PAGE_COUNTER_MAX on a 64-bit kernel, and what `-1` means.
    ///
    /// `page_size` is in bytes; 0 is taken as 1.
    #[must_use]
    pub const fn counter_max(page_size: u64) -> Self {
        let page_size = if page_size == 0 { 1 } else { page_size };
        Self(i64::MAX.unsigned_abs() / page_size)
    }
}

/// The level of a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// A number of pages, 0..=[`Pages::counter_max`]; both ends never fire.
    Pages(Pages),
    /// Hundredths of a percent of the group's limit, 0..=[`HUNDRED_PERCENT`]; 0
    /// never fires. See [`percent_of`].
    Percent(u32),
}

/// A whole, 100 %, in the unit of [`At::Percent`].
pub const HUNDRED_PERCENT: u32 = 10_000;

/// One threshold as a client requested it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Threshold {
    /// The level at which it lies.
    pub at: At,
    /// Whether to signal that usage came to it or above.
    pub up: bool,
    /// Whether to signal that usage fell below. `up` or `down` is always set.
    pub down: bool,
    /// Distance by which usage must fall below it to count as below again;
    /// 0..=[`Pages::counter_max`], 0 as the kernel does it.
    pub hysteresis: Pages,
}

impl Threshold {
    /// A threshold as the kernel knows it: both directions, no hysteresis.
    #[must_use]
    pub const fn plain(pages: Pages) -> Self {
        Self { at: At::Pages(pages), up: true, down: true, hysteresis: Pages(0) }
    }

    /// Whether a crossing in `direction` is to be signalled.
    #[must_use]
    pub const fn reports(&self, direction: Direction) -> bool {
        match direction {
            Direction::Up => self.up,
            Direction::Down => self.down,
        }
    }
}

/// `percent` hundredths of a percent of `limit_pages`, in pages, rounded down.
///
/// `percent` above [`HUNDRED_PERCENT`] counts as that. Never overflows. A
/// result of 0 pages is a threshold that never fires.
#[must_use]
pub const fn percent_of(limit_pages: u64, percent: u32) -> u64 {
    let percent = if percent > HUNDRED_PERCENT { HUNDRED_PERCENT } else { percent } as u64;
    let whole = HUNDRED_PERCENT as u64;
    // Exact: the remainder's share is the only part that rounding touches.
    limit_pages / whole * percent + limit_pages % whole * percent / whole
}

/// Why a threshold was refused. Offsets count bytes from the start of the
/// arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThresholdError {
    /// A byte follows where the number and its suffix end.
    Trailing {
        /// Offset of that byte.
        at: usize,
        /// The wrong byte itself.
        found: u8,
    },
    /// The level holds a `%` and is not 0 to 100 with at most two decimals.
    Percent {
        /// Offset of the first byte that does not fit; of the level, if its
        /// value is too high or it begins with a needless 0.
        at: usize,
    },
    /// An option is unknown, or nothing follows a comma.
    Option {
        /// Offset of the option.
        at: usize,
    },
    /// An option is given a second time.
    Repeated {
        /// Offset of the second one.
        at: usize,
    },
    /// The text after `hysteresis=` is not a size in bytes.
    Size {
        /// Offset of the first byte that does not fit, or of the end.
        at: usize,
    },
    /// The caller passed a page size of 0. No arguments cause this.
    PageSize,
}

impl ThresholdError {
    /// The errno (positive, Linux value) the kernel gives: EINVAL.
    #[must_use]
    pub const fn errno(self) -> i32 {
        EINVAL
    }
}

impl fmt::Display for ThresholdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Trailing { at, found } => write!(
                f,
                "threshold: wrong byte '{}' at offset {at}; expected -1, or an integer in bytes (decimal, 0x hex or 0 octal) with at most one suffix letter of KMGTPE",
                found.escape_ascii()
            ),
            Self::Percent { at } => write!(
                f,
                "threshold: wrong percentage at offset {at}; expected 0% to 100%, in decimal, with at most two decimals and no leading 0"
            ),
            Self::Option { at } => write!(
                f,
                "threshold: unknown or empty option at offset {at}; expected up, down or hysteresis=SIZE"
            ),
            Self::Repeated { at } => {
                write!(f, "threshold: repeated option at offset {at}; expected each option at most once")
            }
            Self::Size { at } => write!(
                f,
                "threshold: wrong size at offset {at}; expected hysteresis= and an integer in bytes (decimal, 0x hex or 0 octal) with at most one suffix letter of KMGTPE"
            ),
            Self::PageSize => write!(f, "page size is 0; expected the system's, in bytes"),
        }
    }
}

impl error::Error for ThresholdError {}

/// Parses a threshold given in bytes into pages of `page_size` bytes: what the
/// kernel accepts, and nothing else.
///
/// `args` is [`Line::args`](crate::grammar::line::Line::args); a NUL ends it, as it ends
/// the kernel's string. The result is within 0..=[`Pages::counter_max`]. A
/// threshold of 0 pages or of `counter_max` is legal and never fires.
///
/// # Errors
///
/// [`ThresholdError::Trailing`] where the kernel gives EINVAL, and
/// [`ThresholdError::PageSize`] if `page_size` is 0.
pub fn parse_threshold(args: &[u8], page_size: u64) -> Result<Pages, ThresholdError> {
    if page_size == 0 {
        return Err(ThresholdError::PageSize);
    }
    let text = until_nul(args);
    if text == b"-1" {
        return Ok(Pages::counter_max(page_size));
    }
    size(text, page_size).map_err(|(at, found)| ThresholdError::Trailing { at, found })
}

/// Parses `LEVEL[,OPTION]...`: all that [`parse_threshold`] accepts, meaning the
/// same, and what is ours.
///
/// `args` is [`Line::args`](crate::grammar::line::Line::args); a NUL ends it. Sizes are
/// rounded down to pages of `page_size` bytes.
///
/// # Errors
///
/// The first part that does not match; [`ThresholdError::PageSize`] if
/// `page_size` is 0.
pub fn parse(args: &[u8], page_size: u64) -> Result<Threshold, ThresholdError> {
    let text = until_nul(args);
    let (level, mut rest) = split_comma(text);
    let at = if level.contains(&b'%') {
        At::Percent(percent(level).map_err(|at| ThresholdError::Percent { at })?)
    } else {
        At::Pages(parse_threshold(level, page_size)?)
    };
    if page_size == 0 {
        return Err(ThresholdError::PageSize);
    }

    let (mut up, mut down, mut hysteresis) = (false, false, None);
    while let Some(options) = rest {
        let at = text.len() - options.len();
        let option;
        (option, rest) = split_comma(options);
        let repeated = match option {
            b"up" => core::mem::replace(&mut up, true),
            b"down" => core::mem::replace(&mut down, true),
            _ => {
                let Some(text) = option.strip_prefix(HYSTERESIS) else {
                    return Err(ThresholdError::Option { at });
                };
                let pages = digit_first(text, page_size)
                    .map_err(|inner| ThresholdError::Size { at: at + HYSTERESIS.len() + inner })?;
                hysteresis.replace(pages).is_some()
            }
        };
        if repeated {
            return Err(ThresholdError::Repeated { at });
        }
    }
    let both = up == down;
    Ok(Threshold { at, up: up || both, down: down || both, hysteresis: hysteresis.unwrap_or_default() })
}

/// The one option that has a value.
const HYSTERESIS: &[u8] = b"hysteresis=";

/// Splits at the first comma: the text before it, and after it if there is one.
pub(crate) fn split_comma(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    let mut parts = text.splitn(2, |&byte| byte == b',');
    (parts.next().unwrap_or_default(), parts.next())
}

/// A size in pages, or the offset and the value of the first wrong byte.
fn size(text: &[u8], page_size: u64) -> Result<Pages, (usize, u8)> {
    let (bytes, rest) = memparse(text);
    match rest {
        [] => Ok(Pages(bytes / page_size).min(Pages::counter_max(page_size))),
        [found, ..] => Err((text.len() - rest.len(), *found)),
    }
}

/// A size that begins with a digit, or the offset of the first wrong byte.
fn digit_first(text: &[u8], page_size: u64) -> Result<Pages, usize> {
    match text {
        [b'0'..=b'9', ..] => size(text, page_size).map_err(|(at, _)| at),
        _ => Err(0),
    }
}

/// `N%`, `N.D%` or `N.DD%` in hundredths of a percent, or the offset of the
/// first wrong byte.
fn percent(text: &[u8]) -> Result<u32, usize> {
    let (whole, width, rest) = decimals(text);
    if width == 0 || width > 3 || (width > 1 && text.starts_with(b"0")) {
        return Err(0);
    }
    let (hundredths, rest) = match rest {
        [b'.', after @ ..] => {
            let (digits, width, rest) = decimals(after);
            match width {
                1 => (digits * 10, rest),
                2 => (digits, rest),
                _ => return Err(text.len() - after.len() + width.min(2)),
            }
        }
        _ => (0, rest),
    };
    let value = whole * 100 + hundredths;
    match rest {
        b"%" if value <= HUNDRED_PERCENT => Ok(value),
        b"%" => Err(0),
        [b'%', after @ ..] => Err(text.len() - after.len()),
        _ => Err(text.len() - rest.len()),
    }
}

/// The leading decimal digits, at most four of them: value, number, the rest.
fn decimals(mut text: &[u8]) -> (u32, usize, &[u8]) {
    let (mut value, mut width) = (0, 0);
    while width < 4
        && let [digit @ b'0'..=b'9', tail @ ..] = text
    {
        value = value * 10 + u32::from(*digit - b'0');
        width += 1;
        text = tail;
    }
    (value, width, text)
}

#[cfg(test)]
mod tests;
