//! The benchmarks, and the boots of each.

use anyhow::Result;
use clap::ValueEnum;

use super::Backend;
use crate::clients::Packed;
use crate::kernels;
use crate::project::{self, Project};
use crate::qemu::Processors;
use crate::setup;
use crate::vm::{Hierarchy, MEMORY};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// A C project compiled by make -j2: with the agent and without
    Build,
    /// Page faults, the worst case for a charge hook: with the agent and without
    Charge,
    /// Time from the charge that crosses a threshold to the client's `read`: ours, the
    /// kernel's on v1, and what v2 offers instead
    Latency,
    /// Crossings of a random trace that are signalled late or never: ours, the kernel's
    /// on v1, and pollers
    Accuracy,
    /// Registrations, thresholds and groups by the thousand: what the agent does and holds
    Scale,
    /// Every CPU crosses thresholds as fast as it can: the charge, the agent, the end
    Storm,
    /// A start of the agent, until it is ready
    Start,
    /// A sweep and a list, with as many as 100,000 eventfds registered
    Sweep,
    /// `memcg-monitor top` and the agent while it shows 10,000 groups, and a page fault meanwhile
    Top,
    /// `memcg-monitor watch` over 10,000 groups that cross a threshold, while others come and go
    Watch,
    /// The cost of one user's worst for another: signals, the frontends' answers, the agent
    Abuse,
}

/// One boot of a benchmark.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leg<'a> {
    pub(crate) kernel: &'a str,
    pub(crate) hierarchy: Hierarchy,
    pub(crate) processors: Processors,
    /// The VM's memory, as QEMU's `-m` takes it.
    pub(crate) memory: &'static str,
    pub(crate) backend: Backend,
}

/// Returns a boot with cgroup v2 and an exact clock.
const fn counted(kernel: &str) -> Leg<'_> {
    Leg {
        kernel,
        hierarchy: Hierarchy::V2,
        processors: Processors::Counted,
        memory: MEMORY,
        backend: Backend::Fentry,
    }
}

/// Returns the boot with room for many groups.
const fn large(leg: Leg<'_>) -> Leg<'_> {
    Leg { memory: "3G", ..leg }
}

/// Returns the boot with cgroup v1.
const fn v1(leg: Leg<'_>) -> Leg<'_> {
    Leg { hierarchy: Hierarchy::V1, ..leg }
}

/// Returns the boot with two CPUs side by side.
const fn two(leg: Leg<'_>) -> Leg<'_> {
    Leg { processors: Processors::Two, ..leg }
}

impl Bench {
    pub(crate) const ALL: [Self; 11] = [
        Self::Build,
        Self::Charge,
        Self::Latency,
        Self::Accuracy,
        Self::Scale,
        Self::Storm,
        Self::Start,
        Self::Sweep,
        Self::Top,
        Self::Watch,
        Self::Abuse,
    ];

    /// Returns the name that the guest has for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Charge => "charge",
            Self::Build => "build",
            Self::Latency => "latency",
            Self::Accuracy => "accuracy",
            Self::Scale => "scale",
            Self::Storm => "storm",
            Self::Start => "start",
            Self::Sweep => "sweep",
            Self::Top => "top",
            Self::Watch => "watch",
            Self::Abuse => "abuse",
        }
    }

    /// Returns the boots of this benchmark, or those of one kernel only.
    pub(crate) fn legs(self, kernel: Option<&str>) -> Vec<Leg<'_>> {
        let all = match self {
            Self::Build | Self::Charge | Self::Start => {
                vec![counted("6.1"), counted("6.12"), counted(kernels::NEWEST)]
            }
            Self::Latency => vec![
                v1(counted("6.1")),
                counted("6.1"),
                counted("6.12"),
                counted(kernels::NEWEST),
                v1(two(counted("6.1"))),
                two(counted("6.1")),
                two(counted(kernels::NEWEST)),
            ],
            Self::Accuracy => vec![v1(counted("6.1")), counted(kernels::NEWEST)],
            Self::Scale => vec![large(v1(counted("6.1"))), large(counted(kernels::NEWEST))],
            // So many files are a tenth of the memory of less.
            Self::Sweep => vec![large(counted("6.1")), large(counted(kernels::NEWEST))],
            Self::Top | Self::Watch => vec![large(counted(kernels::NEWEST))],
            Self::Abuse => vec![counted(kernels::NEWEST), two(counted(kernels::NEWEST))],
            Self::Storm => vec![counted("6.1"), counted(kernels::NEWEST), two(counted(kernels::NEWEST))],
        };
        let Some(kernel) = kernel else { return all };
        let known: Vec<_> = all.into_iter().filter(|leg| leg.kernel == kernel).collect();
        if known.is_empty() { vec![counted(kernel)] } else { known }
    }

    /// Returns the programs that it runs beside the agent and the guest.
    pub(crate) fn programs(self) -> Result<Vec<Packed>> {
        match self {
            Self::Build => {
                setup::ensure(&[&Project])?;
                project::pack()
            }
            Self::Charge
            | Self::Latency
            | Self::Accuracy
            | Self::Scale
            | Self::Storm
            | Self::Start
            | Self::Sweep
            | Self::Top
            | Self::Watch
            | Self::Abuse => Ok(Vec::new()),
        }
    }
}

/// Returns the boot that tries all benchmarks in the shortest way.
pub(crate) fn smoke() -> Vec<Leg<'static>> {
    vec![counted(kernels::NEWEST)]
}

impl Leg<'_> {
    /// Returns the name of this boot in tables.
    pub(crate) fn label(&self) -> String {
        let machine = match (self.hierarchy, self.processors) {
            (Hierarchy::V1, Processors::Two) => format!("{} v1, 2 CPUs", self.kernel),
            (Hierarchy::V1, _) => format!("{} v1", self.kernel),
            (_, Processors::Two) => format!("{}, 2 CPUs", self.kernel),
            _ => self.kernel.to_owned(),
        };
        match self.backend {
            Backend::Fentry => machine,
            other => format!("{machine}, {}", other.name()),
        }
    }

    /// Returns the part of the log's name that tells this boot from others of its kernel.
    pub(crate) fn log_label(&self) -> String {
        let backend = if self.backend == Backend::Fentry { "" } else { self.backend.name() };
        let processors = if self.processors == Processors::Two { "two" } else { "" };
        format!("{processors}{backend}")
    }

    /// Returns a phrase on the CPUs and the clock.
    pub(crate) fn clock(&self) -> &'static str {
        match self.processors {
            Processors::Counted => "one CPU, one instruction a nanosecond",
            Processors::Two => "two emulated CPUs",
        }
    }
}
