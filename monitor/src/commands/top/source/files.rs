//! The groups' files, for hosts without an agent and users whom it does not admit. All of them are
//! read once; after that the visible groups at each tick, and a share of the others, so that the cost
//! does not grow with their number.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    fs::{self, File},
    io::Read as _,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use memcg_monitor::cgroup::{Hierarchy, Version};

use crate::commands::top::model::{Model, Place};

/// Groups beside the visible ones that are read at each tick.
const SHARE: usize = 100;

/// Bytes from which a limit counts as none, as v1 writes it.
const NO_LIMIT: u64 = 1 << 50;

/// Reads the hierarchy's files.
#[derive(Debug)]
pub struct FileSource {
    root: PathBuf,
    version: Version,
    known: HashMap<u64, Known>,
    /// Groups in the order in which their turns come.
    turns: VecDeque<u64>,
}

/// A group that was read before.
#[derive(Debug)]
struct Known {
    path: PathBuf,
    /// Hard links of the directory: two, and one for each directory in it.
    links: u64,
    /// Time of the last reading; `None` before the first.
    read: Option<f64>,
}

impl FileSource {
    pub fn new(hierarchy: &Hierarchy) -> Self {
        let Hierarchy { root, version } = hierarchy.clone();
        Self { root, version, known: HashMap::new(), turns: VecDeque::new() }
    }

    /// Forgets all groups: the next renewal reads everything.
    pub fn forget(&mut self) {
        self.known.clear();
        self.turns.clear();
    }

    /// Reads everything at first, then the groups at `visible` and a share of the others.
    ///
    /// # Errors
    /// The hierarchy's root cannot be read.
    pub fn renew(&mut self, model: &mut Model, visible: &[Place]) -> Result<()> {
        let root = fs::metadata(&self.root).with_context(|| format!("stat {}", self.root.display()))?;
        if self.known.is_empty() {
            self.meet(model, root.ino(), self.root.clone());
            let there: HashSet<_> = self.known.keys().copied().collect();
            model.retain(|id| there.contains(&id));
            return Ok(());
        }
        let mut visible: Vec<_> = visible.iter().filter_map(|place| model.node(*place).id).collect();
        visible.push(root.ino());
        visible.iter().for_each(|id| self.visit(model, *id, false));
        for _ in 0..SHARE.min(self.turns.len()) {
            let Some(id) = self.turns.pop_front() else { break };
            self.visit(model, id, true);
            if self.known.contains_key(&id) {
                self.turns.push_back(id);
            }
        }
        Ok(())
    }

    /// Adds a directory and all below it.
    fn meet(&mut self, model: &mut Model, id: u64, path: PathBuf) {
        let mut waiting = vec![(id, path)];
        while let Some((id, path)) = waiting.pop() {
            if let Entry::Vacant(place) = self.known.entry(id) {
                place.insert(Known { path: path.clone(), links: 0, read: None });
                self.turns.push_back(id);
                self.read(model, id);
                waiting.extend(self.children(id, &path));
            }
        }
    }

    /// Reads a group, and looks for new groups in it: in its turn in any case, else if their number has
    /// changed.
    fn visit(&mut self, model: &mut Model, id: u64, is_turn: bool) {
        let Some(known) = self.known.get(&id) else { return };
        let (path, links) = (known.path.clone(), known.links);
        match fs::metadata(&path) {
            Ok(found) if found.ino() == id => {
                self.read(model, id);
                if found.nlink() != links || (is_turn && links != 2) {
                    for (child, path) in self.children(id, &path) {
                        self.meet(model, child, path);
                    }
                }
            }
            _ => {
                self.known.remove(&id);
                model.remove(id);
            }
        }
    }

    /// The directories in a directory.
    fn children(&mut self, id: u64, path: &Path) -> Vec<(u64, PathBuf)> {
        if let (Some(known), Ok(found)) = (self.known.get_mut(&id), fs::metadata(path)) {
            known.links = found.nlink();
            if found.nlink() == 2 {
                return Vec::new();
            }
        }
        let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
        let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.map(|entry| (entry.ino(), entry.path())).collect()
    }

    fn read(&mut self, model: &mut Model, id: u64) {
        let Some(known) = self.known.get_mut(&id) else { return };
        // A visible group whose turn comes at this tick as well.
        if known.read == Some(model.now) {
            return;
        }
        let limit_file = match self.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        // The root of v2, and a group without the controller, have no such file.
        let Some(usage) = number(&known.path, self.version.usage_file()) else { return };
        model.add(id, &known.path.to_string_lossy());
        model.set_limit(id, number(&known.path, limit_file).filter(|bytes| *bytes < NO_LIMIT));
        model.set_usage(id, usage, known.read.unwrap_or(model.now));
        known.read = Some(model.now);
    }
}

