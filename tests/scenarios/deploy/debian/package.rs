//! The package: installed, upgraded over a running agent, removed and purged, as an administrator
//! does it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use memcg_monitor::cgroup::Version;

use crate::harness::MIB;
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, attached};
use crate::harness::group::Group;
use crate::harness::test::vm_test;
use crate::scenarios::deploy::debian::service::{main_process, receives, stopped};
use crate::scenarios::deploy::debian::units::blocks;
use crate::scenarios::deploy::debian::{SERVICE, Units, output, property, systemctl};

const PACKAGES: &str = "/usr/share/memcg-monitor/packages";

/// The page that a new user begins with.
const README: &str = include_str!("../../../../README.md");

const OPTIONS: &str = "/etc/default/memcg-monitor";

/// Runs apt as for an administrator who is not there to answer. Returns all that it says.
fn apt(words: &[&str]) -> Result<String> {
    let line = r#"DEBIAN_FRONTEND=noninteractive exec apt-get --yes -o Dpkg::Use-Pty=0 "$@" 2>&1"#;
    output("sh", &[&["-c", line, "apt-get"], words].concat())
}

/// A unit of the administrator's, which is in force instead of the package's.
const SHADOW: &str = "/etc/systemd/system/memcg-monitor.service";

/// The two sockets' inode numbers and modes, that for registrations first.
fn sockets() -> Result<[String; 2]> {
    let of = |name: &str| {
        Ok::<_, anyhow::Error>(
            output("stat", &["-c", "%i %a", &format!("/run/memcg-monitor/{name}")])?.trim().to_owned(),
        )
    };
    Ok([of("event_control.sock")?, of("control.sock")?])
}

/// Ends what a test that failed has left.
#[derive(Debug)]
struct Installed;

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = apt(&["purge", "memcg-monitor"]);
    }
}

