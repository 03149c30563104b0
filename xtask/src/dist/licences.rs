//! The licences of all that is linked into the program: their texts, each once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::arch::Arch;
use crate::process::{self, command};
use crate::workspace::root;

/// The packages of the workspace whose dependencies are in the program.
const ROOTS: [&str; 2] = ["memcg-monitor", "monitor-ebpf"];

/// How the names of files with licences begin, in crates.
const NAMES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

/// The library that is linked in beside crates, and where Debian has its texts.
const LIBRARY: &str = "GNU C library";
const LIBRARY_TEXTS: [&str; 2] = ["/usr/share/doc/libc6/copyright", "/usr/share/common-licenses/LGPL-2.1"];

const INTRODUCTION: &str = "\
The program is linked statically, from its own sources and from what is listed here, each with its\n\
licence. The texts follow, each once.\n\
\n\
The GNU C library is under the LGPL, version 2.1 or later: whoever has the program may link it anew\n\
with another version of the library. `cargo xtask build` of the program's sources does that. Rust's\n\
standard library is under MIT OR Apache-2.0, by the contributors of the Rust project.\n";

/// A crate of the registry that is in the program.
#[derive(Debug)]
struct Crate {
    name: String,
    licence: String,
    repository: String,
    directory: PathBuf,
}

/// Returns the texts, of the crates for an architecture.
pub(super) fn texts(arch: Arch) -> Result<String> {
    let metadata = process::output_bytes(
        command("cargo")
            .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", arch.triple()])
            .current_dir(root()),
    )?;
    let metadata = serde_json::from_slice(&metadata).context("cannot read what cargo metadata prints")?;
    let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut list = String::new();
    let crates = crates(&metadata)?;
    for found in &crates {
        list += &format!("  {}: {}\n", found.name, found.licence);
        // Some come without a text, which is then that of another crate of the same repository.
        let same = |other: &&Crate| other.repository == found.repository && other.licence == found.licence;
        let of_others = crates.iter().filter(same).map(texts_of);
        let mut texts = std::iter::once(texts_of(found)).chain(of_others);
        let texts = texts.find(|texts| texts.as_ref().map_or(true, |texts| !texts.is_empty()));
        let texts =
            texts.with_context(|| format!("the crate {} has no file with its licence", found.name))?;
        for text in texts? {
            users.entry(text).or_default().push(found.name.clone());
        }
    }
    list += &format!("  {LIBRARY}: LGPL-2.1-or-later\n  Rust's standard library: MIT OR Apache-2.0\n");
    for path in LIBRARY_TEXTS {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read {path}, which Debian's library comes with"))?;
        users.entry(text.trim().to_owned()).or_default().push(LIBRARY.to_owned());
    }
    let mut by_user: Vec<_> = users.into_iter().collect();
    by_user.sort_by(|one, other| (&one.1, &one.0).cmp(&(&other.1, &other.0)));
    let rule = "-".repeat(80);
    let texts: Vec<_> =
        by_user.iter().map(|(text, users)| format!("{rule}\n{}\n\n{text}\n", users.join(", "))).collect();
    Ok(format!("{INTRODUCTION}\n{list}\n{}", texts.join("\n")))
}

/// The crates that are linked in, sorted: no macros, and no build scripts.
fn crates(metadata: &Value) -> Result<Vec<Crate>> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages: BTreeMap<_, _> =
        list(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
    let nodes: BTreeMap<_, _> = list(&metadata["resolve"]["nodes"])
        .into_iter()
        .map(|node| (text(&node["id"]), list(&node["deps"])))
        .collect();
    let mut open: Vec<_> = packages
        .iter()
        .filter(|(_, package)| ROOTS.contains(&package["name"].as_str().unwrap_or_default()))
        .map(|(id, _)| id.clone())
        .collect();
    ensure!(open.len() == ROOTS.len(), "cargo metadata does not have all of {ROOTS:?}");
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    while let Some(id) = open.pop() {
        let package = packages.get(&id).with_context(|| format!("cargo metadata does not list {id}"))?;
        let is_macro = list(&package["targets"]).iter().any(|target| target["kind"][0] == "proc-macro");
        if is_macro || !seen.insert(id.clone()) {
            continue;
        }
        for dependency in nodes.get(&id).into_iter().flatten() {
            if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                open.push(text(&dependency["pkg"]));
            }
        }
        // The workspace's own have the files beside this one.
        if !package["source"].is_null() {
            let manifest = PathBuf::from(text(&package["manifest_path"]));
            found.push(Crate {
                name: format!("{} {}", text(&package["name"]), text(&package["version"])),
                licence: text(&package["license"]),
                repository: text(&package["repository"]),
                directory: manifest.parent().unwrap_or(Path::new("/")).to_owned(),
            });
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

fn texts_of(found: &Crate) -> Result<Vec<String>> {
    let entries = fs::read_dir(&found.directory)
        .with_context(|| format!("cannot list {}", found.directory.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        path.is_file() && NAMES.iter().any(|begin| name.starts_with(begin))
    });
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(text.replace('\r', "").trim().to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_in_has_its_licence_and_a_macro_is_not() {
        let text = texts(Arch::Amd64).expect("the texts");
        for present in ["  aya 0.", "  aya-ebpf 0.", "LGPL-2.1-or-later", "Copyright (c) Tokio Contributors"]
        {
            assert!(text.contains(present), "{present}");
        }
        assert!(!text.contains("  serde_derive "), "a macro is not in the program");
    }
}
