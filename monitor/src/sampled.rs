//! The backend for hosts that refuse BPF programs: the same slots, bands and doorbells, moved by
//! what the kernel's files show.
//!
//! A thread ([`reader`]) reads the usage of each watched group, as often as the distance to the
//! nearest threshold and the fastest growth seen demand, and compares it with the group's band
//! exactly as a program does at a charge. The kernel's own notices of changed files (inotify; on
//! v1 its eventfds) make it read at once. A group gets a slot when a client registers on it.
//!
//! A crossing and its way back between two readings are missed, unless usage set a new peak.

mod bells;
pub mod error;
mod eventfds;
mod files;
mod notices;
mod pace;
mod reader;
mod room;
mod shared;
mod table;
mod v1_ooms;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    ops::Range,
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use monitor_common::{
    grammar::control_file::ControlFile,
    protocol::{band, query::Subscriptions, ring::LossKind, usage::UNKNOWN, word::Word as _},
};
use monitor_sys::table::SharedSlot;
use nix::errno::Errno;

use crate::{
    backend::{Backend, BackendKind, Started},
    cgroup::{Hierarchy, Version, handle::Directories},
    error::{Error, Result},
    kernel::{Features, host_pages},
    sampled::{
        error::UnknownEventfd, eventfds::Census, reader::Reader, shared::Shared, table::Table,
        v1_ooms::V1Ooms,
    },
    source::{FileId, GroupId, Identify, Located, Misses, Precision, Slots, Source},
};

/// The backend; its threads end with it.
pub struct SampledFiles {
    shared: Arc<Shared>,
    reader: Reader,
    census: Census,
    instance: u64,
    features: Features,
    /// The reason why OOMs are not seen, where they are not.
    unseen_ooms: Option<Errno>,
}

impl fmt::Debug for SampledFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SampledFiles").field("features", &self.features).finish_non_exhaustive()
    }
}

impl SampledFiles {
    /// Starts the backend for `hierarchy`, with a table for so many groups, or for fewer where the limit
    /// of descriptors allows no more.
    ///
    /// # Errors
    /// The root cannot be opened by its id, or a thread or descriptor cannot be made.
    pub fn start(hierarchy: &Hierarchy, groups: u32) -> Result<Started> {
        let groups = room::make_room(groups);
        let (bells, queue) = bells::queue()?;
        let v1 = hierarchy.version == Version::V1;
        let directories = Directories::new(hierarchy)?;
        let unseen_ooms = if v1 { v1_ooms::probe(&directories).err() } else { None };
        if let Some(errno) = unseen_ooms {
            log::warn!("{}", why_no_oom(errno));
        }
        let shared = Arc::new(Shared {
            table: Table::new(directories, groups),
            bells,
            wanted: AtomicU64::new(0),
            limits: AtomicU64::new(0),
            losses: Default::default(),
            band_shift: band::shift_for(host_pages()),
            v1_ooms: v1.then(V1Ooms::new).transpose()?.map(Mutex::new),
        });
        let backend = Self {
            reader: Reader::start(Arc::clone(&shared))?,
            census: Census::start()?,
            shared,
            instance: instance(),
            // v1 has no file that says whether a group and all below it have tasks. Its own notice
            // of pressure would be another listener, and so change who else receives one.
            features: Features { oom: unseen_ooms.is_none(), under_oom: v1, pressure: false, empty: !v1 },
            unseen_ooms,
        };
        Ok((Box::new(backend), Box::new(queue)))
    }

    /// Reads a number of a live group; `None` when it is gone.
    fn of(&self, group: GroupId, read: impl FnOnce(&files::GroupFiles) -> Option<u64>) -> Option<u64> {
        let is_there = || {
            self.slot(group.slot).is_some_and(|slot| {
                let state = slot.state();
                state.is_live() && state.generation() == group.generation
            })
        };
        let files = self.shared.table.files(group.slot).filter(|_| is_there())?;
        let value = read(&files)?;
        is_there().then_some(value)
    }
}

fn why_no_oom(errno: Errno) -> String {
    format!(
        "the sampled backend does not report memory.oom_control on this host: it registers on cgroup v1 itself, by the groups' cgroup.event_control, which failed: {errno}"
    )
}

/// Mark of this backend's numbers of starts.
const INSTANCE: u64 = 1 << 63;

