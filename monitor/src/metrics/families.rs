//! Every metric there is. `docs/reference/metrics.md` has the same table, which a test checks.

use monitor_common::protocol::ring::LossKind;
use prometheus_client::registry::Unit;

/// The kind of a family's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// A number that goes up and down.
    Gauge,
    /// A number that only goes up, from 0 when the agent starts, or the group is made.
    Counter,
    /// Counts of durations, by bucket.
    Histogram,
    /// A number that is always 1; the labels hold the information.
    Info,
}

#[cfg(test)]
impl MetricKind {
    /// The kind's name in both formats' `TYPE` lines; the older one has no `info`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// All metrics of one name.
#[derive(Clone, Debug)]
pub struct Family {
    /// Name without unit and suffix.
    pub base: &'static str,
    /// Unit at the name's end, before a suffix.
    pub unit: Option<Unit>,
    /// Kind of the numbers.
    pub kind: MetricKind,
    /// Names of the labels.
    pub labels: &'static [&'static str],
    /// Help text in one line, without a full stop.
    pub help: &'static str,
}

impl Family {
    /// The name with the unit, as the `TYPE` line of OpenMetrics has it.
    #[must_use]
    pub fn name(&self) -> String {
        self.unit.as_ref().map_or_else(|| self.base.into(), |unit| format!("{}_{}", self.base, unit.as_str()))
    }

    /// The name that queries use: with `_total` or `_info`.
    #[must_use]
    pub fn queried(&self) -> String {
        let suffix = match self.kind {
            MetricKind::Counter => "_total",
            MetricKind::Info => "_info",
            MetricKind::Gauge | MetricKind::Histogram => "",
        };
        self.name() + suffix
    }
}

const BYTES: Option<Unit> = Some(Unit::Bytes);
const SECONDS: Option<Unit> = Some(Unit::Seconds);
const NONE: Option<Unit> = None;

/// Labels of a group's metrics: its path, and the workload that the path names. One that is empty
/// is left out, which is the same to Prometheus.
pub const GROUP: [&str; 4] = ["id", "unit", "pod_uid", "container_id"];

macro_rules! families {
    ($($const:ident = $kind:ident $base:literal $unit:ident $labels:tt $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $const: Family =
                Family { base: $base, unit: $unit, kind: MetricKind::$kind, labels: &$labels, help: $help };
        )*

        /// All families, in the order in which they are written.
        #[must_use]
        pub fn all() -> Vec<Family> {
            let mut all = vec![$($const),*];
            all.extend(EVENTS);
            all.extend(TALLIES);
            all
        }
    };
}

families! {
    BUILD = Info "memcg_monitor_build" NONE ["version", "schema"]
        "The agent's version, and that of the tables which it shares with its programs";
    BACKEND = Info "memcg_monitor_backend" NONE ["backend", "precision"]
        "The backend, and whether each crossing is seen (exact) or usage is read from time to time (sampled), as also while the programs do not run";
    START = Gauge "process_start_time" SECONDS []
        "When the agent started, in seconds since 1970";
    RESTARTS = Counter "memcg_monitor_restarts" NONE []
        "Times that the agent was started anew with what an earlier one had registered";
    GROUPS = Gauge "memcg_monitor_groups" NONE []
        "Groups that are watched";
    GROUPS_OCCUPIED = Gauge "memcg_monitor_groups_occupied" NONE []
        "Places taken in the table of groups: those that are watched, and removed ones that still have signals to give";
    GROUPS_LIMIT = Gauge "memcg_monitor_groups_limit" NONE []
        "Places in the table of groups (--max-groups)";
    LEFT_OUT = Gauge "memcg_monitor_groups_left_out" NONE ["reason"]
        "Groups that have no series here: by --metrics-allow and --metrics-deny (pattern), by --metrics-top (top), for a path longer than 1024 bytes or one that reads as another's (name)";
    EVENTFDS = Gauge "memcg_monitor_eventfds" NONE []
        "Eventfds that are registered; those that were closed count until the next sweep (--sweep-ms)";
    EVENTFDS_LIMIT = Gauge "memcg_monitor_eventfds_limit" NONE []
        "Eventfds that can be registered at once (--max-eventfds)";
    REGISTRATIONS = Gauge "memcg_monitor_registrations" NONE ["on"]
        "Registrations, by control file";
    REGISTRATIONS_LIMIT = Gauge "memcg_monitor_registrations_limit" NONE []
        "Registrations that there may be in all (--max-registrations)";
    REFUSALS = Counter "memcg_monitor_refused_registrations" NONE ["errno"]
        "Registrations that were refused, by the errno that the client got";
    SIGNALS = Counter "memcg_monitor_signals" NONE ["cause"]
        "Signals given, by cause: crossed, oom, pressure, empty, removed";
    FAILED_SIGNALS = Counter "memcg_monitor_failed_signals" NONE []
        "Signals that could not be given; the agent's log says why";
    LATENCY = Histogram "memcg_monitor_signal_latency" SECONDS []
        "Time from the record that a program sent in the kernel to the signal, where one led to the other";
    KILLS = Counter "memcg_monitor_oom_kills" NONE ["id", "unit", "pod_uid", "container_id", "reason"]
        "Processes that the OOM killer killed, by the victim's group, also once that is removed; reason: limit, lowered_limit, host, unknown. Of more than 1024 groups those with the latest kills";
    RESYNCS = Counter "memcg_monitor_resyncs" NONE []
        "Times that everything watched was read again after a loss";
    SKIPPED = Counter "memcg_monitor_recursion_misses" NONE []
        "Calls that the kernel's recursion guard kept from a program; the twin program or the sweep sees what they did";
    RUNS = Counter "memcg_monitor_hook_runs" NONE []
        "Runs of the charge programs, while kernel.bpf_stats_enabled is set";
    RUN_TIME = Counter "memcg_monitor_hook_run" SECONDS []
        "Time spent in the charge programs, while kernel.bpf_stats_enabled is set";
    USAGE = Gauge "container_memory_usage" BYTES GROUP
        "Memory charged to the group and those below it";
    PEAK = Gauge "container_memory_max_usage" BYTES GROUP
        "Most memory charged at once";
    LIMIT = Gauge "container_spec_memory_limit" BYTES GROUP
        "The group's own limit (memory.max), 0 for none";
    OOM_EVENTS = Counter "container_oom_events" NONE GROUP
        "Processes of the group and those below it that the OOM killer killed";
    WAITING = Counter "container_pressure_memory_waiting" SECONDS GROUP
        "Time in which some task of the group waited for memory (memory.pressure, some)";
    STALLED = Counter "container_pressure_memory_stalled" SECONDS GROUP
        "Time in which all tasks of the group waited for memory (memory.pressure, full)";
    GROUP_REGISTRATIONS = Gauge "memcg_monitor_group_registrations" NONE GROUP
        "Registrations on the group, where there are any";
}

