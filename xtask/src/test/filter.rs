//! The words of `--filter`: parts of the names of tests, with the guest's rules.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};

use super::scenarios::Declared;

/// The word for the scrape by a real Prometheus, which is no declared test.
pub(super) const PROMETHEUS: &str = "prometheus";

/// The most names that an error suggests.
const SUGGESTIONS: usize = 5;

/// Words of which any is enough, and words after a `-` that exclude.
#[derive(Debug)]
pub(super) struct Filter<'a> {
    any_of: Vec<&'a str>,
    none_of: Vec<&'a str>,
}

impl<'a> Filter<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let mut filter = Self { any_of: Vec::new(), none_of: Vec::new() };
        for word in text.split(',').filter(|word| !word.is_empty()) {
            match word.strip_prefix('-') {
                Some(word) => filter.none_of.push(word),
                None => filter.any_of.push(word),
            }
        }
        filter
    }

    /// True if the guest runs a test of this name.
    pub(super) fn wants(&self, name: &str) -> bool {
        (self.any_of.is_empty() || self.names(name)) && !self.none_of.iter().any(|word| name.contains(word))
    }

    /// True if one of the words is a part of `name`.
    pub(super) fn names(&self, name: &str) -> bool {
        self.any_of.iter().any(|word| name.contains(word))
    }

    /// True if the scrape by a real Prometheus is chosen.
    pub(super) fn has_prometheus(&self) -> bool {
        self.any_of.contains(&PROMETHEUS)
    }

    /// Fails if a word is a part of no test's name.
    pub(super) fn check(&self, tests: &[Declared]) -> Result<()> {
        let mut words = self.any_of.iter().chain(&self.none_of).peekable();
        ensure!(words.peek().is_some(), "--filter names no test; {LIST}");
        for word in words {
            if *word == PROMETHEUS || tests.iter().any(|test| !word.is_empty() && test.name.contains(word)) {
                continue;
            }
            let near = near(word, tests);
            if near.is_empty() {
                bail!("--filter: no test has `{word}` in its name; {LIST}");
            }
            bail!("--filter: no test has `{word}` in its name; near it: {}; {LIST}", near.join(", "));
        }
        Ok(())
    }
}

/// Advice on how to find the names that there are.
const LIST: &str = "`grep -rA1 'vm_test!(' tests/scenarios` lists all";

/// The names of modules and tests that hold something like `word`, the nearest first.
fn near<'a>(word: &str, tests: &'a [Declared]) -> Vec<&'a str> {
    let modules = tests.iter().flat_map(|test| &test.modules).map(String::as_str);
    let modules: BTreeSet<_> = modules.chain([PROMETHEUS]).collect();
    let names = modules.into_iter().chain(tests.iter().map(|test| test.name.as_str()));
    let most = (word.len() / 3).max(1);
    let mut found: Vec<_> = names
        .map(|name| (distance(word, name), name))
        .filter(|(distance, name)| *distance <= most && *distance < word.len() && name.len() > *distance)
        .collect();
    // Stable: of names that are as near, modules come first.
    found.sort_by_key(|(distance, _)| *distance);
    found.into_iter().map(|(_, name)| name).take(SUGGESTIONS).collect()
}

/// The fewest letters to insert, remove or replace so that `word` is a part of `text`.
fn distance(word: &str, text: &str) -> usize {
    // One row for each letter of the word; a match may begin and end anywhere in the text.
    let text: Vec<_> = text.chars().collect();
    let mut row = vec![0; text.len() + 1];
    for (at, letter) in word.chars().enumerate() {
        let mut next = vec![at + 1; text.len() + 1];
        for (place, other) in text.iter().enumerate() {
            let replaced = row[place] + usize::from(letter != *other);
            next[place + 1] = replaced.min(row[place + 1] + 1).min(next[place] + 1);
        }
        row = next;
    }
    row.into_iter().min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::scenarios::On;

    fn tests() -> Vec<Declared> {
        let test = |name: &str, module: &str| Declared {
            name: name.to_owned(),
            on: On::Any,
            tags: Vec::new(),
            modules: vec![module.to_owned()],
        };
        vec![
            test("threshold_up", "threshold"),
            test("threshold_down", "threshold"),
            test("view_of_a_group", "view"),
        ]
    }

    #[test]
    fn words_choose_as_they_do_in_the_guest() {
        let filter = Filter::new("threshold_,-down,,");
        assert!(filter.wants("threshold_up") && !filter.wants("threshold_down") && !filter.wants("view_x"));
        let filter = Filter::new("-down");
        assert!(filter.wants("view_x") && !filter.names("view_x"));
        assert!(Filter::new("a,prometheus").has_prometheus() && !Filter::new("-prometheus").has_prometheus());
    }

    #[test]
    fn a_word_that_names_no_test_is_refused_with_what_is_near() {
        for filter in ["threshold", "up,view_", "-down", "prometheus", "of_a"] {
            Filter::new(filter).check(&tests()).expect(filter);
        }
        let error = |filter: &str| Filter::new(filter).check(&tests()).expect_err(filter).to_string();
        let text = error("theshold_");
        assert!(text.contains("`theshold_`"), "{text}");
        assert!(text.contains("near it: threshold_up, threshold_down, threshold;"), "{text}");
        assert!(error("up,vew").contains("near it: view, view_of_a_group;"), "{}", error("up,vew"));
        assert!(error("promethius").contains("near it: prometheus;"), "{}", error("promethius"));
        assert!(error("-dwn").contains("`dwn`"), "{}", error("-dwn"));
        assert!(error("").contains("names no test"), "{}", error(""));
        assert!(!error("zzzzzz").contains("near it"), "{}", error("zzzzzz"));
    }

    #[test]
    fn the_distance_is_to_any_part() {
        assert_eq!(distance("view", "the_view_of"), 0);
        assert_eq!(distance("theshold", "threshold_up"), 1);
        assert_eq!(distance("vjew", "a_view"), 1);
        assert_eq!(distance("abc", "xyz"), 3);
    }
}
