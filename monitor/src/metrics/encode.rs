//! Encodes a [`Snapshot`] as OpenMetrics text.

use std::{fmt, path::Path};

use monitor_common::protocol::ring::LossKind;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::Registry,
};

use crate::{
    cgroup::workload::Workload,
    kills::KillCount,
    metrics::{
        GroupNumbers, Snapshot, errno_name,
        families::{self, Family, MetricKind},
    },
};

impl Snapshot {
    /// Encodes the text, with its end mark.
    #[must_use]
    pub fn open_metrics(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        // Writing to a String cannot fail, and nothing else can.
        let _ = text::encode(&mut text, &registry);
        text
    }
}

/// A whole number or a real one.
#[derive(Clone, Copy, Debug)]
enum Number {
    Whole(u64),
    Real(f64),
}

impl From<u64> for Number {
    fn from(number: u64) -> Self {
        Self::Whole(number)
    }
}

impl From<f64> for Number {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_agent(&mut Out(&mut encoder))?;
        self.encode_groups(&mut Out(&mut encoder))?;
        self.encode_tallies(&mut Out(&mut encoder))
    }
}

impl Snapshot {
    fn encode_agent(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let agent = &self.agent;
        let status = &agent.status;
        let mut build = out.begin(&families::BUILD)?;
        build.encode_info(&[("version", agent.version), ("schema", &agent.schema.to_string())])?;
        let mut backend = out.begin(&families::BACKEND)?;
        backend
            .encode_info(&[("backend", status.backend.as_str()), ("precision", status.precision.as_str())])?;
        out.one(&families::START, agent.start)?;
        out.one(&families::RESTARTS, status.restarts)?;
        out.one(&families::GROUPS, agent.groups)?;
        out.one(&families::GROUPS_OCCUPIED, agent.slots.0)?;
        out.one(&families::GROUPS_LIMIT, agent.slots.1)?;
        let left = &self.left_out;
        let left_out = [("pattern", left.pattern), ("top", left.top), ("name", left.name)];
        out.each(&families::LEFT_OUT, left_out)?;
        out.one(&families::EVENTFDS, agent.eventfds.0)?;
        out.one(&families::EVENTFDS_LIMIT, agent.eventfds.1)?;
        out.each(&families::REGISTRATIONS, agent.registrations.iter().copied())?;
        out.one(&families::REGISTRATIONS_LIMIT, agent.max_registrations)?;
        let refusals = agent.refusals.iter().map(|(errno, count)| (errno_name(*errno), *count));
        out.each(&families::REFUSALS, refusals)?;
        out.each(&families::SIGNALS, agent.signals.iter().copied())?;
        out.one(&families::FAILED_SIGNALS, status.failed_signals)?;
        let latency = &agent.latency;
        out.begin(&families::LATENCY)?.encode_histogram::<NoLabelSet>(
            latency.sum(),
            latency.count(),
            &latency.buckets(),
            None,
        )?;
        out.kills(&agent.kills)?;
        out.one(&families::RESYNCS, status.resyncs)?;
        out.one(&families::SKIPPED, status.skipped)?;
        out.one(&families::RUNS, status.runs)?;
        out.one(&families::RUN_TIME, status.run_ns as f64 / 1e9)
    }

    fn encode_groups(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let groups: Vec<_> = self.groups.iter().map(Named::of).collect();
        let mut each = |family, number: &dyn Fn(&GroupNumbers) -> Option<Number>| {
            out.of_groups(family, groups.iter().filter_map(|group| Some((group, number(group.numbers)?))))
        };
        each(&families::USAGE, &|group| Some(group.usage.into()))?;
        each(&families::PEAK, &|group| group.peak.map(Number::from))?;
        each(&families::LIMIT, &|group| group.limit.map(Number::from))?;
        let kills = families::EVENTS.iter().position(|family| family.base.ends_with("_oom_kill"));
        each(&families::OOM_EVENTS, &|group| group.events[kills?].map(Number::from))?;
        for (at, family) in [families::WAITING, families::STALLED].iter().enumerate() {
            each(family, &|group| group.stalls[at].map(Number::from))?;
        }
        each(&families::GROUP_REGISTRATIONS, &|group| {
            (group.registrations > 0).then_some(group.registrations.into())
        })?;
        for (at, family) in families::EVENTS.iter().enumerate() {
            each(family, &|group| group.events[at].map(Number::from))?;
        }
        Ok(())
    }

    fn encode_tallies(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        for (family, name) in families::TALLIES.iter().zip(LossKind::NAMES) {
            out.one(family, self.agent.status.losses.get(name).copied().unwrap_or(0))?;
        }
        Ok(())
    }
}

/// A group's numbers, with the workload that its path names.
struct Named<'a> {
    numbers: &'a GroupNumbers,
    workload: Workload,
}

impl<'a> Named<'a> {
    fn of(numbers: &'a GroupNumbers) -> Self {
        Self { numbers, workload: Workload::of(Path::new(&numbers.id)) }
    }

    fn labels(&self) -> Vec<(&'static str, &str)> {
        labels(&self.numbers.id, &self.workload)
    }
}

