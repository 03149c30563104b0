//! Handles of the programs while they are attached: the object and its links, or only what their
//! pins give when they are opened.

use std::{
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
    path::Path,
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{Map, MapData, RingBuf},
    programs::{FEntry, FExit, ProgramError, RawTracePoint, links::PinnedLink},
};
use monitor_common::protocol::{
    black_box::POINTS,
    oom::OomMark,
    query::{CELLS, Query},
    ring::LossKind,
};
use monitor_sys::table::{MappedLayout, SharedFileRefs, SharedScratch, SharedSlot, Table};

use crate::{
    boxes::BoxTables,
    error::{Error, Result},
    kernel::{HOOKS, Hook, HookKind},
    programs::{
        error::{BpfStep, ObjectError, QueryError},
        load::{HeldLink, attach_hook, saving, way_of},
        pins::MAPS,
        sizes::TableSizes,
    },
};

/// Handles of the attached programs.
pub(super) enum Handles {
    /// Programs that are detached when the links go.
    Loaded { ebpf: Box<Ebpf>, links: Vec<(&'static str, HeldLink)> },
    /// Programs that are detached when their pins go and the agent ends: a pin that is removed
    /// meanwhile detaches nothing.
    Pinned { ask: Box<RawTracePoint>, attached: Vec<(&'static Hook, OwnedFd)>, _links: Vec<PinnedLink> },
}

impl Handles {
    /// Attaches `hooks`, in their order; the error names the one that failed.
    pub(super) fn attach<'a>(&mut self, hooks: &[&'a Hook]) -> std::result::Result<(), (&'a Hook, Error)> {
        let Self::Loaded { ebpf, links } = self else { return Ok(()) };
        links.clear();
        for hook in hooks {
            let attached = attach_hook(ebpf, hook).map_err(|error| {
                let step = BpfStep::Attach { way: way_of(ebpf, hook), function: hook.function };
                (*hook, step.failed(&error).into())
            })?;
            links.extend(attached.into_iter().map(|link| (hook.program, link)));
        }
        Ok(())
    }

    /// Whether the program for `hook` is loaded.
    pub(super) fn has(&self, hook: &Hook) -> bool {
        matches!(self, Self::Loaded { ebpf, .. }
            if ebpf.program(hook.program).is_some_and(|program| program.fd().is_ok()))
    }

    /// Opens the programs that are pinned in `directory`.
    ///
    /// # Errors
    /// One is missing: a program without its link is attached no more.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let at = |name: &str| directory.join(format!("prog-{name}"));
        let no = |error: ProgramError| BpfStep::OpenProgram.failed(&error);
        let attached = HOOKS.iter().filter(|hook| hook.required || at(hook.program).exists());
        let links = attached
            .map(|hook| {
                PinnedLink::from_pin(directory.join(format!("link-{}", hook.program)))
                    .map_err(|error| BpfStep::OpenLink(hook.program).failed(&error))
            })
            .collect::<Result<_, _>>()?;
        let ask = Box::new(RawTracePoint::from_pin(at("ask")).map_err(no)?);
        let attached = HOOKS.iter().filter_map(|hook| {
            let path = at(hook.program);
            // Programs that this kernel does not have are not pinned.
            path.exists().then(|| Ok((hook, open_program(hook, &path).map_err(no)?)))
        });
        let attached = attached.collect::<Result<_>>()?;
        Ok(Self::Pinned { ask, attached, _links: links })
    }

    /// Pins everything below `directory`, the maps last.
    pub(super) fn pin(&mut self, directory: &Path, maps: &[(&'static str, MapData)]) -> Result<()> {
        let Self::Loaded { ebpf, links } = self else { return Ok(()) };
        let no = |error: aya::pin::PinError| BpfStep::Pin.failed(&error);
        for (name, program) in ebpf.programs_mut().filter(|(_, program)| program.fd().is_ok()) {
            program.pin(directory.join(format!("prog-{name}"))).map_err(no)?;
        }
        for (name, link) in links.drain(..) {
            let HeldLink::Pinnable(link) = link else { continue };
            link.pin(directory.join(format!("link-{name}"))).map_err(no)?;
        }
        for (name, map) in maps {
            map.pin(directory.join(format!("map-{name}"))).map_err(no)?;
        }
        Ok(())
    }

    /// The program that answers the agent's queries.
    pub(super) fn query_program(&self) -> Result<&RawTracePoint> {
        match self {
            Self::Pinned { ask, .. } => Ok(ask),
            Self::Loaded { ebpf, .. } => {
                let program = ebpf.program("ask").ok_or(QueryError::NotLoaded)?;
                Ok(program.try_into().map_err(|error: ProgramError| BpfStep::UseAsk.failed(&error))?)
            }
        }
    }

    /// A duplicate of that program's descriptor.
    pub(super) fn query_descriptor(&self) -> Result<OwnedFd> {
        let no = |error: ProgramError| BpfStep::UseAsk.failed(&error);
        let program = self.query_program()?.fd().map_err(no)?;
        Ok(program.as_fd().try_clone_to_owned().map_err(|error| BpfStep::UseAsk.failed(&error))?)
    }

    /// Descriptors of the programs, for the kernel's counts of them.
    pub(super) fn attached(&self) -> Vec<(&'static Hook, RawFd)> {
        match self {
            Self::Pinned { attached, .. } => {
                attached.iter().map(|(hook, fd)| (*hook, fd.as_raw_fd())).collect()
            }
            Self::Loaded { ebpf, .. } => {
                let fd = |name: &str| Some(ebpf.program(name)?.fd().ok()?.as_fd().as_raw_fd());
                let of =
                    |hook: &'static Hook| [fd(hook.program), fd(&saving(hook))].map(|fd| Some((hook, fd?)));
                HOOKS.iter().flat_map(of).flatten().collect()
            }
        }
    }

    /// Calls that each kprobe has missed, by the program of its hook; `None` where there is one of
    /// which the kernel does not report that.
    pub(super) fn probes_missed(&self) -> Option<Vec<(&'static str, u64)>> {
        let Self::Loaded { links, .. } = self else { return None };
        let probes = links.iter().filter(|(_, link)| !matches!(link, HeldLink::Pinnable(_)));
        probes.map(|(program, link)| Some((*program, link.missed()?))).collect()
    }

    /// The id of a program that writes to the programs' log, where they are pinned.
    pub(super) fn logging(directory: &Path) -> Option<u32> {
        Some(FEntry::from_pin(directory.join("prog-css_online")).ok()?.info().ok()?.id())
    }
}

/// Opens the program for `hook` that is pinned at `path`.
fn open_program(hook: &Hook, path: &Path) -> std::result::Result<OwnedFd, ProgramError> {
    let fd = match hook.kind {
        HookKind::Entry => FEntry::from_pin(path)?.fd()?.try_clone(),
        HookKind::Exit => FExit::from_pin(path)?.fd()?.try_clone(),
        HookKind::Tracepoint => RawTracePoint::from_pin(path)?.fd()?.try_clone(),
    };
    fd?.as_fd().try_clone_to_owned().map_err(ProgramError::IOError)
}

/// Whether the hook is one of those on the charge path.
pub(super) fn is_charge(hook: &Hook) -> bool {
    hook.required && hook.function.starts_with("page_counter_")
}

/// The maps, as the agent uses them.
pub(super) struct Maps {
    pub(super) slots: Arc<Table<SharedSlot>>,
    pub(super) scratch: Arc<Table<SharedScratch>>,
    pub(super) tallies: Table<std::sync::atomic::AtomicU64>,
    pub(super) files: Table<SharedFileRefs>,
    pub(super) thread_marks: Table<std::sync::atomic::AtomicU64>,
    pub(super) boxes: Option<Arc<BoxTables>>,
    pub(super) ring: RingBuf<MapData>,
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub(super) fn of(ebpf: &mut Ebpf, sizes: TableSizes) -> Result<Self> {
        Self::get(sizes, |name| Ok(ebpf.take_map(name).ok_or_else(|| ObjectError::NoMap(name.to_owned()))?))
    }

    /// Opens the maps that are pinned in `directory`.
    pub(super) fn open(directory: &Path, sizes: TableSizes) -> Result<Self> {
        Self::get(sizes, |name| open_map(directory, name))
    }

    fn get(sizes: TableSizes, mut map: impl FnMut(&'static str) -> Result<Map>) -> Result<Self> {
        let no = |error: aya::maps::MapError| BpfStep::UseRing.failed(&error);
        let (groups, number) = (sizes.groups as usize + 1, sizes.boxes as usize);
        let boxes = if number == 0 {
            None
        } else {
            let of = map_array(&map("BOX_OF")?, groups, "BOX_OF")?;
            let heads = map_array(&map("BOXES")?, number, "BOXES")?;
            let points = map_array(&map("BOX_POINTS")?, number * POINTS as usize, "BOX_POINTS")?;
            Some(Arc::new(BoxTables::new(of, heads, points)))
        };
        Ok(Self {
            boxes,
            slots: map_array(&map("SLOTS")?, sizes.groups as usize + 1, "SLOTS")?.into(),
            scratch: map_array(&map("SCRATCH")?, CELLS as usize, "SCRATCH")?.into(),
            tallies: map_array(&map("TALLIES")?, LossKind::COUNT, "TALLIES")?,
            thread_marks: map_array(&map("THREAD_MARKS")?, OomMark::WORDS, "THREAD_MARKS")?,
            files: map_array(&map("FILES")?, Query::FILES_AT_ONCE, "FILES")?,
            ring: map("DOORBELLS")?.try_into().map_err(no)?,
        })
    }
}

/// Opens a pinned array of `entries` that is shared with earlier programs.
pub(super) fn open_shared<T: MappedLayout>(
    directory: &Path,
    name: &'static str,
    entries: usize,
) -> Result<Table<T>> {
    map_array(&open_map(directory, name)?, entries, name)
}

fn map_array<T: MappedLayout>(map: &Map, entries: usize, name: &str) -> Result<Table<T>> {
    Table::map(array(map)?, entries).map_err(|errno| Error::syscall(format!("mmap of the map {name}"), errno))
}

fn open_map(directory: &Path, name: &'static str) -> Result<Map> {
    let no = |error: aya::maps::MapError| BpfStep::OpenMap(name).failed(&error);
    let data = MapData::from_pin(directory.join(format!("map-{name}"))).map_err(no)?;
    Ok(Map::from_map_data(data).map_err(no)?)
}

/// Duplicates of the maps' descriptors, to pin them by.
pub(super) fn for_pinning(ebpf: &Ebpf) -> Result<Vec<(&'static str, MapData)>> {
    let duplicate = |name| {
        let map = ebpf.map(name).ok_or_else(|| ObjectError::NoMap(name.to_owned()))?;
        let (Map::Array(data) | Map::HashMap(data) | Map::Queue(data) | Map::RingBuf(data)) = map else {
            return Err(ObjectError::WrongType(name).into());
        };
        let fd = data.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| BpfStep::DuplicateMap(name).failed(&error))?;
        Ok((name, MapData::from_fd(fd).map_err(|error| BpfStep::InspectMap(name).failed(&error))?))
    };
    MAPS.into_iter().map(duplicate).collect()
}

fn array(map: &Map) -> Result<BorrowedFd<'_>> {
    match map {
        Map::Array(data) => Ok(data.fd().as_fd()),
        _ => Err(ObjectError::NotAnArray.into()),
    }
}
