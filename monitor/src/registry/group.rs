//! A group with registrations: their triggers, and their eventfds.

use monitor_common::{
    grammar::{
        control_file::{ControlFile, Trigger},
        pressure::{Pressure, PressureMode, Propagation},
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
    anon: ThresholdSet,
    /// Registrations other than thresholds; none in most groups.
    others: Option<Box<Others>>,
}

#[derive(Debug, Default)]
struct Others {
    oom: Dense<Subscriber>,
    pressure: Dense<(Pressure, Subscriber)>,
    empty: Dense<Subscriber>,
    /// The numbers of registrations for pressure, by their arguments ([`place_of`]).
    pressures: [usize; PRESSURES],
}

/// Different arguments that a registration for pressure may have.
const PRESSURES: usize = Level::ALL.len() * PressureMode::ALL.len();

const fn place_of(pressure: Pressure) -> usize {
    pressure.level as usize * PressureMode::ALL.len() + pressure.mode as usize
}

impl Others {
    const fn len(&self) -> usize {
        self.oom.len() + self.pressure.len() + self.empty.len()
    }

    fn add_pressure(&mut self, pressure: Pressure, to: Subscriber) {
        self.pressure.push((pressure, to));
        self.pressures[place_of(pressure)] += 1;
    }

    /// Takes registrations for pressure out.
    fn take_pressure(
        &mut self,
        take: impl FnOnce(&mut Dense<(Pressure, Subscriber)>) -> Vec<(Pressure, Subscriber)>,
    ) -> impl Iterator<Item = Subscriber> {
        let taken = take(&mut self.pressure);
        for (pressure, _) in &taken {
            self.pressures[place_of(*pressure)] -= 1;
        }
        taken.into_iter().map(|(_, to)| to)
    }
}

impl Group {
    pub(super) fn new(id: GroupId) -> Self {
        Self {
            id,
            memory: ThresholdSet::default(),
            sum: ThresholdSet::default(),
            working_set: ThresholdSet::default(),
            anon: ThresholdSet::default(),
            others: None,
        }
    }

    /// The thresholds on a control file's quantity: memory, memory+swap, the
    /// working set or what is not reclaimable.
    #[must_use]
    pub const fn scale(&self, file: ControlFile) -> &ThresholdSet {
        match file {
            ControlFile::Memsw => &self.sum,
            ControlFile::WorkingSet => &self.working_set,
            ControlFile::Anon => &self.anon,
            _ => &self.memory,
        }
    }

    /// The thresholds on a control file's quantity, for changes.
    pub const fn scale_mut(&mut self, file: ControlFile) -> &mut ThresholdSet {
        match file {
            ControlFile::Memsw => &mut self.sum,
            ControlFile::WorkingSet => &mut self.working_set,
            ControlFile::Anon => &mut self.anon,
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
            Trigger::Pressure(pressure) => others.get_or_insert_default().add_pressure(pressure, to),
            Trigger::Empty => drop(others.get_or_insert_default().empty.push(to)),
        }
    }

    /// Takes out up to `most` registrations of an eventfd. Costs what it takes.
    pub(super) fn take_file(&mut self, file: FileId, most: usize) -> Vec<Subscriber> {
        let mut taken = Vec::new();
        if let Some(others) = &mut self.others {
            taken.extend(others.oom.take_file(file, most));
            let room = most - taken.len();
            taken.extend(others.take_pressure(|list| list.take_file(file, room).collect()));
            let room = most - taken.len();
            taken.extend(others.empty.take_file(file, room));
        }
        for scale in [&mut self.memory, &mut self.sum, &mut self.working_set, &mut self.anon] {
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
            taken.extend(others.take_pressure(|list| list.take_last(room).collect()));
            let room = most - taken.len();
            taken.extend(others.empty.take_last(room));
        }
        for scale in [&mut self.memory, &mut self.sum, &mut self.working_set, &mut self.anon] {
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
        self.scales().iter().all(|scale| scale.is_empty()) && self.others.is_none()
    }

    /// The number of registrations on the group.
    #[must_use]
    pub fn len(&self) -> u64 {
        (self.scales().iter().map(|scale| scale.len()).sum::<usize>() + self.others()) as u64
    }

    fn others(&self) -> usize {
        self.others.as_ref().map_or(0, |others| others.len())
    }

    /// The number of registrations for OOM.
    #[must_use]
    pub fn ooms(&self) -> usize {
        self.others.as_ref().map_or(0, |others| others.oom.len())
    }

    /// The number of registrations for the group's becoming empty.
    #[must_use]
    pub fn empties(&self) -> usize {
        self.others.as_ref().map_or(0, |others| others.empty.len())
    }

    /// The numbers of registrations for reclaim pressure by their arguments, where there are any.
    pub fn pressures(&self) -> impl Iterator<Item = (Pressure, usize)> {
        let all = Level::ALL
            .into_iter()
            .flat_map(|level| PressureMode::ALL.into_iter().map(move |mode| Pressure { level, mode }));
        let count =
            move |pressure| self.others.as_ref().map_or(0, |others| others.pressures[place_of(pressure)]);
        all.map(move |pressure| (pressure, count(pressure))).filter(|(_, count)| *count > 0)
    }

    /// The numbers of registrations for OOM, pressure, emptiness, a percentage, the working set,
    /// memory+swap, and what is not reclaimable.
    pub(super) fn kinds(&self) -> [usize; 7] {
        let percents = self.percents();
        let [oom, pressure, empty] = self
            .others
            .as_ref()
            .map_or([0; 3], |others| [others.oom.len(), others.pressure.len(), others.empty.len()]);
        [oom, pressure, empty, percents, self.working_set.len(), self.sum.len(), self.anon.len()]
    }

    /// The thresholds on each quantity, as in [`ControlFile::QUANTITIES`].
    fn scales(&self) -> [&ThresholdSet; 4] {
        ControlFile::QUANTITIES.map(|file| self.scale(file))
    }

    fn percents(&self) -> usize {
        self.scales().iter().map(|scale| scale.percents()).sum()
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
        let is_told = |listener| window.deliver(listener, level);
        let count: usize =
            self.pressures().filter(|(listener, _)| is_told(*listener)).map(|(_, count)| count).sum();
        let mut targets = Vec::with_capacity(count);
        if count > 0 {
            targets.extend(self.pressure().filter(|(listener, _)| is_told(*listener)).map(|(_, to)| to));
        }
        targets
    }
}
