//! The recorded groups: which have a box, and what is noted of each.

mod scope;
mod unnamed;
mod without_box;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use monitor_common::protocol::word::Word as _;

use self::{
    scope::{KillGroup, KillScope},
    unnamed::Unnamed,
    without_box::WithoutBox,
};
use crate::{
    backend::Backend,
    black_box::{KillEntry, RecordReason, Recording},
    boxes::BoxTables,
    cgroup::{Hierarchy, handle::Directories},
    metrics::Pattern,
    printable::printable,
    recorder::{
        FileStore, files,
        history::{NotedKill, RecordedGroup},
        kept::KeptNotes,
        need::{self, Fill},
    },
    source::{GroupId, Identify, Slots as _, Source as _},
    watcher::{Cause, Event, SharedWatcher, monotonic},
};

/// Time for which a group that is gone keeps its box: its kill may be heard of later.
const KEPT_AFTER: Duration = Duration::from_secs(30);
/// Groups without a box that are looked at in a second.
const LOOKED_AT: usize = 64;
/// Looks at the recorded groups between two looks at all groups.
const FIND_EVERY: u32 = 10;

/// All that is recorded, and with what.
pub(super) struct Groups {
    watcher: SharedWatcher<Box<dyn Backend>>,
    /// The table, which is read as a whole without the watcher.
    table: Box<dyn Identify>,
    directories: Arc<Directories>,
    hierarchy: Hierarchy,
    boxes: Arc<BoxTables>,
    store: FileStore,
    patterns: Vec<Pattern>,
    /// Whether no program records.
    samples: bool,
    /// The groups, by the numbers of their boxes.
    recorded: HashMap<usize, RecordedGroup>,
    /// Groups that no pattern is for, or that are beside a root that is a group.
    passed_over: HashSet<u64>,
    without_box: WithoutBox,
    /// Notes that outlive the agent, where anything does.
    kept: Option<KeptNotes>,
    /// The box whose notes are looked at next.
    next_kept: usize,
    unnamed: Unnamed,
    ticks: u32,
    /// The id from which on groups without a box are placed next.
    next_placed: u64,
    origin: files::Origin,
}

impl Groups {
    pub(super) fn new(
        (watcher, table): (SharedWatcher<Box<dyn Backend>>, Box<dyn Identify>),
        directories: Arc<Directories>,
        hierarchy: Hierarchy,
        boxes: Arc<BoxTables>,
        (store, patterns, samples, kept): (FileStore, Vec<Pattern>, bool, Option<KeptNotes>),
    ) -> Self {
        let (recorded, passed_over, without_box) = Default::default();
        Self {
            watcher,
            table,
            directories,
            hierarchy,
            boxes,
            store,
            patterns,
            samples,
            recorded,
            passed_over,
            without_box,
            kept,
            next_kept: 0,
            unnamed: Unnamed::default(),
            ticks: 0,
            next_placed: 0,
            origin: files::Origin::of_this_host(),
        }
    }

    /// Finds the groups that are to be recorded. Boxes of an earlier agent's groups stay, with
    /// their points.
    pub(super) fn find(&mut self) {
        let groups = if self.samples { self.placed() } else { self.table.groups_by_id() };
        if self.recorded.is_empty() {
            let taken: Vec<_> = self.boxes.taken().collect();
            for (number, group, cgroup_id) in taken {
                let notes = self.kept.as_ref().and_then(|kept| kept.get(number, group, cgroup_id));
                match self.path_of(cgroup_id).filter(|_| groups.get(&cgroup_id) == Some(&group)) {
                    Some(path) if self.matches(&path) => self.go_on(number, group, cgroup_id, path, notes),
                    _ => match notes.filter(|notes| notes.header.reason == RecordReason::Oom) {
                        // It went before the file of its kill was written.
                        Some(notes) => {
                            let path = notes.header.group.clone();
                            self.go_on(number, group, cgroup_id, path, Some(notes));
                            let one = self.recorded.get_mut(&number);
                            let _ = one.map(|one| one.gone.get_or_insert_with(Instant::now));
                        }
                        None => self.boxes.end(number),
                    },
                }
            }
        }
        let known: HashSet<u64> = self.recorded.values().map(|one| one.cgroup_id).collect();
        self.passed_over.retain(|id| groups.contains_key(id));
        self.without_box.retain(|id| groups.contains_key(&id));
        let new = groups.into_iter().filter(|(id, _)| !known.contains(id));
        let new: Vec<_> = new.filter(|(id, _)| !self.is_left_out(*id)).collect();
        new.into_iter().for_each(|(id, group)| self.admit(group, id));
    }

