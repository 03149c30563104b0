//! The public modules of the agent's library: those that its command and the VM tests need.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace::{root, short};

const LIBRARY: &str = "monitor/src/lib.rs";

/// Every public module, in the order of their declarations.
const PUBLIC: [&str; 27] = [
    "agent",
    "backend",
    "black_box",
    "cgroup",
    "cgroup::handle",
    "cgroup::host",
    "cgroup::workload",
    "device_plugin",
    "fd_store",
    "in_flight",
    "kernel",
    "kernel::btf",
    "kernel::settings",
    "logging",
    "malloc",
    "mounts",
    "programs",
    "sandbox",
    "sandbox::capabilities",
    "sandbox::landlock",
    "sandbox::needed",
    "sandbox::seccomp",
    "supervisor",
    "view",
    "view::mount",
    "view::unmounter",
    "view::values",
];

/// Finds public modules that the list lacks, and entries of the list that are none any more.
pub(super) fn faults() -> Result<Vec<String>> {
    let library = root().join(LIBRARY);
    Ok(differences(&public_below(&library, library.parent().unwrap_or(&library), "")?))
}

fn differences(found: &[String]) -> Vec<String> {
    let added = found.iter().filter(|name| !PUBLIC.contains(&name.as_str())).map(|name| {
        format!("{LIBRARY}:1: module {name} is public; make it private, or list it in xtask/src/tidy/surface.rs with a use outside the library")
    });
    let gone = PUBLIC.iter().filter(|name| !found.iter().any(|one| one == *name));
    let gone = gone.map(|name| {
        format!("{LIBRARY}:1: module {name} is not public; take it off the list in xtask/src/tidy/surface.rs")
    });
    added.chain(gone).collect()
}

/// The public modules of a file, whose own modules are in `directory`, and of those below it.
fn public_below(file: &Path, directory: &Path, prefix: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", short(file)))?;
    let mut found = Vec::new();
    for name in public(&text) {
        let path = format!("{prefix}{name}");
        let (file, below): (PathBuf, _) = (directory.join(format!("{name}.rs")), directory.join(&name));
        let modules = public_below(&file, &below, &format!("{path}::"))?;
        found.push(path);
        found.extend(modules);
    }
    Ok(found)
}

/// The modules that a file declares as public. One with a body, as for fuzz targets, is none.
fn public(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_modules_public_to_everybody_are_listed() {
        let text =
            "pub mod a;\nmod b;\npub(crate) mod c;\npub mod fuzzing {\n    pub mod d;\n}\npub mod e;\n";
        assert_eq!(public(text), ["a", "e"]);
    }

    #[test]
    fn a_module_that_becomes_public_is_found() {
        let mut found: Vec<_> = PUBLIC.map(str::to_owned).to_vec();
        assert_eq!(differences(&found), Vec::<String>::new());
        found[0] = "watcher".to_owned();
        let faults = differences(&found);
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].contains("module watcher is public"), "{faults:?}");
        assert!(faults[1].contains("module agent is not public"), "{faults:?}");
    }
}
