//! Calls that the kernel's recursion guard kept from the programs, by what makes up for them.

/// Calls that the kernel skipped (`recursion_misses`), because the same program was at work
/// on the CPU, in a task that was preempted or interrupted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Misses {
    /// Charges: all watched counters are read again.
    pub charges: u64,
    /// OOMs that begin, of each twin: the kernel's own counts are compared.
    pub ooms: [u64; 2],
    /// OOMs that end, of each twin: their holds are released.
    pub oom_ends: [u64; 2],
    /// Limits that were written, of each twin: all thresholds in percent are looked at, and marks
    /// of writers taken away.
    pub limit_writes: [u64; 2],
    /// Limits that were written on v1, which has no twin.
    pub limits_set: u64,
    /// Groups that go: those that are watched are looked for.
    pub removals: u64,
    /// Groups that become empty, or get a task again: the kernel is queried.
    pub emptied: u64,
    /// Groups that are made: one that is there later is found by what it does, and one that has gone
    /// by then is not; whoever watches for new groups is told the number.
    pub creations: u64,
    /// Calls that are made again by themselves: the group of a file that is read, the file of an
    /// eventfd that is shown.
    pub repeated: u64,
    /// Calls that nothing makes up for; see
    /// [`LossKind::SkippedForGood`](monitor_common::protocol::ring::LossKind).
    pub for_good: u64,
}

impl Misses {
    /// The count for calls of `program`, by its name in the object.
    pub fn of(&mut self, program: &str) -> &mut u64 {
        match program {
            "oom_begun" => &mut self.ooms[0],
            "oom_begun_twin" => &mut self.ooms[1],
            "oom_ended" => &mut self.oom_ends[0],
            "oom_ended_twin" => &mut self.oom_ends[1],
            "limit_write_2" => &mut self.limit_writes[0],
            "limit_twin_2" => &mut self.limit_writes[1],
            "limit_set" => &mut self.limits_set,
            // Both at once are counted where the write ends.
            "limit_write_1" | "limit_twin_1" => &mut self.repeated,
            "css_offline" | "css_free" => &mut self.removals,
            "populated" => &mut self.emptied,
            "css_online" => &mut self.creations,
            "usage_read" | "usage_read_v1" | "eventfd_fdinfo" => &mut self.repeated,
            name if name.ends_with("charge_1") || name.ends_with("charge_2") => &mut self.charges,
            _ => &mut self.for_good,
        }
    }

    /// Adds `rounds` in which no program was called: one of each kind that something makes up for.
    pub const fn add_round(&mut self, rounds: u64) {
        self.charges += rounds;
        self.limits_set += rounds;
        self.removals += rounds;
        self.creations += rounds;
        self.emptied += rounds;
        let mut twin = 0;
        while twin < 2 {
            self.ooms[twin] += rounds;
            self.oom_ends[twin] += rounds;
            self.limit_writes[twin] += rounds;
            twin += 1;
        }
    }

    /// Counts calls that were kept from the one program at a place as kept from both, since there is
    /// no second one.
    pub const fn have_no_twins(&mut self) {
        self.ooms[1] = self.ooms[0];
        self.oom_ends[1] = self.oom_ends[0];
        self.limit_writes[1] = self.limit_writes[0];
    }

    /// The number of all calls.
    #[must_use]
    pub const fn total(&self) -> u64 {
        let twins = sum(&self.ooms) + sum(&self.oom_ends) + sum(&self.limit_writes);
        let groups = self.removals + self.creations + self.emptied;
        twins + self.charges + self.limits_set + groups + self.repeated + self.for_good
    }

    /// Whether a call may have been kept from both twins.
    #[must_use]
    pub const fn both(twins: [u64; 2]) -> bool {
        twins[0] > 0 && twins[1] > 0
    }

    /// The calls since `before`.
    #[must_use]
    pub const fn since(&self, before: &Self) -> Self {
        Self {
            charges: self.charges.saturating_sub(before.charges),
            ooms: twins(&self.ooms, &before.ooms),
            oom_ends: twins(&self.oom_ends, &before.oom_ends),
            limit_writes: twins(&self.limit_writes, &before.limit_writes),
            limits_set: self.limits_set.saturating_sub(before.limits_set),
            removals: self.removals.saturating_sub(before.removals),
            creations: self.creations.saturating_sub(before.creations),
            emptied: self.emptied.saturating_sub(before.emptied),
            repeated: self.repeated.saturating_sub(before.repeated),
            for_good: self.for_good.saturating_sub(before.for_good),
        }
    }
}

const fn sum(twins: &[u64; 2]) -> u64 {
    twins[0] + twins[1]
}

const fn twins(now: &[u64; 2], before: &[u64; 2]) -> [u64; 2] {
    [now[0].saturating_sub(before[0]), now[1].saturating_sub(before[1])]
}

#[cfg(test)]
mod tests {
    use super::Misses;
    use crate::kernel::HOOKS;

    #[test]
    fn without_twins_a_call_that_one_program_missed_is_made_up_for() {
        let mut misses = Misses { ooms: [1, 0], oom_ends: [2, 0], limit_writes: [3, 0], ..Misses::default() };
        assert!(!Misses::both(misses.ooms));
        misses.have_no_twins();
        assert!([misses.ooms, misses.oom_ends, misses.limit_writes].into_iter().all(Misses::both));
        // A round without any program: an OOM may have begun before it and ended in it.
        let mut silent = Misses::default();
        silent.add_round(1);
        assert!([silent.ooms, silent.oom_ends, silent.limit_writes].into_iter().all(Misses::both));
    }

    /// A new program has to be handled here.
    #[test]
    fn what_nothing_makes_up_for_is_known() {
        let for_good: Vec<_> = HOOKS
            .iter()
            .map(|hook| hook.program)
            .filter(|program| {
                let mut misses = Misses::default();
                *misses.of(program) += 1;
                assert_eq!(misses.total(), 1);
                misses.for_good == 1
            })
            .collect();
        let oom = ["oom_notified", "oom_scope", "oom_kill", "oom_victim", "oom_group"];
        let reclaim = ["window", "report", "report_6", "ended", "begun", "node"];
        let reclaim = reclaim.iter().map(|name| format!("reclaim_{name}"));
        let known: Vec<_> = oom.iter().map(ToString::to_string).chain(reclaim).collect();
        assert_eq!(for_good, known);
    }
}
