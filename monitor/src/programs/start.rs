//! How an agent gets its programs: those that are pinned, if they are the same; else new
//! ones, which take over from them.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::Path,
    sync::Arc,
};

use monitor_common::{
    ask::Ask,
    band::{Excursion, Seen, give_back},
    slot::State,
    word::Word as _,
};
use nix::time::{ClockId, clock_gettime};

use crate::{
    error::{Error, Result},
    kernel::{Facts, HOOKS, Hook, Offers, Plan},
    logging::FromPrograms,
    programs::{
        Doorbells, Identity, Programs, ROOT_ID, Sizes,
        held::{Held, Maps, for_pinning, open_scratch, open_slots},
        load::{OBJECT, follow_log, load_all, load_object, log_of},
        pins::Pins,
    },
    source::{Slots as _, Source as _},
    table::{SharedScratch, SharedSlot, Table},
};

/// The tables of programs that are to be replaced.
pub(super) struct Before {
    slots: Table<SharedSlot>,
    scratch: Table<SharedScratch>,
}

/// What is pinned.
enum Pinned {
    /// Nothing, or nothing of use.
    Nothing,
    /// These very programs.
    Same,
    /// Others of the same layout.
    Others(Before),
}

impl Programs {
    /// Goes on with the programs that are pinned, if they are of this build and of these
    /// sizes; else loads and attaches them. When this returns, every change of every
    /// counter is seen; groups that existed before still have to be called, and then
    /// [`Programs::settle`].
    ///
    /// # Errors
    /// Says what the host lacks and what to do.
    pub fn start(v1: bool, sizes: Sizes, pins: Option<Pins>) -> Result<(Self, Doorbells)> {
        let found = match pins.as_ref().filter(|pins| pins.are_complete()) {
            Some(pins) => look_at(&pins.present(), v1, sizes).unwrap_or_else(|error| {
                log::warn!("{error}; loading the programs anew");
                Pinned::Nothing
            }),
            None => Pinned::Nothing,
        };
        match (found, pins) {
            (Pinned::Same, Some(pins)) => Self::adopt(sizes, pins),
            (Pinned::Others(before), pins) => Self::load(v1, sizes, pins, Some(before)),
            (_, pins) => Self::load(v1, sizes, pins, None),
        }
    }

    fn adopt(sizes: Sizes, pins: Pins) -> Result<(Self, Doorbells)> {
        let folder = pins.present();
        let (maps, held) = (Maps::open(&folder, sizes)?, Held::open(&folder)?);
        log_of(Held::logging(&folder));
        let (programs, ring) = Self::new(sizes, maps, held, Some(pins));
        programs.ask(Ask::WHO_AM_I, 0, 0)?;
        programs.try_eventfd()?;
        log::debug!("going on with the programs that are pinned in {}", folder.display());
        Ok((programs, ring))
    }

    fn load(v1: bool, sizes: Sizes, pins: Option<Pins>, before: Option<Before>) -> Result<(Self, Doorbells)> {
        let plan = Plan::decide(&Facts::gather(v1)?)?;
        let mut ebpf = load_object(&plan, sizes)?;
        if let Err(error) = aya_log::EbpfLogger::init_with_logger(&mut ebpf, FromPrograms).map(follow_log) {
            log::debug!("no log from the programs: {error}");
        }
        let hooks: Vec<&Hook> = HOOKS.iter().filter(|hook| plan.hooks.contains(&hook.program)).collect();
        load_all(&mut ebpf, &plan, &hooks)?;
        let unpinned = if pins.is_some() { for_pinning(&ebpf)? } else { Vec::new() };
        let maps = Maps::of(&mut ebpf, sizes)?;
        prepare(&maps, sizes);
        describe(&maps.scratch, v1, sizes, &plan);
        // The answering program is loaded, not attached: so it answers before the rest.
        let held = Held::Loaded { ebpf: Box::new(ebpf), links: Vec::new() };
        let (mut programs, ring) = Self::new(sizes, maps, held, pins);
        programs.ask(Ask::WHO_AM_I, 0, 0)?;
        programs.ask(Ask::NEW_EPOCH, now(), 0)?;
        programs.held.as_mut().map_or(Ok(()), |held| held.attach(&hooks))?;
        programs.try_eventfd()?;
        programs.unpinned = unpinned;
        programs.before = before;
        Ok((programs, ring))
    }

    fn new(sizes: Sizes, maps: Maps, held: Held, pins: Option<Pins>) -> (Self, Doorbells) {
        let Maps { slots, scratch, tallies, files, ring } = maps;
        let plan = scratch.get(0).map_or(0, |cell| cell.plan.get());
        let programs = Self {
            charge: held.charge(),
            held: Some(held),
            identity: Identity::new(Arc::clone(&slots), Arc::clone(&scratch), sizes.groups),
            slots,
            scratch,
            tallies,
            files,
            band_shift: (plan & 0xff) as u32,
            offers: Offers::from_bits(plan >> 8 & 0xff),
            pins,
            unpinned: Vec::new(),
            before: None,
        };
        (programs, Doorbells(ring))
    }

