//! Loading of the programs: the object with this kernel's offsets filled in, each program past
//! the verifier, each in its place.

use std::{os::fd::AsFd as _, time::Duration};

use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{FEntry, FExit, ProgramError, ProgramInfo, RawTracePoint, links::FdLink},
};
use serde::Serialize;

use crate::{
    async_fd::wait_on,
    error::{Error, Result},
    kernel::{Facts, HOOKS, Hook, HookKind, Plan},
    logging::FromPrograms,
    programs::{TableSizes, error::ObjectError},
};

pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/memcg-monitor-ebpf.o"));

/// The result of loading one hook, for `check`.
#[derive(Debug)]
pub struct LoadCheck {
    /// The hook that was tried.
    pub hook: Hook,
    /// The sizes once loaded; the reason why it does not load otherwise.
    pub outcome: std::result::Result<TableSize, String>,
}

/// Sizes of a loaded program. A size that a kernel does not report is 0.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TableSize {
    /// Instructions that the verifier went through to accept it (5.16 and newer).
    pub verifier_steps: u32,
    /// Bytes of BPF instructions, after the kernel's own changes.
    pub bpf_bytes: u32,
    /// Bytes of the processor's instructions.
    pub native_bytes: u32,
}

pub(super) fn failed(what: &str, why: &(dyn std::error::Error + 'static)) -> Error {
    let mut text = why.to_string();
    let mut source = why.source();
    let mut denied = false;
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            denied |= io.raw_os_error() == Some(libc::EPERM);
        }
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    denied |= text.contains("Operation not permitted");
    let hint = if denied {
        " (the kernel refuses tracing programs: run as root or with CAP_BPF, CAP_PERFMON and CAP_SYS_RESOURCE; in a virtual machine or under lockdown the host may forbid them for good)"
    } else {
        ""
    };
    Error::Programs { what: format!("{what}{hint}"), why: text }
}

pub(super) fn load_object(plan: &Plan, sizes: TableSizes) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    for (name, value) in &plan.offsets {
        loader.override_global(name, value, true);
    }
    for (name, value) in &plan.numbers {
        loader.override_global(name, value, true);
    }
    loader.override_global("BAND_SHIFT", &plan.band_shift, true).override_global(
        "ROOT_SLOT",
        &sizes.groups,
        true,
    );
    loader
        .map_max_entries("SLOTS", sizes.groups + 1)
        .map_max_entries("COUNTERS", sizes.groups)
        .map_max_entries("FREE", sizes.groups)
        .map_max_entries("DOORBELLS", sizes.ring);
    loader.load(OBJECT).map_err(|error| failed("cannot create the maps (bpf)", &error))
}

pub(super) fn load_hook(ebpf: &mut Ebpf, hook: &Hook, btf: &Btf) -> std::result::Result<(), ProgramError> {
    let Some(program) = ebpf.program_mut(hook.program) else {
        return Err(ProgramError::NotLoaded);
    };
    match hook.kind {
        HookKind::Entry => TryInto::<&mut FEntry>::try_into(program)?.load(hook.function, btf),
        HookKind::Exit => TryInto::<&mut FExit>::try_into(program)?.load(hook.function, btf),
        HookKind::Tracepoint => TryInto::<&mut RawTracePoint>::try_into(program)?.load(),
    }
}

/// The types in which aya looks functions up: only the functions that are hooked, each at its id.
/// To parse all that the kernel has and to search it for each would take several times as long as
/// to load the programs.
fn targets(plan: &Plan) -> Result<Btf> {
    const HEADER: u32 = 24;
    const RECORD: u32 = 12;
    const FORWARD: u32 = 7 << 24;
    const FUNCTION: u32 = 12 << 24;
    let last = plan.functions.iter().map(|(_, id)| *id).max().unwrap_or(0);
    let mut names = vec![0];
    let mut types = [0, FORWARD, 0].repeat(last as usize);
    for (name, id) in &plan.functions {
        let at = (*id as usize).saturating_sub(1) * 3;
        if let Some(record) = types.get_mut(at..at + 3) {
            record.copy_from_slice(&[names.len() as u32, FUNCTION, 0]);
        }
        names.extend(name.bytes().chain([0]));
    }
    let length = last * RECORD;
    let header = [0x1_eb9f, HEADER, 0, length, length, names.len() as u32];
    let words = header.into_iter().chain(types).flat_map(u32::to_le_bytes);
    let bytes: Vec<u8> = words.chain(names).collect();
    Btf::parse(&bytes, Default::default())
        .map_err(|error| failed("the hooks' types are not understood", &error))
}

