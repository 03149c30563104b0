//! Registrations against a player of the agent.

use std::{
    fs, io,
    io::IoSliceMut,
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    cmsg_space,
    sys::socket::{
        AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, bind, listen,
        recvmsg, send, socket,
    },
    unistd,
};
use tempfile::TempDir;

use crate::{Builder, Error, Registration};

/// Plays the agent for one registration.
struct Agent {
    directory: TempDir,
    thread: thread::JoinHandle<Result<()>>,
}

impl Agent {
    /// Sends `packets` when a line and its two descriptors have been sent, and ends.
    fn play(packets: &[&str]) -> Result<Self> {
        let directory = TempDir::new()?;
        fs::write(directory.path().join("memory.current"), "0\n")?;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        bind(listener.as_raw_fd(), &UnixAddr::new(&directory.path().join("socket"))?)?;
        listen(&listener, Backlog::MAXCONN)?;
        let control = directory.path().join("memory.current");
        let packets: Vec<_> = packets.iter().map(|&packet| packet.to_owned()).collect();
        let thread = thread::spawn(move || {
            let (connection, _) = UnixListener::from(listener).accept()?;
            take_line(&connection, &control)?;
            for packet in packets {
                send(connection.as_raw_fd(), packet.as_bytes(), MsgFlags::MSG_NOSIGNAL)?;
            }
            Ok(())
        });
        Ok(Self { directory, thread })
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("memory.current")
    }

    fn builder(&self) -> Builder {
        let socket = self.directory.path().join("socket");
        Builder::new(self.file()).args("8M").socket(&socket).control_socket(socket)
    }

    /// Ends the player, whose part went as it should.
    fn end(self) -> Result<()> {
        self.thread.join().expect("the player does not panic")
    }
}

/// Receives a request, whose descriptors must be those that its line numbers: client and
/// player are one process.
fn take_line(connection: &UnixStream, control: &PathBuf) -> Result<()> {
    let mut bytes = [0; 4096];
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let mut room = cmsg_space!([RawFd; 2]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(connection.as_raw_fd(), &mut slices, Some(&mut room), flags)?;
    let length = message.bytes;
    let mut descriptors = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            descriptors.extend(fds);
        }
    }
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    let numbers: Vec<RawFd> = text
        .split(|c: char| !c.is_ascii_digit())
        .filter(|word| !word.is_empty())
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    ensure!(descriptors.len() == 2 && numbers.len() >= 2, "{text}: {descriptors:?}");
    ensure!(event_id(descriptors[0])? == event_id(numbers[0])?, "{text}: another eventfd came along");
    ensure!(fs::read_link(format!("/proc/self/fd/{}", descriptors[1]))? == *control, "{text}");
    descriptors.into_iter().try_for_each(unistd::close)?;
    Ok(())
}

/// The kernel's number of an eventfd, the same for all its descriptors.
fn event_id(fd: RawFd) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
    let id = text.lines().find_map(|line| line.strip_prefix("eventfd-id:"));
    Ok(id.context("it is no eventfd")?.trim().to_owned())
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_io().build()
}

/// The eventfd of a registration, for the player's signals.
fn event(registration: &Registration) -> io::Result<OwnedFd> {
    use std::os::fd::AsFd as _;
    registration.as_fd().try_clone_to_owned()
}

fn signal(event: &OwnedFd, count: u64) -> Result<()> {
    unistd::write(event, &count.to_ne_bytes())?;
    Ok(())
}

const LISTENING: &str = r#"{"type":"listening"}"#;
const CROSSED: &str = r#"{"type":"event","time":1.0,"cgroup":"/a","event":"crossed","signals":1}"#;
const REMOVED: &str = r#"{"type":"event","time":2.0,"cgroup":"/a","event":"removed","signals":1}"#;

#[test]
fn signals_are_counted_until_the_group_is_gone() -> Result<()> {
    let agent = Agent::play(&["0"])?;
    let registration = agent.builder().register()?;
    signal(&event(&registration)?, 3)?;
    assert_eq!(registration.wait()?, Some(3));
    // Made while the first is there, so that it cannot get its inode.
    let other = agent.file().with_extension("other");
    fs::write(&other, "another group")?;
    fs::remove_file(agent.file())?;
    assert_eq!(registration.wait()?, None);
    fs::rename(&other, agent.file())?;
    assert_eq!(registration.wait()?, None, "a namesake is not the group");
    agent.end()
}

#[test]
fn tokio_waits_for_signals_and_the_removal() -> Result<()> {
    let agent = Agent::play(&["0"])?;
    runtime()?.block_on(async {
        let registration = agent.builder().register()?;
        let event = event(&registration)?;
        let registration = registration.into_async()?;
        for count in [2, 5] {
            // The wait comes first, so that the signal has to wake it.
            let (signals, ()) = tokio::try_join!(async { Ok(registration.wait().await?) }, async {
                tokio::task::yield_now().await;
                signal(&event, count)
            })?;
            assert_eq!(signals, Some(count));
        }
        let (signals, ()) = tokio::try_join!(async { Ok(registration.wait().await?) }, async {
            tokio::task::yield_now().await;
            fs::remove_file(agent.file())?;
            signal(&event, 1)
        })?;
        assert_eq!(signals, None);
        assert_eq!(registration.wait().await?, None);
        agent.end()
    })
}

#[test]
fn a_wait_that_is_dropped_loses_no_signal() -> Result<()> {
    let agent = Agent::play(&["0"])?;
    runtime()?.block_on(async {
        let registration = agent.builder().register()?;
        let event = event(&registration)?;
        let registration = registration.into_async()?;
        tokio::select! {
            biased;
            signals = registration.wait() => panic!("{signals:?} without a signal"),
            () = tokio::task::yield_now() => {}
        }
        signal(&event, 4)?;
        assert_eq!(registration.wait().await?, Some(4));
        agent.end()
    })
}

#[test]
fn a_refusal_carries_the_errno() -> Result<()> {
    let agent = Agent::play(&["-22 EINVAL: not a threshold"])?;
    let refused = agent.builder().register();
    assert!(matches!(refused, Err(Error::Refused { errno: 22, .. })), "{refused:?}");
    agent.end()
}

#[test]
fn a_follower_receives_causes_up_to_the_removal() -> Result<()> {
    let agent = Agent::play(&[LISTENING, CROSSED, REMOVED])?;
    let mut follower = agent.builder().follow()?;
    for event in ["crossed", "removed"] {
        assert_eq!(follower.wait_event()?.map(|row| row.event).as_deref(), Some(event));
    }
    assert_eq!(follower.wait_event()?, None);
    agent.end()
}

#[test]
fn a_refused_follower_carries_the_errno() -> Result<()> {
    let agent = Agent::play(&[r#"{"type":"error","errno":1,"why":"EPERM: no operator"}"#])?;
    let refused = agent.builder().follow();
    assert!(matches!(refused, Err(Error::Refused { errno: 1, .. })), "{refused:?}");
    agent.end()
}

#[test]
fn a_follower_notices_that_the_agent_ended() -> Result<()> {
    let agent = Agent::play(&[LISTENING, CROSSED])?;
    runtime()?.block_on(async {
        let mut follower = agent.builder().follow()?.into_async()?;
        let row = follower.wait_event().await?;
        assert_eq!(row.map(|row| row.event).as_deref(), Some("crossed"));
        let end = follower.wait_event().await;
        assert!(matches!(end, Err(Error::Ended(_))), "{end:?}");
        agent.end()
    })
}
