//! Names of types: a reader of the library crates meets each with one meaning only.

use std::collections::BTreeMap;

use super::not_yet::NotYet;
use super::{Fault, Source, without_test_modules};

pub(super) const NOT_YET: NotYet = NotYet {
    file: "names.txt",
    what: "type names with two meanings",
    list: include_str!("not_yet/names.txt"),
};

/// The crates whose types are looked at together.
const LIBRARIES: [&str; 5] =
    ["monitor/src/", "monitor-client/src/", "monitor-common/src/", "monitor-ebpf/src/", "monitor-sys/src/"];

/// The names that each library crate may give to a type of its own.
const OF_EACH: [&str; 2] = ["Error", "Result"];

/// Finds the public type names that are defined more than once.
pub(super) fn faults(sources: &[Source]) -> Vec<Fault> {
    let mut places: BTreeMap<&str, Vec<(&Source, usize)>> = BTreeMap::new();
    let is_of_library = |source: &&Source| LIBRARIES.iter().any(|path| source.path.starts_with(path));
    for source in without_test_modules(sources).filter(is_of_library) {
        for (at, line) in source.without_tests().lines().enumerate() {
            if let Some(name) = defined(line).filter(|name| !OF_EACH.contains(name)) {
                places.entry(name).or_default().push((source, at + 1));
            }
        }
    }
    let mut faults = Vec::new();
    for (name, places) in places {
        let (first, line) = places[0];
        for (source, at) in &places[1..] {
            faults.push(Fault {
                key: name.to_owned(),
                path: source.path.clone(),
                line: *at,
                text: format!("defines {name}, as {}:{line} does; rename one of them", first.path),
            });
        }
    }
    faults
}

/// The name of the type that a line begins to define for other modules.
fn defined(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) "))?;
    let line = line.strip_prefix("unsafe ").unwrap_or(line);
    let kinds = ["struct ", "enum ", "trait ", "type ", "union "];
    let name = kinds.iter().find_map(|kind| line.strip_prefix(kind))?;
    name.split(|c: char| !c.is_alphanumeric() && c != '_').next().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_is_public_to_other_modules() {
        assert_eq!(defined("pub struct Mark<'a> {"), Some("Mark"));
        assert_eq!(defined("    pub(crate) unsafe trait Word: Sized {"), Some("Word"));
        assert_eq!(defined("pub type Row = (u8, u8);"), Some("Row"));
        assert_eq!(defined("struct Mark;"), None);
        assert_eq!(defined("pub(super) struct Mark;"), None);
        assert_eq!(defined("pub fn structured() {}"), None);
    }

    #[test]
    fn a_second_definition_is_found_across_crates_but_not_in_tests() {
        let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
        let sources = [
            source("monitor-common/src/a.rs", "pub enum Mark {\n"),
            source("monitor/src/b.rs", "\npub(crate) struct Mark;\npub struct Once;\n"),
            source("monitor/src/c.rs", "a\n#[cfg(test)]\nmod tests {\n    pub struct Once;\n}\n"),
            source("xtask/src/d.rs", "pub struct Once;\n"),
        ];
        let found: Vec<_> = faults(&sources).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            ["monitor/src/b.rs:2: defines Mark, as monitor-common/src/a.rs:1 does; rename one of them"]
        );
    }
}