    /// The groups that patterns are for, each in a place of the table, which has no others where the
    /// groups' files are read: those that are recorded, as many as there are free boxes for, and in turn
    /// some of those that wait for one. So they leave the table to registrations.
    fn placed(&mut self) -> HashMap<u64, GroupId> {
        let all = self.hierarchy.groups().inspect_err(|error| log::warn!("{error}")).unwrap_or_default();
        let below = |path: &Path| {
            let name = path.strip_prefix(&self.hierarchy.root).ok()?.to_string_lossy().into_owned();
            (!name.is_empty()).then(|| format!("/{name}"))
        };
        let wanted = all.into_iter().filter(|(_, path)| below(path).is_some_and(|path| self.matches(&path)));
        let known: HashSet<u64> = self.recorded.values().map(|one| one.cgroup_id).collect();
        let (mut ids, mut others): (Vec<u64>, Vec<u64>) =
            wanted.map(|(id, _)| id).partition(|id| known.contains(id));
        others.sort_unstable();
        let next = others.partition_point(|id| *id < self.next_placed);
        others.rotate_left(next);
        others.truncate(self.boxes.len().saturating_sub(known.len()) + LOOKED_AT);
        self.next_placed = others.last().map_or(0, |id| id + 1);
        ids.append(&mut others);
        let mut placed = HashMap::new();
        for some in ids.chunks(LOOKED_AT) {
            placed.extend(self.watcher.lock().source().place_groups(&some.iter().copied().collect()));
        }
        placed
    }

    /// Looks at a group that was made.
    pub(super) fn made(&mut self, index: u32) {
        self.look_at_new(index, 0);
    }

    /// Looks at a new group, after so many looks at which it had no name.
    fn look_at_new(&mut self, index: u32, looks: u32) {
        let found = {
            let watcher = self.watcher.lock();
            watcher.source().slot(index).map(|slot| (slot.state(), slot.cgroup_id.get()))
        };
        let Some((state, cgroup_id)) = found.filter(|(state, _)| state.is_live()) else { return };
        let is_known = self.recorded.values().any(|one| one.cgroup_id == cgroup_id);
        if !is_known && self.path_of(cgroup_id).is_none() {
            if self.directories.is_outside(cgroup_id) {
                self.passed_over.insert(cgroup_id);
            } else {
                self.unnamed.add(index, looks);
            }
        } else if !is_known && !self.is_left_out(cgroup_id) {
            self.admit(GroupId { slot: index, generation: state.generation() }, cgroup_id);
        }
    }

    fn is_left_out(&self, cgroup_id: u64) -> bool {
        self.passed_over.contains(&cgroup_id) || self.without_box.has(cgroup_id)
    }

    /// Whether work waits for the next pass, or samples are due.
    pub(super) fn is_busy(&self) -> bool {
        let has_notes = || self.kept.is_some() && self.recorded.values().any(RecordedGroup::has_new);
        self.samples || !self.unnamed.is_empty() || has_notes()
    }

    /// Looks once more at groups that had no name when they were made.
    pub(super) fn name_new(&mut self) {
        self.unnamed.take().into_iter().for_each(|(index, looks)| self.look_at_new(index, looks));
    }

