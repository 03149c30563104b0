//! Makes text that other users chose safe for a terminal and for a log.
//!
//! The kernel excludes only `/`, NUL and newline from a cgroup's name, and nothing from a
//! process's: escape sequences would drive the terminal of a user who lists groups, and
//! newlines would forge lines of the log.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character has an effect beside being shown: control characters (C0, DEL, C1),
/// line and paragraph separators, and those that change the direction of writing.
fn is_active(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns the text with each active character as an escape: `\n`, `\x1b`, `\u{202e}`. A
/// backslash stays as it is.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_active) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        // Writing to a string does not fail.
        let _ = match character {
            '\n' => safe.write_str("\\n"),
            '\r' => safe.write_str("\\r"),
            '\t' => safe.write_str("\\t"),
            other if is_active(other) && other.is_ascii() => write!(safe, "\\x{:02x}", u32::from(other)),
            other if is_active(other) => write!(safe, "\\u{{{:x}}}", u32::from(other)),
            other => safe.write_char(other),
        };
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{is_active, printable};

    #[test]
    fn what_drives_a_terminal_is_escaped() {
        assert_eq!(printable("/sys/fs/cgroup/a b\\x2d"), "/sys/fs/cgroup/a b\\x2d");
        assert_eq!(printable("\u{1b}[2J\r\n\t\u{7f}"), "\\x1b[2J\\r\\n\\t\\x7f");
        assert_eq!(printable("a\u{202e}b\u{85}\u{fc}"), "a\\u{202e}b\\u{85}\u{fc}");
    }

    proptest! {
        #[test]
        fn nothing_active_is_left(text in any::<String>()) {
            prop_assert!(!printable(&text).contains(is_active));
        }
    }
}
