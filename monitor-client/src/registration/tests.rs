//! A registration against a player of the agent.

use std::{fs, os::fd::OwnedFd, sync::mpsc, thread};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::*;
use crate::{
    frontend::{
        deferred_close::DeferredClose,
        seqpacket::{Access, Connection, Listener},
    },
    sandbox,
};

/// Plays the agent for one registration.
struct Agent {
    directory: TempDir,
    thread: thread::JoinHandle<Result<()>>,
}

impl Agent {
    /// Gives `answer`, then hands over the client's eventfd and the connection.
    fn play<F>(
        answer: &'static str,
        play: impl FnOnce(OwnedFd, Connection) -> F + Send + 'static,
    ) -> Result<Self>
    where
        F: Future<Output = Result<()>>,
    {
        let directory = TempDir::new()?;
        fs::write(directory.path().join("memory.current"), "0\n")?;
        let path = directory.path().join("socket");
        let (ready, is_ready) = mpsc::channel();
        let deferred_close = DeferredClose::start(sandbox::Sandbox::Off)?;
        let thread = thread::spawn(move || {
            runtime()?.block_on(async {
                let listener = Listener::bind(&path, &Access { mode: 0o600, group: None }, &deferred_close)?;
                ready.send(())?;
                let connection = listener.accept().await?;
                let packet = connection.receive(4096).await?.context("the client left")?;
                let mut descriptors = packet.descriptors.into_iter();
                let event = descriptors.next().context("no eventfd came along")?.into_inner()?;
                descriptors.next().context("no control file came along")?;
                connection.send(answer.as_bytes()).await?;
                play(event, connection).await
            })
        });
        is_ready.recv()?;
        Ok(Self { directory, thread })
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("memory.current")
    }

    fn builder(&self) -> Builder {
        let socket = self.directory.path().join("socket");
        Builder::new(self.file()).args("8M").socket(&socket).control_socket(socket)
    }

    /// Its part went as it should.
    fn end(self) -> Result<()> {
        self.thread.join().expect("the player does not panic")
    }
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_io().build()
}

fn signal(event: &OwnedFd, count: u64) -> Result<()> {
    nix::unistd::write(event, &count.to_ne_bytes())?;
    Ok(())
}

async fn tell(connection: &Connection, event: &str) -> Result<()> {
    let text = format!(r#"{{"event":{{"time":1.0,"cgroup":"/a","event":"{event}","signals":1}}}}"#);
    Ok(connection.send(text.as_bytes()).await?)
}

#[test]
fn signals_are_counted_until_the_group_is_gone() -> Result<()> {
    let agent = Agent::play("0", async |event, _| signal(&event, 3))?;
    let registration = agent.builder().register()?;
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
    let (removed, is_removed) = tokio::sync::oneshot::channel();
    let agent = Agent::play("0", async |event, _| {
        signal(&event, 2)?;
        is_removed.await?;
        signal(&event, 1)
    })?;
    runtime()?.block_on(async {
        let registration = agent.builder().register()?.into_async()?;
        assert_eq!(registration.wait().await?, Some(2));
        fs::remove_file(agent.file())?;
        assert_eq!(removed.send(()), Ok(()));
        assert_eq!(registration.wait().await?, None);
        agent.end()
    })
}

#[test]
fn a_refusal_carries_the_errno() -> Result<()> {
    let agent = Agent::play("-22 EINVAL: not a threshold", async |_, _| Ok(()))?;
    let refused = agent.builder().register();
    assert!(matches!(refused, Err(Error::Refused { errno: 22, .. })), "{refused:?}");
    agent.end()
}

#[test]
fn a_follower_hears_causes_up_to_the_removal() -> Result<()> {
    let agent = Agent::play("\"listening\"", async |_, connection| {
        tell(&connection, "crossed").await?;
        tell(&connection, "removed").await
    })?;
    let mut follower = agent.builder().follow()?;
    for event in ["crossed", "removed"] {
        assert_eq!(follower.wait_event()?.map(|row| row.event).as_deref(), Some(event));
    }
    assert_eq!(follower.wait_event()?, None);
    agent.end()
}

#[test]
fn a_follower_notices_that_the_agent_ended() -> Result<()> {
    let agent = Agent::play("\"listening\"", async |_, connection| tell(&connection, "crossed").await)?;
    runtime()?.block_on(async {
        let mut follower = agent.builder().follow()?.into_async()?;
        let row = follower.wait_event().await?;
        assert_eq!(row.map(|row| row.event).as_deref(), Some("crossed"));
        assert!(follower.wait_event().await.is_err());
        agent.end()
    })
}
