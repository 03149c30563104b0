//! Bad input and hosts that cannot serve: a clear refusal, nothing leaked, nothing else
//! disturbed.

pub(crate) mod clients;
mod ooms;
mod quota;

use std::fs::{self, File};
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use monitor_client::{Error, SOCKET, connect};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, recv, send, sendmsg};

use crate::harness::agent::{Agent, BINARY, until};
use crate::harness::client::{Waiter, errno_of};
use crate::harness::group::Group;
use crate::harness::process::{self, USER};
use crate::harness::test::vm_test;

/// Sends raw bytes and descriptors; the agent's answer.
pub(crate) fn answer(connection: &OwnedFd, bytes: &[u8], fds: &[RawFd]) -> Result<String> {
    let rights = [ControlMessage::ScmRights(fds)];
    let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    sendmsg::<UnixAddr>(connection.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::empty(), None)?;
    let mut text = [0; 4096];
    let length = recv(connection.as_raw_fd(), &mut text, MsgFlags::empty())?;
    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
}

fn refused(connection: &OwnedFd, bytes: &[u8], fds: &[RawFd], errno: i32) -> Result<()> {
    let answer = answer(connection, bytes, fds)?;
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
    ensure!(
        answer.starts_with(&format!("-{errno} ")) && !answer.contains('\n') && answer.len() > 8,
        "{shown:?} with {} descriptors: {answer:?} instead of -{errno} and a line",
        fds.len()
    );
    Ok(())
}

vm_test!(
    abuse_packets,
    "bad packets are refused with the right errno and leave no descriptor",
    Any,
    [Oracle, Kernel, Preempt, Quick]
);
fn abuse_packets() -> Result<()> {
    let group = Group::new("packets")?;
    let agent = Agent::start(&[])?;
    let connection = connect(Path::new(SOCKET))?;
    let waiter = Waiter::new()?;
    let control = File::open(group.usage_file())?;
    let (e, c) = (waiter.0.as_raw_fd(), control.as_raw_fd());
    let good = format!("{e} {c} 1M");
    ensure!(answer(&connection, good.as_bytes(), &[])? == "0", "a good line is taken");
    agent.settle()?;
    let before = agent.descriptors()?;

    let long = [good.as_bytes(), &vec![b' '; 4096 - good.len()]].concat();
    ensure!(answer(&connection, &long, &[])? == "0", "4096 bytes are taken, as by the kernel");
    refused(&connection, &vec![b' '; 4097], &[], libc::E2BIG)?;
    refused(&connection, b" ", &[], libc::EINVAL)?;
    refused(&connection, b"list", &[], libc::EINVAL)?;
    refused(&connection, b"\xff\xfe\x00\x01", &[], libc::EINVAL)?;
    refused(&connection, format!("{e}  {c} 1M").as_bytes(), &[], libc::EINVAL)?;
    refused(&connection, format!("9999 {c} 1M").as_bytes(), &[], libc::EBADF)?;
    refused(&connection, format!("{e} 9999 1M").as_bytes(), &[], libc::EBADF)?;
    refused(&connection, format!("{} {c} 1M", u32::MAX).as_bytes(), &[], libc::EBADF)?;
    refused(&connection, format!("{c} {c} 1M").as_bytes(), &[], libc::EINVAL)?;
    refused(&connection, format!("{e} {e} 1M").as_bytes(), &[], libc::EINVAL)?;
    // Numbers are ignored when descriptors come along: exactly two.
    ensure!(answer(&connection, b"77 78 1M", &[e, c])? == "0", "two descriptors are taken");
    refused(&connection, b"77 78 1M", &[e], libc::EINVAL)?;
    refused(&connection, b"77 78 1M", &[e, c, c], libc::EINVAL)?;
    refused(&connection, b"77 78 1M", &[c, e], libc::EINVAL)?;
    refused(&connection, b"77 78 1M", &vec![e; 253], libc::EINVAL)?;
    refused(&connection, b"77 78 nonsense", &[e, c], libc::EINVAL)?;

    ensure!(agent.status()?.registrations == 3, "only the good ones count");
    drop(connection);
    until("no descriptor was leaked", || Ok(agent.descriptors()?.len() <= before.len()))
        .with_context(|| format!("before: {before:?}; after: {:?}", agent.descriptors()))
}

