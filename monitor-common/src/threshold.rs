//! Arguments of `memory.usage_in_bytes` and `memory.memsw.usage_in_bytes`: one
//! threshold in bytes, kept in pages.
//!
//! The rules are those of `page_counter_memparse(args, "-1")`, which stands on
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
//! | `0x1E` | 30 | `1.5M`, `1_000`, `1M,` | not an integer |
//! | `1E` | 2^60 | `1 M`, `5M 6M`, ` 1M` | a space anywhere |
//! | `18446744073709555712` (wraps) | 4096 | `-2`, `+1`, `max` | only `-1` is special |
//!
//! [`ACCEPTED`] and [`REFUSED`] hold the same table for the tests of every door.

use core::{error, fmt};

/// Spellings the kernel accepts, and their value in bytes. `-1` is not here: its
/// value depends on the page size, see [`Pages::counter_max`].
pub const ACCEPTED: &[(&str, u64)] = &[
    ("", 0),
    ("0", 0),
    ("4096", 4096),
    ("4K", 4096),
    ("4k", 4096),
    ("0x1000", 4096),
    ("0X1000", 4096),
    ("010000", 4096),
    ("18446744073709555712", 4096),
    ("010", 8),
    ("00", 0),
    ("0K", 0),
    ("0E", 0),
    ("K", 0),
    ("e", 0),
    ("0x1E", 30),
    ("0x1e", 30),
    ("0xEE", 238),
    ("0x1EK", 30 << 10),
    ("0x10000000000000001", 1),
    ("1M", 1 << 20),
    ("1m", 1 << 20),
    ("010M", 8 << 20),
    ("1G", 1 << 30),
    ("1T", 1 << 40),
    ("1P", 1 << 50),
    ("1E", 1 << 60),
    ("15E", 15 << 60),
    ("16E", 0),
    ("17E", 1 << 60),
    ("18446744073709551615", u64::MAX),
    ("18446744073709551616", 0),
];

/// Spellings the kernel refuses with EINVAL.
pub const REFUSED: &[&str] = &[
    "-2", "-", "--1", "-1 ", " -1", "-10", "-1K", "-0", "+1", "max", "1KB", "1KK", "1B", "1.5M", "1 M",
    " 1M", "1M ", "5M 6M", "1M,", "0x", "0X", "0xg", "0xK", "00x1", "x1", "1x1", "08", "09", "018", "1_000",
    "1a", "0x1EB5G0", "1EE", "\t1", "1\n",
];

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

/// Why a threshold was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThresholdError {
    /// A byte follows where the number and its suffix end.
    Trailing {
        /// Offset of that byte in the arguments.
        at: usize,
        /// That byte.
        found: u8,
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
            Self::PageSize => write!(f, "page size is 0; expected the system's, in bytes"),
        }
    }
}

impl error::Error for ThresholdError {}

/// Parses a threshold given in bytes into pages of `page_size` bytes.
///
/// `args` is [`Line::args`](crate::line::Line::args); a NUL ends it, as it ends
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
    let end = args.iter().take_while(|&&byte| byte != 0).count();
    let text = args.get(..end).unwrap_or(args);
    let max = Pages::counter_max(page_size);
    if text == b"-1" {
        return Ok(max);
    }
    let (bytes, rest) = memparse(text);
    match rest {
        [] => Ok(Pages(bytes / page_size).min(max)),
        [found, ..] => Err(ThresholdError::Trailing { at: text.len() - rest.len(), found: *found }),
    }
}

/// `memparse`: a number, then at most one suffix letter; and what follows.
fn memparse(text: &[u8]) -> (u64, &[u8]) {
    let (value, rest) = number(text);
    let [letter, after @ ..] = rest else {
        return (value, rest);
    };
    let shift = match letter.to_ascii_uppercase() {
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        b'T' => 40,
        b'P' => 50,
        b'E' => 60,
        _ => return (value, rest),
    };
    // Bits shifted out are lost, as in C.
    (value << shift, after)
}

/// `simple_strtoull` base 0: the wrapped value, and what follows the digits.
fn number(text: &[u8]) -> (u64, &[u8]) {
    let (base, mut rest) = match text {
        [b'0', b'x' | b'X', digits @ ..] if digits.first().is_some_and(u8::is_ascii_hexdigit) => (16, digits),
        [b'0', ..] => (8, text),
        _ => (10, text),
    };
    let mut value = 0_u64;
    while let [digit, tail @ ..] = rest
        && let Some(digit) = char::from(*digit).to_digit(base)
    {
        value = value.wrapping_mul(u64::from(base)).wrapping_add(u64::from(digit));
        rest = tail;
    }
    (value, rest)
}

#[cfg(test)]
mod tests;
