//! Tells the past of a group before it was registered on, as far as the kernel's own counts show it.

use monitor_common::{
    grammar::{
        control_file::{ControlFile, Trigger},
        spec::Spec,
        threshold::{At, Pages},
    },
    protocol::crossing::Direction,
};

use crate::{
    kernel::page_size,
    registry::place_of,
    watcher::{Cause, Early, Lived},
};

/// The time from which on what happened is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Since {
    /// From here on: what was before is not told.
    Now,
    /// From the last time that anyone watched, which is not known: what holds now is told.
    Before,
    /// From when the group was made.
    Made,
}

/// The causes that are told for `spec` of a group with this id. What left no trace in the kernel's counts is
/// told of a new group, by what it did `early`; of pressure the highest level, once. Quantities but usage have no mark of
/// the kernel's: `quantity` is what one is now.
pub(super) fn causes(
    spec: &Spec,
    (lived, early): (&Lived, Option<Early>),
    since: Since,
    id: u64,
    quantity: impl Fn(ControlFile) -> Option<u64>,
) -> Vec<Cause> {
    match spec {
        _ if since == Since::Now => Vec::new(),
        // A group that was registered on tells its removal itself.
        Spec::Removed if !lived.is_there => vec![Cause::Removed],
        Spec::Event { trigger: Trigger::Oom, .. } if since == Since::Made && lived.ooms > 0 => {
            vec![Cause::Oom { limit: id }]
        }
        Spec::Event { trigger: Trigger::Empty, .. } if since == Since::Made => {
            early.filter(|early| early.emptied > 0).map(|_| Cause::Empty).into_iter().collect()
        }
        Spec::Event { trigger: Trigger::Pressure(wanted), .. } if since == Since::Made => {
            let highest = early.and_then(|early| early.pressure(wanted.mode));
            let level = highest.filter(|level| *level >= wanted.level);
            level.map(|level| Cause::Pressure { level, origin: id }).into_iter().collect()
        }
        Spec::Event { on, trigger: Trigger::Threshold(threshold), .. } => {
            let place = place_of(threshold.at, lived.limit);
            let never = matches!(threshold.at, At::Pages(_)) && place >= Pages::counter_max(page_size()).0;
            if place == 0 || never {
                return Vec::new();
            }
            let (now, most) = match (*on, since) {
                (ControlFile::Usage, Since::Made) => (lived.usage, lived.peak),
                (ControlFile::Usage, _) => (lived.usage, lived.usage),
                (on, _) => match quantity(on) {
                    Some(now) => (now, now),
                    None => return Vec::new(),
                },
            };
            let crossed = |direction| Cause::Crossed { on: *on, threshold: place, direction, usage: now };
            let has_risen = most >= place;
            let has_fallen = has_risen && now < place.saturating_sub(threshold.hysteresis.0);
            let up = (has_risen && threshold.up).then(|| crossed(Direction::Up));
            let down = (has_fallen && threshold.down).then(|| crossed(Direction::Down));
            up.into_iter().chain(down).collect()
        }
        Spec::Removed | Spec::Event { .. } => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use monitor_common::{grammar::spec::Spec, protocol::crossing::Direction};

    use super::{Since, causes};
    use crate::{
        kernel::page_size,
        watcher::{Cause, Early, Lived},
    };

    const LIVED: Lived = Lived { usage: 10, peak: 100, limit: 200, ooms: 0, is_there: true, is_whole: true };

    fn told(spec: &str, lived: Lived, since: Since) -> Vec<Option<Direction>> {
        let spec = Spec::parse(spec.as_bytes(), page_size()).expect("a specification");
        let causes = causes(&spec, (&lived, Some(Early::default())), since, 7, |_| None);
        let direction = |cause: &Cause| match cause {
            Cause::Crossed { direction, .. } => Some(*direction),
            _ => None,
        };
        causes.iter().map(direction).collect()
    }

    #[test]
    fn what_peaked_above_a_threshold_has_crossed_it() {
        let (up, down) = (Some(Direction::Up), Some(Direction::Down));
        let at = |pages: u64, more: &str| format!("{}{more}", pages * page_size());
        assert_eq!(told(&at(100, ""), LIVED, Since::Made), [up, down]);
        assert_eq!(told(&at(100, ",up"), LIVED, Since::Made), [up]);
        assert_eq!(told(&at(10, ""), LIVED, Since::Made), [up], "it is there");
        assert_eq!(told(&at(101, ""), LIVED, Since::Made), []);
        assert_eq!(told("50%,up", LIVED, Since::Made), [up]);
        assert_eq!(told("51%", LIVED, Since::Made), []);
        let endless = Lived { limit: u64::MAX, peak: u64::MAX - 1, ..LIVED };
        for never in ["0", "-1", "0%", "50%"] {
            assert_eq!(told(never, endless, Since::Made), [], "{never}");
        }
    }

    #[test]
    fn after_an_agents_absence_what_holds_is_told() {
        let at = |pages: u64| (pages * page_size()).to_string();
        assert_eq!(told(&at(10), LIVED, Since::Before), [Some(Direction::Up)]);
        assert_eq!(told(&at(11), LIVED, Since::Before), []);
        assert_eq!(told(&at(10), LIVED, Since::Now), []);
    }

    #[test]
    fn a_group_that_became_empty_early_is_told_once() {
        let spec = Spec::parse(b"empty", page_size()).expect("a specification");
        let told = |early, since| causes(&spec, (&LIVED, early), since, 7, |_| None);
        let mut emptied = Early::default();
        emptied.emptied = 2;
        let early = Some(emptied);
        assert_eq!(told(early, Since::Made), [Cause::Empty]);
        assert_eq!(told(early, Since::Before), []);
        assert_eq!(told(Some(Early::default()), Since::Made), []);
        assert_eq!(told(None, Since::Made), [], "it was found late, which is counted");
    }

    #[test]
    fn an_oom_and_a_removal_that_nobody_saw_are_told() {
        let lived = Lived { ooms: 1, ..LIVED };
        assert_eq!(told("oom", lived, Since::Made), [None]);
        assert_eq!(told("oom", LIVED, Since::Made), []);
        assert_eq!(told("removed", LIVED, Since::Made), [], "it is told when it happens");
        assert_eq!(told("removed", Lived { is_there: false, ..LIVED }, Since::Made), [None]);
        assert_eq!(told("critical", lived, Since::Made), []);
    }
}
