//! Errors of the programs in the kernel: their pins, their object, the steps of their start, the
//! programs that they replace, and the agent's queries to them.

use std::{error, fmt, iter, path::PathBuf};

use aya::{programs::ProgramError, sys::SyscallError};
use nix::errno::Errno;

use crate::kernel::obstacle::{Circumstances, Obstacle, ProgramStep};

/// Reasons why programs cannot be pinned in a directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinsError {
    /// The path has no last part that could be made.
    #[error("--pins {path}: name a directory")]
    NoName {
        /// Path that was given for the pins.
        path: PathBuf,
    },
    /// The name is taken by something other than a directory.
    #[error("{path} is not a directory, and belongs to {}: remove it", user(*owner))]
    NotADirectory {
        /// Path that was given for the pins.
        path: PathBuf,
        /// User id of the owner, where that can be seen.
        owner: Option<u32>,
    },
    /// The directory is on another file system.
    #[error("{path} is not on a BPF file system (mount -t bpf -o mode=0700 bpf /sys/fs/bpf)")]
    NotOnBpffs {
        /// Path that was given for the pins.
        path: PathBuf,
    },
    /// The directory belongs to another user than the agent's.
    #[error(
        "{path} belongs to user id {owner}, the agent is {own}: that user could remove pins. Remove it and chmod 0700 /sys/fs/bpf, or name another directory by --pins"
    )]
    OtherOwner {
        /// Path that was given for the pins.
        path: PathBuf,
        /// User id of the owner.
        owner: u32,
        /// User id of the agent.
        own: u32,
    },
    /// Other users may write to the directory.
    #[error("{path} may be written to by others (mode {mode:o}): chmod 0700 {path}")]
    WritableByOthers {
        /// Path that was given for the pins.
        path: PathBuf,
        /// Permission bits of the directory.
        mode: u32,
    },
    /// Other users can put another directory in place of one on the way to the pins.
    #[error(
        "{path}, above the directory for pins, can be changed by others (owner {owner}, mode {mode:o}): name another directory by --pins"
    )]
    AboveChangeable {
        /// Path of the directory above.
        path: PathBuf,
        /// User id of that directory's owner.
        owner: u32,
        /// Permission bits of that directory.
        mode: u32,
    },
    /// Another agent has the directory locked.
    #[error("another agent uses {path}; give this one another directory with --pins")]
    InUse {
        /// Path that was given for the pins.
        path: PathBuf,
    },
}

/// Words for the owner of a file.
fn user(id: Option<u32>) -> String {
    id.map_or_else(|| "another user".into(), |id| format!("user id {id}"))
}

/// Parts that the object with the programs lacks, or has in another form.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// The object has no program of this name.
    #[error("the object has no program `{0}`")]
    NoProgram(&'static str),
    /// The object has no map of this name.
    #[error("the object has no map {0}")]
    NoMap(String),
    /// The map of this name cannot be pinned, by its type.
    #[error("the map {0} is of another type")]
    WrongType(&'static str),
    /// A map that the agent maps into its memory is not an array.
    #[error("a shared map is not an array")]
    NotAnArray,
    /// The places of the registers that a kprobe's program reads are not known here.
    #[error(
        "the registers of {architecture}, from which a kprobe's program reads a function's arguments, are not known \
         (those of x86_64 and aarch64 are): use --backend fentry, sampled or auto"
    )]
    UnknownRegisters {
        /// Architecture that the agent was built for.
        architecture: &'static str,
    },
}

