//! Rules on the VM's tests as the sources declare them, and on who names them: the
//! specification, and the boots that choose by tag.

use std::fs;
use std::path::{Path, PathBuf};

use super::boots::{COMBINATIONS, QUICK};
use super::scenarios::{self, Declared};
use crate::tidy;
use crate::workspace::root;

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// The `.rs` files below a directory of the workspace.
fn sources(directory: &str) -> Vec<PathBuf> {
    let found = tidy::files(&root().join(directory), "rs").expect("readable sources");
    assert!(!found.is_empty(), "no sources in {directory}");
    found
}

fn declared() -> Vec<Declared> {
    scenarios::declared().unwrap_or_else(|error| panic!("{error:#}"))
}

/// Faults of the names that tests have.
fn misnamed(tests: &[Declared]) -> Vec<String> {
    let begins = |test: &Declared, module: &String| test.name.starts_with(&format!("{module}_"));
    let wrong = tests.iter().filter(|test| !test.modules.iter().any(|module| begins(test, module)));
    wrong.map(|test| format!("{} begins with none of its modules {:?}", test.name, test.modules)).collect()
}

/// Words in backquotes in the last column of a table's row.
fn witnesses(row: &str) -> Vec<&str> {
    let Some(cells) = row.strip_prefix("| ").and_then(|row| row.strip_suffix(" |")) else {
        return Vec::new();
    };
    let last = cells.rsplit(" | ").next().unwrap_or_default();
    last.split('`').skip(1).step_by(2).collect()
}

/// Whether a witness of the specification exists: a VM test, a group of them (`event_*`),
/// a module (`frontend::deferred_close`), a unit test, or something that is no name at all.
fn exists(witness: &str, tests: &[Declared], code: &[(PathBuf, String)]) -> bool {
    if let Some(prefix) = witness.strip_suffix('*') {
        return tests.iter().any(|test| test.name.starts_with(prefix));
    }
    if let Some((_, module)) = witness.rsplit_once("::") {
        let (file, inline) = (format!("{module}.rs"), format!("mod {module} {{"));
        return code.iter().any(|(path, text)| path.ends_with(&file) || text.contains(&inline));
    }
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !witness.chars().all(is_name) || !witness.contains('_') {
        return true;
    }
    let function = format!("fn {witness}(");
    tests.iter().any(|test| test.name == witness) || code.iter().any(|(_, text)| text.contains(&function))
}

/// Reads the tags that the guest has.
fn known_tags(text: &str) -> Vec<String> {
    let (_, rest) = text.split_once("enum Tag {").expect("an enum of tags");
    let (body, _) = rest.split_once('}').expect("its end");
    let variants = body.lines().map(str::trim).filter(|line| !line.starts_with("//") && !line.is_empty());
    variants.map(|line| line.trim_end_matches(',').to_owned()).collect()
}

/// Faults of tags and boots: a tag without a test or without a boot, a boot without a tag.
fn loose_tags(tags: &[String], tests: &[Declared], selects: &[&str]) -> Vec<String> {
    let words: Vec<_> = selects.iter().flat_map(|select| select.split(',')).collect();
    let chosen: Vec<_> = words.iter().map(|word| word.trim_start_matches('-')).collect();
    let mut faults = Vec::new();
    for tag in tags {
        if !tests.iter().any(|test| test.tags.contains(tag)) {
            faults.push(format!("no test is tagged {tag}"));
        }
        if !chosen.contains(&tag.to_lowercase().as_str()) {
            faults.push(format!("no boot chooses by {tag}"));
        }
    }
    for word in chosen.iter().filter(|word| !word.is_empty()) {
        if !tags.iter().any(|tag| tag.to_lowercase() == **word) {
            faults.push(format!("a boot chooses by {word}, which is no tag"));
        }
    }
    faults
}

#[test]
fn a_test_is_named_after_its_module() {
    let tests = declared();
    assert!(tests.len() > 100, "{} tests", tests.len());
    assert_eq!(misnamed(&tests), Vec::<String>::new());
    let mut names: Vec<_> = tests.iter().map(|test| &test.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), tests.len(), "two tests have one name");
}

#[test]
fn what_holds_a_promise_exists() {
    let tests = declared();
    let code: Vec<_> = ["monitor", "monitor-client", "monitor-common", "monitor-sys", "xtask"]
        .iter()
        .flat_map(|directory| sources(directory))
        .map(|path| (path.clone(), read(&path)))
        .collect();
    let text = read(&root().join("SPECIFICATION.md"));
    let all: Vec<_> = text.lines().flat_map(witnesses).collect();
    assert!(all.len() > 150, "{} witnesses", all.len());
    let missing: Vec<_> = all.into_iter().filter(|witness| !exists(witness, &tests, &code)).collect();
    assert_eq!(missing, Vec::<&str>::new());
}

#[test]
fn each_tag_has_tests_and_a_boot() {
    let mut tags = known_tags(&read(&root().join("tests/harness/test.rs")));
    // This one is no reason for a boot.
    tags.retain(|tag| tag != "Standing");
    let selects: Vec<_> = COMBINATIONS.iter().chain([&QUICK]).map(|boot| boot.select).collect();
    assert_eq!(loose_tags(&tags, &declared(), &selects), Vec::<String>::new());
}

#[test]
fn each_fault_is_found() {
    let text = "vm_test!(\n    debian_a,\n    \"a, b\",\n    Debian,\n    [Kernel, Quick]\n);\n\
                vm_test!(units_b, \"c\", Any, []);";
    let tests = scenarios::declared_in(text, Path::new("deploy/debian")).expect("declarations");
    assert_eq!(misnamed(&tests).len(), 1);
    assert_eq!(witnesses("| A1 | it `is` | `debian_a`, unit: `b_c` |"), ["debian_a", "b_c"]);
    let code = [(PathBuf::from("src/deferred_close.rs"), "fn b_c() {".to_owned())];
    for (witness, is_there) in [
        ("debian_a", true),
        ("debian_b", false),
        ("debian_*", true),
        ("view_*", false),
        ("b_c", true),
        ("frontend::deferred_close", true),
        ("frontend::opener", false),
        ("preempt=full", true),
    ] {
        assert_eq!(exists(witness, &tests, &code), is_there, "{witness}");
    }
    let tags = known_tags("enum Tag {\n    /// Runs.\n    Kernel,\n    Quick,\n    Idle,\n}");
    assert_eq!(loose_tags(&tags, &tests, &["kernel", "-quick", "", "other"]).len(), 3);
}
