//! A word that the project does not use, in sources and documents.

use super::not_yet::NotYet;
use super::{Fault, Source};

/// The word, in two parts so that this file does not hold it.
const WORD: &str = concat!("fold", "er");

pub(super) const NOT_YET: NotYet = NotYet {
    file: "words.txt",
    what: "files that do not say directory",
    list: include_str!("not_yet/words.txt"),
};

/// Finds each line with the word, as a part of a name too.
pub(super) fn faults<'a>(sources: impl Iterator<Item = &'a Source>) -> Vec<Fault> {
    sources.flat_map(faults_of).collect()
}

fn faults_of(source: &Source) -> impl Iterator<Item = Fault> {
    let lines = source.text.lines().enumerate();
    let wrong = lines.filter(|(_, line)| line.to_ascii_lowercase().contains(WORD));
    wrong.map(|(at, _)| Fault::in_file(source, at + 1, format!("says {WORD}; say directory")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_is_found_in_any_case_and_in_names() {
        let text = format!("a directory\nthe {WORD}s\nlet sub_{WORD} = 1;\n{}\n", WORD.to_uppercase());
        let source = Source { path: "a.md".to_owned(), text };
        let found = faults([&source].into_iter());
        assert_eq!(found.iter().map(|fault| fault.line).collect::<Vec<_>>(), [2, 3, 4]);
        assert!(found[0].to_string().starts_with("a.md:2: says "), "{}", found[0]);
    }
}
