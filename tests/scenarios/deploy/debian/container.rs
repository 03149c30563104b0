//! The container image, run by runc as deploy/kubernetes says: an agent that is not
//! privileged, and a client that may do nothing at all.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::Version;
use monitor_client::{AdminConnection, CONTROL_SOCKET, SOCKET};
use serde_json::Value;

use crate::harness::agent::{PATIENCE, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::attached;
use crate::harness::group::{Group, read_number};
use crate::harness::report::say;
use crate::harness::test::vm_test;
use crate::scenarios::deploy::debian::bundle::Bundle;
use crate::scenarios::deploy::debian::output;

/// Groups of the containers lie here.
const GROUP: &str = "memcg-containers";

/// The admin socket, as the manifest's probes name it.
const OPERATORS: &str = "--control-socket=/run/memcg-monitor-operator/control.sock";

/// A container; ended and deleted with the value.
struct Container {
    name: &'static str,
    bundle: Bundle,
    log: PathBuf,
}

impl Container {
    fn start(name: &'static str, manifest: &str, users: Option<u32>) -> Result<Self> {
        let bundle = Bundle::of(name, manifest, &format!("/{GROUP}/{name}"), users)?;
        let log = bundle.directory.join("log");
        let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let status = Command::new("runc")
            .args(["run", "--detach", "--bundle"])
            .args([bundle.directory.as_os_str(), name.as_ref()])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()
            .context("cannot start runc")?;
        let container = Self { name, bundle, log };
        ensure!(status.success(), "runc: {status}: {}", container.said());
        Ok(container)
    }

    /// The operator's socket, as the host sees it.
    fn operators(&self) -> PathBuf {
        self.bundle.volume("operator").join("control.sock")
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn state(&self) -> Result<Value> {
        Ok(serde_json::from_str(&output("runc", &["state", self.name])?)?)
    }

    fn has_stopped(&self) -> Result<bool> {
        Ok(self.state()?["status"] == "stopped")
    }

    /// A line of its first process's `/proc/PID/status`.
    fn process(&self, field: &str) -> Result<String> {
        let pid = self.state()?["pid"].as_u64().context("it has no process")?;
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let found = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        found.map(|value| value.trim().to_owned()).with_context(|| format!("no {field}"))
    }

    fn group(&self) -> Group {
        Group { path: Path::new("/sys/fs/cgroup").join(GROUP).join(self.name), version: Version::V2 }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = output("runc", &["delete", "--force", self.name]);
    }
}

vm_test!(
    debian_container,
    "the image as an unprivileged agent; an unprivileged container is signalled for its own memory",
    Debian,
    []
);
fn debian_container() -> Result<()> {
    let before = attached()?;
    let agent = Container::start("agent", "daemonset", None)?;
    until("the startup probe passes", || {
        ensure!(!agent.has_stopped()?, "the agent ended: {}", agent.said());
        Ok(output("runc", &["exec", "agent", "/memcg-monitor", "status", OPERATORS]).is_ok())
    })?;
    // Clients see the directory, and in it no way to list others' groups.
    ensure!(!Path::new(CONTROL_SOCKET).exists(), "the operator's socket is in the clients' directory");
    // BPF 39, PERFMON 38, SYS_PTRACE 19, SETUID 7, DAC_READ_SEARCH 2.
    let mask = format!("{:016x}", [39, 38, 19, 7, 2].iter().fold(0_u64, |all, one| all | 1 << one));
    for field in ["CapBnd", "CapEff"] {
        ensure!(agent.process(field)? == mask, "{field} is {}, not {mask}", agent.process(field)?);
    }

    receives_own_events(&agent, "client", "client", None)?;
    receives_own_events(&agent, "mapped", "client", Some(100_000))?;
    receives_own_events(&agent, "hostpath", "client-hostpath", None)?;

    let usage = agent.group();
    let (now, peak) =
        (read_number(&usage.path.join("memory.current"))?, read_number(&usage.path.join("memory.peak"))?);
    say!("the agent's container: memory.current {now}, memory.peak {peak}");
    output("runc", &["kill", "agent", "TERM"])?;
    until("the agent has ended", || agent.has_stopped())?;
    until("nothing is attached any more", || Ok(attached()? == before))?;
    ensure!(!Path::new(SOCKET).exists(), "the socket is still there");
    Ok(())
}

/// A client in namespaces of its own, which may do nothing, and a process in its group.
fn receives_own_events(
    agent: &Container,
    name: &'static str,
    manifest: &str,
    users: Option<u32>,
) -> Result<()> {
    let client = Container::start(name, manifest, users)?;
    let control = AdminConnection::connect(&agent.operators())?;
    control.set_timeout(Some(PATIENCE))?;
    let group = client.group().path.display().to_string();
    until("the client has registered", || {
        ensure!(!client.has_stopped()?, "the client ended: {}; {}", client.said(), agent.said());
        let (rows, _) = control.list()?;
        Ok(rows.iter().any(|row| row.cgroup == group && row.registrations.len() == 1))
    })?;
    for (field, value) in
        [("CapBnd", "0000000000000000"), ("CapEff", "0000000000000000"), ("NoNewPrivs", "1")]
    {
        ensure!(client.process(field)? == value, "the client's {field} is {}", client.process(field)?);
    }
    let user = (users.unwrap_or(0) + 65532).to_string();
    ensure!(client.process("Uid")?.starts_with(&user), "the client is {}", client.process("Uid")?);
    ensure!(client.process("NSpid")?.ends_with("\t1"), "the client sees the host's processes");

    let mut charger = Charger::start(&client.group())?;
    charger.grow(Kind::Anonymous, 24 << 20)?;
    until("the client was signalled and ended", || client.has_stopped())?;
    ensure!(client.said().contains("memory.current 16M: crossed"), "the client said {:?}", client.said());
    charger.end()
}
