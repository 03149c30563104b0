//! Connections that an earlier agent has kept, and what becomes of them.

use std::{
    future::ready,
    io::Read as _,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    rc::Rc,
    time::Duration,
};

use nix::{errno::Errno, unistd::pipe};
use tokio::runtime::Builder;

use super::{GIVES_WAY, Keeper, KeptConnections, Listener, Outcome, TextError, resume_all, text};
use crate::{
    fd_store::FdStore,
    frontend::{deferred_close::DeferredClose, fair::Fair, seqpacket::Access},
    sandbox::Sandbox,
};

/// An agent that has kept this descriptor, in its successor's hands; with the socket of the latter.
struct Successor {
    _directory: tempfile::TempDir,
    listener: Listener,
    keeper: Keeper,
    connections: Vec<OwnedFd>,
}

impl Successor {
    fn with(kept: OwnedFd) -> Self {
        let closer = DeferredClose::start(Sandbox::Off).expect("threads");
        let open = |left| KeptConnections::open(FdStore::of_tests(), left, closer.clone());
        let (mut earlier, _) = open(Vec::new()).expect("a store");
        earlier.add(kept.as_fd()).expect("room");
        // Only what is kept has it open from here on.
        drop(kept);
        let (kept, connections) = open(earlier.as_handed()).expect("a store");
        assert_eq!((kept.count(), connections.len()), (1, 1));
        let directory = tempfile::tempdir().expect("a directory");
        let (path, access) = (directory.path().join("pressure"), Access { mode: 0o600, group: None });
        let listener = Listener::open_stream(None, Some(&path), &access, &closer).expect("a socket");
        let listener = listener.expect("a path was given");
        Self { _directory: directory, listener, keeper: Keeper::new(Some(kept)), connections }
    }

    fn kept(&self) -> usize {
        self.keeper.kept.as_ref().map_or(0, |kept| kept.borrow().count())
    }
}

async fn unserved(_: Vec<u8>) -> Outcome<()> {
    panic!("there is no text")
}

fn run(test: impl Future<Output = ()>) {
    Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test);
}

#[test]
fn a_program_that_left_while_there_was_no_agent_is_kept_no_more() {
    run(async {
        let (ours, program) = UnixStream::pair().expect("a pair");
        let mut agent = Successor::with(ours.into());
        let connections = std::mem::take(&mut agent.connections);
        let resumed = resume_all(&agent.listener, connections, &agent.keeper);
        let [(connection, peer)] = &resumed[..] else { panic!("{} connections", resumed.len()) };
        assert_eq!(agent.kept(), 1, "while it is there");
        drop(program);
        let fair = Rc::<Fair>::default();
        let outcome = agent.keeper.converse(connection, true, text(connection, peer, &fair), unserved).await;
        let error = outcome.expect_err("it has left");
        assert_eq!((error.raw_os_error(), agent.kept()), (Some(Errno::EPIPE as i32), 0));
    });
}

#[test]
fn a_kept_program_that_is_sent_away_sees_the_end() {
    let ends: [fn() -> Outcome<Vec<u8>>; 2] = [|| Err(GIVES_WAY.into()), || Ok(Err(TextError::Descriptors))];
    for end in ends {
        run(async {
            let (ours, mut program) = UnixStream::pair().expect("a pair");
            let mut agent = Successor::with(ours.into());
            let connections = std::mem::take(&mut agent.connections);
            let resumed = resume_all(&agent.listener, connections, &agent.keeper);
            let [(connection, _)] = &resumed[..] else { panic!("{} connections", resumed.len()) };
            let outcome = agent.keeper.converse(connection, true, ready(end()), unserved).await;
            assert!(!matches!(outcome, Ok(Ok(()))), "{outcome:?}");
            drop(resumed);
            let kept = agent.keeper.kept.as_ref().expect("a store");
            kept.borrow_mut().clear().expect("a pass");
            program.set_read_timeout(Some(Duration::from_secs(10))).expect("setsockopt");
            assert_eq!(program.read(&mut [0]).expect("the end"), 0);
        });
    }
}

#[test]
fn a_new_program_is_kept_from_its_text_on() {
    run(async {
        let (first, _program) = UnixStream::pair().expect("a pair");
        let agent = Successor::with(first.into());
        let (ours, _program) = UnixStream::pair().expect("a pair");
        let (connection, _) = agent.listener.resume(ours.into()).expect("a socket");
        let serve = async |_: Vec<u8>| -> Outcome<()> {
            assert_eq!(agent.kept(), 2);
            Ok(Ok(()))
        };
        let text = async {
            assert_eq!(agent.kept(), 1, "it has written nothing");
            Ok(Ok(b"memory.oom_control\0".to_vec()))
        };
        let outcome = agent.keeper.converse(&connection, false, text, serve).await;
        assert!(matches!(outcome, Ok(Ok(()))), "{outcome:?}");
        assert_eq!(agent.kept(), 1, "it has ended");
    });
}

#[test]
fn what_cannot_be_gone_on_with_is_kept_no_more() {
    run(async {
        let (no_socket, _other) = pipe().expect("a pipe");
        let agent = Successor::with(no_socket);
        let Successor { listener, keeper, connections, .. } = &agent;
        let connections = connections.iter().map(|fd| fd.try_clone().expect("dup")).collect();
        assert!(resume_all(listener, connections, keeper).is_empty());
        assert_eq!(agent.kept(), 0);
    });
}