    /// Gives a group a box, if a pattern is for it and there is one.
    fn admit(&mut self, group: GroupId, cgroup_id: u64) {
        let path = self.path_of(cgroup_id);
        if path.as_ref().map_or_else(|| self.directories.is_outside(cgroup_id), |path| !self.matches(path)) {
            self.passed_over.insert(cgroup_id);
            return;
        }
        let Some(path) = path else { return };
        let Some(number) = (0..self.boxes.len()).find(|number| !self.recorded.contains_key(number)) else {
            self.without_box.add(cgroup_id, group);
            log::warn!(
                "{} is not recorded until it is near its limit: all {} boxes are taken (--black-box-groups), {} groups are without one",
                printable(&path),
                self.boxes.len(),
                self.without_box.len()
            );
            return;
        };
        let usage = self.watcher.lock().source().usage(group).ok().flatten();
        let Some(usage) = usage else { return };
        self.boxes.begin(number, group, cgroup_id, usage, monotonic());
        self.go_on(number, group, cgroup_id, path, None);
    }

    /// Gives boxes of groups that are quiet and far from their limits to groups that are near theirs: looks
    /// at some of those that wait.
    fn give_by_need(&mut self) {
        for _ in 0..self.without_box.len().min(LOOKED_AT) {
            let Some((cgroup_id, group)) = self.without_box.take_turn() else { return };
            let Some(fill) = self.fill(group).filter(|fill| fill.is_near()) else { continue };
            // The one whose last point is the oldest.
            let quiet = self.recorded.iter().filter(|(_, one)| one.gone.is_none() && one.due().is_none());
            let quiet =
                quiet.filter_map(|(number, one)| Some((self.boxes.last_at(*number)?, *number, one.group)));
            let Some((last, number, of)) = quiet.min_by_key(|(last, ..)| *last) else { return };
            if !self.fill(of).is_some_and(|fill| need::gives_way(fill, last, monotonic())) {
                return;
            }
            let Some(before) = self.end(number) else { return };
            log::info!(
                "{} is not recorded any more, as it is quiet and far from its limit: {} is at {} % of its own",
                printable(&before.path),
                printable(&self.name(cgroup_id)),
                fill.percent()
            );
            self.without_box.add(before.cgroup_id, before.group);
            self.without_box.remove(cgroup_id);
            self.admit(group, cgroup_id);
        }
    }

    fn fill(&self, group: GroupId) -> Option<Fill> {
        let watcher = self.watcher.lock();
        let usage = watcher.source().usage(group).ok().flatten()?;
        Some(Fill { usage, limit: watcher.effective_limit(group.slot).ok()? })
    }

    /// Takes a group's box away.
    fn end(&mut self, number: usize) -> Option<RecordedGroup> {
        let one = self.recorded.remove(&number)?;
        self.boxes.end(number);
        let ended = self.watcher.lock().set_recorded(one.group, one.cgroup_id, false);
        let _ = ended.inspect_err(|error| log::error!("{error}"));
        Some(one)
    }

    /// Keeps new notes for the next agent, on so many groups at most.
    pub(super) fn keep_notes(&mut self, most: usize) {
        let Some(kept) = &self.kept else { return };
        let boxes = self.boxes.len();
        let mut room = most;
        for number in (self.next_kept..boxes).chain(0..self.next_kept.min(boxes)) {
            let Some(one) = self.recorded.get_mut(&number) else { continue };
            if let Some(notes) = one.take_new() {
                kept.put(number, one.group, notes);
                room -= 1;
            }
            if room == 0 {
                self.next_kept = number + 1;
                return;
            }
        }
    }

