//! Looks at packages by the distributions' own programs for that.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::apt;
use crate::process::{self, command};
use crate::setup::{self, Need};
use crate::workspace::root;

/// The checkers of packages: Debian's, and the one for RPM.
#[derive(Debug)]
pub(crate) struct Linters;

impl Need for Linters {
    fn name(&self) -> &'static str {
        "lintian"
    }

    fn find(&self) -> Result<String> {
        Ok(format!("checkers of packages {}", setup::programs(&["lintian", "rpmlint"])?))
    }

    fn fetch(&self) -> Result<()> {
        apt::install(&["lintian", "rpmlint"])
    }
}

/// Fails at an error or a warning of Debian's; deploy/package/debian/lintian-overrides has the
/// exceptions.
pub(super) fn debian(package: &Path) -> Result<()> {
    process::output(
        command("lintian")
            .args(["--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0"])
            .arg(package),
    )?;
    Ok(())
}

/// Fails at an error or a warning; deploy/package/rpmlint.toml has the exceptions.
pub(super) fn rpm(package: &Path) -> Result<()> {
    let said = process::output(
        command("rpmlint").arg("--config").arg(root().join("deploy/package/rpmlint.toml")).arg(package),
    )?;
    let ended = said.contains(" 0 errors, 0 warnings,");
    ensure!(ended, "rpmlint of {}:\n{said}", package.display());
    Ok(())
}
