//! The service under systemd: started by its socket, watched, restarted, ended.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use monitor_client::{AdminConnection, CONTROL_SOCKET, SOCKET};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::MIB;
use crate::harness::agent::{PATIENCE, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, attached, write_event_control};
use crate::harness::group::{Group, read_number};
use crate::harness::report::say;
use crate::harness::test::vm_test;
use crate::scenarios::deploy::debian::{SERVICE, Units, output, property, systemctl};

/// The view, where it is by default.
const VIEW: &str = "/run/memcg-monitor/cgroup";

/// Whether registrations live through a restart of the agent.
const SURVIVES: bool = true;

/// Crosses a threshold up and down, and checks that both are signalled.
pub(super) fn receives(name: &str) -> Result<()> {
    let group = Group::new(name)?;
    let mut charger = Charger::start(&group)?;
    let waiter = Waiter::on(&group, "4M")?;
    crossings(&waiter, &mut charger)?;
    charger.end()
}

/// Checks it for a registration by a write to the view's `cgroup.event_control`.
fn receives_by_view(name: &str) -> Result<()> {
    let group = Group::new(name)?;
    let mut charger = Charger::start(&group)?;
    let waiter = Waiter::new()?;
    let directory = Path::new(VIEW).join(name);
    let control =
        File::open(directory.join("memory.usage_in_bytes")).context("cannot open the view's file")?;
    let line = format!("{} {} 4M", waiter.0.as_raw_fd(), control.as_raw_fd());
    write_event_control(&directory, line.as_bytes()).context("the view refuses")?;
    crossings(&waiter, &mut charger)?;
    charger.end()
}

fn crossings(waiter: &Waiter, charger: &mut Charger) -> Result<()> {
    let one = |side| {
        let received = waiter.wait()?;
        ensure!(received == 1, "{side}: {received} signals, not 1");
        Ok(())
    };
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    one("up")?;
    charger.shrink(Kind::Anonymous)?;
    one("down")
}

fn start_sockets() -> Result<()> {
    systemctl(&["start", "memcg-monitor.socket", "memcg-monitor-operator.socket"]).map(drop)
}

pub(super) fn main_process() -> Result<Pid> {
    let text = property("MainPID")?;
    Ok(Pid::from_raw(text.parse().with_context(|| format!("MainPID={text}"))?))
}

fn is_mounted() -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read mountinfo")?;
    Ok(mounts.lines().any(|line| line.contains(VIEW)))
}

vm_test!(
    debian_service,
    "a registration on the socket starts the agent, which serves it; stopped, it leaves nothing",
    Debian,
    []
);
fn debian_service() -> Result<()> {
    let before = attached()?;
    let _units = Units::install(&[])?;
    start_sockets()?;
    ensure!(property("ActiveState")? == "inactive", "no client has connected yet");
    receives("activation")?;
    ensure!(property("ActiveState")? == "active", "it is {}", property("ActiveState")?);
    let status = property("StatusText")?;
    ensure!(status.contains("watching") && status.contains(VIEW), "its status is {status:?}");
    let mode = fs::metadata(CONTROL_SOCKET)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the operator's socket has mode {mode:o}");
    ensure!(is_mounted()?, "the view is not to be seen outside the unit");
    for directory in ["/run/memcg-monitor", VIEW] {
        let mode = fs::metadata(directory)?.permissions().mode() & 0o777;
        ensure!(mode & 0o555 == 0o555, "{directory} has mode {mode:o}");
    }
    receives_by_view("by_view")?;

    let pid = main_process()?;
    let process = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let adjust = process("oom_score_adj")?;
    ensure!(adjust.trim() == "-900", "oom_score_adj is {adjust}");
    let group = Path::new("/sys/fs/cgroup").join(SERVICE);
    let procs = fs::read_to_string(group.join("cgroup.procs")).context("it is not right below the root")?;
    ensure!(procs.contains(&pid.to_string()), "{procs:?} is without {pid}");
    let least = read_number(&group.join("memory.min"))?;
    let (usage, peak) =
        (read_number(&group.join("memory.current"))?, read_number(&group.join("memory.peak"))?);
    say!("memory.min {least}, memory.current {usage}, memory.peak {peak}");
    ensure!(least > usage, "memory.min does not cover what the agent holds");
    stop(&before)
}

