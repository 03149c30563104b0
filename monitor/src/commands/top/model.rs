//! The tree of groups with their numbers, whatever they come from.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
};

use memcg_monitor::printable;

use super::growth::{Growth, History};

/// A place in the tree. Places of removed groups are used again.
pub type Place = usize;

/// The place of the hierarchy's root.
pub const ROOT: Place = 0;

/// Bytes of the longest path that is shown, which is as long as any that a program can open (`PATH_MAX`). Each
/// part of one has a place, with all of the path up to it.
const LONGEST_PATH: usize = 4096;

/// Events that are kept.
const RECENT: usize = 64;

/// One group, or a directory above groups that is none itself.
#[derive(Clone, Debug, Default)]
pub struct TreeNode {
    /// Inode number of the directory; `None` for one that only stands above groups.
    pub id: Option<u64>,
    /// Last part of the path, safe for a terminal.
    pub name: String,
    /// Path below the hierarchy's root, beginning with `/`, as the source gives it.
    pub path: String,
    pub parent: Place,
    pub children: Vec<Place>,
    /// Place among the parent's children.
    position: usize,
    pub usage: Option<u64>,
    pub limit: Option<u64>,
    pub registrations: u64,
    pub growth: Growth,
    pub history: History,
    /// Share of the last ten seconds in which some task waited for memory, in percent.
    pub pressure: Option<f64>,
    pub counts: Option<OomCounts>,
    /// Last event: its time, and what it was.
    pub event: Option<(f64, &'static str)>,
    pub is_collapsed: bool,
    pub matches: bool,
}

/// Counts of a group's own events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OomCounts {
    /// Charges that found no memory within the group's own limit.
    pub oom: u64,
    /// Processes of the group that were killed.
    pub oom_kill: u64,
}

/// One event, for the line of the last ones.
#[derive(Clone, Debug, PartialEq)]
pub struct PastEvent {
    /// Seconds since the model's start.
    pub time: f64,
    /// Group and what happened, safe for a terminal.
    pub text: String,
}

/// Hashes inode numbers of directories, which the kernel counts up: nobody chooses them, and each
/// change of usage looks for one.
#[derive(Clone, Copy, Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, id: u64) {
        // 2^64 divided by the golden ratio: numbers in a row lie far apart, and both halves count.
        let product = u128::from(self.0 ^ id) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// All groups of the hierarchy, as a tree.
#[derive(Debug)]
pub struct Model {
    nodes: Vec<TreeNode>,
    free: Vec<Place>,
    by_id: HashMap<u64, Place, BuildHasherDefault<IdHasher>>,
    by_path: HashMap<String, Place>,
    /// Mount point, which paths begin with.
    root: String,
    /// Seconds since the start.
    pub now: f64,
    /// Number of the current tick, from 1 on.
    pub tick: u64,
    pub recent: VecDeque<PastEvent>,
    /// Changes with the set of paths.
    pub edition: u64,
    filter: String,
}

impl Model {
    /// An empty tree below this mount point.
    pub fn new(root: &str) -> Self {
        let top = TreeNode { name: "/".into(), path: "/".into(), matches: true, ..TreeNode::default() };
        Self {
            nodes: vec![top],
            free: Vec::new(),
            by_id: HashMap::default(),
            by_path: HashMap::from([("/".to_owned(), ROOT)]),
            root: root.trim_end_matches('/').to_owned(),
            now: 0.0,
            tick: 0,
            recent: VecDeque::new(),
            edition: 0,
            filter: String::new(),
        }
    }

    pub fn node(&self, place: Place) -> &TreeNode {
        &self.nodes[place]
    }

    pub fn node_mut(&mut self, place: Place) -> &mut TreeNode {
        &mut self.nodes[place]
    }

    /// Number of places, those that are free included.
    pub const fn places(&self) -> usize {
        self.nodes.len()
    }