/// A number that no other start has.
fn instance() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(1) | INSTANCE
}

/// Whether it is the number of a start of this backend.
#[must_use]
pub const fn is_instance(instance: u64) -> bool {
    instance & INSTANCE != 0
}

impl Slots for SampledFiles {
    fn slot(&self, index: u32) -> Option<&SharedSlot> {
        self.shared.table.slot(index)
    }

    fn root(&self) -> GroupId {
        self.shared.table.root()
    }

    fn slot_of(&self, cgroup_id: u64) -> Option<u32> {
        self.shared.table.slot_of(cgroup_id)
    }

    fn place_groups(&self, ids: &HashSet<u64>) -> HashMap<u64, GroupId> {
        let placed = ids.iter().filter_map(|id| match self.shared.table.track(*id) {
            Ok(Located::Group(group)) => Some((*id, group)),
            Ok(_) => None,
            Err(error) => {
                log::error!("the registrations on a group end: {error}");
                None
            }
        });
        placed.collect()
    }
}

impl Source for SampledFiles {
    fn usage(&self, group: GroupId) -> Result<Option<u64>> {
        // The watcher has published a band, or is about to: the next reading is timed by it.
        self.reader.look_soon(group.slot);
        let Some(slot) = self.slot(group.slot) else { return Ok(None) };
        Ok(self.of(group, |files| self.shared.read_usage(slot, files)))
    }

    fn peak(&self, group: GroupId) -> Result<Option<u64>> {
        Ok(self.of(group, |files| files.peak().or_else(|| files.usage())))
    }

    fn sum(&self, group: GroupId) -> Result<Option<u64>> {
        Ok(self.of(group, files::GroupFiles::sum))
    }

    fn limit(&self, group: GroupId) -> Result<Option<u64>> {
        Ok(self.of(group, files::GroupFiles::limit))
    }

    fn lowest_limit(&self, group: GroupId) -> Result<Option<u64>> {
        Ok(self.limit(group)?.map(|own| {
            let above = self.shared.table.above(group.slot);
            let limits = above.filter_map(|slot| self.shared.table.files(slot)?.limit());
            limits.fold(own, u64::min)
        }))
    }

    fn above(&self, group: GroupId) -> Result<Option<u32>> {
        Ok(Some(self.shared.table.above(group.slot).next().unwrap_or(self.root().slot)))
    }

    fn take_orphans(&self) -> bool {
        false
    }

    fn read_groups(&self, slots: Range<u32>) -> Result<()> {
        for index in slots {
            let Some(slot) = self.slot(index).filter(|slot| slot.state().is_live()) else { continue };
            let state = slot.state();
            let Some(files) = self.shared.table.files(index) else { continue };
            let usage = files.usage();
            slot.usage.xchg(usage.unwrap_or(UNKNOWN));
            slot.peak.xchg(files.peak().or(usage).unwrap_or(UNKNOWN));
            let Some(limit) = files.limit() else { continue };
            slot.limit.set(limit);
            if slot.state() == state {
                slot.read_of.set(state.generation() + 1);
            }
        }
        Ok(())
    }

    fn is_under_oom(&self, group: GroupId) -> Result<bool> {
        Ok(self.of(group, files::GroupFiles::under_oom).is_some_and(|count| count > 0))
    }

    fn end_epoch(&self) -> Result<()> {
        Ok(())
    }

    fn want(&self, what: u64) {
        let before = self.shared.wanted.load(Ordering::SeqCst);
        if what & !before & Subscriptions::OOM != 0 {
            self.shared.table.tracked().iter().for_each(|(slot, _)| self.shared.count_ooms_from_here(*slot));
        }
        self.shared.wanted.store(what, Ordering::SeqCst);
        self.reader.look_at_events();
    }

    fn features(&self) -> Features {
        self.features
    }

    fn precision(&self) -> Precision {
        Precision::Sampled
    }

    fn why_not(&self, on: ControlFile) -> String {
        let file = on.name();
        match (on, self.unseen_ooms) {
            (ControlFile::Oom, Some(errno)) => why_no_oom(errno),
            (ControlFile::Pressure, _) if self.features.under_oom => format!(
                "the sampled backend does not report {file}; this host's own cgroup v1 does, by the group's cgroup.event_control"
            ),
            (ControlFile::Pressure, _) => format!(
                "the sampled backend cannot see reclaim, which {file} reports; memory.pressure (PSI) of the group shows stalls"
            ),
            _ => format!("the sampled backend has no file that shows {file} on cgroup v1"),
        }
    }