    /// Records a group that has a box, and goes on with an earlier agent's notes on it.
    fn go_on(
        &mut self,
        number: usize,
        group: GroupId,
        cgroup_id: u64,
        path: String,
        notes: Option<Recording>,
    ) {
        let is_there = self.watcher.lock().set_recorded(group, cgroup_id, true);
        match is_there {
            Ok(true) => log::debug!("recording {}", printable(&path)),
            Ok(false) => {}
            Err(error) => log::error!("{error}"),
        }
        let mut one = RecordedGroup::new(group, cgroup_id, path);
        if let Some(notes) = notes {
            one.go_on_with(notes);
        }
        self.recorded.insert(number, one);
        self.refresh_one(number);
    }

    /// The path of a group below the hierarchy's root.
    fn path_of(&self, cgroup_id: u64) -> Option<String> {
        let path = self.directories.path_of(cgroup_id)?;
        let below = path.strip_prefix(&self.hierarchy.root).ok()?.to_string_lossy().into_owned();
        (!below.is_empty()).then(|| format!("/{below}"))
    }

    fn matches(&self, path: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(path))
    }

    /// The name of a group: its path, or its id where it is gone.
    fn name(&self, cgroup_id: u64) -> String {
        let known = self.recorded.values().find(|one| one.cgroup_id == cgroup_id);
        let known = known.map(|one| one.path.clone());
        if cgroup_id == self.directories.root_id() {
            return "/".to_owned();
        }
        known.or_else(|| self.path_of(cgroup_id)).unwrap_or_else(|| format!("#{cgroup_id}"))
    }

    /// Looks at limits, and whether groups are gone; from time to time at all groups.
    pub(super) fn refresh(&mut self) {
        let numbers: Vec<usize> = self.recorded.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.refresh_one(number));
        let over =
            |one: &RecordedGroup| one.due().is_none() && one.gone.is_some_and(|at| at.elapsed() > KEPT_AFTER);
        let over: Vec<usize> =
            self.recorded.iter().filter(|(_, one)| over(one)).map(|(number, _)| *number).collect();
        for number in &over {
            self.end(*number);
        }
        if over.is_empty() {
            self.give_by_need();
        } else {
            // Those that had found none may have one now.
            self.without_box.clear();
        }
        self.ticks += 1;
        if !over.is_empty() || self.ticks.is_multiple_of(FIND_EVERY) {
            self.find();
        }
    }

    /// Reads a group's usage, which makes up for charges that no program saw, and its limit.
    fn refresh_one(&mut self, number: usize) {
        let Some(one) = self.recorded.get_mut(&number) else { return };
        if one.gone.is_some() {
            return;
        }
        let (usage, limit) = {
            let watcher = self.watcher.lock();
            (watcher.source().usage(one.group), watcher.effective_limit(one.group.slot))
        };
        match (usage, limit) {
            (Ok(Some(usage)), Ok(limit)) => {
                let now = monotonic();
                one.note_limit(now, limit);
                self.boxes.set_limit(number, limit);
                self.boxes.record(number, now, usage);
            }
            (Ok(None), _) => one.gone = Some(Instant::now()),
            (Err(error), _) | (_, Err(error)) => log::warn!("{error}"),
        }
    }

    /// Records readings, where no program does.
    pub(super) fn sample(&self) {
        if !self.samples {
            return;
        }
        for (number, one) in self.recorded.iter().filter(|(_, one)| one.gone.is_none()) {
            if let Ok(Some(usage)) = self.watcher.lock().source().usage(one.group) {
                self.boxes.record(*number, monotonic(), usage);
            }
        }
    }

    /// Notes what the watcher has told.
    pub(super) fn heard(&mut self, at: u64, event: &Event) {
        let ((limit_of, limit), (victim_group, victim), reason, process) = match &event.cause {
            Cause::OomKill(kill) => {
                let (groups, id) = (kill.groups(), kill.victim.bell.value);
                // The groups may be gone, and known by what the kernel logged alone.
                let victim = groups.cgroup.clone().filter(|_| id == 0).unwrap_or_else(|| self.name(id));
                let limit = kill.limit.map(|limit| self.name(limit)).or_else(|| groups.limit.clone());
                ((limit, kill.limit), (victim, id), kill.reason, Some(Arc::clone(kill)))
            }
            Cause::GroupKill { limit, victim, reason } => {
                ((limit.map(|id| self.name(id)), *limit), (self.name(*victim), *victim), *reason, None)
            }
            _ => {
                // The name of a group above is looked up before the group is borrowed.
                let above = match event.cause {
                    Cause::Oom { limit } => self.name(limit),
                    _ => String::new(),
                };
                let of_it = self.recorded.values_mut().find(|one| one.cgroup_id == event.cgroup_id);
                if let Some(one) = of_it {
                    one.note_signal(at, event, |_| above.clone());
                }
                return;
            }
        };
        let entry = KillEntry {
            at,
            whole_group: Some(process.is_none()),
            limit_of: limit_of.clone(),
            victim_group: Some(victim_group.clone()),
            ..KillEntry::default()
        };
        let limit = limit_of.as_deref().map(|path| KillGroup { path, cgroup_id: limit.unwrap_or(0) });
        let scope = KillScope::new(KillGroup { path: &victim_group, cgroup_id: victim }, limit, reason);
        for one in self.recorded.values_mut() {
            if scope.has(one) {
                one.note_kill(NotedKill { entry: entry.clone(), process: process.clone() });
            }
        }
    }

    /// When the next file is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.recorded.values().filter_map(RecordedGroup::due).min()
    }

    /// Writes the files that are due by then ([`RecordedGroup::is_due`]).
    pub(super) fn write_due(&mut self, by: Option<Instant>) {
        let due = self.recorded.iter().filter(|(_, one)| one.is_due(by));
        let due: Vec<usize> = due.map(|(number, _)| *number).collect();
        for number in due {
            if let Err(why) = self.write(number, RecordReason::Oom) {
                log::error!("no file of the black box: {why}");
            }
        }
    }

    /// Writes a file of a group now, which somebody requested.
    pub(super) fn record(&mut self, cgroup_id: u64) -> Result<PathBuf, String> {
        // A group that is new may not have been found yet.
        let number = self.number_of(cgroup_id).or_else(|| {
            self.find();
            self.number_of(cgroup_id)
        });
        let number = number.ok_or_else(|| self.why_not(cgroup_id))?;
        self.refresh_one(number);
        self.write(number, RecordReason::Request)
    }

    /// The reason why a group has no box.
    fn why_not(&self, cgroup_id: u64) -> String {
        if cgroup_id == self.directories.root_id() {
            return "/ is not recorded: the root group has no usage of its own; name a group below it"
                .to_owned();
        }
        let Some(path) = self.path_of(cgroup_id) else {
            return format!(
                "no group has the number {cgroup_id} (the inode of its directory), or none any more"
            );
        };
        let path = printable(&path).into_owned();
        if self.without_box.has(cgroup_id) {
            format!("{path} is not recorded: all {} boxes are taken (--black-box-groups)", self.boxes.len())
        } else {
            format!("{path} is not recorded: no --black-box pattern of the agent is for it, or it is new")
        }
    }

    fn number_of(&self, cgroup_id: u64) -> Option<usize> {
        self.recorded.iter().find(|(_, one)| one.cgroup_id == cgroup_id).map(|(number, _)| *number)
    }

    fn write(&mut self, number: usize, reason: RecordReason) -> Result<PathBuf, String> {
        let Some(one) = self.recorded.get_mut(&number) else { return Err("not recorded".to_owned()) };
        let recording = files::recording(&self.watcher, &self.boxes, &self.origin, (number, one), reason);
        one.note_written(reason);
        let (path, removed) = self.store.write(&recording).map_err(|error| error.to_string())?;
        log::info!("the black box of {} is in {}", printable(&one.path), path.display());
        if removed > 0 {
            log::info!("{removed} older files of the black box gave way (--black-box-files)");
        }
        Ok(path)
    }
}
