//! A group with registrations: their triggers, and their eventfds.

use monitor_common::{
    grammar::{
        control_file::{ControlFile, Trigger},
        pressure::{Pressure, Propagation},
    },
    protocol::pressure::Level,
};

use crate::{
    registry::{Subscriber, Subscription, dense::Dense, thresholds::ThresholdSet},
    source::{FileId, GroupId},
};

/// All registrations on one group.
#[derive(Debug)]
pub struct Group {
    /// The group's slot and generation.
    pub id: GroupId,
    memory: ThresholdSet,
    sum: ThresholdSet,
    working_set: ThresholdSet,
    /// Registrations other than thresholds; none in most groups.
    others: Option<Box<Others>>,
}

#[derive(Debug, Default)]
struct Others {
    oom: Dense<Subscriber>,
    pressure: Dense<(Pressure, Subscriber)>,
    empty: Dense<Subscriber>,
}

impl Others {
    const fn len(&self) -> usize {
        self.oom.len() + self.pressure.len() + self.empty.len()
    }
}

impl Group {
    pub(super) fn new(id: GroupId) -> Self {
        Self {
            id,
            memory: ThresholdSet::default(),
            sum: ThresholdSet::default(),
            working_set: ThresholdSet::default(),
            others: None,
        }
    }

    /// The thresholds on a control file's quantity: memory, memory+swap or the
    /// working set.
    #[must_use]
    pub const fn scale(&self, file: ControlFile) -> &ThresholdSet {
        match file {
            ControlFile::Memsw => &self.sum,
            ControlFile::WorkingSet => &self.working_set,
            _ => &self.memory,
        }
    }

    /// The thresholds on a control file's quantity, for changes.
    pub const fn scale_mut(&mut self, file: ControlFile) -> &mut ThresholdSet {
        match file {
            ControlFile::Memsw => &mut self.sum,
            ControlFile::WorkingSet => &mut self.working_set,
            _ => &mut self.memory,
        }
    }

    pub(super) fn add(&mut self, to: Subscriber, registration: &Subscription, now: u64, limit: u64) {
        let others = &mut self.others;
        match registration.trigger {
            Trigger::Threshold(threshold) => {
                self.scale_mut(registration.on).add(now, threshold, limit, to, registration.above);
            }
            Trigger::Oom => drop(others.get_or_insert_default().oom.push(to)),
            Trigger::Pressure(pressure) => drop(others.get_or_insert_default().pressure.push((pressure, to))),
            Trigger::Empty => drop(others.get_or_insert_default().empty.push(to)),
        }
    }

    /// Takes out up to `most` registrations of an eventfd. Costs what it takes.
    pub(super) fn take_file(&mut self, file: FileId, most: usize) -> Vec<Subscriber> {
        let mut taken = Vec::new();
        if let Some(others) = &mut self.others {
            taken.extend(others.oom.take_file(file, most));
            let room = most - taken.len();
            taken.extend(others.pressure.take_file(file, room).map(|(_, to)| to));
            let room = most - taken.len();
            taken.extend(others.empty.take_file(file, room));
        }
        for scale in [&mut self.memory, &mut self.sum, &mut self.working_set] {
            let room = most - taken.len();
            taken.extend(scale.take_file(file, room));
        }
        self.drop_empty();
        taken
    }

    /// Takes out up to `most` registrations of any eventfd. Costs what it takes.
    pub(super) fn take_last(&mut self, most: usize) -> Vec<Subscriber> {
        let mut taken = Vec::new();
        if let Some(others) = &mut self.others {
            taken.extend(others.oom.take_last(most));
            let room = most - taken.len();
            taken.extend(others.pressure.take_last(room).map(|(_, to)| to));
            let room = most - taken.len();
            taken.extend(others.empty.take_last(room));
        }
        for scale in [&mut self.memory, &mut self.sum, &mut self.working_set] {
            let room = most - taken.len();
            taken.extend(scale.take_last(room));
        }
        self.drop_empty();
        taken
    }

    fn drop_empty(&mut self) {
        if self.others() == 0 {
            self.others = None;
        }
    }

    /// Whether the group has no registrations any more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.sum.is_empty() && self.working_set.is_empty() && self.others.is_none()
    }

    /// The number of registrations on the group.
    #[must_use]
    pub fn len(&self) -> u64 {
        (self.memory.len() + self.sum.len() + self.working_set.len() + self.others()) as u64
    }

    fn others(&self) -> usize {
        self.others.as_ref().map_or(0, |others| others.len())
    }

    /// The numbers of registrations for OOM, pressure, emptiness, a percentage, the working set,
    /// and memory+swap.
    pub(super) fn kinds(&self) -> [usize; 6] {
        let percents = self.percents();
        let [oom, pressure, empty] = self
            .others
            .as_ref()
            .map_or([0; 3], |others| [others.oom.len(), others.pressure.len(), others.empty.len()]);
        [oom, pressure, empty, percents, self.working_set.len(), self.sum.len()]
    }

    fn percents(&self) -> usize {
        self.memory.percents() + self.sum.percents() + self.working_set.percents()
    }

    /// Registrations for OOM, each once.
    pub fn oom(&self) -> impl Iterator<Item = Subscriber> {
        self.others.iter().flat_map(|others| others.oom.iter()).copied()
    }

    /// Registrations for reclaim pressure, each with its mode.
    pub fn pressure(&self) -> impl Iterator<Item = (Pressure, Subscriber)> {
        self.others.iter().flat_map(|others| others.pressure.iter()).copied()
    }

    /// Registrations for the group's becoming empty.
    pub fn empty(&self) -> impl Iterator<Item = Subscriber> {
        self.others.iter().flat_map(|others| others.empty.iter()).copied()
    }

    /// Registrations that are signalled for one window of reclaim, which is at this group on its
    /// way up.
    #[must_use]
    pub fn pressure_targets(&self, window: Propagation, level: Level) -> Vec<Subscriber> {
        self.pressure().filter(|(listener, _)| window.deliver(*listener, level)).map(|(_, to)| to).collect()
    }
}
