//! The admin socket: lists, the agent's state, and registrations that report the cause of
//! each signal.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    error::{Error, Result},
    seqpacket::{
        connect, connect_within, receive, receive_deadline, send_with, set_receive_limit, wait_for_packet,
    },
    wire::{AdminRequest, AgentStatus, Answer, EventRow, GroupRow},
};

/// Longest answer of the admin socket, in bytes.
pub(crate) const LARGEST_ANSWER: usize = 256 * 1024;

/// The beginning of an [`Answer::Changes`], as the agent writes it.
const CHANGES: &[u8] = br#"{"type":"changes""#;

/// A connection to the admin socket, which is root's alone unless the agent's options admit
/// others.
///
/// ```no_run
/// use monitor_client::{AdminConnection, CONTROL_SOCKET};
///
/// let connection = AdminConnection::connect(CONTROL_SOCKET.as_ref())?;
/// let (groups, status) = connection.list()?;
/// for group in groups {
///     println!("{}: {} bytes, {} at most", group.cgroup, group.usage, group.peak);
/// }
/// println!("{} signals given", status.signals);
/// # Ok::<_, monitor_client::Error>(())
/// ```
#[derive(Debug)]
pub struct AdminConnection(OwnedFd);

impl AdminConnection {
    /// Connects to the admin socket, without a limit of time.
    ///
    /// # Errors
    /// [`Error::Syscall`] names the socket, and what to do.
    pub fn connect(socket: &Path) -> Result<Self> {
        connect(socket).map(Self)
    }

    /// Connects with a limit: neither connecting nor any later request or answer takes
    /// longer than `limit`, rounded down to microseconds, at least one. The answer to a list, to
    /// a request for the state, for kills or for a recording counts as a whole.
    ///
    /// # Errors
    /// [`Error::Syscall`], as for [`AdminConnection::connect`]; [`Error::is_timeout`] when the
    /// limit is over.
    pub fn connect_within(socket: &Path, limit: Duration) -> Result<Self> {
        connect_within(socket, Some(limit)).map(Self)
    }

    /// Sends one request without waiting for an answer. A [`AdminRequest::Listen`] takes two
    /// `descriptors`: the eventfd, and the control file or directory.
    ///
    /// # Errors
    /// [`Error::Ended`] when the agent has ended the connection, [`Error::Syscall`] for `sendmsg`.
    pub fn send(&self, request: &AdminRequest, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = serde_json::to_vec(request).map_err(|error| Error::Answer(error.to_string()))?;
        send_with(&self.0, &bytes, descriptors)
    }

    /// Waits for the next answer; `None` when the agent ended the connection.
    ///
    /// # Errors
    /// [`Error::Refused`] for an [`Answer::Error`], [`Error::Answer`] for one that is not
    /// understood, [`Error::Syscall`] for `recvmsg`; [`Error::is_timeout`] when a limit is over.
    pub fn next(&self) -> Result<Option<Answer>> {
        let bytes = receive(&self.0, LARGEST_ANSWER)
            .map_err(|errno| Error::syscall("recvmsg from the agent", errno))?;
        answer_of(&bytes)
    }

    /// Waits for the next answer like [`AdminConnection::next`], but no longer than until
    /// `deadline`: for answers that come in parts, each of which may be in time while the last never
    /// comes.
    ///
    /// # Errors
    /// Those of [`AdminConnection::next`]; [`Error::is_timeout`] from the deadline on, also where
    /// there is an answer.
    pub fn next_by(&self, deadline: Instant) -> Result<Option<Answer>> {
        wait_for_packet(&self.0, deadline)?;
        self.next()
    }

    /// Waits for the next part of a whole answer, until its deadline if it has one.
    fn next_part(&self, deadline: Option<Instant>) -> Result<Option<Answer>> {
        match deadline {
            Some(deadline) => self.next_by(deadline),
            None => self.next(),
        }
    }