    fn file_refs(&self, files: &[FileId]) -> Result<Vec<u64>> {
        Ok(self.census.references(files))
    }

    fn recycle(&mut self, slot: u32) {
        let generation = self.slot(slot).map_or(0, |slot| slot.state().generation());
        if self.slot(slot).is_some_and(|slot| slot.let_go(generation)) {
            self.shared.table.give_back(slot);
        }
    }

    fn depart(&mut self, group: GroupId) -> Result<bool> {
        Ok(self.shared.depart(group))
    }

    fn tidy(&mut self, slot: u32) {
        self.shared.table.give_back(slot);
    }

    fn tally(&self, tally: LossKind) -> u64 {
        self.shared.losses.get(tally as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    fn misses(&self) -> Misses {
        Misses::default()
    }

    fn count(&self, tally: LossKind, by: u64) {
        if let Some(count) = self.shared.losses.get(tally as usize) {
            count.fetch_add(by, Ordering::Relaxed);
        }
    }

    fn ooms(&self, group: GroupId) -> Result<Option<u64>> {
        Ok(self.of(group, files::GroupFiles::ooms))
    }

    fn is_populated(&self, group: GroupId) -> Result<Option<bool>> {
        Ok(self.of(group, |files| files.populated().map(u64::from)).map(|populated| populated != 0))
    }

    fn limits_were_written(&self) -> bool {
        self.shared.limits.load(Ordering::Acquire) != 0
    }

    fn take_limits(&self) {
        self.shared.limits.store(0, Ordering::SeqCst);
    }

    fn take_victim(&self) {}

    fn thread_marks(&self) -> Vec<(u32, u64)> {
        Vec::new()
    }

    fn forget_thread_marks(&self, _: u32, _: u64) {}

    fn band_shift(&self) -> u32 {
        self.shared.band_shift
    }
}

impl Backend for SampledFiles {
    fn kind(&self) -> BackendKind {
        BackendKind::Sampled
    }

    fn identity(&self) -> Box<dyn Identify> {
        Box::new(Identity { shared: Arc::clone(&self.shared), census: self.census.clone() })
    }

    fn instance(&self) -> u64 {
        self.instance
    }

    fn answers(&self) -> bool {
        true
    }

    fn runs(&self) -> (u64, u64) {
        (0, 0)
    }

    fn tallies(&self) -> Vec<(String, u64)> {
        let counts = self.shared.losses.iter().map(|count| count.load(Ordering::Relaxed));
        LossKind::NAMES.iter().map(|name| (*name).to_owned()).zip(counts).collect()
    }

    fn detach(&self) {}

    fn writes_files(&self) -> bool {
        self.features.under_oom
    }
}

/// The identity of files, from their ids.
struct Identity {
    shared: Arc<Shared>,
    census: Census,
}

impl Slots for Identity {
    fn slot(&self, index: u32) -> Option<&SharedSlot> {
        self.shared.table.slot(index)
    }

    fn root(&self) -> GroupId {
        self.shared.table.root()
    }
}

impl Identify for Identity {
    fn locate(&self, _: BorrowedFd<'_>, _: BorrowedFd<'_>, cgroup_id: u64) -> Result<Located> {
        let located = self.shared.table.track(cgroup_id)?;
        if let Located::Group(group) = located
            && self.shared.wanted.load(Ordering::SeqCst) & Subscriptions::OOM != 0
        {
            // A group that is new here: the kernel gives notice from now on.
            self.shared.see_oom_of_newcomer(group.slot);
        }
        Ok(located)
    }

    fn file_of(&self, fd: BorrowedFd<'_>) -> Result<FileId> {
        let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
        let text = std::fs::read_to_string(&path).map_err(|error| Error::file("read", &path, error))?;
        let file = eventfds::id_in(&text).ok_or(UnknownEventfd)?;
        self.census.note(file);
        Ok(file)
    }

    fn set_own(&self, file: FileId, is_there: bool) {
        self.census.set_own(file, is_there);
    }
}
