//! Resources that a host has once for all: descriptors in flight, AIO contexts, a directory for
//! pins. What others do with them costs no client a signal, and what the agent does costs no
//! other process.

use std::fs::{self, File, Permissions};
use std::io::{IoSlice, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use memcg_monitor::programs::PINS_DIRECTORY;
use memcg_monitor::sandbox::capabilities;
use monitor_client::{SOCKET, connect};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount, umount2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, setsockopt, socketpair,
    sockopt,
};
use nix::unistd::Pid;

use super::{MIB, crosses, own_mounts};
use crate::harness::agent::{Agent, BINARY, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::process::{self, Process, USER};
use crate::harness::test::vm_test;
use crate::scenarios::abuse::{answer, fails};
use crate::scenarios::restart::Supervised;

const BPF: &str = "/sys/fs/bpf";

/// A socket pair with descriptors on their way.
struct InFlight(#[expect(dead_code, reason = "held")] [OwnedFd; 2]);

/// Sends so many, until there is no more room: how many went.
fn send(descriptors: usize) -> Result<(InFlight, usize), Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (from, to) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    setsockopt(&from, sockopt::SndBuf, &(1 << 24))?;
    let mut sent = 0;
    while sent < descriptors {
        let some: Vec<RawFd> = vec![libc::STDERR_FILENO; (descriptors - sent).min(253)];
        let rights = [ControlMessage::ScmRights(&some)];
        match sendmsg::<UnixAddr>(from.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None) {
            Ok(_) => sent += some.len(),
            Err(Errno::EAGAIN) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok((InFlight([from, to]), sent))
}

/// Whether root without its capabilities, as a service with a `CapabilityBoundingSet=` is,
/// may pass a descriptor.
fn plain_root_may_send() -> Result<bool> {
    let process = Process::start(|| {
        capabilities::keep(&[])?;
        setrlimit(Resource::RLIMIT_NOFILE, 1024, 1024)?;
        send(1).context("sendmsg").map(drop)
    })?;
    match process.end() {
        Ok(()) => Ok(true),
        Err(error) => {
            ensure!(format!("{error:#}").contains("ETOOMANYREFS"), "{error:#}");
            Ok(false)
        }
    }
}

vm_test!(
    faults_in_flight,
    "what is kept takes descriptor passing away from no other root process, nor they from the agent",
    Any,
    [Kernel]
);
fn faults_in_flight() -> Result<()> {
    const KEPT: usize = 2000;
    const STORM: usize = 140_000;
    let group = Group::new("flight")?;
    // May have as many descriptors in flight as it may have open, once it has given up its capabilities:
    // 4096 eventfds, and less than 132,000 others.
    let mut agent = Supervised::start(&["--socket-mode", "0666", "--max-eventfds", "4096"])?;
    let mut charger = Charger::start(&group)?;
    let waiter = Waiter::on(&group, "4M")?;
    let usage = group.usage_file();
    let _crowd = Process::start_as(USER, || {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        let (connection, control) = (connect(Path::new(SOCKET))?, File::open(&usage)?);
        let mut held = Vec::new();
        for _ in 0..KEPT {
            let waiter = Waiter::new()?;
            let line = format!("{} {} 1G", waiter.0.as_raw_fd(), control.as_raw_fd());
            let said = answer(&connection, line.as_bytes(), &[])?;
            ensure!(said == "0", "{said}");
            held.push(waiter);
        }
        loop {
            nix::unistd::pause();
        }
    })?;
    until("a user has many eventfds kept", || Ok(agent.registrations()? == KEPT as u64 + 1))?;
    ensure!(plain_root_may_send()?, "what the agent keeps counts against root");
    agent.killed_while(|| Ok(()))?;
    ensure!(agent.registrations()? == KEPT as u64 + 1, "all go on");
    ensure!(plain_root_may_send()?, "what the next agent keeps counts against root");

    // The other way round: more of root's than the agent may have.
    let mut storm = Vec::new();
    let mut sent = 0;
    while sent < STORM {
        let (pair, more) = send(STORM - sent)?;
        storm.push(pair);
        sent += more;
    }
    ensure!(!plain_root_may_send()?, "root has nothing in flight: the test shows nothing");
    let late = Waiter::on(&group, "4M").context("in a storm of root's descriptors")?;
    crosses(&mut charger, &waiter)?;
    late.receives(2, "registered in the storm")?;
    agent.killed_while(|| charger.grow(Kind::Anonymous, 6 * MIB))?;
    ensure!(waiter.wait()? == 1 && late.wait()? == 1, "what happened meanwhile is signalled");
    let later = Waiter::on(&group, "4M").context("by the next agent")?;
    charger.shrink(Kind::Anonymous)?;
    ensure!(later.wait()? == 1, "down");
    drop(storm);
    charger.end()
}

/// A BPF file system that every user may write to, as `mount -t bpf` makes it.
fn everybodys_bpffs() -> Result<()> {
    let _ = fs::remove_dir_all(PINS_DIRECTORY);
    own_mounts()?;
    umount2(BPF, MntFlags::MNT_DETACH)?;
    mount(Some("bpf"), BPF, Some("bpf"), MsFlags::empty(), None::<&str>)?;
    let mode = fs::metadata(BPF)?.permissions().mode() & 0o7777;
    ensure!(mode == 0o1777, "the kernel's default is {mode:o}");
    Ok(())
}

vm_test!(
    faults_pins_of_another_user,
    "a directory that a user made where pins are to go: said, not used, and nothing below it is touched",
    Any,
    []
);
fn faults_pins_of_another_user() -> Result<()> {
    const PRECIOUS: &str = "/run/precious/5";
    everybodys_bpffs()?;
    let group = Group::new("squatted")?;
    let mut charger = Charger::start(&group)?;
    fs::create_dir_all(PRECIOUS)?;
    let keep = Path::new(PRECIOUS).join("map-SCRATCH");
    fs::write(&keep, "not the agent's")?;
    for how in ["directory", "link"] {
        Agent::forget_log();
        process::run_as(USER, || {
            if how == "directory" {
                fs::create_dir(PINS_DIRECTORY)?;
                fs::set_permissions(PINS_DIRECTORY, Permissions::from_mode(0o777))?;
                fs::create_dir(Path::new(PINS_DIRECTORY).join("5"))?;
            } else {
                symlink("/run/precious", PINS_DIRECTORY)?;
            }
            Ok(())
        })?;
        let mut agent = Supervised::start(&[])?;
        let log = Agent::log();
        ensure!(log.contains(PINS_DIRECTORY) && log.contains(&format!("user id {USER}")), "{how}: {log}");
        let waiter = Waiter::on(&group, "4M")?;
        agent.killed_while(|| charger.grow(Kind::Anonymous, 6 * MIB))?;
        ensure!(waiter.wait()? == 1, "{how}: registered is registered");
        charger.shrink(Kind::Anonymous)?;
        ensure!(waiter.wait()? == 1, "{how}: and on");
        ensure!(agent.0.end(Signal::SIGTERM)? == 0, "{how}: the agent ends well");
        ensure!(keep.exists(), "{how}: what a link leads to was removed");
        ensure!(fs::symlink_metadata(PINS_DIRECTORY)?.uid() == USER, "{how}: what is another user's stays");
        process::run_as(USER, || {
            match how {
                "directory" => fs::remove_dir_all(PINS_DIRECTORY)?,
                _ => fs::remove_file(PINS_DIRECTORY)?,
            }
            Ok(())
        })?;
    }
    charger.end()
}

vm_test!(
    faults_pins_among_others,
    "where every user may make directories, none takes the agent's away, nor its place once it has ended",
    Any,
    []
);
fn faults_pins_among_others() -> Result<()> {
    everybodys_bpffs()?;
    let group = Group::new("pinned")?;
    let mut charger = Charger::start(&group)?;
    let mut agent = Supervised::start(&[])?;
    let waiter = Waiter::on(&group, "4M")?;
    let tries = || {
        process::run_as(USER, || {
            let elsewhere = Path::new(BPF).join("elsewhere");
            ensure!(fs::rename(PINS_DIRECTORY, &elsewhere).is_err(), "renamed");
            ensure!(fs::remove_dir(PINS_DIRECTORY).is_err(), "removed");
            ensure!(fs::create_dir(PINS_DIRECTORY).is_err(), "made");
            ensure!(fs::read_dir(PINS_DIRECTORY).is_err(), "read");
            Ok(())
        })
    };
    tries().context("while the agent runs")?;
    agent.killed_while(|| charger.spike(Kind::Anonymous, 6 * MIB, 1))?;
    agent.0.settle()?;
    waiter.receives(2, "the pinned programs keep working")?;

    // Pins that go by mistake detach nothing; the next agent has all but what came and went.
    let programs = fs::read_dir(PINS_DIRECTORY)?.next().context("nothing is pinned")??.path();
    for pin in fs::read_dir(&programs)?.flatten() {
        if pin.file_name().to_string_lossy().starts_with("link-") {
            fs::remove_file(pin.path())?;
        }
    }
    crosses(&mut charger, &waiter)?;
    agent.killed_while(|| charger.grow(Kind::Anonymous, 6 * MIB))?;
    ensure!(waiter.wait()? == 1, "what holds is signalled");
    ensure!(Agent::log().contains("link of"), "it is said which pin is missing: {}", Agent::log());
    charger.shrink(Kind::Anonymous)?;
    ensure!(waiter.wait()? == 1, "and on");

    ensure!(agent.0.end(Signal::SIGTERM)? == 0, "the agent ends well");
    ensure!(fs::read_dir(PINS_DIRECTORY)?.next().is_none(), "a pin is left");
    tries().context("after the agent has ended")?;
    fs::remove_dir(PINS_DIRECTORY)?;
    charger.end()
}

/// AIO contexts that a user has taken, up to the host's bound.
fn takes_all_aio() -> Result<()> {
    let mut taken = 0;
    for events in [4096, 256, 16, 1] {
        loop {
            let mut context = 0_u64;
            // SAFETY: the kernel writes one word.
            let made = unsafe { libc::syscall(libc::SYS_io_setup, events, &raw mut context) };
            match Errno::result(made) {
                Ok(_) => taken += 1,
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(errno).context("io_setup"),
            }
        }
    }
    ensure!(taken > 0, "none is to be had");
    Ok(())
}

/// Runs with this bound on the host's AIO contexts.
fn with_aio_bound(bound: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    const BOUND: &str = "/proc/sys/fs/aio-max-nr";
    let before = fs::read_to_string(BOUND)?;
    fs::write(BOUND, bound)?;
    let outcome = work();
    fs::write(BOUND, before.trim())?;
    outcome
}

vm_test!(
    faults_check,
    "check says which of what a host has once for all is short, and that the agent does without",
    Any,
    []
);
fn faults_check() -> Result<()> {
    everybodys_bpffs()?;
    let check = || {
        let (code, text) = fails(&["check"], |_| {})?;
        ensure!(
            code == 0 && text.contains("This host can be watched: every crossing is seen"),
            "{code}: {text}"
        );
        let line = |what: &str| text.lines().find(|line| line.contains(what)).unwrap_or_default().to_owned();
        Ok::<_, anyhow::Error>([" AIO ", " pins ", " descriptors in flight ", " trial of fentry "].map(line))
    };
    let [aio, pins, in_flight, trial] = check()?;
    ensure!(trial.starts_with("ok") && trial.contains("signalled 4 of 4"), "{trial}");
    for word in ["anonymous memory", "page cache", "kernel memory", "page_counter_uncharge"] {
        ensure!(trial.contains(word), "{word}: {trial}");
    }
    ensure!(of_check()?.is_empty(), "check has left {:?}", of_check()?);
    ensure!(
        aio.starts_with("ok") && pins.contains("chmod 0700") && in_flight.starts_with("ok"),
        "{aio} {pins}"
    );
    process::run_as(USER, || fs::create_dir(PINS_DIRECTORY).context("cannot make the directory"))?;
    with_aio_bound("0", || {
        let [aio, pins, ..] = check()?;
        ensure!(aio.starts_with(" -") && aio.contains("EAGAIN") && aio.contains("fs.aio-max-nr 0"), "{aio}");
        ensure!(pins.starts_with(" -") && pins.contains(&format!("user id {USER}")), "{pins}");
        Ok(())
    })?;
    fs::remove_dir(PINS_DIRECTORY).context("cannot remove a user's directory")
}

/// The group and the directory of a check's trial.
fn of_check() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for directory in ["/sys/fs/cgroup", "/tmp"] {
        let paths = fs::read_dir(directory)?.flatten().map(|entry| entry.path());
        found.extend(paths.filter(|path| path.to_string_lossy().contains("/memcg-monitor-check.")));
    }
    Ok(found)
}

vm_test!(
    faults_check_interrupted,
    "check that a signal ends leaves neither its agent nor its group, and ends by that signal",
    V2,
    []
);
fn faults_check_interrupted() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut check = Command::new(BINARY).arg("check").stdout(Stdio::null()).spawn()?;
        until("the trial has begun", || Ok(of_check()?.len() == 2))?;
        nix::sys::signal::kill(Pid::from_raw(i32::try_from(check.id())?), signal)?;
        let status = check.wait()?;
        ensure!(status.signal() == Some(signal as i32), "{signal}: {status}");
        ensure!(of_check()?.is_empty(), "{signal}: check has left {:?}", of_check()?);
        let is_ours =
            |path: PathBuf| fs::read_link(path.join("exe")).is_ok_and(|exe| exe == Path::new(BINARY));
        let agent = fs::read_dir("/proc")?.flatten().find(|entry| is_ours(entry.path()));
        ensure!(agent.is_none(), "{signal}: check has left its agent, {agent:?}");
    }
    Ok(())
}

