//! Descriptors on a file system that never answers: closing one waits, as long as the server
//! of that file system likes.

use std::fs::File;
use std::io::{IoSlice, Read as _, Write as _};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use monitor_client::{SOCKET, connect};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, send, sendmsg};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::{OPEN, answer_on, is_errno};
use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::process::{self, Process, USER, become_container_root, become_user};
use crate::harness::test::vm_test;

const FILE: &str = "/run/hung";

/// A file whose server answers all but a close.
struct Hung {
    server: Option<Pid>,
}

impl Hung {
    fn mount() -> Result<Self> {
        File::create(FILE)?;
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let options = format!("fd={},rootmode=100644,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        mount(Some("hung"), FILE, Some("fuse"), MsFlags::empty(), Some(options.as_str()))
            .context("cannot mount")?;
        let server = process::spawn(|| serve(&device))?;
        Ok(Self { server: Some(server) })
    }

    /// Ends the server: the kernel then answers for it.
    fn end(&mut self) -> Result<()> {
        let Some(server) = self.server.take() else { return Ok(()) };
        kill(server, Signal::SIGKILL)?;
        waitpid(server, None).map(drop).context("cannot wait for the server")
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let _ = self.end();
        let _ = umount2(FILE, MntFlags::MNT_DETACH);
    }
}

/// Numbers of the kernel's `enum fuse_opcode`.
const GETATTR: u32 = 3;
const OPEN_FILE: u32 = 14;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;

fn serve(mut device: &File) -> Result<()> {
    let mut request = vec![0; 1 << 17];
    loop {
        let length = device.read(&mut request)?;
        ensure!(length >= 40, "a short request");
        let word =
            |at: usize| u32::from_ne_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]]);
        let unique = &request[8..16];
        let (error, body): (i32, Vec<u8>) = match word(4) {
            INIT => {
                // struct fuse_init_out: 7.31, and a page at a time.
                let mut body = vec![0; 64];
                body[..4].copy_from_slice(&7_u32.to_ne_bytes());
                body[4..8].copy_from_slice(&31_u32.to_ne_bytes());
                body[20..24].copy_from_slice(&4096_u32.to_ne_bytes());
                (0, body)
            }
            GETATTR => {
                // struct fuse_attr_out: node 1, a regular file that every user may read.
                let mut body = vec![0; 104];
                body[16] = 1;
                body[76..80].copy_from_slice(&0o100_644_u32.to_ne_bytes());
                body[80] = 1;
                (0, body)
            }
            OPEN_FILE => (0, vec![0; 16]),
            RELEASE => (0, Vec::new()),
            FLUSH => continue,
            _ => (-libc::ENOSYS, Vec::new()),
        };
        let mut reply = Vec::new();
        reply.extend_from_slice(&u32::try_from(16 + body.len())?.to_ne_bytes());
        reply.extend_from_slice(&error.to_ne_bytes());
        reply.extend_from_slice(unique);
        reply.extend_from_slice(&body);
        device.write_all(&reply)?;
    }
}

fn send_with(connection: &OwnedFd, line: &str, fds: &[RawFd]) -> Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let line = [IoSlice::new(line.as_bytes())];
    sendmsg::<UnixAddr>(connection.as_raw_fd(), &line, &rights, MsgFlags::empty(), None)?;
    Ok(())
}