    /// Number of groups in it.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn place_of(&self, id: u64) -> Option<Place> {
        self.by_id.get(&id).copied()
    }

    /// The path of a group with the mount point before it.
    pub fn full_path(&self, place: Place) -> String {
        match self.nodes[place].path.as_str() {
            "/" if self.root.is_empty() => "/".into(),
            "/" => self.root.clone(),
            path if path.starts_with('#') => path.to_owned(),
            path => format!("{}{path}", self.root),
        }
    }

    /// Begins a tick at this time.
    pub fn begin(&mut self, now: f64) {
        self.now = now;
        self.tick += 1;
    }

    /// Adds a group, or nothing where it is known. No two share a place, whatever their names are. One with too
    /// long a path has its number instead, as the agent does it.
    pub fn add(&mut self, id: u64, path: &str) {
        if self.by_id.contains_key(&id) {
            return;
        }
        let mut below = match path.strip_prefix(&self.root).unwrap_or(path) {
            "" => "/".to_owned(),
            long if long.len() > LONGEST_PATH => format!("#{id}"),
            below => below.to_owned(),
        };
        let mut place = self.place_at(&below);
        while let Some(other) = self.nodes[place].id {
            if below.contains(char::REPLACEMENT_CHARACTER) {
                // Names that differ only in what is not text. A user may have given a group this one, too.
                below += &format!("#{id}");
            } else {
                // The other's directory was made anew, which may be seen before its removal is.
                self.remove(other);
            }
            place = self.place_at(&below);
        }
        self.nodes[place].id = Some(id);
        self.by_id.insert(id, place);
    }

    /// The place of a path, made with those above it where it is not there.
    fn place_at(&mut self, path: &str) -> Place {
        // A loop, since a tree may be deeper than the stack.
        let (mut missing, mut above) = (Vec::new(), path);
        let mut place = loop {
            if let Some(&place) = self.by_path.get(above) {
                break place;
            }
            missing.push(above);
            match above.rsplit_once('/') {
                Some((parent, _)) if !parent.is_empty() => above = parent,
                _ => break ROOT,
            }
        };
        while let Some(path) = missing.pop() {
            place = self.place_below(place, path);
        }
        place
    }

    /// Makes the place of a path below the one of its parent.
    fn place_below(&mut self, parent: Place, path: &str) -> Place {
        let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
        let node = TreeNode {
            name: printable(name).into_owned(),
            path: path.to_owned(),
            parent,
            position: self.nodes[parent].children.len(),
            matches: is_match(path, &self.filter),
            ..TreeNode::default()
        };
        let place = match self.free.pop() {
            Some(place) => {
                self.nodes[place] = node;
                place
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        };
        self.nodes[parent].children.push(place);
        self.by_path.insert(path.to_owned(), place);
        self.edition += 1;
        place
    }

    /// Removes a group, and what only stood above it.
    pub fn remove(&mut self, id: u64) {
        let Some(mut place) = self.by_id.remove(&id) else { return };
        let node = &mut self.nodes[place];
        let kept = TreeNode {
            name: std::mem::take(&mut node.name),
            path: std::mem::take(&mut node.path),
            children: std::mem::take(&mut node.children),
            parent: node.parent,
            position: node.position,
            is_collapsed: node.is_collapsed,
            matches: node.matches,
            ..TreeNode::default()
        };
        *node = kept;
        while place != ROOT && self.nodes[place].id.is_none() && self.nodes[place].children.is_empty() {
            let TreeNode { parent, position, path, .. } = std::mem::take(&mut self.nodes[place]);
            self.by_path.remove(&path);
            self.nodes[parent].children.swap_remove(position);
            if let Some(&moved) = self.nodes[parent].children.get(position) {
                self.nodes[moved].position = position;
            }
            self.free.push(place);
            self.edition += 1;
            place = parent;
        }
    }

    /// Removes all groups that `is_there` does not hold for.
    pub fn retain(&mut self, is_there: impl Fn(u64) -> bool) {
        let gone: Vec<_> = self.by_id.keys().copied().filter(|id| !is_there(*id)).collect();
        gone.into_iter().for_each(|id| self.remove(id));
    }

    /// Notes usage as of now; until `since` it was as before.
    pub fn set_usage(&mut self, id: u64, bytes: u64, since: f64) {
        let (now, tick) = (self.now, self.tick);
        if let Some(node) = self.by_id.get(&id).and_then(|place| self.nodes.get_mut(*place)) {
            node.usage = Some(bytes);
            node.growth.sample(bytes, since, now);
            node.history.set(bytes, tick);
        }
    }

    pub fn set_limit(&mut self, id: u64, limit: Option<u64>) {
        if let Some(&place) = self.by_id.get(&id) {
            self.nodes[place].limit = limit;
        }
    }

    pub fn set_registrations(&mut self, id: u64, count: u64) {
        if let Some(&place) = self.by_id.get(&id) {
            self.nodes[place].registrations = count;
        }
    }

    /// Notes a group's counts of events: what they have grown by is an event of now.
    pub fn set_counts(&mut self, place: Place, counts: OomCounts) {
        let now = self.now;
        let node = &mut self.nodes[place];
        let Some(before) = node.counts.replace(counts) else { return };
        let (kills, ooms) =
            (counts.oom_kill.saturating_sub(before.oom_kill), counts.oom.saturating_sub(before.oom));
        let (name, what) = match (kills, ooms) {
            (0, 0) => return,
            (0, ooms) => ("oom", format!("out of memory, {ooms} times")),
            (1, _) => ("kill", "1 process killed, out of memory".to_owned()),
            (kills, _) => ("kill", format!("{kills} processes killed, out of memory")),
        };
        node.event = Some((now, name));
        let text = format!("{}: {what}", printable(&node.path));
        self.recent.push_front(PastEvent { time: now, text });
        self.recent.truncate(RECENT);
    }

    /// Sets what paths must contain; upper and lower case are the same.
    pub fn set_filter(&mut self, filter: &str) {
        self.filter = filter.to_lowercase();
        for node in &mut self.nodes {
            node.matches = is_match(&node.path, &self.filter);
        }
    }

    pub fn filter(&self) -> &str {
        &self.filter
    }
}