/// Steps of making, attaching, pinning and running the programs, each with its system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BpfStep {
    /// Making the maps and loading the type information of the object.
    #[error("cannot create the maps (bpf)")]
    CreateMaps,
    /// Parsing the types of the functions that are hooked.
    #[error("the hooks' types are not understood")]
    ParseTypes,
    /// Loading the program for a hook.
    #[error("cannot load the {way} program for {function}")]
    Load {
        /// Way in which the program would be attached: `fentry`, `kprobe`, ...
        way: &'static str,
        /// Kernel function or tracepoint.
        function: &'static str,
    },
    /// Loading the program that answers queries.
    #[error("cannot load the program `ask` (bpf BPF_PROG_LOAD)")]
    LoadAsk,
    /// Taking the program that answers queries out of the object.
    #[error("cannot use the program `ask`")]
    UseAsk,
    /// Attaching the program for a hook.
    #[error("cannot attach the {way} program to {function}")]
    Attach {
        /// Way in which the program is attached: `fentry`, `kprobe`, ...
        way: &'static str,
        /// Kernel function or tracepoint.
        function: &'static str,
    },
    /// Pinning a program, a link or a map.
    #[error("cannot pin (BPF_OBJ_PIN)")]
    Pin,
    /// Duplicating the descriptor of a map.
    #[error("cannot duplicate the descriptor of the map {0} (dup)")]
    DuplicateMap(&'static str),
    /// Reading what the kernel says of a map.
    #[error("cannot look at the map {0} (BPF_OBJ_GET_INFO_BY_FD)")]
    InspectMap(&'static str),
    /// Opening a pinned program.
    #[error("cannot open a pinned program (BPF_OBJ_GET)")]
    OpenProgram,
    /// Opening the pinned link of a program.
    #[error("cannot open the pinned link of {0} (BPF_OBJ_GET)")]
    OpenLink(&'static str),
    /// Opening a pinned map.
    #[error("cannot open the pinned map {0} (BPF_OBJ_GET)")]
    OpenMap(&'static str),
    /// Using the map of doorbells as a ring buffer.
    #[error("a map is of another type")]
    UseRing,
    /// Running the program that answers queries.
    #[error("BPF_PROG_TEST_RUN")]
    Run,
}

impl BpfStep {
    /// The error of this step, for the loader's `cause`.
    pub(crate) fn failed(self, cause: &(dyn error::Error + 'static)) -> BpfError {
        BpfError { step: self, refusal: BpfRefusal::of(cause) }
    }
}

/// A failed step, and why it failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}{refusal}")]
#[non_exhaustive]
pub struct BpfError {
    /// The step that has failed.
    pub step: BpfStep,
    /// Answer of the kernel, or of the loader before it.
    pub refusal: BpfRefusal,
}

/// An answer of the kernel to a step, or of the loader before it. Its text goes behind the name of
/// what was refused: a colon, the reason where it is known, and the loader's text.
#[derive(Debug)]
#[non_exhaustive]
pub struct BpfRefusal {
    /// Errno of the system call, where the loader gives it.
    pub errno: Option<Errno>,
    /// Reason behind the errno, where it is known.
    pub obstacle: Option<Obstacle>,
    /// Text of the loader, without the verifier's log, which is logged.
    pub text: String,
}

impl BpfRefusal {
    /// Joins the texts of an error of the loader and of its causes, and finds the reason.
    pub(super) fn of(error: &(dyn error::Error + 'static)) -> Self {
        Self::on(error, Circumstances::of_host)
    }

    /// The refusal on a host of these circumstances, which are found out where the kernel has
    /// refused a program.
    fn on<'a>(error: &(dyn error::Error + 'static), host: impl Fn() -> &'a Circumstances) -> Self {
        let (mut step, mut number, mut texts) = (None, None, Vec::new());
        for cause in iter::successors(Some(error), |&cause| cause.source()) {
            match cause.downcast_ref() {
                Some(ProgramError::LoadError { verifier_log, .. }) => {
                    verifier_log.to_string().lines().for_each(|line| log::debug!("verifier: {line}"));
                    step = Some(ProgramStep::Load);
                    texts.push("BPF_PROG_LOAD".to_owned());
                    continue;
                }
                Some(ProgramError::SyscallError(SyscallError {
                    call: "bpf_raw_tracepoint_open", ..
                })) => {
                    step = Some(ProgramStep::Attach);
                }
                _ => {}
            }
            number = number.or_else(|| cause.downcast_ref::<std::io::Error>()?.raw_os_error());
            let text = cause.to_string();
            // Some errors of the loader have their cause's text in their own.
            if !texts.last().is_some_and(|above: &String| above.ends_with(&text)) {
                texts.push(text);
            }
        }
        let text = texts.join(": ");
        let obstacle = step.zip(number).and_then(|(step, errno)| Obstacle::find(step, errno, host()));
        // Some errors of the loader have the errno in their text only.
        let is_denied = text.contains(Errno::EPERM.desc());
        let errno = if is_denied { Some(Errno::EPERM) } else { number.map(Errno::from_raw) };
        Self { errno, obstacle, text }
    }
}

impl fmt::Display for BpfRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(obstacle) = &self.obstacle {
            return write!(f, ": {obstacle} ({})", self.text);
        }
        if self.errno == Some(Errno::EPERM) {
            return write!(f, ": {} ({})", denied(may_load()), self.text);
        }
        write!(f, ": {}", self.text)
    }
}

/// Meaning of an `EPERM` for a process that has the capabilities for tracing programs, or has not.
const fn denied(may_load: bool) -> &'static str {
    if may_load {
        "the kernel refuses tracing programs although this process has the capabilities for them; a sandbox, a \
         virtual machine or lockdown forbids them, maybe for good"
    } else {
        "the kernel refuses tracing programs to this process; run as root or with CAP_BPF and CAP_PERFMON"
    }
}

