//! The OOM killer's work, as the watcher passes it on.

use std::sync::Arc;

use monitor_common::protocol::ring::{KillReason, Victim};

use crate::{
    kills::{Kill, KillTeller},
    source::Source,
    watcher::Watcher,
};

impl<S: Source> Watcher<S> {
    /// Keeps from now on what the OOM killer does, also while nobody follows.
    pub fn keep_kills(&mut self, kills: KillTeller) {
        self.core.kills = Some(Arc::new(kills));
        self.core.source.want(self.core.wanted());
    }

    /// The keeper of the OOM killer's work, if it is kept.
    pub fn kills(&self) -> Option<Arc<KillTeller>> {
        self.core.kills.clone()
    }

    /// Keeps that the OOM killer has killed a process, and delivers it to followers, without a signal.
    pub fn victim(&mut self, victim: &Victim) {
        self.core.plan_victim(victim);
    }

    /// Delivers to followers, without a signal, that the OOM killer kills a whole group.
    pub fn group_kill(&mut self, word: u32, victim: u64) {
        self.core.plan_group_kill(word, victim);
    }

    /// Does what [`victim`](Self::victim) does for a kill that no program saw.
    pub fn logged_kill(&mut self, kill: Kill) {
        self.core.plan_logged_kill(kill);
    }

    /// Does what [`group_kill`](Self::group_kill) does where no program saw it; the groups are directories' ids.
    pub fn logged_group_kill(&mut self, reason: KillReason, limit: Option<u64>, victim: u64) {
        self.core.plan_logged_group_kill(reason, limit, victim);
    }
}