    /// All groups are known: pins new programs, lets those go that they replace, and
    /// takes over what those had seen.
    pub fn settle(&mut self) {
        let before = self.before.take();
        // What is counted is counted here from now on, once.
        if let Some(cell) = before.as_ref().and_then(|before| before.scratch.get(0)) {
            self.want(cell.wanted.xchg(0));
        }
        self.pin();
        if let Some(before) = before {
            self.take_over(&before);
        }
    }

    fn pin(&mut self) {
        let unpinned = std::mem::take(&mut self.unpinned);
        let (false, Some(pins)) = (unpinned.is_empty(), &self.pins) else { return };
        let Some(mut held) = self.held.take() else { return };
        let outcome = pins.replace(|folder| held.pin(folder, &unpinned));
        match outcome.and_then(|()| Held::open(&pins.present())) {
            Ok(pinned) => held = pinned,
            Err(error) => {
                log::warn!("{error}; nothing is seen while there is no agent");
                pins.clear();
                self.pins = None;
                // What was pinned already is gone with its pin.
                let hooks: Vec<_> = HOOKS.iter().filter(|hook| held.has(hook)).collect();
                if let Err(error) = held.attach(&hooks) {
                    log::error!("{error}");
                }
            }
        }
        self.charge = held.charge();
        self.held = Some(held);
    }

    /// What charges had left in the tables of the programs that are gone.
    fn take_over(&self, before: &Before) {
        let here = self.groups_by_id();
        for slot in (0..before.slots.len()).filter_map(|index| before.slots.get(index)) {
            if slot.state().has(State::ONLINE)
                && slot.pending.get() != 0
                && let Some(now) = here.get(&slot.cgroup_id.get()).and_then(|group| self.slot(group.slot))
            {
                give_back(now, &left_in(slot));
            }
        }
    }

    /// Tells these maps from others.
    #[must_use]
    pub fn instance(&self) -> u64 {
        self.scratch.get(0).map_or(0, |cell| cell.instance.get())
    }

    /// Detaches everything, pinned or not, when the agent ends for good.
    pub fn detach(&self) {
        if let Some(pins) = &self.pins {
            pins.clear();
        }
    }
}

/// The last slot is the root's; the programs take the others as they need them.
fn prepare(maps: &Maps, sizes: Sizes) {
    if let Some(root) = maps.slots.get(sizes.groups as usize) {
        root.recycle();
        root.parent.set(monitor_common::slot::PARENT_ROOT);
        root.cgroup_id.set(ROOT_ID);
        root.mark(State::ONLINE);
    }
}

/// Says in the answer cell what these programs are, for the next agent.
fn describe(scratch: &Table<SharedScratch>, v1: bool, sizes: Sizes, plan: &Plan) {
    let Some(cell) = scratch.get(0) else { return };
    cell.build.set(build(v1));
    cell.instance.set(now());
    cell.sizes.set(sizes.groups.into());
    cell.ring.set(sizes.ring.into());
    cell.plan.set(u64::from(plan.band_shift) | plan.offers.bits() << 8);
}

/// Looks at what is pinned in `folder`.
fn look_at(folder: &Path, v1: bool, sizes: Sizes) -> Result<Pinned> {
    let scratch = open_scratch(folder)?;
    let cell = scratch.get(0).ok_or_else(|| Error::Host("the pinned answer cell is empty".into()))?;
    let groups = cell.sizes.get();
    let are_these = cell.build.get() == build(v1)
        && groups == u64::from(sizes.groups)
        && cell.ring.get() == u64::from(sizes.ring);
    if are_these {
        return Ok(Pinned::Same);
    }
    log::info!("the programs pinned in {} are of another build or size: replacing them", folder.display());
    let slots = open_slots(folder, u32::try_from(groups).unwrap_or(0))?;
    Ok(Pinned::Others(Before { slots, scratch }))
}

/// A hash of the object, and of what the agent decides for it beside the kernel's own
/// types, which do not change before the next boot.
fn build(v1: bool) -> u64 {
    let mut hasher = DefaultHasher::new();
    (OBJECT, v1, env!("CARGO_PKG_VERSION")).hash(&mut hasher);
    hasher.finish()
}

/// What a slot holds for the agent, which stays there.
fn left_in(slot: &SharedSlot) -> Seen {
    Seen {
        memory: Excursion { min: slot.min_seen.get(), max: slot.max_seen.get() },
        sum: Excursion { min: slot.sum_min_seen.get(), max: slot.sum_max_seen.get() },
        ooms: slot.ooms.get(),
        windows: slot.windows.each_ref().map(monitor_common::word::Word::get),
        windows_below: slot.windows_below.each_ref().map(monitor_common::word::Word::get),
        emptied: slot.emptied.get(),
    }
}

/// Nanoseconds since boot.
fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    time.map_or(1, |time| u64::try_from(time.as_nanos()).unwrap_or(1))
}