/// Whether this process has the capabilities that the kernel wants for tracing programs.
fn may_load() -> bool {
    let has = |one| caps::has_cap(None, caps::CapSet::Effective, one).unwrap_or(false);
    has(caps::Capability::CAP_SYS_ADMIN)
        || has(caps::Capability::CAP_BPF) && has(caps::Capability::CAP_PERFMON)
}

/// Reasons why pinned programs cannot be taken over from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PredecessorError {
    /// The tables of the pinned programs have a layout that this agent does not know.
    #[error("the tables of the pinned programs are of layout {schema}, which this agent cannot read")]
    UnknownLayout {
        /// Number of the layout.
        schema: u32,
    },
    /// The pinned map with the answer cell has no entry.
    #[error("the pinned answer cell is empty")]
    NoAnswerCell,
}

/// Failures of a query to the programs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The programs are being pinned, or their pinning has failed.
    #[error("the programs are not attached")]
    NotAttached,
    /// The program that answers queries is missing among those loaded.
    #[error("the program `ask` is not loaded")]
    NotLoaded,
    /// The cell in which queries are answered is not mapped.
    #[error("the answer cell is not mapped")]
    NoAnswerCell,
    /// The cell in which reads of files are answered is not mapped.
    #[error("the cell for readings is not mapped")]
    NoReadingsCell,
    /// The kernel has run the program too seldom to answer.
    #[error("the program `ask` does not run (BPF_PROG_TEST_RUN)")]
    DoesNotRun,
    /// The program cannot read a number of a group.
    #[error("the counter of slot {slot} cannot be read (ask: {code})")]
    Counter {
        /// Slot of the group in the table.
        slot: u32,
        /// Verdict that the program returned.
        code: u64,
    },
    /// The program cannot read the reference counts of files.
    #[error("the references of eventfds cannot be counted (ask: {code})")]
    References {
        /// Verdict that the program returned.
        code: u64,
    },
    /// The program at `eventfd_show_fdinfo` did not see the agent's read.
    #[error("the kernel did not say which eventfd this is (eventfd_show_fdinfo)")]
    UnknownEventfd,
    /// The kernel calls no program at any of its functions.
    #[error(
        "kernel.ftrace_enabled is 0, so that the kernel calls no programs at its functions: sysctl kernel.ftrace_enabled=1"
    )]
    FtraceOff,
}

#[cfg(test)]
mod tests {
    use std::io;

    use aya::{programs::ProgramError, sys::SyscallError};
    use aya_obj::VerifierLog;
    use nix::errno::Errno;

    use super::{BpfRefusal, BpfStep, Circumstances, denied};
    use crate::kernel::settings::Lockdown;

