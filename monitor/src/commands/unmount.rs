//! The command `memcg-monitor unmount`, which the agent starts to have its view unmounted.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use memcg_monitor::view::unmounter;

use crate::cli;

pub fn run(options: &cli::Unmount) -> Result<ExitCode> {
    unmounter::serve(&options.point, options.sandbox.into())
        .with_context(|| format!("the view may still be mounted; umount -l {}", options.point.display()))?;
    Ok(ExitCode::SUCCESS)
}
