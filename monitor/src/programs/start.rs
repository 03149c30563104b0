//! The start of the programs: those that are pinned, if they are the same; else new ones, which
//! take over from them.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::Path,
    sync::{Arc, atomic::AtomicU64},
};

use monitor_common::protocol::{
    band::give_back,
    query::Query,
    slot::{SCHEMA, SlotState},
    word::Word as _,
};
use monitor_sys::table::{SharedScratch, Table};
use nix::time::{ClockId, clock_gettime};

use crate::{
    error::{Error, Result},
    kernel::{self, Facts, Features, HOOKS, Hook, Plan},
    logging::FromPrograms,
    programs::{
        Doorbells, Identity, Programs, ROOT_ID, TableSizes,
        error::PredecessorError,
        handles::{Handles, Maps, for_pinning, open_shared},
        load::{ProgramKind, follow_log, load_all, load_object, log_of},
        pins::{OlderPins, Pins},
        predecessor::Predecessor,
    },
    source::{Slots as _, Source},
};

/// The state of the pins at start.
enum Pinned {
    /// Nothing, or nothing of use.
    Nothing,
    /// The programs of this build and these sizes.
    Same(Box<(Maps, Handles)>),
    /// Programs of another build or size.
    Others,
}

/// The reason why an attempt to load and attach failed.
#[derive(Debug)]
enum Failed {
    /// A failure at one program.
    At(&'static Hook, Error),
    /// A failure at something that all programs need.
    Else(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Else(error)
    }
}

/// Makes attempts, each without the programs that failed before, until one succeeds: a hook that
/// is not required may be in the kernel's types and yet not be there to attach to (inlined,
/// renamed by the compiler, on a list of functions not to trace), or be refused by the verifier.
fn what_works<T>(mut attempt: impl FnMut(&[&'static str]) -> std::result::Result<T, Failed>) -> Result<T> {
    let mut refused = Vec::new();
    loop {
        match attempt(&refused) {
            Ok(done) => return Ok(done),
            Err(Failed::At(hook, error)) if !hook.required && !refused.contains(&hook.program) => {
                log::warn!("{error}; the agent continues without it, and cannot observe: {}", hook.purpose);
                refused.push(hook.program);
            }
            Err(Failed::At(_, error) | Failed::Else(error)) => return Err(error),
        }
    }
}

impl Programs {
    /// Goes on with the programs that are pinned, if they are of this build and of these sizes;
    /// else loads and attaches new ones. When this returns, every change of every counter is
    /// seen; groups that existed before still have to be enumerated, their bands to be published,
    /// and then [`Source::take_over`] called. The pins are taken where it succeeds.
    ///
    /// # Errors
    /// The error says what the host lacks and what to do.
    pub fn start(v1: bool, sizes: TableSizes, pins: &mut Option<Pins>) -> Result<(Self, Doorbells)> {
        let anew = |error: &Error| log::warn!("{error}; loading the programs anew");
        let present = pins.as_ref().filter(|pins| pins.are_complete()).map(Pins::present);
        let found = present.as_deref().map_or(Pinned::Nothing, |directory| {
            look_at(directory, v1, sizes).inspect_err(anew).unwrap_or(Pinned::Others)
        });
        let mut before = pins.as_ref().map(Pins::older).unwrap_or_default();
        if matches!(found, Pinned::Others) {
            before.extend(present.map(|path| OlderPins { schema: SCHEMA, path }));
        }
        let predecessors = before.into_iter().filter_map(|older| opened(&older)).collect();
        let (mut programs, ring) = match found {
            Pinned::Same(parts) => Self::adopt(sizes, *parts, pins.as_ref())?,
            _ => Self::load(ProgramKind::Trampoline, v1, sizes, pins.is_some())?,
        };
        (programs.pins, programs.predecessors) = (pins.take(), predecessors);
        Ok((programs, ring))
    }

    /// Loads and attaches kprobes, for kernels without BPF trampolines. They are not pinned: while
    /// there is no agent nothing is seen, and the next one reads everything once more.
    ///
    /// # Errors
    /// The error says what the host lacks and what to do.
    pub fn start_kprobes(v1: bool, sizes: TableSizes) -> Result<(Self, Doorbells)> {
        Self::load(ProgramKind::Kprobe, v1, sizes, false)
    }

    fn adopt(
        sizes: TableSizes,
        (maps, handles): (Maps, Handles),
        pins: Option<&Pins>,
    ) -> Result<(Self, Doorbells)> {
        if let Some(pins) = pins {
            log_of(Handles::logging(&pins.present()));
        }
        let (programs, ring) = Self::new(sizes, maps, handles)?;
        // A record that the earlier agent took, and did not live to count.
        programs.answer_cell()?.victims.set(0);
        programs.query(Query::WHO_AM_I, 0, 0)?;
        programs.try_eventfd()?;
        log::debug!("continuing with the pinned programs");
        Ok((programs, ring))
    }

    fn load(kind: ProgramKind, v1: bool, sizes: TableSizes, to_be_pinned: bool) -> Result<(Self, Doorbells)> {
        let facts = Facts::gather(v1)?;
        let (mut programs, ring) = what_works(|refused| {
            let plan = Plan::decide(&facts, refused)?;
            Self::attempt(kind, &plan, v1, sizes, to_be_pinned)
        })?;
        programs.try_eventfd()?;
        if let Some(Handles::Loaded { ebpf, .. }) = &mut programs.handles
            && let Err(error) = aya_log::EbpfLogger::init_with_logger(ebpf, FromPrograms).map(follow_log)
        {
            log::debug!("no log from the programs: {error}");
        }
        Ok((programs, ring))
    }

    fn attempt(
        kind: ProgramKind,
        plan: &Plan,
        v1: bool,
        sizes: TableSizes,
        to_be_pinned: bool,
    ) -> std::result::Result<(Self, Doorbells), Failed> {
        let mut ebpf = load_object(kind, plan, sizes)?;
        let hooks: Vec<&Hook> =
            HOOKS.iter().filter(|hook| kind.has(hook) && plan.hooks.contains(&hook.program)).collect();
        load_all(&mut ebpf, plan, &hooks).map_err(|(hook, error)| match hook {
            Some(hook) => Failed::At(hook, error),
            None => Failed::Else(error),
        })?;
        let unpinned = if to_be_pinned { for_pinning(&ebpf)? } else { Vec::new() };
        let maps = Maps::of(&mut ebpf, sizes)?;
        prepare(&maps, sizes);
        describe(&maps.scratch, v1, sizes, plan);
        // The answering program is loaded, not attached: so it answers before the others.
        let handles = Handles::Loaded { ebpf: Box::new(ebpf), links: Vec::new() };
        let (mut programs, ring) = Self::new(sizes, maps, handles)?;
        programs.kind = kind;
        programs.query(Query::WHO_AM_I, 0, 0)?;
        programs.query(Query::NEW_EPOCH, now(), 0)?;
        let attached = programs.handles.as_mut().map_or(Ok(()), |handles| handles.attach(&hooks));
        attached.map_err(|(hook, error)| Failed::At(hook, error))?;
        programs.unpinned = unpinned;
        Ok((programs, ring))
    }

    fn new(sizes: TableSizes, maps: Maps, handles: Handles) -> Result<(Self, Doorbells)> {
        let ask = handles.query_descriptor()?;
        let Maps { slots, scratch, tallies, files, thread_marks, boxes, ring } = maps;
        let plan = scratch.get(0).map_or(0, |cell| cell.plan.get());
        let programs = Self {
            attached: handles.attached(),
            handles: Some(handles),
            identity: Identity::new(Arc::clone(&slots), Arc::clone(&scratch), sizes.groups, ask),
            slots,
            scratch,
            tallies,
            files,
            thread_marks,
            boxes,
            silent: Default::default(),
            kind: ProgramKind::Trampoline,
            sweeps: AtomicU64::new(0),
            band_shift: (plan & 0xff) as u32,
            features: Features::from_bits(plan >> 8 & 0xff),
            pins: None,
            unpinned: Vec::new(),
            predecessors: Vec::new(),
        };
        Ok((programs, Doorbells(ring)))
    }

    /// Pins new programs, takes over what the programs that they replace have seen, and lets
    /// those go; to be called once the groups are known, and their bands published. If this agent
    /// is killed before the last step, the next one takes over from both.
    pub(super) fn replace(&mut self, wanted: u64) {
        self.pin();
        let predecessors = std::mem::take(&mut self.predecessors);
        // From now on these programs count, and the earlier ones no longer.
        predecessors.iter().for_each(Predecessor::stop_counting);
        self.want(wanted);
        self.take_from(&predecessors);
        if let Some(pins) = &self.pins {
            pins.remove_older();
        }
        // Readings of runs that were under way when their bands were taken away.
        self.take_from(&predecessors);
    }

    fn pin(&mut self) {
        let unpinned = std::mem::take(&mut self.unpinned);
        let (false, Some(pins)) = (unpinned.is_empty(), &self.pins) else { return };
        let Some(mut handles) = self.handles.take() else { return };
        let outcome = pins.replace(|directory| handles.pin(directory, &unpinned));
        match outcome.and_then(|()| Handles::open(&pins.present())) {
            Ok(pinned) => handles = pinned,
            Err(error) => {
                log::warn!("{error}; nothing is seen while there is no agent");
                pins.clear();
                self.pins = None;
                // Programs pinned already have gone with their pins.
                let hooks: Vec<_> = HOOKS.iter().filter(|hook| handles.has(hook)).collect();
                if let Err((_, error)) = handles.attach(&hooks) {
                    log::error!("{error}");
                }
            }
        }
        self.attached = handles.attached();
        self.handles = Some(handles);
    }

    /// Moves what the tables of earlier programs hold to the groups' slots here.
    fn take_from(&self, predecessors: &[Predecessor]) {
        if predecessors.is_empty() {
            return;
        }
        let here = self.groups_by_id();
        for tables in predecessors {
            tables.take(|cgroup_id, seen| {
                if let Some(slot) = here.get(&cgroup_id).and_then(|group| self.slot(group.slot)) {
                    give_back(slot, seen);
                }
            });
        }
    }

    /// The number that distinguishes these maps from others.
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

/// Prepares the last slot, which is the root's; the programs take the others as they need them.
fn prepare(maps: &Maps, sizes: TableSizes) {
    if let Some(root) = maps.slots.get(sizes.groups as usize) {
        root.recycle();
        root.parent.set(monitor_common::protocol::slot::PARENT_ROOT);
        root.cgroup_id.set(ROOT_ID);
        root.mark(SlotState::ONLINE);
    }
}

/// Describes these programs in the answer cell, for the next agent.
fn describe(scratch: &Table<SharedScratch>, v1: bool, sizes: TableSizes, plan: &Plan) {
    let Some(cell) = scratch.get(0) else { return };
    cell.build.set(build(v1));
    cell.instance.set(now());
    cell.sizes.set(sizes.word());
    cell.ring.set(sizes.ring.into());
    cell.plan.set(u64::from(plan.band_shift) | plan.features.bits() << 8);
}

/// Reads what is pinned in `directory`, and opens it if it is the same.
fn look_at(directory: &Path, v1: bool, sizes: TableSizes) -> Result<Pinned> {
    let scratch: Table<SharedScratch> = open_shared(directory, "SCRATCH", 1)?;
    let cell = scratch.get(0).ok_or(PredecessorError::NoAnswerCell)?;
    let are_these = cell.build.get() == build(v1)
        && cell.sizes.get() == sizes.word()
        && cell.ring.get() == u64::from(sizes.ring);
    if are_these {
        return Ok(Pinned::Same(Box::new((Maps::open(directory, sizes)?, Handles::open(directory)?))));
    }
    log::info!("the pinned programs are of another build or size: replacing them");
    Ok(Pinned::Others)
}

/// Opens the tables of older pins, if they can be read.
fn opened(older: &OlderPins) -> Option<Predecessor> {
    let OlderPins { schema, path: directory } = older;
    let unread = |error: &Error| {
        log::warn!(
            "{error}; crossings that the programs of layout {schema} saw while there was no agent are lost, except conditions that last"
        );
    };
    Predecessor::open(directory, *schema).inspect_err(unread).ok()
}

/// A hash of the object, and of what the agent decides for it beside the kernel's own types,
/// which do not change before the next boot.
fn build(v1: bool) -> u64 {
    let mut hasher = DefaultHasher::new();
    (ProgramKind::Trampoline.object(), v1, env!("CARGO_PKG_VERSION"), kernel::absent()).hash(&mut hasher);
    hasher.finish()
}

/// Nanoseconds since the boot.
fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    time.map_or(1, |time| u64::try_from(time.as_nanos()).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::{Failed, what_works};
    use crate::{
        error::Error,
        kernel::{HOOKS, Hook},
        programs::error::ObjectError,
    };

    fn refusal() -> Error {
        ObjectError::NoProgram("refused").into()
    }

    fn hook(program: &str) -> &'static Hook {
        HOOKS.iter().find(|hook| hook.program == program).expect("a hook")
    }

    /// Returns an attempt at which the kernel refuses these programs.
    fn refuses(
        programs: &'static [&str],
    ) -> impl FnMut(&[&'static str]) -> Result<Vec<&'static str>, Failed> {
        move |refused| {
            let tried = HOOKS.iter().filter(|hook| !refused.contains(&hook.program));
            match tried.clone().find(|hook| programs.contains(&hook.program)) {
                Some(hook) => Err(Failed::At(hook, refusal())),
                None => Ok(tried.map(|hook| hook.program).collect()),
            }
        }
    }

    #[test]
    fn what_is_not_required_is_done_without() {
        let left = what_works(refuses(&["populated", "oom_victim"])).expect("neither is required");
        assert_eq!(left.len(), HOOKS.len() - 2);
        assert!(!left.contains(&"populated") && !left.contains(&"oom_victim"));
        assert!(!hook("populated").required && hook("try_charge_1").required);
        assert!(what_works(refuses(&["populated", "try_charge_1"])).is_err());
    }

    #[test]
    fn what_fails_although_it_is_left_out_ends_it() {
        let stubborn = what_works(|_| Err::<(), _>(Failed::At(hook("populated"), refusal())));
        assert!(stubborn.is_err());
    }
}
