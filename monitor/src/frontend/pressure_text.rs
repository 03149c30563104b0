//! The text that a program writes once at the pressure socket: lines of the grammar for a
//! directory (`split_directory_args`), ended by a NUL or a newline.

use monitor_common::grammar::line::MAX_LINE;

/// Lines that one text may have.
pub const MAX_LINES: usize = 16;

/// Bytes of the longest text, as of the longest line.
pub const MAX_TEXT: usize = MAX_LINE;

/// The text before each line for the grammar: places for two descriptors, which this protocol has none of.
pub const DESCRIPTORS: &[u8] = b"0 0 ";

/// Reasons why a text is refused as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// No line has anything in it.
    #[error("the text is empty; it has a control file's name and arguments on each line")]
    Empty,
    /// There are more lines than one text may have.
    #[error("the text has more than {MAX_LINES} lines")]
    TooManyLines,
    /// The text did not end within its bounds.
    #[error("the text is longer than {MAX_TEXT} bytes")]
    TooLong,
    /// Something came after the end of the text.
    #[error("more was written than one text")]
    WrittenAgain,
    /// Descriptors came along, which belong to the registration socket.
    #[error("descriptors came along (SCM_RIGHTS); this protocol has none")]
    Descriptors,
}

/// The bytes of the whole text, its end included; `None` while it has no end.
///
/// # Errors
/// It is too long, or goes on after its end.
pub fn length(written: &[u8]) -> Result<Option<usize>, TextError> {
    match written.iter().position(|byte| *byte == 0) {
        _ if written.len() > MAX_TEXT => Err(TextError::TooLong),
        Some(at) if at + 1 < written.len() => Err(TextError::WrittenAgain),
        Some(_) => Ok(Some(written.len())),
        None => Ok(Some(written.len()).filter(|_| written.last() == Some(&b'\n'))),
    }
}

/// The lines of a whole text, each as a client would write it after its two descriptors.
///
/// # Errors
/// There is none, or there are too many.
pub fn lines(text: &[u8]) -> Result<Vec<&[u8]>, TextError> {
    let text = text.strip_suffix(&[0]).unwrap_or(text);
    let lines: Vec<_> = text
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty())
        .take(MAX_LINES + 1)
        .collect();
    match lines.len() {
        0 => Err(TextError::Empty),
        count if count > MAX_LINES => Err(TextError::TooManyLines),
        _ => Ok(lines),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{MAX_TEXT, TextError, length, lines};

    #[test]
    fn a_text_ends_with_a_nul_or_a_newline() {
        assert_eq!(length(b""), Ok(None));
        assert_eq!(length(b"memory.usage_in_bytes 8"), Ok(None), "half a line is none");
        assert_eq!(length(b"memory.usage_in_bytes 80%\0"), Ok(Some(26)));
        assert_eq!(length(b"memory.usage_in_bytes 80%\n"), Ok(Some(26)));
        assert_eq!(length(b"a\nb"), Ok(None));
        assert_eq!(length(b"a\nb\n\0"), Ok(Some(5)));
        assert_eq!(length(b"a\0b\0"), Err(TextError::WrittenAgain));
        assert_eq!(length(&[b'x'; MAX_TEXT]), Ok(None));
        assert_eq!(length(&[b'x'; MAX_TEXT + 1]), Err(TextError::TooLong));
    }

    #[test]
    fn a_text_has_a_registration_on_each_line() {
        let text = b"memory.usage_in_bytes 80%\n\n memory.oom_control\r\n\0";
        assert_eq!(lines(text), Ok(vec![&b"memory.usage_in_bytes 80%"[..], b"memory.oom_control"]));
        for empty in [&b"\0"[..], b"\n", b" \n\t\n\0"] {
            assert_eq!(lines(empty), Err(TextError::Empty));
        }
        assert_eq!(lines(&b"x\n".repeat(16)).map(|lines| lines.len()), Ok(16));
        assert_eq!(lines(&b"x\n".repeat(17)), Err(TextError::TooManyLines));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
            if let Ok(Some(length)) = length(&bytes) {
                prop_assert_eq!(length, bytes.len());
                let _ = lines(&bytes);
            }
        }
    }
}
