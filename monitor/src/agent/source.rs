//! The choice of the agent's backend.

use crate::{
    backend::{BackendChoice, BackendKind, Started},
    cgroup::{Hierarchy, Version},
    error::{Error, Result},
    programs::{Doorbells, Pins, Programs, TableSizes},
    sampled::SampledFiles,
};

/// Starts the backend: the one that was chosen, or the most precise one that starts. `has_sampled`: the
/// agent before did without the programs that are pinned. Leaves `pins` where they are not the backend's,
/// and could not be removed yet.
///
/// # Errors
/// The error names what the host lacks for it.
pub(super) fn start(
    choice: BackendChoice,
    hierarchy: &Hierarchy,
    sizes: TableSizes,
    pins: &mut Option<Pins>,
    has_sampled: bool,
) -> Result<Started> {
    let v1 = hierarchy.version == Version::V1;
    if has_sampled && let Some(pins) = pins {
        // What they have seen is signalled already.
        pins.remove_programs();
    }
    let sampled = |pins: &mut Option<Pins>| {
        let started = SampledFiles::start(hierarchy, sizes.groups)?;
        without_programs(pins);
        Ok::<_, Error>(started)
    };
    let kprobes = |pins: &mut Option<Pins>| {
        let started = boxed(Programs::start_kprobes(v1, sizes))?;
        without_programs(pins);
        Ok::<_, Error>(started)
    };
    match choice {
        BackendChoice::Only(BackendKind::Fentry) => boxed(Programs::start(v1, sizes, pins)),
        BackendChoice::Only(BackendKind::Kprobe) => kprobes(pins),
        BackendChoice::Only(BackendKind::Sampled) => sampled(pins),
        BackendChoice::Auto => {
            let first = match boxed(Programs::start(v1, sizes, pins)) {
                Ok(started) => return Ok(started),
                Err(error) => error,
            };
            log::warn!("the backend fentry is refused: {first}; trying kprobe");
            match kprobes(pins) {
                Ok(started) => return Ok(started),
                Err(error) => log::warn!("the backend kprobe is refused: {error}"),
            }
            match sampled(pins) {
                Ok(started) => {
                    log::warn!(
                        "no program can watch the counters, so the groups' files are read instead (backend \
                         sampled): a crossing and its way back within milliseconds may be missed, and the other \
                         limits of sampling apply (memcg-monitor check). The reason: {first}"
                    );
                    Ok(started)
                }
                Err(second) => {
                    log::error!("nor can the groups' files be read instead: {second}");
                    Err(first)
                }
            }
        }
    }
}

/// Removes the pins of programs that this agent does not use, where that can be done now.
fn without_programs(pins: &mut Option<Pins>) {
    if pins.as_ref().is_some_and(Pins::clear) {
        *pins = None;
    }
}

/// The programs as a backend, whichever they are.
fn boxed(programs: Result<(Programs, Doorbells)>) -> Result<Started> {
    let (programs, ring) = programs?;
    Ok((Box::new(programs), Box::new(ring)))
}
