//! The directories of the workspace. Everything that xtask makes is under `target/`.

use std::path::{Path, PathBuf};

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
