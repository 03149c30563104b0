//! Lines that fit a terminal: a long one goes on below its text, and nothing is cut.

use std::io::{self, IsTerminal as _};

use ratatui::text::Span;

/// Columns that a folded line has at least; below that, words would stand alone.
const LEAST: usize = 40;

/// Columns of the terminal that standard output is; `None` where it is none, since programs and files
/// want one line for one thing.
pub fn columns() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let (columns, _) = crossterm::terminal::size().ok()?;
    (columns > 0).then(|| usize::from(columns).max(LEAST))
}

/// Cells that a text takes.
pub fn cells(text: &str) -> usize {
    Span::raw(text).width()
}

/// A text behind what precedes it on its first line, in so many columns. It is folded between words,
/// and goes on `indent` columns from the left, or fewer before a long word; one that is longer than a line
/// stays whole, so that it can be copied.
pub fn folded(before: &str, text: &str, indent: usize, columns: Option<usize>) -> String {
    let Some(columns) = columns else { return format!("{before}{text}") };
    let mut folded = before.to_owned();
    let (mut used, mut is_first) = (cells(before), true);
    for word in text.split(' ') {
        let width = cells(word);
        let indent = indent.min(columns.saturating_sub(width));
        if is_first {
            // Also what follows a prefix that takes the line.
            if used + width > columns && used > indent {
                used = break_line(&mut folded, indent);
            }
        } else if used + 1 + width > columns {
            used = break_line(&mut folded, indent);
        } else {
            folded.push(' ');
            used += 1;
        }
        folded.push_str(word);
        used += width;
        is_first = false;
    }
    folded
}

/// Begins a new line; the columns that it has.
fn break_line(text: &mut String, indent: usize) -> usize {
    text.truncate(text.trim_end_matches(' ').len());
    text.push('\n');
    text.extend(std::iter::repeat_n(' ', indent));
    indent
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{cells, folded};

    #[test]
    fn long_texts_go_on_below_and_long_words_stay_whole() {
        assert_eq!(folded("ok  ", "a bc def", 4, Some(9)), "ok  a bc\n    def");
        assert_eq!(folded("", "a /very/long/path b", 2, Some(6)), "a\n/very/long/path\n  b");
        assert_eq!(folded("name        ", "a b", 2, Some(8)), "name\n  a b");
        assert_eq!(folded("ok  ", "a bc def", 4, None), "ok  a bc def");
        // Two cells each.
        assert_eq!(folded("", "\u{4e00} \u{4e8c} \u{4e09}", 0, Some(5)), "\u{4e00} \u{4e8c}\n\u{4e09}");
    }

    proptest! {
        #[test]
        fn no_word_is_lost_and_no_line_of_several_words_is_too_long(
            text in "([a-z]{1,12} ){0,20}[a-z]{1,30}", indent in 0usize..8, columns in 10usize..50
        ) {
            let whole = folded("- ", &text, indent, Some(columns));
            let words: Vec<_> = whole.split_whitespace().skip(1).collect();
            prop_assert_eq!(words, text.split_whitespace().collect::<Vec<_>>());
            for line in whole.lines() {
                let words = line.trim_start_matches("- ").split_whitespace().count();
                prop_assert!(cells(line) <= columns || words == 1, "{line:?}");
            }
        }
    }
}
