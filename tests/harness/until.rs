//! Waiting for a state.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::harness::stopwatch;

/// Longer than anything takes under emulation on a busy host.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `what` holds; no fixed sleeps, and a limit that only a hang hits.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let _span = stopwatch::waiting();
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        ensure!(Instant::now() < deadline, "still not so: {what}");
        sleep(Duration::from_millis(5));
    }
    Ok(())
}
