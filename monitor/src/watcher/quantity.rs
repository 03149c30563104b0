//! Quantities of a group, in pages, and the limit that percents are of.

use monitor_common::grammar::{control_file::ControlFile, threshold::Pages};

use crate::{
    cgroup::host::Host,
    error::Result,
    kernel,
    source::{GroupId, Source},
    watcher::hierarchy,
};

/// Reads memory, and with `sum_too` memory+swap, from the kernel's counters; `None` when the group
/// is gone.
pub(super) fn measure(
    source: &impl Source,
    id: GroupId,
    sum_too: bool,
) -> Result<Option<(u64, Option<u64>)>> {
    let Some(memory) = source.usage(id)? else {
        return Ok(None);
    };
    if !sum_too {
        return Ok(Some((memory, None)));
    }
    Ok(source.sum(id)?.map(|sum| (memory, Some(sum))))
}

/// The present quantity of a group on any control file; `None` when it is gone.
pub(super) fn present(
    source: &impl Source,
    host: &dyn Host,
    id: GroupId,
    file: ControlFile,
) -> Result<Option<u64>> {
    let is_root = id.slot == source.root().slot;
    match file {
        ControlFile::Usage if is_root => host.usage().map(Some),
        ControlFile::Memsw if is_root => host.sum().map(Some),
        ControlFile::Memsw => source.sum(id),
        ControlFile::WorkingSet => {
            let usage = if is_root { Some(host.usage()?) } else { source.usage(id)? };
            let Some(usage) = usage else { return Ok(None) };
            let inactive = host.inactive_file(hierarchy::id_of(source, id.slot))?;
            Ok(inactive.map(|inactive| usage.saturating_sub(inactive)))
        }
        ControlFile::Anon => host.unreclaimable(hierarchy::id_of(source, id.slot)),
        // No quantity, but whether the group is still there.
        _ if is_root => Ok(Some(0)),
        _ => source.usage(id),
    }
}

/// A quantity with the part of it that was read from a file.
pub(super) fn with_reading(
    source: &impl Source,
    id: GroupId,
    on: ControlFile,
    is_root: bool,
    read: u64,
) -> Result<Option<u64>> {
    match on {
        ControlFile::WorkingSet if !is_root => Ok(source.usage(id)?.map(|usage| usage.saturating_sub(read))),
        _ => Ok(Some(read)),
    }
}

/// The lowest limit from a group up to the root, in pages: what percents are of. For the root: the
/// host's memory. `u64::MAX` when there is none.
pub(super) fn effective_limit(source: &impl Source, host: &dyn Host, slot: u32) -> Result<u64> {
    if slot == source.root().slot {
        return host.ram();
    }
    let generation = source.slot(slot).map_or(0, |slot| slot.state().generation());
    let limit = source.lowest_limit(GroupId { slot, generation })?.unwrap_or(u64::MAX);
    Ok(if limit >= endless() { u64::MAX } else { limit })
}

/// The number of pages that the kernel stores for `max`.
pub(super) fn endless() -> u64 {
    Pages::counter_max(kernel::page_size()).0
}