/// Whether a path contains a text in lower case.
pub fn is_match(path: &str, text: &str) -> bool {
    text.is_empty() || path.to_lowercase().contains(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::{Model, OomCounts, Place, ROOT};

    fn paths(model: &Model) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut waiting = vec![ROOT];
        while let Some(place) = waiting.pop() {
            let node = model.node(place);
            if node.id.is_some() {
                found.insert(node.path.clone());
            }
            for child in &node.children {
                assert_eq!(model.node(*child).parent, place);
            }
            waiting.extend(&node.children);
        }
        found
    }

    #[test]
    fn a_child_may_come_before_its_parent_and_stay_after_it() {
        let mut model = Model::new("/sys/fs/cgroup");
        model.add(2, "/sys/fs/cgroup/a/b");
        model.add(1, "/sys/fs/cgroup/a");
        assert_eq!(model.node(model.place_of(2).expect("there")).parent, model.place_of(1).expect("there"));
        model.remove(1);
        assert_eq!(paths(&model), BTreeSet::from(["/a/b".to_owned()]));
        model.remove(2);
        assert!(model.node(ROOT).children.is_empty() && model.by_path.len() == 1);
        model.add(7, "/sys/fs/cgroup");
        assert_eq!(model.place_of(7), Some(ROOT));
    }

    #[test]
    fn names_that_look_alike_are_two_groups() {
        let mut model = Model::new("/cg");
        model.add(1, "/cg/\u{fffd}");
        model.add(2, "/cg/\u{fffd}");
        model.set_usage(1, 10, 0.0);
        model.set_usage(2, 20, 0.0);
        let usage = |id| model.node(model.place_of(id).expect("there")).usage;
        assert_eq!((usage(1), usage(2)), (Some(10), Some(20)));
    }

    #[test]
    fn a_group_that_was_made_anew_takes_the_path_of_the_one_before() {
        let mut model = Model::new("/cg");
        model.add(1, "/cg/x.service");
        model.add(2, "/cg/x.service");
        let place = model.place_of(2).expect("there");
        assert_eq!((model.place_of(1), model.full_path(place).as_str()), (None, "/cg/x.service"));
        // The end of the one before is seen now.
        model.remove(1);
        assert_eq!(paths(&model), BTreeSet::from(["/x.service".to_owned()]));
    }

    #[test]
    fn a_name_that_another_group_would_be_given_takes_nothing_off_the_screen() {
        let mut model = Model::new("/cg");
        model.add(1, "/cg/\u{fffd}");
        model.add(9, "/cg/\u{fffd}#2");
        model.add(2, "/cg/\u{fffd}");
        model.add(3, "/cg/system.slice");
        assert_eq!(paths(&model).len(), 4, "each has a place");
        for id in [9, 2, 1] {
            model.remove(id);
        }
        assert_eq!(paths(&model), BTreeSet::from(["/system.slice".to_owned()]));
    }

    #[test]
    fn a_tree_may_be_deeper_than_the_stack_and_a_path_not_longer_than_any() {
        let mut model = Model::new("/cg");
        let place = model.place_at(&"/a".repeat(5000));
        let upwards = |place: &Place| (*place != ROOT).then(|| model.node(*place).parent);
        assert_eq!(std::iter::successors(Some(place), upwards).count(), 5001);
        let mut model = Model::new("/cg");
        model.add(7, &format!("/cg{}", "/a".repeat(3000)));
        assert_eq!(paths(&model), BTreeSet::from(["#7".to_owned()]));
    }

    #[test]
    fn counts_that_grow_are_events() {
        let mut model = Model::new("/cg");
        model.add(1, "/cg/a\u{1b}");
        let place = model.place_of(1).expect("there");
        model.set_counts(place, OomCounts { oom: 4, oom_kill: 2 });
        assert!(model.recent.is_empty());
        model.set_counts(place, OomCounts { oom: 5, oom_kill: 3 });
        assert_eq!(model.recent[0].text, "/a\\x1b: 1 process killed, out of memory");
        model.set_counts(place, OomCounts { oom: 7, oom_kill: 3 });
        assert_eq!(model.recent[0].text, "/a\\x1b: out of memory, 2 times");
    }

    proptest! {
        #[test]
        fn every_group_has_a_place_of_its_own(steps in prop::collection::vec((0..8u64, 0..6usize, any::<bool>()), 0..100)) {
            const NAMES: [&str; 6] =
                ["/a", "/a/b", "/\u{fffd}", "/\u{fffd}#1", "/\u{fffd}#1#1", "/\u{fffd}/b"];
            let mut model = Model::new("");
            for (id, name, comes) in steps {
                if comes { model.add(id, NAMES[name]); } else { model.remove(id); }
                for (id, place) in &model.by_id {
                    prop_assert_eq!(model.node(*place).id, Some(*id));
                }
                prop_assert_eq!(paths(&model).len(), model.len());
            }
            model.retain(|_| false);
            prop_assert_eq!((model.by_path.len(), model.node(ROOT).children.len()), (1, 0));
        }

        #[test]
        fn groups_come_and_go_in_any_order(steps in prop::collection::vec((0..40u64, any::<bool>()), 0..200)) {
            let name = |id: u64| format!("/{}/{}{}", id % 3, id % 5, if id >= 15 { format!("/{id}") } else { String::new() });
            let (mut model, mut expected) = (Model::new(""), BTreeSet::new());
            for (id, comes) in steps {
                if comes { model.add(id, &name(id)); expected.insert(name(id)); }
                else { model.remove(id); expected.remove(&name(id)); }
                prop_assert_eq!(paths(&model), expected.clone());
            }
            model.retain(|_| false);
            prop_assert_eq!(model.by_path.len(), 1);
        }
    }
}