fn number(directory: &Path, name: &str) -> Option<u64> {
    let mut bytes = [0; 32];
    let length = File::open(directory.join(name)).ok()?.read(&mut bytes).ok()?;
    std::str::from_utf8(&bytes[..length]).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use memcg_monitor::cgroup::{Hierarchy, Version};

    use super::{FileSource, SHARE};
    use crate::commands::top::model::{Model, ROOT};

    fn group(path: &Path, usage: u64, limit: &str) {
        fs::create_dir_all(path).expect("a directory");
        fs::write(path.join("memory.current"), format!("{usage}\n")).expect("a file");
        fs::write(path.join("memory.max"), format!("{limit}\n")).expect("a file");
    }

    fn renewed(source: &mut FileSource, model: &mut Model, now: f64) {
        model.begin(now);
        source.renew(model, &[ROOT]).expect("a directory");
    }

    #[test]
    fn groups_are_found_read_and_lost() {
        let root = tempfile::tempdir().expect("a directory");
        let hierarchy = Hierarchy { version: Version::V2, root: root.path().to_owned() };
        group(&root.path().join("a"), 4096, "max");
        group(&root.path().join("a/b"), 8192, "65536");
        let mut model = Model::new(&root.path().to_string_lossy());
        let mut source = FileSource::new(&hierarchy);
        renewed(&mut source, &mut model, 0.0);
        let usage = |model: &Model, path: &str| {
            let all = (0..model.places()).map(|place| model.node(place));
            let mut found = all
                .filter(|node| node.path == path && node.id.is_some())
                .map(|node| (node.usage, node.limit));
            found.next_back()
        };
        assert_eq!(usage(&model, "/a"), Some((Some(4096), None)));
        assert_eq!(usage(&model, "/a/b"), Some((Some(8192), Some(65_536))));
        assert_eq!(model.len(), 2);
        group(&root.path().join("c"), 1, "2");
        group(&root.path().join("a/b"), 12_288, "max");
        renewed(&mut source, &mut model, 1.0);
        assert_eq!(usage(&model, "/c"), Some((Some(1), Some(2))));
        assert_eq!(usage(&model, "/a/b"), Some((Some(12_288), None)));
        fs::remove_dir_all(root.path().join("a")).expect("a directory");
        renewed(&mut source, &mut model, 2.0);
        assert_eq!((usage(&model, "/a"), usage(&model, "/a/b"), model.len()), (None, None, 1));
    }

    #[test]
    fn a_group_that_was_made_anew_between_two_ticks_keeps_its_path() {
        let directory = tempfile::tempdir().expect("a directory");
        let (root, beside) = (directory.path().join("cgroup"), directory.path().join("beside"));
        group(&root.join("x.service"), 4096, "max");
        // Made before the other is removed, so that it has another number.
        group(&beside, 8192, "max");
        let mut source = FileSource::new(&Hierarchy { version: Version::V2, root: root.clone() });
        let mut model = Model::new(&root.to_string_lossy());
        renewed(&mut source, &mut model, 0.0);
        fs::remove_dir_all(root.join("x.service")).expect("a directory");
        fs::rename(beside, root.join("x.service")).expect("a directory");
        for now in [1.0, 2.0] {
            renewed(&mut source, &mut model, now);
            let all = (0..model.places()).map(|place| model.node(place)).filter(|node| node.id.is_some());
            let found: Vec<_> = all.map(|node| (node.path.as_str(), node.usage)).collect();
            assert_eq!(found, [("/x.service", Some(8192))], "{now}");
        }
    }

    #[test]
    fn growth_of_visible_groups_is_known_from_the_second_tick_on() {
        let root = tempfile::tempdir().expect("a directory");
        let hierarchy = Hierarchy { version: Version::V2, root: root.path().to_owned() };
        let mut model = Model::new(&root.path().to_string_lossy());
        let mut source = FileSource::new(&hierarchy);
        for tick in 0..4u32 {
            group(&root.path().join("a"), (1 << 20) * u64::from(tick), "max");
            model.begin(f64::from(tick));
            let visible: Vec<_> = (0..model.places()).collect();
            source.renew(&mut model, &visible).expect("a directory");
        }
        let place = (0..model.places()).find(|place| model.node(*place).path == "/a").expect("a group");
        let growth = model.node(place).growth.at(3.0).expect("four readings");
        assert!((growth - f64::from(1 << 20)).abs() < 1.0, "{growth}");
        // Two readings at one tick: what has changed is seen at the next.
        for usage in [4 << 20, 0] {
            group(&root.path().join("a"), usage, "max");
            model.now = 4.0;
            source.renew(&mut model, &[place, place]).expect("a directory");
        }
        assert_eq!(model.node(place).usage, Some(4 << 20));
    }

    #[test]
    fn a_tick_reads_a_share_whatever_the_number_of_groups() {
        let root = tempfile::tempdir().expect("a directory");
        let hierarchy = Hierarchy { version: Version::V2, root: root.path().to_owned() };
        for number in 0..3 * SHARE {
            group(&root.path().join(format!("g{number}")), 4096, "max");
        }
        let mut model = Model::new(&root.path().to_string_lossy());
        let mut source = FileSource::new(&hierarchy);
        renewed(&mut source, &mut model, 0.0);
        assert_eq!(model.len(), 3 * SHARE);
        for number in 0..3 * SHARE {
            group(&root.path().join(format!("g{number}")), 8192, "max");
        }
        let renewals = |model: &Model| {
            (0..model.places()).filter(|place| model.node(*place).usage == Some(8192)).count()
        };
        renewed(&mut source, &mut model, 1.0);
        // One of the turns is the root's.
        assert!((SHARE - 1..=SHARE).contains(&renewals(&model)), "{}", renewals(&model));
        for tick in 2..5 {
            renewed(&mut source, &mut model, f64::from(tick));
        }
        assert_eq!(renewals(&model), 3 * SHARE);
    }
}