/// The labels of [`families::GROUP`]; what the path does not name is left out.
fn labels<'a>(id: &'a str, workload: &'a Workload) -> Vec<(&'static str, &'a str)> {
    let Workload { unit, pod_uid, container_id } = workload;
    let values = [Some(id), unit.as_deref(), pod_uid.as_deref(), container_id.as_deref()];
    families::GROUP.into_iter().zip(values).filter_map(|(name, value)| Some((name, value?))).collect()
}

struct Out<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Out<'_, '_> {
    fn begin<'s>(&'s mut self, family: &'s Family) -> Result<MetricEncoder<'s>, fmt::Error> {
        let kind = match family.kind {
            MetricKind::Gauge => MetricType::Gauge,
            MetricKind::Counter => MetricType::Counter,
            MetricKind::Histogram => MetricType::Histogram,
            MetricKind::Info => MetricType::Info,
        };
        self.0.encode_descriptor(family.base, family.help, family.unit.as_ref(), kind)
    }

    /// Adds a family without labels.
    fn one(&mut self, family: &Family, number: impl Into<Number>) -> fmt::Result {
        encode(&mut self.begin(family)?, family.kind, number.into())
    }

    /// Adds a family with one label. A family without a sample is left out.
    fn each<L, N>(&mut self, family: &Family, samples: impl IntoIterator<Item = (L, N)>) -> fmt::Result
    where
        L: AsRef<str>,
        N: Into<Number>,
    {
        let mut samples = samples.into_iter().peekable();
        let (Some(_), Some(label)) = (samples.peek(), family.labels.first()) else {
            return Ok(());
        };
        let mut metric = self.begin(family)?;
        for (value, number) in samples {
            encode(&mut metric.encode_family(&[(*label, value.as_ref())])?, family.kind, number.into())?;
        }
        Ok(())
    }

    /// Adds the kills. Without any the family is left out.
    fn kills(&mut self, kills: &[KillCount]) -> fmt::Result {
        let family = &families::KILLS;
        if kills.is_empty() {
            return Ok(());
        }
        let mut metric = self.begin(family)?;
        for KillCount { cgroup, reason, kills } in kills {
            let workload = Workload::of(Path::new(cgroup));
            let mut labels = labels(cgroup, &workload);
            labels.push(("reason", reason.as_str()));
            encode(&mut metric.encode_family(&labels)?, family.kind, (*kills).into())?;
        }
        Ok(())
    }

    /// Adds a family with the labels of groups. A family without a sample is left out.
    fn of_groups<'g>(
        &mut self,
        family: &Family,
        samples: impl IntoIterator<Item = (&'g Named<'g>, Number)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut metric = self.begin(family)?;
        for (group, number) in samples {
            encode(&mut metric.encode_family(&group.labels())?, family.kind, number)?;
        }
        Ok(())
    }
}

