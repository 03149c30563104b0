//! The groups that an OOM reaches: those with listeners for OOM, in the group in OOM or below it.
//! The result of one walk to the root is remembered for the others, so that all walks of an OOM
//! together cost about as much as there are groups, however deep they are.

use crate::{
    source::{GroupId, Source},
    watcher::hierarchy::above,
};

/// OOMs whose walks are remembered: those that had a turn last. Each takes two bits for a slot.
const REMEMBERED: usize = 32;

/// Levels that one piece of a walk goes up.
const LEVELS: usize = 8;

/// A walk upwards from a group with listeners for OOM.
#[derive(Debug)]
pub(super) struct AncestorWalk {
    group: GroupId,
    at: u32,
    /// The result, which a second pass from the start notes for each slot on the way.
    is_in: Option<bool>,
}

impl AncestorWalk {
    pub(super) const fn from(group: GroupId) -> Self {
        Self { group, at: group.slot, is_in: None }
    }
}

/// The end of one piece of a walk.
#[derive(Debug)]
pub(super) enum WalkOutcome {
    /// The group is the one in OOM, or below it.
    In(GroupId),
    /// The group is elsewhere in the hierarchy.
    Elsewhere,
    /// There is more of it.
    On(AncestorWalk),
}

/// Results of walks, by the OOM that they were for.
#[derive(Debug, Default)]
pub(super) struct AncestorWalks {
    by_oom: Vec<KnownAncestors>,
    ooms: u64,
    now: u64,
}

/// Results of one OOM's walks.
#[derive(Debug)]
struct KnownAncestors {
    oom: u64,
    used: u64,
    /// Two bits for each slot: whether it is known, and whether it is in.
    bits: Vec<u64>,
}

impl AncestorWalks {
    /// Returns a number for a further OOM.
    pub(super) const fn begin(&mut self) -> u64 {
        self.ooms += 1;
        self.ooms
    }

    /// Forgets an OOM for which all walks are done.
    pub(super) fn end(&mut self, oom: u64) {
        self.by_oom.retain(|known| known.oom != oom);
    }

    /// Goes up a few levels, up to the group at `index` or to a known result.
    pub(super) fn walk_on(
        &mut self,
        source: &impl Source,
        mut walk: AncestorWalk,
        oom: u64,
        index: u32,
    ) -> WalkOutcome {
        for _ in 0..LEVELS {
            let at = walk.at;
            let known = if at == index { Some(true) } else { self.get(oom, at) };
            let higher = if known.is_none() { above(source, at) } else { None };
            match (walk.is_in, higher) {
                (None, Some(higher)) => walk.at = higher,
                // The result is known, or the root is reached: note it from the start on.
                (None, None) => {
                    walk.is_in = Some(known.unwrap_or(false));
                    walk.at = walk.group.slot;
                }
                (Some(is_in), higher) => {
                    if known.is_none() {
                        self.note(oom, at, is_in);
                    }
                    match higher {
                        Some(higher) => walk.at = higher,
                        None if is_in => return WalkOutcome::In(walk.group),
                        None => return WalkOutcome::Elsewhere,
                    }
                }
            }
        }
        WalkOutcome::On(walk)
    }

    fn get(&mut self, oom: u64, slot: u32) -> Option<bool> {
        self.now += 1;
        let known = self.by_oom.iter_mut().find(|known| known.oom == oom)?;
        known.used = self.now;
        let (word, bit) = place(slot);
        let bits = known.bits.get(word)? >> bit;
        (bits & 1 != 0).then_some(bits & 2 != 0)
    }

    fn note(&mut self, oom: u64, slot: u32, is_in: bool) {
        self.now += 1;
        let found = self.by_oom.iter().position(|known| known.oom == oom);
        let at = found.unwrap_or_else(|| {
            if self.by_oom.len() >= REMEMBERED
                && let Some(oldest) = self.by_oom.iter().map(|known| known.used).min()
            {
                self.by_oom.retain(|known| known.used != oldest);
            }
            self.by_oom.push(KnownAncestors { oom, used: self.now, bits: Vec::new() });
            self.by_oom.len() - 1
        });
        let (word, bit) = place(slot);
        if let Some(known) = self.by_oom.get_mut(at) {
            known.used = self.now;
            if known.bits.len() <= word {
                known.bits.resize(word + 1, 0);
            }
            known.bits[word] |= (1 | u64::from(is_in) << 1) << bit;
        }
    }
}

const fn place(slot: u32) -> (usize, u32) {
    (slot as usize / 32, slot % 32 * 2)
}

#[cfg(test)]
mod tests {
    use super::{AncestorWalks, REMEMBERED};

    #[test]
    fn what_had_no_turn_for_longest_is_forgotten() {
        let mut walks = AncestorWalks::default();
        let first = walks.begin();
        walks.note(first, 70, true);
        walks.note(first, 71, false);
        for _ in 1..REMEMBERED {
            let oom = walks.begin();
            walks.note(oom, 1, true);
        }
        assert_eq!(
            [69, 70, 71, 1000].map(|slot| walks.get(first, slot)),
            [None, Some(true), Some(false), None]
        );
        let one_more = walks.begin();
        walks.note(one_more, 1, true);
        assert_eq!(walks.get(first, 70), Some(true), "it had a turn just now");
        assert_eq!((walks.by_oom.len(), walks.get(first + 1, 1)), (REMEMBERED, None));
        walks.end(first);
        assert_eq!(walks.get(first, 70), None);
    }
}
