//! A service of systemd's own, unmodified, that the agent wakes in systemd's memory-pressure protocol.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::Version;
use monitor_client::{AdminConnection, CONTROL_SOCKET};
use nix::sys::signal::{Signal, kill};

use crate::harness::MIB;
use crate::harness::agent::{PATIENCE, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::group::Group;
use crate::harness::report::say;
use crate::harness::test::vm_test;
use crate::scenarios::deploy::debian::service::main_process;
use crate::scenarios::deploy::debian::{BINARY, SERVICE, Units, output, property, systemctl};

/// The service with sd-event. Its file and its library are systemd's, of 254 or newer.
const CLIENT: &str = "systemd-timesyncd.service";

/// The line that sd-event logs when its program is woken.
const WOKEN: &str = "Memory pressure event, trimming malloc() memory";

/// Ends the service, and what the test has written for it.
struct Client;

impl Client {
    const DROP_INS: &str = "/run/systemd/system/systemd-timesyncd.service.d";

    /// Starts it with the drop-in that our command prints for these events.
    fn start(events: &[&str]) -> Result<Self> {
        let program = "/usr/lib/systemd/systemd-timesyncd";
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).context("it is not in the VM")?;
        output("systemd-sysusers", &[])?;
        let client = Self;
        let words = [&["drop-in", "--unit", "systemd-timesyncd"], events].concat();
        let text = output(BINARY, &words)?;
        fs::create_dir_all(Self::DROP_INS)?;
        fs::write(Path::new(Self::DROP_INS).join("memory-pressure.conf"), text)?;
        let log = "[Service]\nEnvironment=SYSTEMD_LOG_LEVEL=debug\n";
        fs::write(Path::new(Self::DROP_INS).join("log.conf"), log)?;
        systemctl(&["daemon-reload"])?;
        systemctl(&["start", CLIENT])?;
        Ok(client)
    }

    /// How often it was woken, by its own log.
    fn woken() -> Result<usize> {
        Ok(Self::log()?.lines().filter(|line| line.contains(WOKEN)).count())
    }

    fn log() -> Result<String> {
        output("journalctl", &["-b", "--no-pager", "-o", "cat", "-u", CLIENT])
    }

    fn main_process() -> Result<String> {
        Ok(systemctl(&["show", "-P", "MainPID", CLIENT])?.trim().to_owned())
    }

    /// Waits until it was woken more often than `before`.
    fn is_woken(before: usize, why: &str) -> Result<usize> {
        until(&format!("it is woken by {why}"), || Ok(Self::woken()? > before))
            .with_context(|| Self::log().unwrap_or_default().replace('\n', " / "))?;
        Self::woken()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = systemctl(&["stop", CLIENT]);
        let _ = fs::remove_dir_all(Self::DROP_INS);
        let _ = systemctl(&["daemon-reload"]);
    }
}

/// Waits until so many registrations are listed for a group.
fn listed(group: &Path, count: usize) -> Result<()> {
    until(&format!("{count} registrations are listed"), || {
        let control = AdminConnection::connect(Path::new(CONTROL_SOCKET))?;
        control.set_timeout(Some(PATIENCE))?;
        let (groups, _) = control.list()?;
        let found = groups.iter().find(|row| Path::new(&row.cgroup) == group);
        Ok(found.map_or(0, |row| row.registrations.len()) == count)
    })
}

vm_test!(
    debian_memory_pressure,
    "an unmodified service with sd-event is woken by its threshold, and over restarts of the agent",
    Debian,
    []
);
fn debian_memory_pressure() -> Result<()> {
    let _units = Units::install(&[])?;
    systemctl(&["start", SERVICE])?;
    let mode = fs::metadata("/run/memcg-monitor/memory_pressure.sock")?.permissions().mode() & 0o777;
    ensure!(mode == 0o666, "the pressure socket has mode {mode:o}");
    let _client = Client::start(&["memory.usage_in_bytes 32M,up", "memory.oom_control"])?;
    let path = Path::new("/sys/fs/cgroup/system.slice").join(CLIENT);
    listed(&path, 2)?;
    let process = Client::main_process()?;
    ensure!(Client::woken()? == 0, "it was woken by nothing: {}", Client::log()?);
    let mut charger = Charger::start(&Group { path: path.clone(), version: Version::V2 })?;
    let mut woken = 0;
    let crossed = |charger: &mut Charger, woken| {
        charger.grow(Kind::Anonymous, 64 * MIB)?;
        let now = Client::is_woken(woken, "a crossing")?;
        charger.shrink(Kind::Anonymous).map(|()| now)
    };
    woken = crossed(&mut charger, woken)?;
    for how in ["restart", "kill"] {
        let before = main_process()?;
        if how == "restart" {
            systemctl(&["restart", SERVICE])?;
        } else {
            kill(before, Signal::SIGKILL).context("kill failed")?;
        }
        until("another agent runs", || {
            let now = main_process()?;
            Ok(now != before && now.as_raw() != 0 && property("ActiveState")? == "active")
        })?;
        woken = Client::is_woken(woken, how)?;
        listed(&path, 2)?;
        woken = crossed(&mut charger, woken)?;
    }
    charger.end()?;
    ensure!(Client::main_process()? == process, "the service was restarted: {}", Client::log()?);
    say!("woken {woken} times, of which twice by the next agent");
    // For good: sd-event's main loop ends in an error, and systemd starts the service again.
    systemctl(&[&["stop"], &Units::ALL[..]].concat())?;
    until("the service comes back without the agent", || {
        let now = Client::main_process()?;
        Ok(now != process && now != "0")
    })
    .with_context(|| Client::log().unwrap_or_default().replace('\n', " / "))?;
    let after = Client::woken()?;
    ensure!(after <= woken + 1, "it was woken {after} times: a busy loop");
    Ok(())
}
