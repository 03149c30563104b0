//! The thresholds that groups are known to be above, so that an agent that comes back tells of no
//! crossing a second time.
//!
//! For that the agent is asked for both directions of each threshold, and one that nobody wants is not
//! told: a crossing upwards is news only where usage has fallen since the last one.

use std::collections::{HashMap, HashSet};

use memcg_monitor::kernel::page_size;
use monitor_client::wire::{EventRow, NoteRow};
use monitor_common::grammar::{control_file::Trigger, spec::Spec, threshold::Threshold};

/// Groups that are remembered; beyond it, crossings may be told twice after a restart of the agent.
const MOST: usize = 65_536;

/// The specification that was given, of one direction alone, for the one that the agent is asked for.
#[derive(Debug)]
struct OneWay {
    given: String,
    is_up: bool,
}

/// Groups above a threshold, by their id and the specification that the agent has.
#[derive(Debug, Default)]
pub struct Known {
    above: HashSet<(u64, String)>,
    /// The groups that were known when the agent came back.
    before: HashSet<(u64, String)>,
    one_way: HashMap<String, OneWay>,
}

impl Known {
    /// Prepares for these specifications, which become what the agent is to be asked for.
    pub fn of(specs: &mut [String]) -> Self {
        let mut known = Self::default();
        for at in 0..specs.len() {
            let Some((both, is_up)) = specs.get(at).and_then(|given| both_ways(given)) else { continue };
            // Where both are wanted already, the events of one are not to be told for the other.
            if !specs.contains(&both)
                && let Some(spec) = specs.get_mut(at)
            {
                let given = std::mem::replace(spec, both.clone());
                known.one_way.insert(both, OneWay { given, is_up });
            }
        }
        known
    }

    /// Notes that what comes next is from an agent that came back.
    pub fn begin_again(&mut self) {
        self.before = self.above.clone();
    }

    /// Notes that the agent has told of all groups that are above a threshold: the others have fallen.
    pub fn all_are_told(&mut self) {
        for fallen in std::mem::take(&mut self.before) {
            self.above.remove(&fallen);
        }
    }

    /// Whether the event is news: false for a crossing that was told before the agent ended, or in a
    /// direction that is not wanted. Its specification becomes the one that was given.
    pub fn is_news(&mut self, event: &mut EventRow) -> bool {
        if event.event != "crossed" {
            return true;
        }
        let spec = event.spec.clone().unwrap_or_default();
        let is_up = event.direction.as_deref() == Some("up");
        let one_way = self.one_way.get(&spec);
        let is_wanted = one_way.is_none_or(|one_way| one_way.is_up == is_up);
        if let Some(OneWay { given, .. }) = one_way {
            event.spec = Some(given.clone());
        }
        let of = (event.id, spec);
        let was_known = self.before.remove(&of);
        if is_up {
            if self.above.len() >= MOST {
                self.above.clear();
            }
            self.above.insert(of);
        } else {
            self.above.remove(&of);
        }
        is_wanted && !(was_known && is_up && event.late)
    }

    /// Names the specification that was given in a note.
    pub fn name_given(&self, note: &mut NoteRow) {
        if let Some(one_way) = note.spec.as_ref().and_then(|spec| self.one_way.get(spec)) {
            note.spec = Some(one_way.given.clone());
        }
    }
}

/// The threshold of a specification, if it is one.
fn threshold(spec: &str) -> Option<Threshold> {
    match Spec::parse(spec.as_bytes(), page_size()) {
        Ok(Spec::Event { trigger: Trigger::Threshold(threshold), .. }) => Some(threshold),
        _ => None,
    }
}

/// The specification of the same threshold in both directions, and whether the one given is upwards;
/// `None` where it has both already, or is no threshold.
fn both_ways(given: &str) -> Option<(String, bool)> {
    let before = threshold(given).filter(|threshold| threshold.up != threshold.down)?;
    let parts: Vec<_> = given.split(',').filter(|part| !matches!(part.trim(), "up" | "down")).collect();
    let both = parts.join(",");
    let is_same = threshold(&both)? == Threshold { up: true, down: true, ..before };
    is_same.then_some((both, before.up))
}

#[cfg(test)]
mod tests {
    use monitor_client::wire::{EventRow, NoteRow};

    use super::{Known, both_ways};

    fn crossing(id: u64, direction: &str, late: bool) -> EventRow {
        EventRow {
            id,
            event: "crossed".into(),
            direction: Some(direction.into()),
            spec: Some("80%".into()),
            late,
            ..EventRow::default()
        }
    }

    fn is_news(known: &mut Known, id: u64, direction: &str, late: bool) -> bool {
        known.is_news(&mut crossing(id, direction, late))
    }

    #[test]
    fn a_crossing_is_told_once_over_a_restart() {
        let known = &mut Known::default();
        assert!(is_news(known, 1, "up", false));
        assert!(is_news(known, 2, "up", false) && is_news(known, 2, "down", false));
        assert!(is_news(known, 1, "up", true), "without a restart it is another");
        known.begin_again();
        assert!(!is_news(known, 1, "up", true), "it was above before");
        assert!(is_news(known, 2, "up", true), "it has risen meanwhile");
        assert!(is_news(known, 1, "down", false) && is_news(known, 1, "up", false));
    }

    #[test]
    fn a_fall_while_there_was_no_agent_is_known_once_all_are_told() {
        let known = &mut Known::default();
        assert!(is_news(known, 1, "up", false) && is_news(known, 2, "up", false));
        known.begin_again();
        assert!(!is_news(known, 1, "up", true));
        known.all_are_told();
        known.begin_again();
        assert!(!is_news(known, 1, "up", true), "still above");
        assert!(is_news(known, 2, "up", true), "it fell in one absence, and rose in the next");
    }

    #[test]
    fn a_fall_that_is_not_told_is_known() {
        let mut specs = ["80%,up", "removed", "1G", "1G,down"].map(String::from);
        let known = &mut Known::of(&mut specs);
        assert_eq!(specs, ["80%", "removed", "1G", "1G,down"], "1G itself is wanted both ways");
        let mut up = crossing(1, "up", false);
        assert!(known.is_news(&mut up));
        assert_eq!(up.spec.as_deref(), Some("80%,up"));
        assert!(!is_news(known, 1, "down", false), "that is not wanted");
        known.begin_again();
        assert!(is_news(known, 1, "up", true), "it fell, and rose meanwhile");
        let mut note = NoteRow { spec: Some("80%".into()), ..NoteRow::default() };
        known.name_given(&mut note);
        assert_eq!(note.spec.as_deref(), Some("80%,up"));
    }

    #[test]
    fn a_threshold_of_one_direction_is_asked_for_in_both() {
        for (given, expected) in [
            ("80%,up", Some(("80%", true))),
            ("512M,down,hysteresis=64M", Some(("512M,hysteresis=64M", false))),
            ("memory.anon_bytes 1G,up,exact", Some(("memory.anon_bytes 1G,exact", true))),
            ("80%", None),
            ("oom", None),
            ("critical,local", None),
            ("nothing,up", None),
        ] {
            assert_eq!(both_ways(given), expected.map(|(text, is_up)| (text.to_owned(), is_up)), "{given}");
        }
    }
}