    /// Lists every group, and the agent's own state. All that was crossed before this call
    /// has been signalled when it returns.
    ///
    /// # Errors
    /// [`Error::Ended`] when the agent ended meanwhile, and the errors of
    /// [`AdminConnection::send`] and [`AdminConnection::next`].
    pub fn list(&self) -> Result<(Vec<GroupRow>, AgentStatus)> {
        let deadline = receive_deadline(&self.0)?;
        self.send(&AdminRequest::List, &[])?;
        let mut rows: Vec<GroupRow> = Vec::new();
        loop {
            match self.next_part(deadline)? {
                // A group with many registrations is sent in parts.
                Some(Answer::Group(part)) => match rows.last_mut() {
                    Some(row) if row.id == part.id => row.registrations.extend(part.registrations),
                    _ => rows.push(part),
                },
                Some(Answer::Status(status)) => return Ok((rows, status)),
                Some(other) => return Err(Error::Answer(format!("{other:?}"))),
                None if rows.is_empty() => return Err(Error::unanswered()),
                None => return Err(Error::Ended("the agent ended in the middle of the list")),
            }
        }
    }

    /// Requests the agent's own state, which costs the agent the same however many groups and
    /// registrations there are.
    ///
    /// # Errors
    /// [`Error::Ended`] when the agent ended meanwhile, and the errors of
    /// [`AdminConnection::send`] and [`AdminConnection::next`].
    pub fn status(&self) -> Result<AgentStatus> {
        let deadline = receive_deadline(&self.0)?;
        self.send(&AdminRequest::Status, &[])?;
        match self.next_part(deadline)? {
            Some(Answer::Status(status)) => Ok(status),
            Some(other) => Err(Error::Answer(format!("{other:?}"))),
            None => Err(Error::unanswered()),
        }
    }

    /// Requests the last processes that the OOM killer killed, the oldest of them first, and the
    /// agent's own state.
    ///
    /// # Errors
    /// [`Error::Ended`] when the agent ended meanwhile, and the errors of
    /// [`AdminConnection::send`] and [`AdminConnection::next`].
    pub fn kills(&self) -> Result<(Vec<EventRow>, AgentStatus)> {
        let deadline = receive_deadline(&self.0)?;
        self.send(&AdminRequest::Kills, &[])?;
        let mut rows = Vec::new();
        loop {
            match self.next_part(deadline)? {
                Some(Answer::Event(row)) => rows.push(row),
                Some(Answer::Status(status)) => return Ok((rows, status)),
                Some(other) => return Err(Error::Answer(format!("{other:?}"))),
                None if rows.is_empty() => return Err(Error::unanswered()),
                None => return Err(Error::Ended("the agent ended in the middle of the kills")),
            }
        }
    }

    /// Has the agent write a file of the black box of the group whose directory has this inode
    /// number; returns its path, on the agent's host.
    ///
    /// # Errors
    /// [`Error::Refused`] where the group is not recorded, [`Error::Ended`] when the agent ended
    /// meanwhile, and the errors of [`AdminConnection::send`] and [`AdminConnection::next`].
    pub fn record(&self, group: u64) -> Result<String> {
        let deadline = receive_deadline(&self.0)?;
        self.send(&AdminRequest::Record(group), &[])?;
        match self.next_part(deadline)? {
            Some(Answer::Recorded { path }) => Ok(path),
            Some(other) => Err(Error::Answer(format!("{other:?}"))),
            None => Err(Error::unanswered()),
        }
    }

    /// Bounds each later wait for an answer, to `limit` rounded down to microseconds, at least
    /// one; `None` removes the bound. Whole answers count as with
    /// [`AdminConnection::connect_within`].
    ///
    /// # Errors
    /// [`Error::Syscall`] for `setsockopt`.
    pub fn set_timeout(&self, limit: Option<Duration>) -> Result<()> {
        set_receive_limit(&self.0, limit)
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }
}

