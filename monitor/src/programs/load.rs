//! Loading of the programs: the object with this kernel's offsets filled in, each program past
//! the verifier, each in its place.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{
        FEntry, FExit, KProbe, Program, ProgramError, ProgramInfo, RawTracePoint, kprobe::KProbeLink,
        links::FdLink,
    },
};
use monitor_common::protocol::black_box::POINTS;
use monitor_sys::probe_link;
use serde::Serialize;

use crate::{
    async_fd::wait_on,
    error::{Error, Result},
    kernel::{Facts, HOOKS, Hook, HookKind, Plan},
    logging::FromPrograms,
    programs::{
        error::{BpfRefusal, BpfStep, ObjectError},
        registers,
        sizes::TableSizes,
    },
};

static TRAMPOLINES: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/memcg-monitor-ebpf.o"));
static KPROBES: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/memcg-monitor-kprobe.o"));

/// The way in which the kernel calls the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramKind {
    /// BPF trampolines (fentry and fexit).
    Trampoline,
    /// Kprobes and kretprobes, by perf events.
    Kprobe,
}

impl ProgramKind {
    /// The object that has these programs.
    pub(super) const fn object(self) -> &'static [u8] {
        match self {
            Self::Trampoline => TRAMPOLINES,
            Self::Kprobe => KPROBES,
        }
    }

    /// Whether it has a program for `hook`: kprobes that run at one place are skipped together, so
    /// twins would gain nothing.
    pub(super) fn has(self, hook: &Hook) -> bool {
        self == Self::Trampoline || !hook.is_twin()
    }
}

/// The result of loading one hook, for `check`.
#[derive(Debug)]
pub struct LoadCheck {
    /// The hook that was tried.
    pub hook: Hook,
    /// The sizes once loaded; the reason why it does not load otherwise.
    pub outcome: std::result::Result<TableSize, BpfRefusal>,
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

pub(super) fn load_object(kind: ProgramKind, plan: &Plan, sizes: TableSizes) -> Result<Ebpf> {
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
    if sizes.boxes > 0 {
        loader
            .override_global("HAS_BOXES", &1u32, true)
            .map_max_entries("BOX_OF", sizes.groups + 1)
            .map_max_entries("BOXES", sizes.boxes)
            .map_max_entries("BOX_POINTS", sizes.boxes * POINTS);
    }
    if kind == ProgramKind::Kprobe {
        for (name, value) in registers::known()? {
            loader.override_global(name, *value, true);
        }
    }
    Ok(loader.load(kind.object()).map_err(|error| BpfStep::CreateMaps.failed(&error))?)
}

pub(super) fn load_hook(ebpf: &mut Ebpf, hook: &Hook, btf: &Btf) -> std::result::Result<(), ProgramError> {
    if let Some(saving) = ebpf.program_mut(&saving(hook)) {
        TryInto::<&mut KProbe>::try_into(saving)?.load()?;
    }
    let Some(program) = ebpf.program_mut(hook.program) else {
        return Err(ProgramError::NotLoaded);
    };
    if let Program::KProbe(program) = program {
        return program.load();
    }
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
    Ok(Btf::parse(&bytes, Default::default()).map_err(|error| BpfStep::ParseTypes.failed(&error))?)
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
            let step = BpfStep::Load { way: way_of(ebpf, hook), function: hook.function };
            (Some(*hook), step.failed(&error).into())
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

/// The name of the program that saves a function's arguments for a kretprobe.
pub(super) fn saving(hook: &Hook) -> String {
    format!("save_{}", hook.program)
}

/// Attaches the program for `hook`, by a kprobe.
fn attach_kprobe(program: &mut KProbe, hook: &Hook) -> std::result::Result<HeldLink, ProgramError> {
    let link = program.attach(hook.function, 0)?;
    if let Ok(link) = FdLink::try_from(program.take_link(link)?) {
        // Without CAP_SYS_ADMIN what it misses is not known, as on a kernel that does not count it.
        let counted = link.info().ok().and_then(|info| probe_link::open(info.id()).ok());
        return Ok(HeldLink::CountedProbe { _link: link, counted });
    }
    // Before Linux 5.15 it is no link of the kernel's, and went with the attempt.
    let link = program.attach(hook.function, 0)?;
    Ok(HeldLink::Probe { _link: program.take_link(link)? })
}

/// A link that detaches its program when it is dropped.
#[derive(Debug)]
pub(super) enum HeldLink {
    /// A link of the kernel's, which can be pinned.
    Pinnable(FdLink),
    /// A kprobe, by a link of the kernel's, with a descriptor to read by what it has missed.
    CountedProbe { _link: FdLink, counted: Option<OwnedFd> },
    /// A kprobe, by a perf event.
    Probe { _link: KProbeLink },
}

impl HeldLink {
    /// Calls that a kprobe has missed; `None` where the kernel does not report it.
    pub(super) fn missed(&self) -> Option<u64> {
        match self {
            Self::CountedProbe { counted: Some(link), .. } => probe_link::missed(link.as_fd()).ok()?,
            _ => None,
        }
    }
}

pub(super) fn attach_hook(ebpf: &mut Ebpf, hook: &Hook) -> std::result::Result<Vec<HeldLink>, ProgramError> {
    let mut links = Vec::new();
    if let Some(Program::KProbe(program)) = ebpf.program_mut(&saving(hook)) {
        links.push(attach_kprobe(program, hook)?);
    }
    if let Some(Program::KProbe(program)) = ebpf.program_mut(hook.program) {
        links.push(attach_kprobe(program, hook)?);
    } else {
        links.push(HeldLink::Pinnable(attach_trampoline(ebpf, hook)?));
    }
    Ok(links)
}

fn attach_trampoline(ebpf: &mut Ebpf, hook: &Hook) -> std::result::Result<FdLink, ProgramError> {
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

/// The way in which the object's program for a hook is attached, in the kernel's words.
pub(super) fn way_of(ebpf: &Ebpf, hook: &Hook) -> &'static str {
    match (ebpf.program(hook.program), hook.kind) {
        (Some(Program::KProbe(_)), HookKind::Entry) => "kprobe",
        (Some(Program::KProbe(_)), HookKind::Exit) => "kretprobe",
        (_, kind) => kind.as_str(),
    }
}

pub(super) fn load_ask(ebpf: &mut Ebpf) -> Result<()> {
    let failed = |error: ProgramError| BpfStep::LoadAsk.failed(&error);
    let program: &mut RawTracePoint =
        ebpf.program_mut("ask").ok_or(ObjectError::NoProgram("ask"))?.try_into().map_err(failed)?;
    Ok(program.load().map_err(failed)?)
}

/// Loads every hook that the kernel has, one by one, attaching none.
///
/// # Errors
/// Not even the maps could be made.
pub fn try_all(facts: &Facts) -> Result<Vec<LoadCheck>> {
    let plan = Plan::decide(facts, &[])?;
    let mut ebpf =
        load_object(ProgramKind::Trampoline, &plan, TableSizes { groups: 64, ring: 4096, boxes: 1 })?;
    let btf = targets(&plan)?;
    load_ask(&mut ebpf)?;
    let used = HOOKS.iter().filter(|hook| plan.hooks.contains(&hook.program));
    Ok(used
        .map(|hook| LoadCheck {
            hook: *hook,
            outcome: load_hook(&mut ebpf, hook, &btf)
                .map(|()| size(&ebpf, hook))
                .map_err(|error| BpfRefusal::of(&error)),
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
