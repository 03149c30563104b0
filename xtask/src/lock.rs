//! Locks between the processes of xtask: several steps run side by side, and may find the
//! same prerequisite missing.

use std::fs::{self, File};

use anyhow::{Context, Result};

use crate::workspace::target;

/// Waits for the lock called `name`, and holds it until the file is dropped.
pub(crate) fn hold(name: &str) -> Result<File> {
    let directory = target().join("locks");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let path = directory.join(name);
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}