/// Gives the connection, to poll it: it is readable once there is an answer, or the agent has ended.
impl AsFd for AdminConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Reads an answer of the admin socket; `None` when the agent ended the connection.
pub(crate) fn answer_of(bytes: &[u8]) -> Result<Option<Answer>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    // As one of several types each number would be read into a value of its own first, which is most
    // of the work where thousands of groups change.
    let answer = if bytes.starts_with(CHANGES) {
        serde_json::from_slice(bytes).map(Answer::Changes)
    } else {
        serde_json::from_slice(bytes)
    };
    match answer {
        Ok(Answer::Error { errno, why }) => Err(Error::Refused { errno, message: why }),
        Ok(answer) => Ok(Some(answer)),
        Err(_) => Err(Error::Answer(String::from_utf8_lossy(bytes).into_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsRawFd as _, thread, time::Duration};

    use nix::sys::socket::{MsgFlags, send};

    use super::{AdminConnection, answer_of};
    use crate::{
        error::Error,
        seqpacket::tests::listener,
        wire::{AdminRequest, Answer, ChangesRow},
    };

    /// One group of a list, as an agent writes it.
    const GROUP: &str = r#"{"type":"group","cgroup":"/a","id":1,"usage":0,"peak":0,"registrations":[]}"#;

    #[test]
    fn changes_are_read_in_any_order_of_their_fields() {
        let row = ChangesRow { usage: vec![(7, 4096), (8, 0)], gone: vec![9], ..ChangesRow::default() };
        let written = serde_json::to_string(&Answer::Changes(row.clone())).expect("JSON");
        for text in [&*written, r#"{"usage":[[7,4096],[8,0]],"gone":[9],"type":"changes"}"#] {
            let answer = answer_of(text.as_bytes()).expect("understood");
            assert_eq!(answer, Some(Answer::Changes(row.clone())));
        }
        assert!(answer_of(br#"{"type":"changes","usage":[7]}"#).is_err());
    }

    #[test]
    fn a_limit_holds_for_an_answer_as_a_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = listener(&path, 1);
        let agent = thread::spawn(move || {
            let (peer, _) = listener.accept().expect("a connection");
            // Each in time, and no end.
            while send(peer.as_raw_fd(), GROUP.as_bytes(), MsgFlags::MSG_NOSIGNAL).is_ok() {
                thread::sleep(Duration::from_millis(10));
            }
        });
        let connection =
            AdminConnection::connect_within(&path, Duration::from_millis(200)).expect("a listener");
        let error = connection.list().expect_err("a list without an end");
        assert!(error.is_timeout(), "{error}");
        drop(connection);
        agent.join().expect("its socket is closed");
    }

    #[test]
    fn a_connection_that_is_closed_unread_has_ended() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = listener(&path, 1);
        let connect = || AdminConnection::connect(&path).expect("a listener");
        let (asked, silent) = (connect(), connect());
        asked.send(&AdminRequest::Status, &[]).expect("room");
        // It takes those along that nobody has accepted.
        drop(listener);
        assert_eq!(asked.next().expect("an end"), None);
        for _ in 0..2 {
            let error = silent.status().expect_err("nobody is there");
            assert!(matches!(error, Error::Ended(_)), "{error}");
        }
    }

    #[test]
    fn an_answer_comes_before_the_end_of_a_connection_that_is_closed_unread() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = listener(&path, 1);
        let connection = AdminConnection::connect(&path).expect("a listener");
        let (peer, _) = listener.accept().expect("a connection");
        connection.send(&AdminRequest::Status, &[]).expect("room");
        let refusal = br#"{"type":"error","errno":16,"why":"EBUSY: too many"}"#;
        send(peer.as_raw_fd(), refusal, MsgFlags::MSG_NOSIGNAL).expect("room");
        drop(peer);
        assert_eq!(connection.next().expect_err("a refusal").errno(), Some(16));
        assert_eq!(connection.next().expect("an end"), None);
    }
}
