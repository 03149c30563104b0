//! Circles of imports: files of one crate that import each other by way of others cannot
//! be read one after the other.

use std::collections::{BTreeMap, VecDeque};

use super::not_yet::NotYet;
use super::{Fault, Source, without_test_modules};

pub(super) const NOT_YET: NotYet = NotYet {
    file: "circles.txt",
    what: "files in circles of imports",
    list: include_str!("not_yet/circles.txt"),
};

/// The crates that are looked at, by the directory of their sources.
const CRATES: [&str; 7] = [
    "monitor/src",
    "monitor-client/src",
    "monitor-common/src",
    "monitor-ebpf/src",
    "monitor-sys/src",
    "tests",
    "xtask/src",
];

/// The crates that have no circle left: no file of theirs may become an exception again.
#[cfg(test)]
const HELD: [&str; 6] =
    ["monitor-client/src", "monitor-common/src", "monitor-ebpf/src", "monitor-sys/src", "tests", "xtask/src"];

/// The crates below `tests` that are no part of it.
const APART: [&str; 2] = ["tests/fuzz/", "tests/clients/"];

/// The files that each file imports, and the line of the first import.
type Imports<'a> = BTreeMap<&'a str, BTreeMap<&'a str, usize>>;

/// Finds the files that import themselves by way of others.
pub(super) fn faults(sources: &[Source]) -> Vec<Fault> {
    CRATES.iter().flat_map(|directory| faults_of(directory, sources)).collect()
}

fn faults_of(directory: &str, sources: &[Source]) -> Vec<Fault> {
    let is_of_crate = |source: &&Source| {
        source.path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
            && !APART.iter().any(|path| source.path.starts_with(path))
    };
    let files: BTreeMap<_, _> = without_test_modules(sources)
        .filter(is_of_crate)
        .map(|source| (source.path.as_str(), source))
        .collect();
    let mut imports: Imports<'_> = BTreeMap::new();
    for (&path, source) in &files {
        let found = imports.entry(path).or_default();
        for (line, module) in imported(source.without_tests()) {
            let file = file_of(directory, &module, |path| files.get_key_value(path).map(|(path, _)| *path));
            if let Some(file) = file.filter(|file| *file != path) {
                found.entry(file).or_insert(line);
            }
        }
    }
    let fault = |(&path, source): (&&str, &&Source)| {
        let circle = circle(&imports, path)?;
        let line = imports[path][circle[1]];
        let text = format!(
            "imports itself by way of others: {}; move what both sides need to a file that imports neither",
            circle.join(" -> ")
        );
        Some(Fault::in_file(source, line, text))
    };
    files.iter().filter_map(fault).collect()
}

/// The shortest way from a file back to itself, both ends included.
fn circle<'a>(imports: &Imports<'a>, start: &'a str) -> Option<Vec<&'a str>> {
    let mut from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut open = VecDeque::from([start]);
    while let Some(file) = open.pop_front() {
        for &next in imports[file].keys() {
            if next == start {
                let mut way = vec![start, file];
                while let Some(&file) =
                    way.last().filter(|file| **file != start).and_then(|file| from.get(file))
                {
                    way.push(file);
                }
                way.reverse();
                return Some(way);
            }
            if !from.contains_key(next) {
                from.insert(next, file);
                open.push_back(next);
            }
        }
    }
    None
}

/// The file of the module that a path below `crate` begins with.
fn file_of<'a>(directory: &str, path: &[String], find: impl Fn(&str) -> Option<&'a str>) -> Option<&'a str> {
    let modules = (1..=path.len()).rev().flat_map(|length| {
        let module = path[..length].join("/");
        [format!("{directory}/{module}.rs"), format!("{directory}/{module}/mod.rs")]
    });
    let roots = ["lib.rs", "main.rs"].map(|name| format!("{directory}/{name}"));
    modules.chain(roots).find_map(|file| find(&file))
}

/// The paths below `crate` that `use` declarations name, each with its line.
fn imported(text: &str) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if let Some(start) = declaration(line) {
            let rest = &text[at + start..];
            let tree = rest.split(';').next().unwrap_or(rest);
            expand(tree, &[], &mut |path| found.push((number + 1, path)));
        }
        at += line.len();
    }
    found
}

/// The place in a line from which it names what it imports from this crate.
fn declaration(line: &str) -> Option<usize> {
    const WORDS: &str = "use crate::";
    let at = line.find(WORDS)?;
    let before = line[..at].trim();
    (before.is_empty() || before.starts_with("pub")).then_some(at + WORDS.len())
}

/// Gives each path of a tree of imports such as `a::{b, c::{d, e}}`.
fn expand(tree: &str, prefix: &[String], give: &mut dyn FnMut(Vec<String>)) {
    let tree = tree.trim();
    let (path, inner) = match tree.split_once('{') {
        Some((path, inner)) => (path, Some(inner.trim_end().strip_suffix('}').unwrap_or(inner))),
        None => (tree.split(" as ").next().unwrap_or(tree), None),
    };
    let parts = path.split("::").map(str::trim).filter(|part| !["", "self", "*"].contains(part));
    let path = [prefix, &parts.map(str::to_owned).collect::<Vec<_>>()].concat();
    let Some(inner) = inner else { return give(path) };
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&inner[start..at], &path, give);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !inner[start..].trim().is_empty() {
        expand(&inner[start..], &path, give);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_crate_without_circles_stays_so() {
        let again = NOT_YET.list.lines().filter(|entry| HELD.iter().any(|held| entry.starts_with(held)));
        assert_eq!(again.collect::<Vec<_>>(), Vec::<&str>::new());
    }

    #[test]
    fn trees_of_imports_are_read() {
        let text = "use std::fs;\nuse crate::a;\npub(crate) use crate::b::{self, C, d::{E, F as G}};\n\
                    // use crate::x;\nuse crate::{\n    e,\n    f::*,\n};\n";
        let found = imported(text);
        let paths: Vec<_> = found.iter().map(|(line, path)| format!("{line} {}", path.join("::"))).collect();
        assert_eq!(paths, ["2 a", "3 b", "3 b::C", "3 b::d::E", "3 b::d::F", "5 e", "5 f"]);
    }

    #[test]
    fn a_circle_is_found_with_its_way() {
        let sources = [
            source("xtask/src/main.rs", "use crate::a::b::C;\n"),
            source("xtask/src/a.rs", "\nuse crate::d;\n"),
            source("xtask/src/a/b.rs", "use crate::d::D;\nuse crate::a;\n"),
            source("xtask/src/d.rs", "use crate::a::b::{self, B};\n"),
        ];
        let found: Vec<_> = faults(&sources).iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(
            found[0].starts_with(
                "xtask/src/a.rs:2: imports itself by way of others: xtask/src/a.rs -> xtask/src/d.rs -> \
                 xtask/src/a/b.rs -> xtask/src/a.rs;"
            ),
            "{}",
            found[0]
        );
        assert!(found[1].starts_with("xtask/src/a/b.rs:1: "), "{}", found[1]);
        assert!(found[2].starts_with("xtask/src/d.rs:1: "), "{}", found[2]);
    }

    #[test]
    fn imports_in_one_direction_and_those_of_tests_are_no_circle() {
        let sources = [
            source("tests/main.rs", "use crate::a;\n"),
            source("tests/a.rs", "use crate::b::B;\nuse crate::a::A;\n"),
            source("tests/b.rs", "b\n#[cfg(test)]\nmod tests {\n    use crate::a;\n}\n"),
            source("tests/fuzz/a.rs", "use crate::b;\n"),
        ];
        assert_eq!(faults(&sources), []);
    }
}
