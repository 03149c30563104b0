//! The directories of the workspace. Everything that xtask makes is under `target/`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Returns the root directory of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// Returns the directory of programs that setup installs for this workspace alone.
pub(crate) fn tools() -> PathBuf {
    target().join("tools")
}

/// Returns `path` as seen from the root, which is shorter to read.
pub(crate) fn short(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Lists all files below a directory, sorted.
pub(crate) fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries_below(directory)?.into_iter().filter(|path| path.is_file()).collect())
}

/// Lists a directory and all below it, sorted, each directory after what it contains.
pub(crate) fn entries_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let listed = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let mut paths = listed.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() { found.extend(entries_below(&path)?) } else { found.push(path) }
    }
    found.push(directory.to_owned());
    Ok(found)
}
