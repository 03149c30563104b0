//! A real Prometheus, with the configuration and the rules of `deploy/prometheus`,
//! scrapes an agent: its query answers the kernel's number, and an alert fires.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::harness::MIB;
use crate::harness::agent::{Agent, PATIENCE, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::process;
use crate::harness::report::{say, text};
use crate::scenarios::metrics::older_text;

/// Path at which the host packs it.
const PROMETHEUS: &str = "/prometheus/prometheus";
const CONFIGURATION: &str = "/prometheus/prometheus.yml";
const ADDRESS: &str = "127.0.0.1:9090";
const LOG: &str = "/run/prometheus.log";
/// The queries of the dashboard for Grafana, one in a line.
const DASHBOARD: &str = "/prometheus/dashboard.txt";
/// Time that the dashboard shows.
const SHOWN: Duration = Duration::from_secs(30);

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
    text("dashboard", &dashboard(&prometheus, &group, &mut charger)?);
    drop(agent);
    until("and it notices that the agent has ended", || prometheus.is("up{job=\"memcg-monitor\"}", 0.0))
        .with_context(log)
}

/// Asks Prometheus for the answers to the dashboard's queries, after a time in which a group grew and shrank.
fn dashboard(prometheus: &Prometheus, group: &Group, charger: &mut Charger) -> Result<String> {
    let waiter = Waiter::on(group, "64M")?;
    let begin = Instant::now();
    for round in (1..6).cycle() {
        charger.grow(Kind::Anonymous, round * 24 * MIB)?;
        charger.shrink(Kind::Anonymous)?;
        if begin.elapsed() > SHOWN {
            break;
        }
    }
    ensure!(waiter.take()? > 0, "the threshold was not crossed");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let mut answers = Vec::new();
    for query in fs::read_to_string(DASHBOARD)?.lines() {
        let range = format!("start={}&end={now}&step=1", now - SHOWN.as_secs());
        let answer = prometheus.get(&format!("query_range?{range}&query={}", encoded(query)))?;
        ensure!(answer["status"] == "success", "{query}: {answer}");
        answers.push(answer["data"]["result"].clone());
    }
    let empty = answers.iter().filter(|answer| answer.as_array().is_none_or(Vec::is_empty)).count();
    say!("Prometheus: {} of {} queries of the dashboard have data", answers.len() - empty, answers.len());
    // No refusals, and nobody waits or is killed.
    ensure!(empty <= 6, "too few queries of the dashboard have data: {answers:?}");
    Ok(Value::from(answers).to_string())
}

fn encoded(query: &str) -> String {
    query.bytes().map(|byte| format!("%{byte:02x}")).collect()
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
        let body = self.get(&format!("query?query={}", encoded(query)))?;
        let sample = body.pointer("/data/result/0/value/1").and_then(Value::as_str);
        Ok(sample.and_then(|number| number.parse().ok()))
    }

    /// The answer to a request; null while Prometheus starts, which is not yet JSON.
    fn get(&self, request: &str) -> Result<Value> {
        let mut stream = TcpStream::connect(ADDRESS)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET /api/v1/{request} HTTP/1.0\r\nHost: {ADDRESS}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
        Ok(serde_json::from_str(body).unwrap_or_default())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