vm_test!(
    faults_check_on_a_read_only_tree,
    "check says that it proves nothing where it cannot make a group, and what the host allows",
    V2,
    []
);
fn faults_check_on_a_read_only_tree() -> Result<()> {
    const ROOT: &str = "/tmp/read-only";
    fs::create_dir(ROOT)?;
    mount(Some("/sys/fs/cgroup"), ROOT, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, ROOT, None::<&str>, read_only, None::<&str>)?;
    let outcome = fails(&["check", "--cgroup-root", ROOT], |_| {});
    umount(ROOT)?;
    fs::remove_dir(ROOT)?;
    let (code, text) = outcome?;
    let trial = text.lines().find(|line| line.contains(" trial of ")).context("no trial")?;
    ensure!(trial.starts_with(" -") && trial.contains("EROFS"), "{trial}");
    ensure!(code == 0 && text.contains("This host can be watched"), "{code}: {text}");
    Ok(())
}

vm_test!(
    faults_aio,
    "the agent starts and signals where no AIO context is left, by the host's bound or by a user who has all",
    Any,
    []
);
fn faults_aio() -> Result<()> {
    let group = Group::new("aio")?;
    let mut charger = Charger::start(&group)?;
    with_aio_bound("0", || {
        let mut agent = Supervised::start(&[])?;
        let waiter = Waiter::on(&group, "4M")?;
        crosses(&mut charger, &waiter)?;
        agent.killed_while(|| charger.grow(Kind::Anonymous, 6 * MIB))?;
        ensure!(waiter.wait()? == 1, "and the next one");
        charger.shrink(Kind::Anonymous)?;
        ensure!(waiter.wait()? == 1, "and on");
        ensure!(agent.0.end(Signal::SIGTERM)? == 0, "the agent ends well");
        Ok(())
    })?;

    let mut agent = Supervised::start(&[])?;
    let waiter = Waiter::on(&group, "4M")?;
    let (hoarder, mut socket) = process::spawn_with_socket(|mut ready| {
        process::become_user(USER)?;
        takes_all_aio()?;
        ready.write_all(b"x")?;
        loop {
            nix::unistd::pause();
        }
    })?;
    socket.read_exact(&mut [0])?;
    crosses(&mut charger, &waiter)?;
    agent.killed_while(|| charger.grow(Kind::Anonymous, 6 * MIB))?;
    ensure!(waiter.wait()? == 1, "an agent that comes back while a user has all AIO contexts");
    nix::sys::signal::kill(hoarder, Signal::SIGKILL)?;
    nix::sys::wait::waitpid(hoarder, None)?;
    charger.shrink(Kind::Anonymous)?;
    ensure!(waiter.wait()? == 1, "and on");
    charger.end()
}
