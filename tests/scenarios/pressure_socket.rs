//! systemd's memory-pressure protocol, spoken as sd-event speaks it: by programs of several users
//! in groups of their own, good and bad, and over an agent's restart.

use std::fs;
use std::io::{ErrorKind, IoSlice, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use memcg_monitor::cgroup::Version;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::{Pid, pipe};

use crate::harness::MIB;
use crate::harness::agent::{Agent, PATIENCE, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::group::Group;
use crate::harness::process::{self, USER};
use crate::harness::test::vm_test;
use crate::scenarios::restart::Supervised;

const SOCKET: &str = "/run/memcg-monitor/memory_pressure.sock";

/// The options of the agent here.
const OPTIONS: [&str; 6] = ["--pressure-socket", SOCKET, "--socket-mode", "0666", "--sweep-ms", "50"];

/// A program that waits on the pressure socket, in a process of its own. It reports each byte that
/// it receives as `!`, an end of file as `e`, and a failure as `f`.
struct Program {
    pid: Pid,
    reports: UnixStream,
}

impl Program {
    /// Starts one of `user` in `group`, and has it connect and write `text`.
    fn start(group: &Group, user: u32, text: &[u8]) -> Result<Self> {
        let mut program = Self::start_in_pieces(group, user, &[text])?;
        program.write_next()?;
        Ok(program)
    }

    /// Starts one that writes each of `pieces` when it is told to.
    fn start_in_pieces(group: &Group, user: u32, pieces: &[&[u8]]) -> Result<Self> {
        let (pid, mut reports) = process::spawn_with_socket(|orders| {
            process::close_all_but(orders.as_raw_fd());
            run(orders, user, pieces)
        })?;
        group.add(pid)?;
        reports.set_read_timeout(Some(PATIENCE))?;
        reports.write_all(b".")?;
        Ok(Self { pid, reports })
    }

    fn write_next(&mut self) -> Result<()> {
        self.reports.write_all(b".")?;
        self.reports("c")
    }

    /// Waits for its next report, which is to be this one.
    fn reports(&mut self, expected: &str) -> Result<()> {
        let mut byte = [0];
        self.reports.read_exact(&mut byte).with_context(|| format!("no {expected}"))?;
        ensure!(byte == expected.as_bytes(), "{} instead of {expected}", byte.escape_ascii());
        Ok(())
    }

    /// Waits for the end of its connection. A killed agent's last signals may be given once more by the
    /// next one, so bytes may come before.
    fn ends(&mut self, expected: &str) -> Result<()> {
        let mut byte = *b"!";
        while byte == *b"!" {
            self.reports.read_exact(&mut byte).with_context(|| format!("no {expected}"))?;
        }
        ensure!(byte == expected.as_bytes(), "{} instead of {expected}", byte.escape_ascii());
        Ok(())
    }

    /// All that it has reported and was not waited for.
    fn more(&mut self) -> Result<String> {
        let mut text = String::new();
        self.reports.set_nonblocking(true)?;
        match self.reports.read_to_string(&mut text) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            outcome => drop(outcome?),
        }
        self.reports.set_nonblocking(false)?;
        Ok(text)
    }

    fn is_left_alone(&mut self) -> Result<()> {
        let more = self.more()?;
        ensure!(more.is_empty(), "it reports {more}");
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

fn run(mut orders: UnixStream, user: u32, pieces: &[&[u8]]) -> Result<()> {
    orders.read_exact(&mut [0])?;
    process::become_user(user)?;
    let mut watched = UnixStream::connect(SOCKET).context("cannot connect")?;
    for piece in pieces {
        orders.read_exact(&mut [0])?;
        watched.write_all(piece)?;
        orders.write_all(b"c")?;
    }
    loop {
        let mut bytes = [0; 64];
        match watched.read(&mut bytes) {
            Ok(0) => break orders.write_all(b"e")?,
            Ok(count) => orders.write_all(&vec![b'!'; count])?,
            Err(_) => break orders.write_all(b"f")?,
        }
    }
    let _ = orders.read(&mut [0]);
    Ok(())
}

/// Waits until so many registrations are listed for a group.
fn listed(agent: &Agent, group: &Group, count: usize) -> Result<()> {
    until(&format!("{count} registrations on {}", group.path.display()), || {
        Ok(agent.row(&group.path)?.registrations.len() == count)
    })
}

vm_test!(
    pressure_socket_wakes,
    "programs of two users are woken by what their own text names, until they leave or their group does",
    Any,
    [Kernel, Sampled, Quick]
);
fn pressure_socket_wakes() -> Result<()> {
    let groups = [Group::new("mine")?, Group::new("theirs")?];
    let elsewhere = Group::new("elsewhere")?;
    groups[1].set_limit(64 * MIB)?;
    let agent = Agent::start(&OPTIONS)?;
    let mut mine = Program::start(&groups[0], 0, b"memory.usage_in_bytes 16M\0")?;
    // As a shell's base64 would have it, with two kinds where each backend has both.
    let has_empty = groups[1].version == Version::V2;
    let second = if has_empty { "cgroup.procs" } else { "memory.usage_in_bytes 32M" };
    let text = format!("memory.usage_in_bytes 25%\n{second}\n");
    let mut theirs = Program::start(&groups[1], USER, text.as_bytes())?;
    listed(&agent, &groups[0], 1)?;
    listed(&agent, &groups[1], 2)?;
    let mut chargers = [Charger::start(&groups[0])?, Charger::start(&groups[1])?];
    chargers[0].grow(Kind::Anonymous, 24 * MIB)?;
    mine.reports("!")?;
    chargers[1].grow(Kind::Anonymous, 24 * MIB)?;
    theirs.reports("!")?;
    chargers[0].shrink(Kind::Anonymous)?;
    mine.reports("!")?;
    agent.settle()?;
    theirs.is_left_alone()?;

    // A program that has left is registered no more.
    drop(mine);
    listed(&agent, &groups[0], 0)?;

    // The group empties, and is removed; the program lives on elsewhere, and is not disturbed.
    let [charger, other] = chargers;
    charger.end()?;
    other.end()?;
    theirs.reports("!")?;
    elsewhere.add(theirs.pid)?;
    if has_empty {
        theirs.reports("!")?;
    }
    groups[1].remove()?;
    theirs.reports("!")?;
    agent.settle()?;
    // Two registrations end, each with a signal: one byte if they are forwarded together.
    let more = theirs.more()?;
    ensure!(more.len() <= 1, "it reports {more}");
    Ok(())
}

vm_test!(
    pressure_socket_full,
    "a program that reads nothing has few bytes waiting, and holds up no other's",
    Any,
    []
);
fn pressure_socket_full() -> Result<()> {
    let groups = [Group::new("stopped")?, Group::new("awake")?];
    let agent = Agent::start(&[&OPTIONS[..], &["--holdoff-ms", "0"]].concat())?;
    let text = b"memory.usage_in_bytes 16M\0";
    let mut stopped = Program::start(&groups[0], USER, text)?;
    let mut awake = Program::start(&groups[1], USER, text)?;
    listed(&agent, &groups[0], 1)?;
    listed(&agent, &groups[1], 1)?;
    let mut chargers = [Charger::start(&groups[0])?, Charger::start(&groups[1])?];
    kill(stopped.pid, Signal::SIGSTOP)?;
    for _ in 0..100 {
        chargers[0].grow(Kind::Anonymous, 24 * MIB)?;
        chargers[0].shrink(Kind::Anonymous)?;
        agent.settle()?;
    }
    for _ in 0..2 {
        chargers[1].grow(Kind::Anonymous, 24 * MIB)?;
        awake.reports("!")?;
        chargers[1].shrink(Kind::Anonymous)?;
        awake.reports("!")?;
    }
    kill(stopped.pid, Signal::SIGCONT)?;
    stopped.reports("!")?;
    // What it finds is less than a tenth of what happened, and then it is woken as before.
    let mut found = 1;
    while found < 200 && !stopped.more()?.is_empty() {
        found += 1;
    }
    chargers[0].grow(Kind::Anonymous, 24 * MIB)?;
    stopped.reports("!")?;
    ensure!(found < 20, "{found} bytes were waiting");
    chargers.into_iter().try_for_each(Charger::end)
}

vm_test!(
    pressure_socket_bad_input,
    "a wrong text registers nothing, is logged and stays silent; a program that goes on is sent away",
    Any,
    []
);
fn pressure_socket_bad_input() -> Result<()> {
    let group = Group::new("bad")?;
    let agent = Agent::start(&OPTIONS)?;
    let many = "memory.oom_control\n".repeat(17);
    let wrong: [(&[u8], &str); 7] = [
        (b"\0", "the text is empty"),
        (b"\xff\xfe garbage\0", "begin with the name of a control file"),
        (b"some 200000 2000000\0", "the group of the process is a directory"),
        (b"memory.usage_in_bytes 101%\0", "EINVAL"),
        (b"memory.oom_control\nmemory.usage_in_bytes much\0", "EINVAL"),
        (b"memory.oom_control\nmemory.usage_in_bytes 5M,sideways\n", "EINVAL"),
        (many.as_bytes(), "more than 16 lines"),
    ];
    let mut silent = Vec::new();
    for (text, reason) in wrong {
        let program = Program::start(&group, USER, text)?;
        let pid = program.pid.to_string();
        until("the log names process and reason", || {
            Ok(Agent::log().lines().any(|line| line.contains(&pid) && line.contains(reason)))
        })
        .with_context(|| format!("{}: {}", text.escape_ascii(), Agent::log()))?;
        silent.push(program);
    }
    // Nothing, half a line, and its rest.
    silent.push(Program::start(&group, USER, b"")?);
    let mut slow = Program::start_in_pieces(&group, USER, &[b"memory.usage_in", b"_bytes 16M", b"\0"])?;
    slow.write_next()?;
    slow.write_next()?;
    agent.settle()?;
    ensure!(agent.row(&group.path)?.registrations.is_empty(), "half a text is registered");
    slow.write_next()?;
    listed(&agent, &group, 1)?;
    for program in &mut silent {
        program.is_left_alone()?;
    }

    let mut again = Program::start_in_pieces(&group, USER, &[b"memory.oom_control\0", b"more"])?;
    again.write_next()?;
    listed(&agent, &group, 2)?;
    again.write_next()?;
    again.reports("f")?;
    listed(&agent, &group, 1)?;
    let mut long = Program::start(&group, USER, &[b'x'; 5000])?;
    long.reports("f")?;
    drop((silent, slow));
    listed(&agent, &group, 0)?;
    brings_descriptors()?;
    agent.settle()
}

/// A message with descriptors, one of them its own other end, ends the connection.
fn brings_descriptors() -> Result<()> {
    for text in [&b"memory.oom_control\0"[..], b"memory"] {
        let stream = UnixStream::connect(SOCKET)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (read, _) = pipe()?;
        let fds = [read.as_raw_fd(), stream.as_raw_fd()];
        let (rights, slices) = ([ControlMessage::ScmRights(&fds)], [IoSlice::new(text)]);
        sendmsg::<()>(stream.as_raw_fd(), &slices, &rights, MsgFlags::empty(), None)?;
        match (&stream).read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => bail!("{other:?} instead of an end"),
        }
    }
    Ok(())
}

vm_test!(
    pressure_socket_quota,
    "a user has 256 connections and its quota of registrations; another is served beside it",
    Any,
    []
);
fn pressure_socket_quota() -> Result<()> {
    let group = Group::new("quota")?;
    let agent = Agent::start(&[&OPTIONS[..], &["--max-per-user", "3"]].concat())?;
    let four = b"memory.oom_control\n".repeat(4);
    let mut greedy = Program::start(&group, USER, &four)?;
    until("the quota is named", || Ok(Agent::log().contains("EDQUOT")))?;
    listed(&agent, &group, 0)?;
    greedy.is_left_alone()?;
    drop(greedy);
    process::run_as(USER, || {
        process::allow_descriptors(0)?;
        let connect = || -> Result<UnixStream> {
            let stream = UnixStream::connect(SOCKET)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        let held = (0..256).map(|_| connect()).collect::<Result<Vec<_>>>()?;
        let mut more = connect()?;
        // The last is refused once the agent has accepted all before.
        match more.read(&mut [0]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => bail!("{other:?} for one more connection"),
        }
        for mut stream in held {
            stream.set_read_timeout(Some(Duration::from_millis(1)))?;
            match stream.read(&mut [0]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => bail!("{other:?} for one of the first"),
            }
        }
        Ok(())
    })?;
    let _other = Program::start(&group, 1000, b"memory.oom_control\0")?;
    listed(&agent, &group, 1)
}

vm_test!(
    pressure_socket_restart,
    "kill -9: connections go on with the next agent, each woken once, and end only when it does for good",
    Any,
    [Kernel]
);
fn pressure_socket_restart() -> Result<()> {
    let groups = [Group::new("first")?, Group::new("second")?];
    let mut agent = Supervised::start(&OPTIONS)?;
    let text = b"memory.usage_in_bytes 16M\0";
    let mut programs = [Program::start(&groups[0], 0, text)?, Program::start(&groups[1], USER, text)?];
    let mut refused = Program::start(&groups[0], USER, b"no text\0")?;
    let mut chargers = [Charger::start(&groups[0])?, Charger::start(&groups[1])?];
    for round in 0..3 {
        listed(&agent.0, &groups[0], 1)?;
        listed(&agent.0, &groups[1], 1)?;
        agent.killed_while(|| chargers[0].grow(Kind::Anonymous, 24 * MIB))?;
        for (program, charger) in programs.iter_mut().zip(&mut chargers) {
            // Of the restart.
            program.reports("!").with_context(|| format!("after kill {round}"))?;
            charger.grow(Kind::File, 24 * MIB)?;
        }
        programs[1].reports("!")?;
        listed(&agent.0, &groups[0], 1)?;
        for charger in &mut chargers {
            charger.shrink(Kind::File)?;
        }
        programs[1].reports("!")?;
        chargers[0].shrink(Kind::Anonymous)?;
        programs[0].reports("!")?;
        refused.is_left_alone()?;
    }
    // One that leaves while there is no agent is not served by the next.
    let [gone, mut stays] = programs;
    agent.killed_while(|| {
        drop(gone);
        Ok(())
    })?;
    stays.reports("!")?;
    listed(&agent.0, &groups[0], 0)?;
    ensure!(agent.registrations()? == 1, "{} registrations", agent.registrations()?);
    ensure!(agent.0.end(Signal::SIGTERM)? == 0, "it did not end well");
    stays.ends("f")?;
    ensure!(!Path::new(SOCKET).exists(), "the socket is left");
    let left: Vec<_> = fs::read_dir("/run/memcg-monitor").into_iter().flatten().flatten().collect();
    ensure!(left.iter().all(|entry| !entry.file_name().to_string_lossy().contains("pressure")), "{left:?}");
    chargers.into_iter().try_for_each(Charger::end)
}
