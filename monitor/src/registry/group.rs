//! A group that somebody waits for: for what, and on which eventfds.

use std::collections::BTreeMap;

use monitor_common::{
    control::{ControlFile, Wish},
    pressure::{Level, Pressure, Propagation},
};

use crate::{
    registry::{Registration, scale::Scale},
    source::{FileId, GroupId},
    vault::Ticket,
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
    oom: Vec<(FileId, Ticket)>,
    pressure: Vec<(Pressure, FileId, Ticket)>,
    empty: Vec<(FileId, Ticket)>,
}

impl Others {
    const fn len(&self) -> usize {
        self.oom.len() + self.pressure.len() + self.empty.len()
    }

    fn all(&self) -> impl Iterator<Item = (FileId, Ticket)> {
        let pressure = self.pressure.iter().map(|(_, file, ticket)| (*file, *ticket));
        self.oom.iter().chain(&self.empty).copied().chain(pressure)
    }
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

    pub(super) fn add(&mut self, registration: &Registration, now: u64, limit: u64) {
        let Registration { on, wish, file, ticket, .. } = *registration;
        match wish {
            Wish::Threshold(threshold) => self.scale_mut(on).add(now, threshold, limit, registration),
            Wish::Oom => self.others.get_or_insert_default().oom.push((file, ticket)),
            Wish::Pressure(pressure) => {
                self.others.get_or_insert_default().pressure.push((pressure, file, ticket));
            }
            Wish::Empty => self.others.get_or_insert_default().empty.push((file, ticket)),
        }
    }

    /// Forgets all of an eventfd's; where they were recorded.
    pub(super) fn remove_file(&mut self, file: FileId) -> Vec<Ticket> {
        let mut gone = Vec::new();
        if let Some(others) = &mut self.others {
            gone.extend(others.all().filter(|(held, _)| *held == file).map(|(_, ticket)| ticket));
            others.oom.retain(|(held, _)| *held != file);
            others.pressure.retain(|(_, held, _)| *held != file);
            others.empty.retain(|(held, _)| *held != file);
        }
        if self.others() == 0 {
            self.others = None;
        }
        for scale in [&mut self.memory, &mut self.sum, &mut self.working_set] {
            gone.extend(scale.remove_file(file));
        }
        gone
    }

    /// Each eventfd, with where its registrations are recorded.
    pub(super) fn tickets(&self) -> BTreeMap<FileId, Vec<Ticket>> {
        let mut tickets: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let scales = [&self.memory, &self.sum, &self.working_set];
        let others = self.others.iter().flat_map(|others| others.all());
        for (file, ticket) in scales.into_iter().flat_map(Scale::tickets).chain(others) {
            tickets.entry(file).or_default().push(ticket);
        }
        tickets
    }

    /// Whether nobody waits here any more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.sum.is_empty() && self.working_set.is_empty() && self.others.is_none()
    }

    /// Number of registrations.
    #[must_use]
    pub fn len(&self) -> u64 {
        (self.memory.len() + self.sum.len() + self.working_set.len() + self.others()) as u64
    }

    fn others(&self) -> usize {
        self.others.as_ref().map_or(0, |others| others.len())
    }

    /// How many wait for OOM, pressure, emptiness, a percentage, and the working set.
    pub(super) fn kinds(&self) -> [usize; 5] {
        let percents = self.percents();
        let [oom, pressure, empty] = self
            .others
            .as_ref()
            .map_or([0; 3], |others| [others.oom.len(), others.pressure.len(), others.empty.len()]);
        [oom, pressure, empty, percents, self.working_set.len()]
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
    pub fn oom(&self) -> impl Iterator<Item = FileId> {
        self.others.iter().flat_map(|others| &others.oom).map(|(file, _)| *file)
    }

    /// Who waits for reclaim pressure.
    pub fn pressure(&self) -> impl Iterator<Item = (Pressure, FileId)> {
        self.others.iter().flat_map(|others| &others.pressure).map(|(wish, file, _)| (*wish, *file))
    }

    /// Who waits for the group to become empty.
    pub fn empty(&self) -> impl Iterator<Item = FileId> {
        self.others.iter().flat_map(|others| &others.empty).map(|(file, _)| *file)
    }

    /// Who hears of one window of reclaim on its way up, which is here now.
    #[must_use]
    pub fn hearers(&self, window: Propagation, level: Level) -> Vec<FileId> {
        self.pressure()
            .filter(|(listener, _)| window.deliver(*listener, level))
            .map(|(_, file)| file)
            .collect()
    }
}
