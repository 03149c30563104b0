//! Metrics: what a scraper reads, and that no scraper harms any client.

use std::collections::VecDeque;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use memcg_monitor::programs::TableSizes;
use monitor_common::grammar::control_file::ControlFile;
use nix::sys::signal::Signal;

use crate::harness::MIB;
use crate::harness::agent::{Agent, PATIENCE, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, agent_errno};
use crate::harness::group::Group;
use crate::harness::process::{Process, USER};
use crate::harness::test::vm_test;
use crate::scenarios::abuse::{fails, says};

const SOCKET: &str = "/run/memcg-monitor/metrics.sock";
const UNIX: &str = "unix:/run/memcg-monitor/metrics.sock";
/// Address of the metrics that tests request.
pub(crate) const TCP: &str = "127.0.0.1:9101";

/// Sends `request` and reads all of the answer.
fn fetch(mut stream: impl Read + Write, request: &[u8]) -> Result<String> {
    // Refused while it still sends, a client may get that error only.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => Err(error.into()),
        _ => Ok(String::from_utf8(answer)?),
    }
}

fn unix() -> Result<UnixStream> {
    let stream = UnixStream::connect(SOCKET).context("cannot connect to the metrics socket")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn tcp() -> Result<TcpStream> {
    let stream = TcpStream::connect(TCP).context("cannot connect to the metrics port")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One scrape's head and body.
fn scrape(stream: impl Read + Write, accept: &str) -> Result<(String, String)> {
    let request = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n");
    let answer = fetch(stream, request.as_bytes())?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no head in {answer:?}"))?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    Ok((head.to_ascii_lowercase(), body.to_owned()))
}

/// The metrics of an agent that serves them at [`TCP`].
pub(crate) fn text() -> Result<String> {
    Ok(scrape(tcp()?, "application/openmetrics-text; version=1.0.0")?.1)
}

/// A sample's value, by its name with labels.
pub(crate) fn value(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

vm_test!(
    metrics_values,
    "usage, peak, limit and events are the kernel's; signals, refusals, latency are counted",
    Any,
    []
);
fn metrics_values() -> Result<()> {
    let agent = Agent::start(&["--metrics", TCP])?;
    let group = Group::new("metrics")?;
    let odd = Group::new("odd \"name\"\\x2d")?;
    group.set_limit(64 * MIB)?;
    let waiter = Waiter::on(&group, "4M")?;
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    ensure!(waiter.wait()? >= 1, "the threshold is crossed");
    ensure!(agent_errno(b"1 2 nonsense")? != 0, "a bad line is refused");
    agent.settle()?;

    let sample = |text: &str, name: &str| value(text, &format!("{name}{{id=\"/metrics\"}}"));
    let mut text = String::new();
    until("usage and peak are the kernel's", || {
        text = self::text()?;
        let is = |name, bytes: u64| sample(&text, name) == Some(bytes as f64);
        Ok(is("container_memory_usage_bytes", group.usage()?)
            && is("container_memory_max_usage_bytes", group.peak()?))
    })
    .with_context(|| format!("usage {:?}, in: {text}", group.usage()))?;
    let has = |name: &str, number: f64| {
        ensure!(value(&text, name) == Some(number), "{name} is not {number} in: {text}");
        Ok(())
    };
    has("container_spec_memory_limit_bytes{id=\"/metrics\"}", (64 * MIB) as f64)?;
    has("memcg_monitor_group_registrations{id=\"/metrics\"}", 1.0)?;
    has("memcg_monitor_registrations{on=\"memory.usage_in_bytes\"}", 1.0)?;
    has("memcg_monitor_eventfds", 1.0)?;
    // By the host's memory.
    let limit = f64::from(TableSizes::for_memory(nix::sys::sysinfo::sysinfo()?.ram_total()).groups);
    has("memcg_monitor_groups_limit", limit)?;
    ensure!(value(&text, "memcg_monitor_groups_occupied") == value(&text, "memcg_monitor_groups"), "{text}");
    has("memcg_monitor_failed_signals_total", 0.0)?;
    has("memcg_monitor_ring_full_total", 0.0)?;
    has("container_memory_events_oom_kill_total{id=\"/metrics\"}", 0.0)?;
    let signals = agent.status()?.signals;
    has("memcg_monitor_signals_total{cause=\"crossed\"}", signals as f64)?;
    let refused: f64 = text
        .lines()
        .filter(|line| line.starts_with("memcg_monitor_refused_registrations_total{"))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum();
    ensure!(refused == 1.0, "{refused} refusals in: {text}");
    let count = value(&text, "memcg_monitor_signal_latency_seconds_count").unwrap_or(0.0);
    let sum = value(&text, "memcg_monitor_signal_latency_seconds_sum").unwrap_or(0.0);
    ensure!(count >= 1.0 && sum > 0.0 && sum < PATIENCE.as_secs_f64(), "latency: {count} in {sum} s");
    let line = "container_memory_usage_bytes{id=\"/odd \\\"name\\\"\\\\x2d\"} ";
    ensure!(text.contains(line), "{line} is not in: {text}");
    ensure!(text.ends_with("# EOF\n"), "no end mark");

    let (head, text) = scrape(tcp()?, "text/plain")?;
    ensure!(head.contains("text/plain; version=0.0.4"), "{head}");
    ensure!(text.contains("# TYPE memcg_monitor_ring_full_total counter\n"), "the older text: {text}");

    // An OOM is counted by the kernel; a group that goes takes its series along.
    charger.end()?;
    odd.remove()?;
    until("the removed group's series are gone", || Ok(!scrape(tcp()?, "*/*")?.1.contains("/odd")))
}

vm_test!(
    metrics_usage_is_kept,
    "usage and peak of a group that is waited for are kept by its charges, and exact at rest",
    Any,
    [Oracle, Kernel]
);
/// Two processes charge at once, in groups below one whose threshold they never
/// come near: no doorbell rings, the agent looks at nothing, and a scrape reads what is kept.
/// What the agent has collected is shown for a second, which each scrape here waits out.
fn metrics_usage_is_kept() -> Result<()> {
    const LOGGED_AGAIN: Duration = Duration::from_millis(1100);
    let agent = Agent::start(&["--metrics", TCP])?;
    let mut last = Instant::now();
    let group = Group::new("kept")?;
    let (one, other) = (group.child("one")?, group.child("other")?);
    let unwatched = Group::new("unwatched")?;
    let _waiter = Waiter::on(&group, "900M")?;
    let mut chargers = [Charger::start(&one)?, Charger::start(&other)?];
    let mut stranger = Charger::start(&unwatched)?;
    for round in 0..6_u64 {
        let kind = Kind::ALL[round as usize % 3];
        chargers.iter_mut().try_for_each(|charger| charger.begin_spike(kind, MIB, 40))?;
        chargers.iter_mut().try_for_each(Charger::finish)?;
        chargers[0].grow(Kind::Anonymous, (round + 1) * MIB)?;
        stranger.grow(Kind::Anonymous, MIB)?;
        for (group, id) in [(&group, "/kept"), (&one, "/kept/one"), (&unwatched, "/unwatched")] {
            let before = group.usage()?;
            std::thread::sleep(LOGGED_AGAIN.saturating_sub(last.elapsed()));
            let text = scrape(tcp()?, "application/openmetrics-text")?.1;
            last = Instant::now();
            let after = group.usage()?;
            let read = |name| value(&text, &format!("{name}{{id=\"{id}\"}}"));
            let usage = read("container_memory_usage_bytes");
            let range = before.min(after) as f64..=before.max(after) as f64;
            ensure!(
                usage.is_some_and(|usage| range.contains(&usage)),
                "round {round}: {id} is {usage:?}, not {range:?}"
            );
            let (peak, kernels) = (read("container_memory_max_usage_bytes"), group.peak()? as f64);
            ensure!(peak == Some(kernels), "round {round}: the peak of {id} is {peak:?}, not {kernels}");
        }
        chargers[0].shrink(Kind::Anonymous)?;
    }
    let resyncs = agent.status()?.resyncs;
    crate::harness::report::say!("{resyncs} times all was read anew");
    Ok(())
}

vm_test!(metrics_bounds, "patterns and --metrics-top bound the series; what is left out is counted", Any, []);
fn metrics_bounds() -> Result<()> {
    let groups: Vec<_> = (0..5).map(|n| Group::new(&format!("bound{n}"))).collect::<Result<_>>()?;
    // More than are read in one turn of the agent's loop.
    let _crowd: Vec<_> = (0..200).map(|n| Group::new(&format!("crowd{n}"))).collect::<Result<Vec<_>>>()?;
    let mut chargers = Vec::new();
    for (n, group) in (1..).zip(&groups) {
        let mut charger = Charger::start(group)?;
        charger.grow(Kind::Anonymous, n * 4 * MIB)?;
        chargers.push(charger);
    }
    let options = ["--metrics", UNIX, "--metrics-allow", "/bound*", "--metrics-deny", "/bound4"];
    let agent = Agent::start(&[&options[..], &["--metrics-top", "2"]].concat())?;
    let (_, text) = scrape(unix()?, "application/openmetrics-text")?;
    let name = "container_memory_usage_bytes{id=\"";
    let shown: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(name)?.split('"').next()).collect();
    ensure!(shown == ["/bound2", "/bound3"], "shown: {shown:?}");
    let left = |reason| value(&text, &format!("memcg_monitor_groups_left_out{{reason=\"{reason}\"}}"));
    let all = value(&text, "memcg_monitor_groups").unwrap_or(0.0);
    ensure!(left("top") == Some(2.0) && left("name") == Some(0.0), "{text}");
    // The root is left out, too, but is none of the groups.
    ensure!(left("pattern") == Some(all + 1.0 - 4.0) && all >= 205.0, "of {all}: {text}");
    drop(agent);
    Ok(())
}

vm_test!(
    metrics_workloads,
    "groups are named with unit, pod and container; the root has a series whether it is watched or not",
    Any,
    []
);
fn metrics_workloads() -> Result<()> {
    const POD: &str = "8a1fbc1e-7d41-4b73-b0a8-7c1d7f0e9a55";
    let container = "0123456789abcdef".repeat(4);
    let (kubepods, service) = (Group::new("kubepods")?, Group::new("nginx.service")?);
    let pod = kubepods.child(&format!("pod{POD}"))?;
    let inner = pod.child(&container)?;
    let _agent = Agent::start(&["--metrics", TCP])?;
    let mut charger = Charger::start(&inner)?;
    charger.grow(Kind::Anonymous, 4 * MIB)?;
    let _charger = Charger::start(&service)?;
    let name = "container_memory_usage_bytes";
    let id = format!("/kubepods/pod{POD}/{container}");
    for labels in [
        "id=\"/nginx.service\",unit=\"nginx.service\"".to_owned(),
        "id=\"/kubepods\"".to_owned(),
        format!("id=\"/kubepods/pod{POD}\",pod_uid=\"{POD}\""),
        format!("id=\"{id}\",pod_uid=\"{POD}\",container_id=\"{container}\""),
    ] {
        let text = text()?;
        ensure!(value(&text, &format!("{name}{{{labels}}}")).is_some(), "no {labels} in: {text}");
    }
    let root = |text: &str| value(text, &format!("{name}{{id=\"/\"}}"));
    let unwatched = text()?;
    let alone = root(&unwatched).with_context(|| format!("no root in: {unwatched}"))?;
    ensure!(alone >= (4 * MIB) as f64, "the root's usage is {alone}");
    let _waiter = Waiter::at(&Group::root()?, ControlFile::Usage, "1T")?;
    until("the root is there once, with its registration", || {
        let text = text()?;
        let is_watched = value(&text, "memcg_monitor_group_registrations{id=\"/\"}") == Some(1.0);
        ensure!(root(&text).is_some_and(|usage| usage > 0.0), "no root in: {text}");
        let series = text.lines().filter(|line| line.starts_with(&format!("{name}{{id=\"/\"}}")));
        ensure!(series.count() == 1, "the root twice in: {text}");
        Ok(is_watched)
    })
}

vm_test!(
    metrics_hostile,
    "absurd requests are refused, slow and many ones dropped, and no other client is affected",
    Any,
    []
);
fn metrics_hostile() -> Result<()> {
    let group = Group::new("scraped")?;
    let agent = Agent::start(&["--metrics", TCP])?;
    let waiter = Waiter::on(&group, "4M")?;
    scrape(tcp()?, "*/*")?;
    agent.settle()?;
    let before = agent.descriptors()?.len();
    let refused = |request: &[u8], code: &str| {
        let answer = fetch(tcp()?, request)?;
        let shown = String::from_utf8_lossy(&request[..request.len().min(40)]).into_owned();
        // Where it is refused before its request was read, the answer may be lost.
        let lost = answer.is_empty() && request.len() > 8192;
        ensure!(lost || answer.starts_with(&format!("HTTP/1.1 {code} ")), "{shown:?}: {answer:?}");
        anyhow::Ok(())
    };
    refused(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404")?;
    refused(b"GET /metrics/../metrics HTTP/1.1\r\nHost: x\r\n\r\n", "404")?;
    refused(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n", "405")?;
    refused(b"DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "405")?;
    refused(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", "400")?;
    let long = [&b"GET /metrics HTTP/1.1\r\nX: "[..], &vec![b'x'; 1 << 20], b"\r\n\r\n"].concat();
    refused(&long, "431")?;
    let many = [&b"GET /metrics HTTP/1.1\r\n"[..], &b"A: b\r\n".repeat(500), b"\r\n"].concat();
    refused(&many, "431")?;

    // Scrapers that say nothing, that stop in the middle, that never read.
    let mut silent = Vec::new();
    for n in 0..200 {
        let mut stream = tcp()?;
        let words: &[u8] = match n % 3 {
            0 => b"",
            1 => b"GET /metr",
            _ => b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        };
        // One that was dropped meanwhile gets an error.
        let _ = stream.write_all(words);
        silent.push(stream);
    }
    let (head, _) = scrape(tcp()?, "*/*")?;
    ensure!(head.contains("200"), "a good scraper is served among them");
    let held = agent.descriptors()?.len();
    ensure!(held <= before + 24, "{held} descriptors, {before} before");
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    ensure!(waiter.wait()? >= 1, "and clients are signalled");
    drop(silent);
    until("all of them are forgotten", || Ok(agent.descriptors()?.len() <= before))?;

    // Left in the middle of it, many times: one gathering at a time all the same.
    for _ in 0..100 {
        tcp()?.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")?;
    }
    scrape(tcp()?, "*/*")?;
    until("and these", || Ok(agent.descriptors()?.len() <= before))
}

vm_test!(
    metrics_flood,
    "a user who connects without end to the metrics' unix socket takes no connection from another user",
    Any,
    []
);
fn metrics_flood() -> Result<()> {
    let agent = Agent::start(&["--metrics", UNIX, "--socket-mode", "0666"])?;
    // It has begun when this one sees its connections.
    let before = agent.descriptors()?.len();
    let flood = Process::start_as(USER, || {
        let mut held = VecDeque::new();
        loop {
            let mut stream = UnixStream::connect(SOCKET).context("cannot connect")?;
            let _ = stream.write_all(b"GET /metr");
            held.push_back(stream);
            if held.len() > 200 {
                held.pop_front();
            }
        }
    })?;
    until("the flood has begun", || Ok(agent.descriptors()?.len() >= before + 10))?;
    for _ in 0..20 {
        let mut slow = unix()?;
        slow.write_all(b"GET /metrics HTTP/1.1\r\n")?;
        // Others connect meanwhile, more than the endpoint holds.
        scrape(unix()?, "*/*").context("a scrape beside the flood")?;
        slow.write_all(b"Host: x\r\n\r\n")?;
        let mut answer = String::new();
        slow.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "a slow scraper was dropped: {answer:?}");
    }
    drop(flood);
    until("nothing is left of it", || Ok(agent.descriptors()?.len() <= before))
}

vm_test!(metrics_address, "only loopback and unix sockets, with mode; another agent's stays", Any, []);
fn metrics_address() -> Result<()> {
    for (address, word) in [("0.0.0.0:9101", "loopback"), ("x", "unix:/PATH")] {
        let (code, text) = fails(&["agent", "--metrics", address], |_| {})?;
        ensure!(code == 2 && text.contains(word), "{address}: {code}, {text}");
    }
    let agent = Agent::start(&["--metrics", UNIX, "--socket-mode", "0600"])?;
    ensure!(fs::metadata(SOCKET)?.permissions().mode() & 0o777 == 0o600, "the socket's mode");
    let other = ["--socket", "/run/o/event.sock", "--control-socket", "/run/o/control.sock", "--no-mount"];
    let second = [&["agent", "--metrics", UNIX][..], &other].concat();
    says(fails(&second, |_| {})?, &["another program", SOCKET])?;
    scrape(unix()?, "*/*").context("the first agent's socket is there")?;
    ensure!(agent.end(Signal::SIGTERM)? == 0, "it ends as any other");
    ensure!(!fs::exists(SOCKET)?, "the socket is left behind");
    Ok(())
}

/// A scrape's text in the older format, which `promtool` is to look at.
pub(crate) fn older_text() -> Result<String> {
    Ok(scrape(tcp()?, "text/plain")?.1)
}