/// Loads all of `hooks`, and the program that answers the agent. The error names the hook at
/// which it failed, if at one.
pub(super) fn load_all<'a>(
    ebpf: &mut Ebpf,
    plan: &Plan,
    hooks: &[&'a Hook],
) -> Result<(), (Option<&'a Hook>, Error)> {
    let btf = targets(plan).map_err(|error| (None, error))?;
    load_ask(ebpf).map_err(|error| (None, error))?;
    for hook in hooks {
        load_hook(ebpf, hook, &btf).map_err(|error| {
            let what = format!("cannot load the {} program for {}", hook.kind.as_str(), hook.function);
            (Some(*hook), failed(&what, &error))
        })?;
        log::debug!(
            "{} for {}: the verifier took {} steps",
            hook.program,
            hook.function,
            size(ebpf, hook).verifier_steps
        );
    }
    Ok(())
}

/// The sizes of a loaded program.
pub(super) fn size(ebpf: &Ebpf, hook: &Hook) -> TableSize {
    let info = ebpf.program(hook.program).and_then(|program| program.info().ok());
    let of = |number: fn(&ProgramInfo) -> Option<u32>| info.as_ref().and_then(number).unwrap_or(0);
    TableSize {
        verifier_steps: of(ProgramInfo::verified_instruction_count),
        bpf_bytes: of(ProgramInfo::size_translated),
        native_bytes: of(|info| Some(info.size_jitted())),
    }
}

pub(super) fn attach_hook(ebpf: &mut Ebpf, hook: &Hook) -> std::result::Result<FdLink, ProgramError> {
    let Some(program) = ebpf.program_mut(hook.program) else {
        return Err(ProgramError::NotLoaded);
    };
    Ok(match hook.kind {
        HookKind::Entry => {
            let program: &mut FEntry = program.try_into()?;
            let link = program.attach()?;
            program.take_link(link)?.into()
        }
        HookKind::Exit => {
            let program: &mut FExit = program.try_into()?;
            let link = program.attach()?;
            program.take_link(link)?.into()
        }
        HookKind::Tracepoint => {
            let program: &mut RawTracePoint = program.try_into()?;
            let link = program.attach(hook.function)?;
            program.take_link(link)?.into()
        }
    })
}

pub(super) fn load_ask(ebpf: &mut Ebpf) -> Result<()> {
    let step = "cannot load the program `ask` (bpf BPF_PROG_LOAD)";
    let program: &mut RawTracePoint = ebpf
        .program_mut("ask")
        .ok_or(ObjectError::NoProgram("ask"))?
        .try_into()
        .map_err(|error: ProgramError| failed(step, &error))?;
    program.load().map_err(|error| failed(step, &error))
}

/// Loads every hook that the kernel has, one by one, attaching none.
///
/// # Errors
/// Not even the maps could be made.
pub fn try_all(facts: &Facts) -> Result<Vec<LoadCheck>> {
    let plan = Plan::decide(facts, &[])?;
    let mut ebpf = load_object(&plan, TableSizes { groups: 64, ring: 4096 })?;
    let btf = targets(&plan)?;
    load_ask(&mut ebpf)?;
    let used = HOOKS.iter().filter(|hook| plan.hooks.contains(&hook.program));
    Ok(used
        .map(|hook| LoadCheck {
            hook: *hook,
            outcome: load_hook(&mut ebpf, hook, &btf)
                .map(|()| size(&ebpf, hook))
                .map_err(|error| failed(hook.function, &error).to_string()),
        })
        .collect())
}

/// The time between two reads of the programs' log. They write to it once in ten seconds, so one
/// read takes a line or two.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Copies the programs' own log lines to the agent's log.
pub(super) fn follow_log(mut logger: aya_log::EbpfLogger<FromPrograms>) {
    if tokio::runtime::Handle::try_current().is_err() {
        return;
    }
    let Ok(readiness) = logger.as_fd().try_clone_to_owned().and_then(wait_on) else {
        return;
    };
    tokio::task::spawn_local(async move {
        while let Ok(mut ready) = readiness.readable().await {
            ready.clear_ready();
            logger.flush();
            tokio::time::sleep(LOG_EVERY).await;
        }
    });
}

/// Copies the log lines of programs that were at work before, one of which has this id.
pub(super) fn log_of(program: Option<u32>) {
    let logger = program.map(|id| aya_log::EbpfLogger::init_from_id_with_logger(id, FromPrograms));
    match logger {
        Some(Ok(logger)) => follow_log(logger),
        Some(Err(error)) => log::debug!("no log from the programs: {error}"),
        None => log::debug!("no log from the programs: none is pinned"),
    }
}