vm_test!(
    debian_restarts,
    "systemctl restart and a kill bring the agent back; clients that register meanwhile wait for it",
    Debian,
    []
);
fn debian_restarts() -> Result<()> {
    let _units = Units::install(&[])?;
    systemctl(&["start", SERVICE])?;
    let group = Group::new("restarts")?;
    let mut charger = Charger::start(&group)?;
    let waiter = Waiter::on(&group, "4M")?;
    let mut before = main_process()?;
    for how in ["restart", "kill"] {
        if how == "restart" {
            systemctl(&["restart", SERVICE])?;
        } else {
            kill(before, Signal::SIGKILL).context("kill failed")?;
        }
        // A client that connects before the next agent is ready waits for it.
        receives("again").with_context(|| format!("after {how}"))?;
        until("another agent runs", || {
            let now = main_process()?;
            Ok(now != before && now.as_raw() != 0 && property("ActiveState")? == "active")
        })?;
        before = main_process()?;
        if SURVIVES {
            crossings(&waiter, &mut charger).with_context(|| format!("registered before {how}"))?;
            // What an agent signals just before it is killed may be signalled once more (A7): not
            // this waiter's, by now.
            receives("noted")?;
        }
    }
    charger.end()
}

vm_test!(
    debian_watchdog,
    "a healthy agent is left alone, and one that stands still is restarted",
    Debian,
    []
);
fn debian_watchdog() -> Result<()> {
    let _units = Units::install(&[("10-test.conf", "[Service]\nWatchdogSec=10s\n")])?;
    systemctl(&["start", SERVICE])?;
    let fed = || property("WatchdogTimestampMonotonic");
    let first = fed()?;
    until("the watchdog is fed", || Ok(fed()? != first))?;
    let second = fed()?;
    until("the watchdog is fed again", || Ok(fed()? != second))?;
    let control = AdminConnection::connect(Path::new(CONTROL_SOCKET))?;
    control.set_timeout(Some(PATIENCE))?;
    let (groups, status) = control.list()?;
    ensure!((status.registrations, status.signals) == (0, 0), "its own are counted: {status:?}");
    ensure!(groups.iter().all(|group| group.registrations.is_empty()), "its own registrations are shown");
    ensure!(property("NRestarts")? == "0", "a healthy agent was restarted");

    let pid = main_process()?;
    kill(pid, Signal::SIGSTOP).context("cannot stop it")?;
    until("the watchdog restarts it", || {
        Ok(property("NRestarts")? != "0" && property("ActiveState")? == "active")
    })?;
    let log = output("journalctl", &["--no-pager", "-o", "cat", "-u", SERVICE])?;
    ensure!(log.contains("Watchdog timeout"), "systemd restarted it for another reason: {log}");
    receives("watchdog")
}

vm_test!(debian_no_view, "the tighter drop-in serves the socket, with nothing mounted", Debian, []);
fn debian_no_view() -> Result<()> {
    let text = Units::drop_in("no-view.conf")?;
    let _units = Units::install(&[("10-no-view.conf", &text)])?;
    systemctl(&["start", SERVICE])?;
    ensure!(!is_mounted()?, "something is mounted");
    let pid = main_process()?;
    let ours = fs::read_link("/proc/self/ns/mnt")?;
    ensure!(fs::read_link(format!("/proc/{pid}/ns/mnt"))? != ours, "it is in our mount namespace");
    receives("no_view")
}

