//! The public API, held by the list in `tests/api.txt`: a change of it is seen in review.
//!
//! The list has each public item as the source declares it, without comments and bodies. After
//! an intended change, renew it by
//! `cargo test -p monitor-client --test api write_api -- --ignored`.

#[path = "api/items.rs"]
mod items;

use std::{
    fs,
    path::{Path, PathBuf},
};

fn list() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api.txt")
}

/// The `.rs` files below a directory, except those of tests.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|found| found == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// The public items of all files, each file under its path.
fn api() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    files.sort();
    let mut text = String::new();
    for path in files {
        let source = fs::read_to_string(&path).expect("a source");
        let items = items::public(&source);
        if !items.is_empty() {
            let name = path.strip_prefix(&root).expect("a path below src").display();
            text.push_str(&format!("# {name}\n{items}\n"));
        }
    }
    text
}

#[test]
fn the_public_api_is_the_listed_one() {
    let listed = fs::read_to_string(list()).expect("the list");
    let api = api();
    let differs = listed.lines().zip(api.lines()).find(|(listed, found)| listed != found);
    assert!(
        listed == api,
        "the public API is not that of tests/api.txt; first difference: {differs:?}\nif it is meant, renew \
         the list: cargo test -p monitor-client --test api write_api -- --ignored"
    );
}

#[test]
#[ignore = "writes the list anew: cargo test -p monitor-client --test api write_api -- --ignored"]
fn write_api() {
    fs::write(list(), api()).expect("the list");
}