fn encode(metric: &mut MetricEncoder<'_>, kind: MetricKind, number: Number) -> fmt::Result {
    match (kind, number) {
        (MetricKind::Counter, Number::Whole(number)) => {
            metric.encode_counter::<NoLabelSet, _, f64>(&number, None)
        }
        (MetricKind::Counter, Number::Real(number)) => {
            metric.encode_counter::<NoLabelSet, _, f64>(&number, None)
        }
        (_, Number::Whole(number)) => metric.encode_gauge(&number),
        (_, Number::Real(number)) => metric.encode_gauge(&number),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use monitor_client::wire::AgentStatus;
    use monitor_common::protocol::ring::KillReason;

    use crate::{
        kills::KillCount,
        metrics::{AgentNumbers, GroupNumbers, Histogram, LeftOut, Snapshot, families, text},
    };

    fn snapshot() -> Snapshot {
        let mut latency = Histogram::default();
        latency.add(0.000_03);
        let group = |id: &str, usage| GroupNumbers { id: id.into(), usage, ..GroupNumbers::default() };
        Snapshot {
            agent: AgentNumbers {
                version: "1.2.3",
                schema: 4,
                start: 1.5,
                groups: 3,
                slots: (5, 16),
                eventfds: (1, 32),
                registrations: vec![("memory.oom_control", 2)],
                max_registrations: 64,
                signals: vec![("crossed", 7)],
                refusals: BTreeMap::from([(libc::EINVAL, 5)]),
                latency,
                kills: vec![KillCount { cgroup: "/a.service".into(), reason: KillReason::Host, kills: 3 }],
                status: AgentStatus {
                    run_ns: 2_500_000_000,
                    backend: "fentry".into(),
                    precision: "exact".into(),
                    without_aio: false,
                    slow_users: 0,
                    losses: [("ring_full".into(), 9)].into(),
                    ..AgentStatus::default()
                },
            },
            groups: vec![
                GroupNumbers {
                    peak: Some(8192),
                    limit: Some(0),
                    registrations: 2,
                    events: [None, None, Some(3), None, Some(1), None],
                    stalls: [Some(0.25), None],
                    ..group("/a", 4096)
                },
                group("/odd \"name\"\\x2d\n\u{fffd}", 1),
            ],
            left_out: LeftOut { top: 1, ..LeftOut::default() },
        }
    }

    #[test]
    fn a_scrape_is_open_metrics() {
        let text = snapshot().open_metrics();
        for lines in [
            "# TYPE memcg_monitor_build info\nmemcg_monitor_build_info{version=\"1.2.3\",schema=\"4\"} 1\n",
            "# TYPE container_memory_usage_bytes gauge\n# UNIT container_memory_usage_bytes bytes\n\
             container_memory_usage_bytes{id=\"/a\"} 4096\n\
             container_memory_usage_bytes{id=\"/odd \\\"name\\\"\\\\x2d\\n\u{fffd}\"} 1\n#",
            "# TYPE container_memory_max_usage_bytes gauge\n# UNIT container_memory_max_usage_bytes bytes\n\
             container_memory_max_usage_bytes{id=\"/a\"} 8192\n#",
            "\ncontainer_spec_memory_limit_bytes{id=\"/a\"} 0\n",
            "\ncontainer_oom_events_total{id=\"/a\"} 1\n#",
            "\ncontainer_memory_events_max_total{id=\"/a\"} 3\n#",
            "\ncontainer_pressure_memory_waiting_seconds_total{id=\"/a\"} 0.25\n#",
            "\nmemcg_monitor_group_registrations{id=\"/a\"} 2\n#",
            "# TYPE memcg_monitor_refused_registrations counter\nmemcg_monitor_refused_registrations_total{errno=\"EINVAL\"} 5\n",
            "\nmemcg_monitor_groups 3\n#",
            "\nmemcg_monitor_groups_occupied 5\n#",
            "\nmemcg_monitor_groups_limit 16\n#",
            "\nmemcg_monitor_groups_left_out{reason=\"top\"} 1\n",
            "\nmemcg_monitor_signals_total{cause=\"crossed\"} 7\n#",
            "\nmemcg_monitor_signal_latency_seconds_count 1\n",
            "\nmemcg_monitor_signal_latency_seconds_bucket{le=\"0.00005\"} 1\n",
            "\nmemcg_monitor_signal_latency_seconds_bucket{le=\"+Inf\"} 1\n#",
            "\nmemcg_monitor_oom_kills_total{id=\"/a.service\",unit=\"a.service\",reason=\"host\"} 3\n#",
            "\nmemcg_monitor_hook_run_seconds_total 2.5\n",
            "\nmemcg_monitor_ring_full_total 9\n",
        ] {
            assert!(text.contains(lines), "{lines}\nis not in\n{text}");
        }
        assert!(text.ends_with("\n# EOF\n"));
        assert!(!text.contains("stalled_seconds"), "a family without samples is exposed");
    }

    #[test]
    fn a_group_is_named_with_its_workload_and_nothing_that_is_empty() {
        let container = "0123456789abcdef".repeat(4);
        let pod = "8a1fbc1e-7d41-4b73-b0a8-7c1d7f0e9a55";
        let id = format!(
            "/kubepods.slice/kubepods-pod{}.slice/cri-containerd-{container}.scope",
            pod.replace('-', "_")
        );
        let group = |id: &str| GroupNumbers { id: id.into(), ..GroupNumbers::default() };
        let groups = vec![group("/"), group("/system.slice/nginx.service"), group(&id)];
        let text = Snapshot { groups, ..snapshot() }.open_metrics();
        for labels in [
            "{id=\"/\"}",
            "{id=\"/system.slice/nginx.service\",unit=\"nginx.service\"}",
            &format!(
                "{{id=\"{id}\",unit=\"cri-containerd-{container}.scope\",pod_uid=\"{pod}\",container_id=\"{container}\"}}"
            ),
        ] {
            let line = format!("\ncontainer_memory_usage_bytes{labels} 0\n");
            assert!(text.contains(&line), "{line} is not in {text}");
        }
        assert!(!text.contains("=\"\""), "an empty label: {text}");
    }

    #[test]
    fn the_older_text_names_families_as_their_samples() {
        let older = text::prometheus(&snapshot().open_metrics());
        for lines in [
            "# TYPE memcg_monitor_build_info gauge\nmemcg_monitor_build_info{",
            "# TYPE memcg_monitor_ring_full_total counter\nmemcg_monitor_ring_full_total 9\n",
            "# HELP memcg_monitor_hook_run_seconds_total ",
            "# TYPE container_memory_usage_bytes gauge\ncontainer_memory_usage_bytes{id=\"/a\"} 4096\n",
            "# TYPE memcg_monitor_signal_latency_seconds histogram\nmemcg_monitor_signal_latency_seconds_sum ",
        ] {
            assert!(older.contains(lines), "{lines}\nis not in\n{older}");
        }
        assert!(!older.contains("# UNIT") && !older.contains("# EOF") && !older.contains(" info\n"));
        let typed = older.lines().filter(|line| line.starts_with("# TYPE")).count();
        assert!(typed >= families::all().len() - 5, "{typed} families");
    }
}