const fn event(base: &'static str, help: &'static str) -> Family {
    Family { base, unit: NONE, kind: MetricKind::Counter, labels: &GROUP, help }
}

/// Families of a group's events, in the order of [`files::EVENTS`](super::files::EVENTS).
pub const EVENTS: [Family; super::files::EVENTS.len()] = [
    event("container_memory_events_low", "Reclaim although the group was within memory.low"),
    event("container_memory_events_high", "Tasks throttled for being over memory.high"),
    event("container_memory_events_max", "Charges that would have gone over memory.max (v1: memory.failcnt)"),
    event("container_memory_events_oom", "Charges that found no memory within the limit"),
    event("container_memory_events_oom_kill", "Processes that the OOM killer killed"),
    event("container_memory_events_oom_group_kill", "Groups that were killed as a whole"),
];

const fn tally(base: &'static str, help: &'static str) -> Family {
    Family { base, unit: NONE, kind: MetricKind::Counter, labels: &[], help }
}

/// Families of losses, in the order of [`LossKind::NAMES`].
pub const TALLIES: [Family; LossKind::COUNT] = [
    tally(
        "memcg_monitor_ring_full",
        "Records that found no room in the ring; the sweep finds the crossings that they announced (--ring-bytes)",
    ),
    tally(
        "memcg_monitor_slots_exhausted",
        "Groups that were not watched because the table was full (--max-groups), each counted once",
    ),
    tally(
        "memcg_monitor_too_deep",
        "Charges more than 512 levels down, whose upper levels only the sweep sees",
    ),
    tally(
        "memcg_monitor_contended",
        "Readings that went through the ring because several CPUs raced for their slot; nothing is lost by that",
    ),
    tally("memcg_monitor_nested", "Charges that only the twin program saw; nothing is lost by that"),
    tally(
        "memcg_monitor_oom_joined",
        "OOMs that began while another held the same group, one above or one below: one signal for both, as the kernel's",
    ),
    tally(
        "memcg_monitor_victims_dropped",
        "Kills by the OOM killer that followers did not receive, or that were not kept where the root is a group, because too many were on their way at once; no signal is lost by that",
    ),
    tally(
        "memcg_monitor_oom_unplaced",
        "OOMs by the limit of a group that is not watched because the table was full (--max-groups): those below it were not signalled",
    ),
    tally(
        "memcg_monitor_parent_unknown",
        "Times that the groups above one could not be found, so that its events were not signalled above",
    ),
    tally(
        "memcg_monitor_skipped_for_good",
        "Calls that the kernel's recursion guard kept from a program for which nothing makes up (windows of reclaim, v1's OOM notices, victims)",
    ),
    tally(
        "memcg_monitor_returns_unknown",
        "Returns of functions whose argument was not known (backend kprobe); everything watched was read once more",
    ),
];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fmt::Write as _};

    use monitor_common::protocol::ring::LossKind;

    use super::{EVENTS, MetricKind, TALLIES, all};

    #[test]
    fn families_are_named_as_what_they_count() {
        for (family, name) in TALLIES.iter().zip(LossKind::NAMES) {
            assert_eq!(family.base, format!("memcg_monitor_{name}"));
        }
        for (family, name) in EVENTS.iter().zip(crate::metrics::files::EVENTS) {
            assert_eq!(family.base, format!("container_memory_events_{name}"));
        }
        let names: BTreeSet<_> = all().iter().map(super::Family::name).collect();
        assert_eq!(names.len(), all().len(), "a name is used twice");
        assert!(all().iter().all(|family| family.kind != MetricKind::Info || !family.labels.is_empty()));
    }

    /// The rows of the table in `docs/reference/metrics.md`.
    #[test]
    fn the_documentation_has_every_metric_and_no_other() {
        let mut wanted = String::new();
        for family in all() {
            let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
            let unit = family.unit.as_ref().map_or("", |unit| unit.as_str());
            let (name, kind) = (family.queried(), family.kind.as_str());
            let _ =
                writeln!(wanted, "| `{name}` | {kind} | {unit} | {} | {} |", labels.join(", "), family.help);
        }
        let text = include_str!("../../../docs/reference/metrics.md");
        let rows: String = text
            .lines()
            .filter(|line| line.starts_with("| `") && line.matches('|').count() == 6)
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(rows, wanted, "docs/reference/metrics.md should have these rows:\n{wanted}");
    }
}
