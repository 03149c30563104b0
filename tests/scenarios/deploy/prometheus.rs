//! A real Prometheus, with the configuration and the rules of `deploy/prometheus`,
//! scrapes an agent: its query answers the kernel's number, and an alert fires.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::harness::MIB;
use crate::harness::agent::{Agent, PATIENCE, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::group::Group;
use crate::harness::process;
use crate::harness::report::{say, text};
use crate::scenarios::metrics::older_text;

/// Path at which the host packs it.
const PROMETHEUS: &str = "/prometheus/prometheus";
const CONFIGURATION: &str = "/prometheus/prometheus.yml";
const ADDRESS: &str = "127.0.0.1:9090";
const LOG: &str = "/run/prometheus.log";

pub(crate) fn run() -> Result<()> {
    let agent = Agent::start(&["--max-groups", "16", "--metrics", "127.0.0.1:9101"])?;
    let group = Group::new("scraped")?;
    group.set_limit(512 * MIB)?;
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    text("metrics", &older_text()?);

    let prometheus = Prometheus::start()?;
    until("Prometheus scrapes the agent", || prometheus.is("up{job=\"memcg-monitor\"}", 1.0))
        .with_context(log)?;
    say!("Prometheus: up == 1");
    let query = "container_memory_usage_bytes{id=\"/scraped\"}";
    until("its number is the kernel's", || prometheus.is(query, group.usage()? as f64)).with_context(log)?;
    say!("Prometheus: {query} is memory.current, {}", group.usage()?);
    let build = "memcg_monitor_build_info{job=\"memcg-monitor\"}";
    ensure!(prometheus.is(build, 1.0)?, "no build info: {}", log());

    let alert = "ALERTS{alertname=\"MemcgMonitorGroupsNotWatched\",alertstate=\"firing\"}";
    ensure!(prometheus.value(alert)?.is_none(), "it fires before anything happened");
    let _groups: Vec<_> = (0..24).map(|n| Group::new(&format!("more{n}"))).collect::<Result<Vec<_>>>()?;
    until("the alert fires", || prometheus.is(alert, 1.0)).with_context(log)?;
    say!("Prometheus: MemcgMonitorGroupsNotWatched fires");
    drop(agent);
    until("and it notices that the agent has ended", || prometheus.is("up{job=\"memcg-monitor\"}", 0.0))
        .with_context(log)
}

fn log() -> String {
    let log = fs::read_to_string(LOG).unwrap_or_default();
    log.lines().rev().take(5).collect::<Vec<_>>().join(" | ")
}

struct Prometheus(Child);

impl Prometheus {
    fn start() -> Result<Self> {
        // As deployed, but quicker.
        let deployed = fs::read_to_string(CONFIGURATION)?;
        let quick =
            deployed.replace("scrape_interval: 15s", "scrape_interval: 1s\n  evaluation_interval: 1s");
        ensure!(quick != deployed, "{CONFIGURATION} has another interval");
        fs::write(CONFIGURATION, quick)?;
        let log = fs::File::create(LOG)?;
        let mut command = Command::new(PROMETHEUS);
        command.arg(format!("--config.file={CONFIGURATION}")).arg(format!("--web.listen-address={ADDRESS}"));
        command.arg("--storage.tsdb.path=/run/prometheus");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        process::kill_with_parent(&mut command);
        let mut prometheus = Self(command.spawn().with_context(|| format!("cannot start {PROMETHEUS}"))?);
        until("Prometheus listens", || {
            ensure!(prometheus.0.try_wait()?.is_none(), "Prometheus has ended: {}", self::log());
            Ok(TcpStream::connect(ADDRESS).is_ok())
        })?;
        Ok(prometheus)
    }

    fn is(&self, query: &str, number: f64) -> Result<bool> {
        Ok(self.value(query)? == Some(number))
    }

    /// The answer to a query, if that is one sample.
    fn value(&self, query: &str) -> Result<Option<f64>> {
        let query: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let mut stream = TcpStream::connect(ADDRESS)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET /api/v1/query?query={query} HTTP/1.0\r\nHost: {ADDRESS}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
        // Not yet JSON while it starts.
        let Ok(body) = serde_json::from_str::<Value>(body) else { return Ok(None) };
        let sample = body.pointer("/data/result/0/value/1").and_then(Value::as_str);
        Ok(sample.and_then(|number| number.parse().ok()))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
