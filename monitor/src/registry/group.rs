//! A group that somebody waits for: for what, and on which eventfds.

use std::collections::BTreeMap;

use monitor_common::{
    control::{ControlFile, Wish},
    pressure::{Level, Pressure, Propagation},
};

use crate::{
    registry::scale::Scale,
    source::{FileId, GroupId},
};

/// All that is registered on one group.
#[derive(Debug)]
pub struct Group {
    /// Which.
    pub id: GroupId,
    memory: Scale,
    sum: Scale,
    working_set: Scale,
    /// None in most groups: who waits for something else than a threshold.
    others: Option<Box<Others>>,
}

#[derive(Debug, Default)]
struct Others {
    oom: Vec<FileId>,
    pressure: Vec<(Pressure, FileId)>,
    empty: Vec<FileId>,
}

impl Group {
    pub(super) fn new(id: GroupId) -> Self {
        Self {
            id,
            memory: Scale::default(),
            sum: Scale::default(),
            working_set: Scale::default(),
            others: None,
        }
    }

    /// The thresholds on a control file's quantity: memory, memory+swap or the
    /// working set.
    #[must_use]
    pub const fn scale(&self, file: ControlFile) -> &Scale {
        match file {
            ControlFile::Memsw => &self.sum,
            ControlFile::WorkingSet => &self.working_set,
            _ => &self.memory,
        }
    }

    /// The same, to be changed.
    pub const fn scale_mut(&mut self, file: ControlFile) -> &mut Scale {
        match file {
            ControlFile::Memsw => &mut self.sum,
            ControlFile::WorkingSet => &mut self.working_set,
            _ => &mut self.memory,
        }
    }

    pub(super) fn add(&mut self, on: ControlFile, wish: Wish, file: FileId, now: u64, limit: u64) {
        match wish {
            Wish::Threshold(threshold) => self.scale_mut(on).add(now, threshold, limit, file),
            Wish::Oom => self.others.get_or_insert_default().oom.push(file),
            Wish::Pressure(pressure) => {
                self.others.get_or_insert_default().pressure.push((pressure, file));
            }
            Wish::Empty => self.others.get_or_insert_default().empty.push(file),
        }
    }

    /// Forgets all of an eventfd's; how many there were.
    pub(super) fn remove_file(&mut self, file: FileId) -> u64 {
        let before = self.others();
        if let Some(others) = &mut self.others {
            others.oom.retain(|held| *held != file);
            others.pressure.retain(|(_, held)| *held != file);
            others.empty.retain(|held| *held != file);
        }
        if self.others() == 0 {
            self.others = None;
        }
        (before - self.others()) as u64
            + self.memory.remove_file(file)
            + self.sum.remove_file(file)
            + self.working_set.remove_file(file)
    }

    /// Each eventfd with its number of registrations.
    pub(super) fn counts(&self) -> BTreeMap<FileId, u32> {
        let mut counts = BTreeMap::new();
        let scales = [&self.memory, &self.sum, &self.working_set];
        let files = scales
            .into_iter()
            .flat_map(Scale::files)
            .chain(self.oom().iter().copied())
            .chain(self.pressure().iter().map(|(_, file)| *file))
            .chain(self.empty().iter().copied());
        for file in files {
            *counts.entry(file).or_default() += 1;
        }
        counts
    }

    /// Whether nobody waits here any more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.sum.is_empty() && self.working_set.is_empty() && self.others.is_none()
    }

    fn others(&self) -> usize {
        self.oom().len() + self.pressure().len() + self.empty().len()
    }

    /// How many wait for OOM, pressure, emptiness, a percentage, and the working set.
    pub(super) fn kinds(&self) -> [usize; 5] {
        let percents = self.percents();
        [self.oom().len(), self.pressure().len(), self.empty().len(), percents, self.working_set.len()]
    }

    fn percents(&self) -> usize {
        self.memory.percents() + self.sum.percents() + self.working_set.percents()
    }

    /// Whether a threshold here is in percent of the limit.
    #[must_use]
    pub fn follows_limit(&self) -> bool {
        self.percents() > 0
    }

    /// Who waits for OOM, once for each registration.
    #[must_use]
    pub fn oom(&self) -> &[FileId] {
        self.others.as_ref().map_or(&[], |others| &others.oom)
    }

    /// Who waits for reclaim pressure.
    #[must_use]
    pub fn pressure(&self) -> &[(Pressure, FileId)] {
        self.others.as_ref().map_or(&[], |others| &others.pressure)
    }

    /// Who waits for the group to become empty.
    #[must_use]
    pub fn empty(&self) -> &[FileId] {
        self.others.as_ref().map_or(&[], |others| &others.empty)
    }

    /// Who hears of one window of reclaim on its way up, which is here now.
    #[must_use]
    pub fn hearers(&self, window: Propagation, level: Level) -> Vec<FileId> {
        self.pressure()
            .iter()
            .filter(|(listener, _)| window.deliver(*listener, level))
            .map(|(_, file)| *file)
            .collect()
    }
}
