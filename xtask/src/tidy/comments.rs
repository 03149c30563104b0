//! The first line of a doc comment, which must stand without the signature below it.

use super::not_yet::NotYet;
use super::{Fault, Source};

pub(super) const NOT_YET: NotYet = NotYet {
    file: "comments.txt",
    what: "files with doc comments that do not stand alone",
    list: include_str!("not_yet/comments.txt"),
};

/// The fewest words of a first line.
const FEWEST: usize = 4;

/// First words that leave the subject to the reader.
const UNNAMED: [&str; 7] = ["Of", "What", "Who", "Whose", "Its", "Where", "As"];

/// Finds the doc comments whose first line is short or leaves its subject open.
pub(super) fn faults(sources: &[Source]) -> Vec<Fault> {
    sources.iter().flat_map(faults_of).collect()
}

fn faults_of(source: &Source) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut before = None;
    for (at, line) in source.text.lines().enumerate() {
        let comment = doc_comment(line);
        let marker = comment.map(|(marker, _)| marker);
        if let Some((_, text)) = comment.filter(|_| marker != before)
            && let Some(fault) = fault_of(text)
        {
            faults.push(Fault::in_file(source, at + 1, fault));
        }
        before = marker;
    }
    faults
}

/// Splits a line of a doc comment into its marker and its text.
fn doc_comment(line: &str) -> Option<(&'static str, &str)> {
    let line = line.trim_start();
    let split = |marker| line.strip_prefix(marker).map(|text| (marker, text.trim()));
    split("//!").or_else(|| split("///").filter(|(_, text)| !text.starts_with('/')))
}

/// The fault of a doc comment's first line.
fn fault_of(text: &str) -> Option<String> {
    let mut words = text.split_whitespace();
    let count = words.clone().count();
    let first = words.next().unwrap_or_default().trim_end_matches([',', ':', '.']);
    let same = first == "The" && words.next() == Some("same");
    if UNNAMED.contains(&first) || same {
        let first = if same { "The same" } else { first };
        return Some(format!(
            "a doc comment begins with \"{first}\"; begin with the subject's name or a verb"
        ));
    }
    let few = "write a phrase that stands without the signature";
    (count < FEWEST)
        .then(|| format!("a doc comment's first line has {count} words, fewer than {FEWEST}; {few}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_line_names_its_subject() {
        for text in ["Returns the path of it.", "The list of all kernels", "Asks the kernel once more:"] {
            assert_eq!(fault_of(text), None, "{text}");
        }
        for text in [
            "Of the file, the first line.",
            "What is left of it.",
            "Its name in a line.",
            "The same with more room.",
            "As, say, the kernel has it.",
            "Where it is found today.",
            "One short line.",
            "",
        ] {
            assert!(fault_of(text).is_some(), "{text}");
        }
    }

    #[test]
    fn only_the_first_line_of_each_comment_counts() {
        let text = "//! A file of its own.\n//! As before.\n\n/// Holds the one thing.\n/// Its.\nfn a() {}\n\
                    // Plain.\n//// Line.\n    /// Short.\n    x: u8,\n//! The same.\n/// Two of.\n";
        let source = Source { path: "a.rs".to_owned(), text: text.to_owned() };
        let lines: Vec<_> = faults(&[source]).iter().map(|fault| fault.line).collect();
        assert_eq!(lines, [9, 11, 12]);
    }
}