/// One line, by the name of a service alone, shows a crossing.
pub(super) fn crossing_of_a_unit() -> Result<()> {
    output("systemd-run", &["--unit", "shop", "sleep", "600"])?;
    let path = Path::new("/sys/fs/cgroup/system.slice/shop.service").to_path_buf();
    let mut charger = Charger::start(&Group { path, version: Version::V2 })?;
    let mut listen = Command::new("/usr/bin/memcg-monitor")
        .args(["listen", "--unit", "shop", "--announce", "--count", "1", "32M"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start listen")?;
    let mut lines = BufReader::new(listen.stdout.take().context("no output")?).lines();
    let first = lines.next().context("it ended")??;
    ensure!(first == "registered", "it prints {first:?}");
    charger.grow(Kind::Anonymous, 64 * MIB)?;
    let second = lines.next().context("it ended")??;
    ensure!(
        second.contains("shop.service") && second.contains("32M: crossed 32M upwards, usage "),
        "it prints {second:?}"
    );
    ensure!(listen.wait()?.success(), "it failed");
    let listed = output("memcg-monitor", &["list", "--unit", "shop", "-o", "json"])?;
    ensure!(listed.contains("/shop.service\""), "it is not listed: {listed}");
    ensure!(!listed.contains("memcg-monitor.service"), "others are listed: {listed}");
    charger.end()?;
    systemctl(&["stop", "shop.service"]).map(drop)
}

vm_test!(
    debian_package,
    "apt installs a running service, upgrades it under its registrations, and leaves nothing once purged",
    Debian,
    []
);
fn debian_package() -> Result<()> {
    let before = attached()?;
    let _installed = Installed;
    apt(&["install", &format!("{PACKAGES}/0.deb")])?;
    for unit in Units::ALL {
        let enabled = systemctl(&["is-enabled", unit])?;
        ensure!(enabled.trim() == "enabled", "{unit} is {enabled}");
    }
    ensure!(property("ActiveState")? == "active", "it is {}", property("ActiveState")?);
    let executed = property("ExecStart")?;
    ensure!(executed.contains("/usr/bin/memcg-monitor"), "{executed}");
    receives("package")?;
    let group = fs::read_to_string("/etc/group")?;
    ensure!(group.lines().any(|line| line.starts_with("memcg-monitor:")), "there is no such group: {group}");
    let socket = output("stat", &["-c", "%G %a", "/run/memcg-monitor/event_control.sock"])?;
    ensure!(socket.trim() == "memcg-monitor 660", "the registration socket is {socket}");
    let page = output("zcat", &["/usr/share/man/man1/memcg-monitor-listen.1.gz"])?;
    ensure!(page.contains("SYNOPSIS"), "{page}");

    let blocks = blocks(README, "Install");
    let [_, signal] = blocks.as_slice() else { bail!("{} blocks of commands in the README", blocks.len()) };
    let said = output("sh", &["-exc", signal]).context("the README's first signal")?;
    ensure!(
        said.contains("demo.service") && said.contains("crossed 32M upwards, usage "),
        "it prints {said:?}"
    );
    crossing_of_a_unit().context("listen --unit")?;

    // What the administrator has written is kept, and read.
    fs::write(OPTIONS, "MEMCG_MONITOR_OPTIONS=\"--holdoff-ms 50\"\n")?;
    let kept = Group::new("upgraded")?;
    let mut charger = Charger::start(&kept)?;
    let waiter = Waiter::on(&kept, "4M")?;
    let first = main_process()?;
    let made = sockets()?;
    apt(&["install", &format!("{PACKAGES}/1.deb")])?;
    let second = main_process()?;
    ensure!(first != second, "the agent is not the new one");
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    ensure!(waiter.wait()? == 1, "a registration was lost, or signalled twice");
    ensure!(sockets()? == made, "a socket whose unit has not changed was made anew");
    let line = fs::read_to_string(format!("/proc/{second}/cmdline"))?;
    ensure!(line.contains("--holdoff-ms\0"), "the options are not read: {line:?}");
    receives("after_the_upgrade")?;

    // A socket whose unit has changed is made anew under the registrations, the other one is not; a
    // unit of the administrator's is named.
    charger.shrink(Kind::Anonymous)?;
    ensure!(waiter.wait()? == 1, "the way down was not signalled once");
    fs::write(SHADOW, fs::read(format!("/usr/lib/systemd/system/{SERVICE}"))?)?;
    let said = apt(&["install", &format!("{PACKAGES}/2.deb")])?;
    fs::remove_file(SHADOW)?;
    systemctl(&["daemon-reload"])?;
    ensure!(said.contains(&format!("warning: {SHADOW} replaces the package's unit")), "apt says: {said}");
    let [register, operator] = sockets()?;
    ensure!(register.ends_with(" 666") && register != made[0], "the registration socket is {register}");
    ensure!(operator == made[1], "the admin socket was made anew: {operator}");
    ensure!(main_process()? != second, "the agent is not the new one");
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    ensure!(waiter.wait()? == 1, "a registration was lost, or signalled twice, with a changed socket");
    receives("after_the_change")?;
    charger.end()?;

    apt(&["remove", "memcg-monitor"])?;
    stopped(&before)?;
    ensure!(Path::new(OPTIONS).exists(), "the configuration went before the purge");
    ensure!(!Path::new("/run/memcg-monitor/event_control.sock").exists(), "the socket is still there");
    apt(&["purge", "memcg-monitor"])?;
    for path in [
        OPTIONS,
        "/usr/bin/memcg-monitor",
        "/etc/systemd/system/multi-user.target.wants/memcg-monitor.service",
        "/etc/systemd/system/sockets.target.wants/memcg-monitor.socket",
    ] {
        ensure!(fs::symlink_metadata(path).is_err(), "{path} is left");
    }
    // The files of the tests' own installation are not the package's.
    let mode =
        fs::metadata("/usr/local/bin/memcg-monitor").context("it took more than its own")?.permissions();
    ensure!(mode.mode() & 0o111 != 0, "the other program lost its mode");
    Ok(())
}
