//! Rules on the packages' manifests: what all of them inherit from the workspace's.

use std::fs;

use anyhow::{Context, Result};

use crate::workspace::root;

/// Keys that every member sets, by inheriting them from the workspace.
const INHERITED: [&str; 4] = ["version", "edition", "rust-version", "publish"];

/// The packages with the metadata of published ones.
const PUBLISHED: [&str; 5] = ["monitor", "monitor-client", "monitor-common", "monitor-ebpf", "monitor-sys"];

/// Keys that those inherit beside.
const DESCRIBED: [&str; 3] = ["keywords", "categories", "readme"];

/// Keys that those set in either way: the eBPF programs have a licence of their own.
const SET: [&str; 2] = ["description", "license"];

/// Finds the keys that a member of the workspace lacks.
pub(super) fn faults() -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let members = members(&read("Cargo.toml")?);
    for member in &members {
        let path = format!("{member}/Cargo.toml");
        let lacks = missing(&read(&path)?, PUBLISHED.contains(&member.as_str()));
        faults.extend(lacks.iter().map(|line| format!("{path}:1: lacks `{line}` in [package]; add it")));
    }
    for name in PUBLISHED.iter().filter(|name| !members.iter().any(|member| member == *name)) {
        faults.push(format!("Cargo.toml:1: {name} is no member; say so in xtask/src/tidy/manifests.rs"));
    }
    Ok(faults)
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| format!("cannot read {path}"))
}

/// The directories of the workspace's members, one on a line.
fn members(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim).skip_while(|line| *line != "members = [").skip(1);
    let lines = lines.take_while(|line| !line.starts_with(']'));
    lines.filter_map(|line| line.strip_prefix('"')?.split('"').next()).map(str::to_owned).collect()
}

/// The lines that a member's `[package]` lacks.
fn missing(text: &str, is_published: bool) -> Vec<String> {
    let lines = text.lines().skip_while(|line| *line != "[package]").skip(1);
    let package: Vec<_> = lines.take_while(|line| !line.starts_with('[')).collect();
    let described: &[&str] = if is_published { &DESCRIBED } else { &[] };
    let inherited = INHERITED.iter().chain(described).map(|key| format!("{key}.workspace = true"));
    let mut missing: Vec<_> = inherited.filter(|line| !package.contains(&line.as_str())).collect();
    for key in SET {
        let is_set =
            |line: &&str| line.starts_with(&format!("{key} =")) || line.starts_with(&format!("{key}."));
        if !package.iter().any(is_set) {
            missing.push(format!("{key} = .."));
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read() {
        let text = "[workspace]\nmembers = [\n    \"a\",  # x\n    \"b\",\n]\nexclude = [\"c\"]\n";
        assert_eq!(members(text), ["a", "b"]);
    }

    #[test]
    fn a_key_that_is_not_inherited_is_found() {
        let text = "[package]\nname = \"x\"\ndescription = \"y\"\nversion.workspace = true\n\
                    edition.workspace = true\nrust-version = \"1.80\"\nlicense = \"MIT\"\n\
                    publish.workspace = true\n\n[lints]\nrust-version.workspace = true\n";
        assert_eq!(missing(text, false), ["rust-version.workspace = true"]);
        assert_eq!(missing(text, true).len(), 4);
        let text = text.replace("license", "other").replace("rust-version = \"1.80\"", "");
        assert_eq!(missing(&text, false), ["rust-version.workspace = true", "license = .."]);
    }
}
