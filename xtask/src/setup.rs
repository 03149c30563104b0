//! `cargo xtask setup`: finds every prerequisite, and gets what is missing.

use std::path::Path;

use anyhow::{Context, Result, anyhow};

use crate::workspace::short;
use crate::{lock, process};

/// A prerequisite of some command. The module that uses it implements this.
pub(crate) trait Need {
    /// The name of the lock that is held while it is being fetched.
    fn name(&self) -> &'static str;

    /// Returns a line on what was found, or as an error what is missing.
    fn find(&self) -> Result<String>;

    /// Installs or downloads what is missing.
    fn fetch(&self) -> Result<()>;
}

/// Provides all of `needs`, and prints a line on each.
pub(crate) fn report(needs: &[Box<dyn Need>]) -> Result<()> {
    for need in needs {
        println!("setup: found {}", provide(need.as_ref())?);
    }
    Ok(())
}

/// Gets what is missing; silent about what is there.
pub(crate) fn ensure(needs: &[&dyn Need]) -> Result<()> {
    needs.iter().try_for_each(|need| provide(*need).map(drop))
}

fn provide(need: &dyn Need) -> Result<String> {
    let missing = match need.find() {
        Ok(found) => return Ok(found),
        Err(missing) => missing,
    };
    // Another step may be getting the same; each waits here, and then looks again.
    let _lock = lock::hold(need.name())?;
    if let Ok(found) = need.find() {
        return Ok(found);
    }
    println!("setup: {missing:#}");
    need.fetch().with_context(|| format!("setup cannot get what is missing: {missing:#}"))?;
    need.find().with_context(|| {
        format!("setup has fetched {}, and it is still missing; run `cargo xtask setup` again", need.name())
    })
}

/// Joins the names of `programs` if each of them can be started.
pub(crate) fn programs(programs: &[&str]) -> Result<String> {
    match programs.iter().find(|program| !process::exists(program)) {
        Some(program) => Err(anyhow!("there is no {program}")),
        None => Ok(programs.join(" and ")),
    }
}

/// Returns the short form of `path` if there is a file.
pub(crate) fn file(path: &Path) -> Result<String> {
    path.is_file().then(|| short(path)).with_context(|| format!("there is no {}", short(path)))
}