    #[derive(Debug, thiserror::Error)]
    #[error("the loader failed")]
    struct Loader(#[source] io::Error);

    #[test]
    fn a_refusal_has_the_errno_of_its_cause_and_for_eperm_a_remedy() {
        let step = BpfStep::Load { way: "fentry", function: "try_charge" };
        let failed = |errno: Errno| step.failed(&Loader(io::Error::from(errno)));
        let error = failed(Errno::E2BIG);
        assert_eq!((error.step, error.refusal.errno), (step, Some(Errno::E2BIG)));
        assert_eq!(
            error.to_string(),
            "cannot load the fentry program for try_charge: the loader failed: Argument list too long (os error 7)"
        );
        let error = failed(Errno::EPERM);
        assert_eq!(error.refusal.errno, Some(Errno::EPERM));
        let text = error.to_string();
        assert!(
            text.starts_with("cannot load the fentry program for try_charge: the kernel refuses "),
            "{text}"
        );
        assert!(text.ends_with(" (the loader failed: Operation not permitted (os error 1))"), "{text}");
        // An errno that stands in the text alone.
        let error = step.failed(&io::Error::other("bpf: Operation not permitted"));
        assert_eq!(error.refusal.errno, Some(Errno::EPERM));
        assert_eq!(step.failed(&io::Error::other("?")).refusal.errno, None);
    }

    const PLAIN: Circumstances =
        Circumstances { lockdown: None, fetching_atomics: Some(true), architecture: "aarch64" };

    fn loading(errno: i32) -> ProgramError {
        ProgramError::LoadError {
            io_error: io::Error::from_raw_os_error(errno),
            verifier_log: VerifierLog::new("0: R1=ctx() R10=fp0\n1: (85) call bpf_probe_read#4".into()),
        }
    }

    fn attaching(errno: i32) -> ProgramError {
        let io_error = io::Error::from_raw_os_error(errno);
        ProgramError::SyscallError(SyscallError { call: "bpf_raw_tracepoint_open", io_error })
    }

    fn text(error: &ProgramError, host: Circumstances) -> String {
        format!("cannot do it{}", BpfRefusal::on(error, || &host))
    }

    #[test]
    fn a_refusal_is_one_line_with_reason_call_and_errno() {
        let locked = Circumstances { lockdown: Some(Lockdown::Confidentiality), ..PLAIN };
        assert_eq!(
            text(&loading(libc::EINVAL), locked),
            "cannot do it: the kernel is locked down (confidentiality), so that BPF may not read its memory; \
             boot with lockdown=integrity (BPF_PROG_LOAD: Invalid argument (os error 22))"
        );
        let old = Circumstances { fetching_atomics: Some(false), ..PLAIN };
        assert!(text(&loading(libc::EINVAL), old).contains("Linux 5.12 or newer is needed"));
        assert_eq!(
            text(&attaching(libc::E2BIG), PLAIN),
            "cannot do it: 38 programs are attached to it already (bpftool link) (`bpf_raw_tracepoint_open` \
             failed: Argument list too long (os error 7))"
        );
        assert!(
            text(&attaching(524), PLAIN).contains("on aarch64 (needs BPF trampolines; arm64: Linux 6.4)")
        );
    }

    #[test]
    fn a_refusal_of_unknown_reason_keeps_its_errno_and_no_log() {
        assert_eq!(
            text(&loading(libc::EINVAL), PLAIN),
            "cannot do it: BPF_PROG_LOAD: Invalid argument (os error 22)"
        );
        let refused = text(&loading(libc::EPERM), PLAIN);
        assert!(refused.contains("tracing programs") && !refused.contains("R10=fp0"), "{refused}");
    }

    #[test]
    fn root_is_not_told_to_run_as_root() {
        assert!(denied(false).contains("run as root or with CAP_BPF and CAP_PERFMON"));
        assert!(!denied(true).contains("root"), "{}", denied(true));
    }

    #[derive(Debug, thiserror::Error)]
    #[error("map error: {0}")]
    struct Doubled(#[source] Loader);

    #[test]
    fn a_cause_that_is_in_the_text_above_is_not_repeated() {
        let error = BpfStep::CreateMaps.failed(&Doubled(Loader(io::Error::from(Errno::E2BIG))));
        assert_eq!(
            error.to_string(),
            "cannot create the maps (bpf): map error: the loader failed: Argument list too long (os error 7)"
        );
    }
}
