//! Backends: the ways in which the agent learns what the kernel charges. One is chosen at the
//! start, by trying, from the most precise on.

use std::{fmt, sync::Arc};

use crate::{
    boxes::BoxTables,
    programs::{ProgramKind, Programs},
    source::{DoorbellQueue, Identify, Precision, Source},
};

/// The backends, the most precise first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// Programs at the kernel's functions, by BPF trampolines (fentry and fexit).
    Fentry,
    /// Programs at the kernel's functions, by kprobes: for kernels without BPF trampolines.
    Kprobe,
    /// The kernel's files, read as often as the distance to the nearest threshold demands.
    Sampled,
}

impl BackendKind {
    /// The backend's name, as on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Sampled => "sampled",
        }
    }

    /// The precision of its thresholds.
    #[must_use]
    pub const fn precision(self) -> Precision {
        match self {
            Self::Fentry | Self::Kprobe => Precision::Exact,
            Self::Sampled => Precision::Sampled,
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The source of an agent, with what only the agent itself needs of it.
pub trait Backend: Source + Send + fmt::Debug {
    /// Which one it is.
    fn kind(&self) -> BackendKind;

    /// The identity of files and descriptors, for the thread that has started the backend.
    fn identity(&self) -> Box<dyn Identify>;

    /// The number that tells its table from those of other agents.
    fn instance(&self) -> u64;

    /// Whether all that is done at run time can be done.
    fn answers(&self) -> bool;

    /// Runs of all charge programs, and nanoseconds spent in them, where the kernel counts them.
    fn runs(&self) -> (u64, u64);

    /// Every count of losses, with its name.
    fn tallies(&self) -> Vec<(String, u64)>;

    /// The boxes in which its programs record usage, where they do.
    fn boxes(&self) -> Option<Arc<BoxTables>> {
        None
    }

    /// Leaves nothing in the kernel, when the agent ends for good.
    fn detach(&self);

    /// Notes that attached programs do not run now, or run again; see
    /// [`Identify::is_alive`].
    fn do_not_run(&self, _is_now: bool) {}

    /// Whether it opens files of groups for writing at run time.
    fn writes_files(&self) -> bool {
        false
    }
}

/// A backend at work, and the queue of its records.
pub type Started = (Box<dyn Backend>, Box<dyn DoorbellQueue>);

impl Backend for Programs {
    fn kind(&self) -> BackendKind {
        match Self::kind(self) {
            ProgramKind::Trampoline => BackendKind::Fentry,
            ProgramKind::Kprobe => BackendKind::Kprobe,
        }
    }

    fn identity(&self) -> Box<dyn Identify> {
        Box::new(Self::identity(self).clone())
    }

    fn instance(&self) -> u64 {
        Self::instance(self)
    }

    fn answers(&self) -> bool {
        Self::answers(self)
    }

    fn runs(&self) -> (u64, u64) {
        Self::runs(self)
    }

    fn tallies(&self) -> Vec<(String, u64)> {
        Self::tallies(self)
    }

    fn boxes(&self) -> Option<Arc<BoxTables>> {
        Self::boxes(self)
    }

    fn detach(&self) {
        Self::detach(self);
    }

    fn do_not_run(&self, is_now: bool) {
        Self::do_not_run(self, is_now);
    }
}

/// The backend that the operator chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// The most precise that the host allows.
    #[default]
    Auto,
    /// This one, or none.
    Only(BackendKind),
}