vm_test!(abuse_sender_dies, "a sender that dies in the middle harms no other", Any, []);
fn abuse_sender_dies() -> Result<()> {
    let group = Group::new("dies")?;
    let agent = Agent::start(&[])?;
    agent.settle()?;
    let before = agent.descriptors()?;
    let control = File::open(group.usage_file())?;
    for _ in 0..20 {
        // The agent is held still while the packet is sent and its sender dies.
        agent.signal(Signal::SIGSTOP)?;
        process::run(|| {
            let waiter = Waiter::new()?;
            let connection = connect(Path::new(SOCKET))?;
            let line = format!("{} {} 1M", waiter.0.as_raw_fd(), control.as_raw_fd());
            send(connection.as_raw_fd(), line.as_bytes(), MsgFlags::empty())?;
            Ok(())
        })?;
        agent.signal(Signal::SIGCONT)?;
    }
    until("nothing of the dead is kept", || {
        Ok(agent.status()?.registrations == 0 && agent.descriptors()?.len() <= before.len())
    })?;
    ensure!(Waiter::on(&group, "1M").is_ok(), "the living are served");
    Ok(())
}

vm_test!(abuse_unreadable_file, "a user cannot register on a file that the user may not read", Any, []);
fn abuse_unreadable_file() -> Result<()> {
    let group = Group::new("private")?;
    let agent = Agent::start(&["--socket-mode", "0666"])?;
    let file = group.usage_file();
    let is_refused_with = |mode: u32, expected: i32| -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
        let control = File::open(&file)?;
        let waiter = Waiter::new()?;
        process::run_as(USER, || {
            let line = format!("{} {} 1M", waiter.0.as_raw_fd(), control.as_raw_fd());
            // Sent along: an ordinary process's descriptors are looked at the same way.
            let fds = [waiter.0.as_fd(), control.as_fd()];
            let errno = errno_of(monitor_client::register(Path::new(SOCKET), line.as_bytes(), Some(fds)))?;
            ensure!(errno == expected, "mode {mode:o}: errno {errno} instead of {expected}");
            Ok(())
        })
    };
    is_refused_with(0o600, libc::EACCES)?;
    is_refused_with(0o444, 0)?;
    drop(agent);
    Ok(())
}

/// Runs the program to its end; exit code and what it said on stderr.
pub(crate) fn fails(arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Result<(i32, String)> {
    let mut command = Command::new(BINARY);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    prepare(&mut command);
    let mut child = command.spawn().context("cannot start the agent")?;
    let mut text = String::new();
    child.stdout.take().context("no stdout")?.read_to_string(&mut text)?;
    child.stderr.take().context("no stderr")?.read_to_string(&mut text)?;
    let status = child.wait()?;
    Ok((status.code().unwrap_or(-1), text))
}

pub(crate) fn says(outcome: (i32, String), words: &[&str]) -> Result<()> {
    let (code, text) = outcome;
    ensure!(code == 1, "exit code {code}: {text}");
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in: {text}");
    }
    Ok(())
}

vm_test!(
    abuse_second_agent,
    "a second agent on the same socket names the first and disturbs nothing",
    Any,
    []
);
fn abuse_second_agent() -> Result<()> {
    let group = Group::new("first")?;
    let agent = Agent::start(&[])?;
    let waiter = Waiter::on(&group, "64M")?;
    says(fails(&["agent"], |_| {})?, &["another agent", &agent.pid().to_string(), SOCKET])?;
    ensure!(agent.status()?.registrations == 1, "the first agent's registration is there");
    waiter.register(&group, "32M")
}

vm_test!(
    abuse_leftovers,
    "a killed agent's sockets are taken over; a file in the way is not removed",
    Any,
    []
);
fn abuse_leftovers() -> Result<()> {
    let agent = Agent::start(&[])?;
    agent.signal(Signal::SIGKILL)?;
    drop(agent);
    ensure!(Path::new(SOCKET).exists(), "a killed agent leaves its socket");
    let agent = Agent::start(&[])?;
    agent.settle()?;
    ensure!(agent.end(Signal::SIGTERM)? == 0, "it ends as any other");

    fs::create_dir_all("/run/memcg-monitor")?;
    fs::write(SOCKET, "precious")?;
    says(fails(&["agent"], |_| {})?, &["not a socket", SOCKET])?;
    ensure!(fs::read_to_string(SOCKET)? == "precious", "the file was touched");
    fs::remove_file(SOCKET)?;
    Ok(())
}