fn is_answered(connection: &OwnedFd) -> Result<bool> {
    Ok(poll(&mut [PollFd::new(connection.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO)? == 1)
}

/// Checks that all other clients are served and signalled.
fn others_are_served(agent: &Agent, group: &Group) -> Result<()> {
    let mut charger = Charger::start(group)?;
    let ours = Waiter::on(group, "4M")?;
    process::run_as(USER + 1, || {
        let (waiter, control) = (Waiter::new()?, File::open(group.usage_file())?);
        let connection = connect(Path::new(SOCKET))?;
        send_with(&connection, "0 0 1M", &[waiter.0.as_raw_fd(), control.as_raw_fd()])?;
        is_errno(&answer_on(&connection)?, 0)?;
        // What does not belong there is closed, too.
        send_with(&connection, "0 0 1M", &[control.as_raw_fd(), control.as_raw_fd()])?;
        is_errno(&answer_on(&connection)?, libc::EINVAL)
    })?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    ensure!(ours.wait()? == 1, "a waiter is signalled");
    charger.end()?;
    ours.wait()?;
    agent.settle()
}

vm_test!(
    unprivileged_descriptors_that_hang,
    "a user's descriptors that never close hold up that user, no other, nor the agent's end",
    Any,
    []
);
fn unprivileged_descriptors_that_hang() -> Result<()> {
    hold_up(|| become_user(USER))
}

vm_test!(
    unprivileged_container_root_that_hangs,
    "a container's root, whose descriptors never close, holds up itself, and not the host's root",
    Any,
    []
);
fn unprivileged_container_root_that_hangs() -> Result<()> {
    hold_up(become_container_root)
}

/// Connections beyond the 256 that one may have.
const CROWD: usize = 400;

/// A process that changes its user by `becomes` sends descriptors that never close.
fn hold_up(becomes: impl FnOnce() -> Result<()>) -> Result<()> {
    let group = Group::new("hung")?;
    let agent = Agent::start(&OPEN)?;
    let before = agent.descriptors()?.len();
    let mut hung = Hung::mount()?;
    let (reader, writer) = nix::unistd::pipe()?;
    let user = Process::start(move || {
        becomes()?;
        // Not in any other process, which would wait for the server when it ends; nor
        // closed before this one has said why it failed.
        let bad = ManuallyDrop::new(File::open(FILE)?);
        let connection = connect(Path::new(SOCKET))?;
        let fds = [bad.as_raw_fd(); 253];
        send_with(&connection, "0 0 1M", &fds)?;
        is_errno(&answer_on(&connection)?, libc::EINVAL)?;
        send_with(&connection, "0 0 1M", &fds[..2])?;
        is_errno(&answer_on(&connection)?, libc::EINVAL)?;
        // The agent has as much of this user as it takes.
        send_with(&connection, "0 0 1M", &fds[..2])?;
        let other = connect(Path::new(SOCKET))?;
        send_with(&other, "0 0 1M", &fds[..2])?;
        // More than it may have open; those that are refused do not wait behind the others.
        let crowd = (0..CROWD).map(|_| connect(Path::new(SOCKET))).collect::<Result<Vec<_>, _>>()?;
        for connection in &crowd {
            // A refused one is closed, before or after.
            let _ = send(connection.as_raw_fd(), b"bad", MsgFlags::MSG_NOSIGNAL);
        }
        nix::unistd::write(&writer, b".")?;
        ensure!(!is_answered(&other)?, "taken in, all the same");
        let answer = answer_on(&connection)?;
        is_errno(&answer, libc::EINVAL).with_context(|| format!("in the end: {answer:?}"))?;
        Ok(())
    })?;
    // The user has the only other end, which closes when it fails.
    if nix::unistd::read(&reader, &mut [0])? == 0 {
        hung.end()?;
        user.end()?;
        bail!("the user ends too early");
    }
    others_are_served(&agent, &group)?;
    others_are_served(&agent, &group)?;
    // Its connections, and what came by the first two messages.
    let most = before + 256 + 255;
    until("refused connections are closed", || Ok(agent.descriptors()?.len() <= most + 32))?;
    // The server goes, the kernel answers for it, and the user is served again.
    hung.end()?;
    user.end()?;
    until("all of it is closed", || {
        let held = agent.descriptors()?;
        Ok(!held.iter().any(|link| link.contains(FILE)))
    })?;
    ensure!(agent.end(Signal::SIGTERM)? == 0, "it ends as any other");
    Ok(())
}
