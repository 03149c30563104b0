//! Patterns that choose groups: of paths below the hierarchy's root, and of units' names.
//!
//! | text | stands for |
//! |---|---|
//! | `?` | one letter |
//! | `*` | any letters; in a path, within one name |
//! | `**` | any number of names, between slashes or at an end |
//! | `[ab]`, `[a-z]`, `[!ab]` | one letter, of these or of all others |
//! | any other letter | itself |

use core::{error, fmt};

/// Longest pattern in bytes, as the kernel has it for paths (`PATH_MAX`): matching takes time by its length.
pub const LONGEST: usize = 4096;

/// Why a text is no pattern. Offsets count bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatternError {
    /// It is longer than [`LONGEST`].
    TooLong,
    /// A pattern of paths begins with a slash.
    NoSlash,
    /// More than two `*` stand together.
    Stars {
        /// Offset of the first of them.
        at: usize,
    },
    /// `**` is only a part of a name.
    Recursive {
        /// Offset of the first `*`.
        at: usize,
    },
    /// A `[` has no `]`, or nothing between the two.
    Class {
        /// Offset of the `[`.
        at: usize,
    },
    /// A slash stands within `[ ]`.
    Separator {
        /// Offset of the slash.
        at: usize,
    },
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooLong => write!(
                f,
                "a pattern has {LONGEST} bytes at most; write * for letters, ** for any number of names"
            ),
            Self::NoSlash => {
                f.write_str("a pattern of paths begins with / (the hierarchy's root): /system.slice/**")
            }
            Self::Stars { at } => write!(
                f,
                "too many * at offset {at}; write * for letters within one name, ** for any number of names"
            ),
            Self::Recursive { at } => write!(
                f,
                "** is part of a name at offset {at}; write /**/ for any number of names, * for letters within one"
            ),
            Self::Class { at } => {
                write!(f, "[ at offset {at} has no letters and ]; write [ab], or [[] for the letter itself")
            }
            Self::Separator { at } => {
                write!(f, "/ stands within [ ] at offset {at}; write a pattern for each of the paths")
            }
        }
    }
}

impl error::Error for PatternError {}

/// Checks a pattern of paths below the root, which begins with a slash.
///
/// # Errors
/// The first part that is none.
pub fn check_path(text: &str) -> Result<(), PatternError> {
    if text.starts_with('/') { check(text, false) } else { Err(PatternError::NoSlash) }
}

/// Checks a pattern of the names of units.
///
/// # Errors
/// The first part that is none.
pub fn check_unit(text: &str) -> Result<(), PatternError> {
    check(text, true)
}

fn check(text: &str, may_separate: bool) -> Result<(), PatternError> {
    if text.len() > LONGEST {
        return Err(PatternError::TooLong);
    }
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'*' => {
                let count = bytes[at..].iter().take_while(|byte| **byte == b'*').count();
                let is_name =
                    (at == 0 || bytes[at - 1] == b'/') && matches!(bytes.get(at + count), None | Some(b'/'));
                match count {
                    1 => {}
                    2 if is_name => {}
                    2 => return Err(PatternError::Recursive { at }),
                    _ => return Err(PatternError::Stars { at }),
                }
                at += count;
            }
            b'[' => {
                // The first letter is one, even if it is `]`.
                let first = at + if bytes.get(at + 1) == Some(&b'!') { 2 } else { 1 };
                let letter = text.get(first..).and_then(|rest| rest.chars().next());
                let letter = letter.ok_or(PatternError::Class { at })?;
                let rest = &bytes[first + letter.len_utf8()..];
                let end = rest.iter().position(|byte| *byte == b']').ok_or(PatternError::Class { at })?;
                let end = first + letter.len_utf8() + end;
                let slash = bytes[first..end].iter().position(|byte| *byte == b'/');
                if let Some(slash) = slash.filter(|_| !may_separate) {
                    return Err(PatternError::Separator { at: first + slash });
                }
                at = end + 1;
            }
            _ => at += 1,
        }
    }
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{LONGEST, PatternError, check_path, check_unit};

    #[test]
    fn a_pattern_of_paths_begins_with_a_slash_and_is_well_formed() {
        for text in [
            "/",
            "/**",
            "/*",
            "/a/**/b",
            "/a/[bc]/**",
            "/a[!x-z]",
            "/a/[]]",
            "/a/[[]",
            "/?",
            "/\u{e9}[\u{e9}]",
        ] {
            assert_eq!(check_path(text), Ok(()), "{text}");
        }
        for (text, error) in [
            ("a", PatternError::NoSlash),
            ("", PatternError::NoSlash),
            ("/a/***", PatternError::Stars { at: 3 }),
            ("/a**", PatternError::Recursive { at: 2 }),
            ("/**a", PatternError::Recursive { at: 1 }),
            ("/a/[", PatternError::Class { at: 3 }),
            ("/a/[]", PatternError::Class { at: 3 }),
            ("/a/[!]", PatternError::Class { at: 3 }),
            ("/a[/]b", PatternError::Separator { at: 3 }),
        ] {
            assert_eq!(check_path(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_pattern_has_an_end() {
        let letters = [b'/'; LONGEST + 1];
        let text = core::str::from_utf8(&letters).expect("letters");
        assert_eq!(check_path(&text[1..]), Ok(()));
        assert_eq!([check_path(text), check_unit(text)], [Err(PatternError::TooLong); 2]);
    }

    #[test]
    fn a_pattern_of_units_is_of_one_name() {
        assert_eq!(check_unit("app-*.[st]*"), Ok(()));
        assert_eq!(check_unit("["), Err(PatternError::Class { at: 0 }));
        assert_eq!(check_unit("a**"), Err(PatternError::Recursive { at: 1 }));
    }
}
