//! Rules on the sources that no other tool checks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::summary::Outcome;
use crate::workspace::{root, short};

/// A file past this is two files.
const LONGEST: usize = 500;

/// Text that a file must hold, because people or CI rely on it.
const PROMISES: [(&str, &str); 3] =
    [("README.md", "cargo xtask test"), ("README.md", "cargo xtask run"), (".ci/run", "cargo xtask test")];

pub(crate) fn check() -> Result<Outcome> {
    let mut sources = Vec::new();
    collect(root(), &mut sources)?;
    let mut faults = Vec::new();
    for path in &sources {
        let text = read(path)?;
        faults.extend(faults_of(&text).into_iter().map(|fault| format!("{}: {fault}", short(path))));
    }
    for (name, text) in PROMISES {
        if !read(&root().join(name)).is_ok_and(|contents| contents.contains(text)) {
            faults.push(format!("{name}: does not say `{text}`"));
        }
    }
    if !faults.is_empty() {
        bail!("{} faults in the sources:\n{}", faults.len(), faults.join("\n"));
    }
    Ok(Outcome::pass(format!("{} files", sources.len())))
}

fn faults_of(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if !text.starts_with("//!") {
        faults.push("does not open with a //! line".to_owned());
    }
    let lines = text.lines().count();
    if lines > LONGEST {
        faults.push(format!("{lines} lines, more than {LONGEST}; split it by concept"));
    }
    if let Some(at) = text.lines().position(|line| !line.is_ascii()) {
        faults.push(format!("line {} is not ASCII", at + 1));
    }
    faults
}

/// All `.rs` files, except in `target` and hidden folders.
pub(crate) fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let path = entry.path();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                collect(&path, found)?;
            }
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_named() {
        assert!(faults_of("//! Fine.\n").is_empty());
        assert_eq!(faults_of("fn main() {}\n// \u{e4}\n").len(), 2);
        assert_eq!(faults_of(&"//! Long.\n".repeat(LONGEST + 1)).len(), 1);
    }
}
