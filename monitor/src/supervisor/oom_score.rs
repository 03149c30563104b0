//! Whom the kernel kills for lack of memory: the agent rather than its parent, since
//! only the agent comes back.

use std::{fs, sync::OnceLock};

const FILE: &str = "/proc/self/oom_score_adj";
/// `OOM_SCORE_ADJ_MIN`: never.
const NEVER: &str = "-1000";

/// What the administrator had chosen, for the agent.
static CHOSEN: OnceLock<String> = OnceLock::new();

/// Takes this process out of the choice, where it may (`CAP_SYS_RESOURCE`).
pub(super) fn take_out() {
    let Ok(chosen) = fs::read_to_string(FILE) else { return };
    match fs::write(FILE, NEVER) {
        Ok(()) => _ = CHOSEN.set(chosen),
        Err(error) => log::debug!("write {FILE}: {error}"),
    }
}

/// Puts it back, for the program to come.
pub(super) fn put_back() {
    if let Some(chosen) = CHOSEN.get()
        && let Err(error) = fs::write(FILE, chosen)
    {
        eprintln!("memcg-monitor: write {FILE}: {error}");
    }
}
