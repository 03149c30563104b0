//! The parent's OOM score: the kernel is to kill the agent rather than its parent, since only
//! the agent is started again.

use std::{fs, sync::OnceLock};

const FILE: &str = "/proc/self/oom_score_adj";
/// The kernel's `OOM_SCORE_ADJ_MIN`, by which a process is never killed.
const NEVER: &str = "-1000";

/// The administrator's value, for the agent.
static CHOSEN: OnceLock<String> = OnceLock::new();

/// Excludes this process from the OOM killer's choice, where it may (`CAP_SYS_RESOURCE`).
pub(super) fn take_out() {
    let Ok(chosen) = fs::read_to_string(FILE) else { return };
    match fs::write(FILE, NEVER) {
        Ok(()) => _ = CHOSEN.set(chosen),
        Err(error) => log::debug!("write {FILE}: {error}"),
    }
}

/// Restores the administrator's value, for the next program.
pub(super) fn put_back() {
    if let Some(chosen) = CHOSEN.get()
        && let Err(error) = fs::write(FILE, chosen)
    {
        eprintln!("memcg-monitor: write {FILE}: {error}");
    }
}