vm_test!(abuse_host, "no privilege, no BTF, no hooks: said precisely, exit code 1", Any, [Kernel, Preempt]);
fn abuse_host() -> Result<()> {
    let as_nobody = |command: &mut Command| {
        command.uid(65_534).gid(65_534);
    };
    let socket = "/tmp/nobody/event.sock";
    let control = "/tmp/nobody/control.sock";
    let arguments = ["agent", "--backend", "fentry", "--socket", socket, "--control-socket", control];
    says(fails(&arguments, as_nobody)?, &["CAP_BPF"])?;

    // Another kernel's face: an empty BTF, and one of a kernel without memcg.
    let btf = "/sys/kernel/btf/vmlinux";
    let with_btf = |bytes: &[u8], words: &[&str]| -> Result<()> {
        fs::write("/tmp/btf", bytes)?;
        mount(Some("/tmp/btf"), btf, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        let agent = fails(&["agent", "--backend", "fentry"], |_| {});
        let outcomes = [agent, fails(&["check", "--require", "exact"], |_| {})];
        umount(btf)?;
        for outcome in outcomes {
            says(outcome?, words)?;
        }
        Ok(())
    };
    with_btf(b"", &["BTF", "truncated"])?;
    let empty = [0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    with_btf(&empty, &["no memory controller in its BTF", "CONFIG_MEMCG"])?;

    let (code, text) = fails(&["check"], |_| {})?;
    ensure!(code == 0, "an ordinary host can be watched: {text}");
    let (code, _) = fails(&["agent", "--no-such-option"], |_| {})?;
    ensure!(code == 2, "wrong usage has exit code {code}");
    Ok(())
}

vm_test!(
    abuse_full_tables,
    "full tables refuse new registrations with ENOMEM and leave the others alone",
    Any,
    []
);
fn abuse_full_tables() -> Result<()> {
    let agent = Agent::start(&["--max-groups", "16", "--max-eventfds", "16"])?;
    let groups: Vec<_> = (0..24).map(|n| Group::new(&format!("full{n}"))).collect::<Result<_>>()?;
    let mut outcomes = Vec::new();
    for group in &groups {
        let waiter = Waiter::new()?;
        let control = File::open(group.usage_file())?;
        let line = format!("{} {} 1M", waiter.0.as_raw_fd(), control.as_raw_fd());
        let outcome = crate::harness::client::register_line(line.as_bytes());
        if let Err(Error::Refused { message, .. }) = &outcome {
            ensure!(message.contains("--max-groups"), "what to do is not said: {message}");
        }
        outcomes.push((errno_of(outcome)?, waiter));
    }
    let taken = outcomes.iter().filter(|(errno, _)| *errno == 0).count();
    ensure!(taken > 0 && taken <= 16, "{taken} of 24 groups fit into 16 slots");
    ensure!(
        outcomes.iter().all(|(errno, _)| [0, libc::ENOMEM].contains(errno)),
        "refusals: {:?}",
        outcomes.iter().map(|(errno, _)| errno).collect::<Vec<_>>()
    );
    let exhausted = agent.status()?.losses.get("slots_exhausted").is_some_and(|count| *count > 0);
    ensure!(exhausted, "the shortage is not counted");

    // Eventfds: those that fit are taken, the next is refused, the first work.
    let waiters: Vec<_> = (0..20).map(|_| Waiter::new()).collect::<Result<_>>()?;
    let control = File::open(groups[0].usage_file())?;
    let mut full = false;
    for waiter in &waiters {
        let line = format!("{} {} 2M", waiter.0.as_raw_fd(), control.as_raw_fd());
        full |= crate::harness::client::agent_errno(line.as_bytes())? == libc::ENOMEM;
    }
    ensure!(full, "the table of eventfds is never full");
    groups[0].remove()?;
    ensure!(outcomes[0].1.wait()? == 1, "an earlier registration is still signalled");
    Ok(())
}