vm_test!(
    debian_own_user,
    "with the drop-in for a user of its own, the service works as root's does, and goes on after a restart",
    Debian,
    []
);
fn debian_own_user() -> Result<()> {
    // As the package does.
    output("sh", &["-c", "echo 'u memcg-monitor - agent' | systemd-sysusers -"])?;
    // As udev leaves it, which this Debian does not have.
    output("chmod", &["0666", "/dev/fuse"])?;
    let text = Units::drop_in("own-user.conf")?;
    let _units = Units::install(&[("10-own-user.conf", &text)])?;
    let _own = OwnUser;
    systemctl(&["start", SERVICE])?;
    let owner = |path: &str| Ok::<_, anyhow::Error>(output("stat", &["-c", "%U", path])?.trim().to_owned());
    let first = main_process()?;
    for path in [&format!("/proc/{first}"), "/run/memcg-monitor", "/sys/fs/bpf/memcg-monitor"] {
        ensure!(owner(path)? == "memcg-monitor", "{path} is {}'s", owner(path)?);
    }
    receives("own_user")?;
    receives_by_view("own_user_view")?;

    let group = Group::new("own_user_kept")?;
    let mut charger = Charger::start(&group)?;
    let waiter = Waiter::on(&group, "4M")?;
    systemctl(&["restart", SERVICE])?;
    ensure!(main_process()? != first, "the agent is not a new one");
    crossings(&waiter, &mut charger).context("registered before the restart")?;
    charger.end()?;
    systemctl(&["stop", SERVICE])?;
    ensure!(!is_mounted()?, "the view is still mounted");
    Ok(())
}

/// Gives the directories back to root, whose agent the next test has.
#[derive(Debug)]
struct OwnUser;

impl Drop for OwnUser {
    fn drop(&mut self) {
        let _ = systemctl(&["stop", SERVICE]);
        // As docs/guide/deploy.md says.
        let _ = output("rm", &["-rf", "/sys/fs/bpf/memcg-monitor"]);
        let _ = output("chown", &["-R", "root:root", "/run/memcg-monitor"]);
    }
}

vm_test!(
    debian_metrics,
    "with the drop-in for metrics, Prometheus scrapes by loopback, and the service otherwise works as before",
    Debian,
    []
);
fn debian_metrics() -> Result<()> {
    let text = Units::drop_in("metrics.conf")?;
    let _units = Units::install(&[("20-metrics.conf", &text)])?;
    systemctl(&["start", SERVICE])?;
    let mut stream = TcpStream::connect("127.0.0.1:9101").context("no process listens")?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    for line in ["HTTP/1.1 200 OK", "memcg_monitor_build_info{", "container_memory_usage_bytes{id=\"/"] {
        ensure!(answer.contains(line), "no {line} in {answer}");
    }
    receives("metrics")
}

/// Checks a final stop: what was attached before is all that is attached now, and so on.
fn stop(before: &[String]) -> Result<()> {
    ensure!(attached()?.len() > before.len(), "nothing is attached");
    systemctl(&["stop", SERVICE])?;
    ensure!(Path::new(SOCKET).exists(), "the socket is systemd's, and stays while its unit is active");
    systemctl(&[&["stop"], &Units::ALL[1..]].concat())?;
    ensure!(property("Result")? == "success", "its result is {}", property("Result")?);
    stopped(before)
}

/// Checks that a stopped service has left nothing.
pub(super) fn stopped(before: &[String]) -> Result<()> {
    // The kernel frees what was pinned in its own time.
    until("nothing is attached any more", || Ok(attached()? == *before))?;
    ensure!(!is_mounted()?, "the view is still mounted");
    let left: Vec<_> = fs::read_dir("/run/memcg-monitor")
        .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
        .unwrap_or_default();
    ensure!(left.is_empty(), "{left:?} are left");
    let pins = fs::read_dir("/sys/fs/bpf").context("no bpffs")?.flatten();
    let pins: Vec<_> = pins
        .map(|entry| entry.file_name())
        .filter(|name| name != "progs.debug" && name != "maps.debug")
        .collect();
    ensure!(pins.is_empty(), "{pins:?} are pinned");
    Ok(())
}
