//! Numbers that only a group's own files have: pressure and counts of events, read for the groups that are
//! shown, and for a share of the others at each tick.

use std::{fs::File, io::Read as _, path::PathBuf};

use memcg_monitor::cgroup::{Hierarchy, Version};

use crate::commands::top::model::{Model, OomCounts, Place};

/// Groups beside the visible ones whose counts are read at each tick.
const SHARE: usize = 32;

/// Reads files of groups.
#[derive(Debug)]
pub struct Details {
    root: PathBuf,
    version: Version,
    next: Place,
    text: String,
    /// Whether some group's file has had a count of OOMs, and one of kills.
    pub has_ooms: bool,
    pub has_kills: bool,
}

impl Details {
    pub fn new(hierarchy: &Hierarchy) -> Self {
        Self {
            root: hierarchy.root.clone(),
            version: hierarchy.version,
            next: 0,
            text: String::new(),
            has_ooms: false,
            has_kills: false,
        }
    }

    /// Renews what is known of the groups at `visible`, and of a few others.
    pub fn renew(&mut self, model: &mut Model, visible: &[Place]) {
        for &place in visible {
            self.pressure(model, place);
            self.counts(model, place);
        }
        for _ in 0..SHARE.min(model.places()) {
            self.next = (self.next + 1) % model.places();
            self.counts(model, self.next);
        }
    }

    fn pressure(&mut self, model: &mut Model, place: Place) {
        // v1 has no such file.
        if self.version == Version::V2 && self.read(model, place, "memory.pressure") {
            model.node_mut(place).pressure = some_avg10(&self.text);
        }
    }

    fn counts(&mut self, model: &mut Model, place: Place) {
        let name = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events.local",
        };
        if self.read(model, place, name) {
            // v1 counts no OOMs, and kernels before 4.13 no kills.
            let (oom, oom_kill) = (number(&self.text, "oom"), number(&self.text, "oom_kill"));
            self.has_ooms |= oom.is_some();
            self.has_kills |= oom_kill.is_some();
            let counts = OomCounts { oom: oom.unwrap_or(0), oom_kill: oom_kill.unwrap_or(0) };
            model.set_counts(place, counts);
        }
    }

    fn read(&mut self, model: &Model, place: Place, name: &str) -> bool {
        let node = model.node(place);
        if node.id.is_none() || !node.path.starts_with('/') {
            return false;
        }
        let path = self.root.join(node.path.trim_start_matches('/')).join(name);
        self.text.clear();
        File::open(path).is_ok_and(|mut file| file.read_to_string(&mut self.text).is_ok())
    }
}

/// The percentage of `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
pub fn some_avg10(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split(' ').find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

fn number(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::{number, some_avg10};

    #[test]
    fn numbers_of_the_kernels_files_are_found() {
        let text = "some avg10=1.50 avg60=0.10 avg300=0.02 total=15\nfull avg10=0.20 avg60=0.00 avg300=0.00 total=2\n";
        assert_eq!((some_avg10(text), some_avg10("")), (Some(1.5), None));
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!((number(text, "oom_kill"), number(text, "oom")), (Some(3), None));
    }
}
