//! The origin of the numbers: the agent tells what has changed, or the groups' files are read, a
//! share of them at a time.

pub mod details;
pub mod files;

use std::{
    collections::HashSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use memcg_monitor::{cgroup::Hierarchy, printable};
use monitor_client::{
    AdminConnection, Error,
    wire::{AdminRequest, Answer, ChangesRow},
};

use self::files::FileSource;
use super::model::{Model, Place};

/// Time within which the agent answers as a whole, or is given up for a while.
const PATIENCE: Duration = Duration::from_secs(5);

/// Time between two attempts to reach an agent.
const AGAIN: Duration = Duration::from_secs(5);

/// Most time between two attempts to reach an agent that does not answer.
const LONGEST: Duration = Duration::from_secs(60);

/// The numbers that there are with this hierarchy and this source; of others a zero says nothing.
#[derive(Clone, Copy, Debug)]
pub struct KnownNumbers {
    pub registrations: bool,
    pub ooms: bool,
    pub kills: bool,
}

impl KnownNumbers {
    pub const ALL: Self = Self { registrations: true, ooms: true, kills: true };
}

/// The source, which changes when an agent comes or goes.
#[derive(Debug)]
pub struct GroupSource {
    socket: PathBuf,
    agent: Option<AgentSource>,
    files: FileSource,
    /// When the next attempt to reach an agent is made, and how long after that the one after it.
    next: Option<Instant>,
    pause: Duration,
    /// Why there is no agent, in a word.
    why: String,
}

impl GroupSource {
    pub fn new(hierarchy: &Hierarchy, socket: PathBuf) -> Self {
        let files = FileSource::new(hierarchy);
        Self { socket, agent: None, files, next: None, pause: AGAIN, why: String::new() }
    }

    /// Brings the model up to date; the groups at `visible` in any case.
    ///
    /// # Errors
    /// There is no agent, and the hierarchy cannot be read either.
    pub fn renew(&mut self, model: &mut Model, visible: &[Place]) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        if self.agent.is_none() && self.next.is_none_or(|next| next <= Instant::now()) {
            match AdminConnection::connect_within(&self.socket, PATIENCE) {
                Ok(connection) => self.agent = Some(AgentSource::new(connection)),
                Err(error) => self.give_up(&error),
            }
        }
        if let Some(agent) = &mut self.agent {
            match agent.renew(model, deadline) {
                Ok(()) => {
                    self.pause = AGAIN;
                    return Ok(());
                }
                Err(error) => {
                    self.give_up(&error);
                    self.agent = None;
                    self.files.forget();
                }
            }
        }
        self.files.renew(model, visible)
    }

    /// Leaves the agent for a while: the longer, the more often it has not answered, since no key is
    /// read while it is waited for.
    fn give_up(&mut self, error: &Error) {
        self.why = reason(error);
        self.pause = if error.is_timeout() { (self.pause * 2).min(LONGEST) } else { AGAIN };
        self.next = Some(Instant::now() + self.pause);
    }

    /// Whether the agent tells the numbers: files have no registrations.
    pub const fn is_agent(&self) -> bool {
        self.agent.is_some()
    }

    /// Says where the numbers come from.
    pub fn note(&self) -> String {
        match &self.agent {
            Some(agent) => agent.note.clone(),
            None => format!("{}: from files", self.why),
        }
    }
}

/// A connection to the agent.
#[derive(Debug)]
struct AgentSource {
    connection: AdminConnection,
    last: Option<f64>,
    note: String,
}

impl AgentSource {
    const fn new(connection: AdminConnection) -> Self {
        Self { connection, last: None, note: String::new() }
    }

    fn renew(&mut self, model: &mut Model, deadline: Instant) -> Result<(), Error> {
        self.connection.send(&AdminRequest::Changes, &[])?;
        let since = self.last.unwrap_or(model.now);
        let mut first = self.last.is_none().then(Vec::new);
        loop {
            match self.connection.next_by(deadline)? {
                Some(Answer::Changes(row)) => match &mut first {
                    Some(first) => first.push(row),
                    None => apply(model, row, since),
                },
                Some(Answer::Status(status)) => {
                    self.note = format!("agent: {}", printable(&status.backend));
                    break;
                }
                Some(other) => return Err(Error::Answer(format!("{other:?}"))),
                None => return Err(Error::Ended("the agent ended")),
            }
        }
        if let Some(first) = first {
            begin(model, first, since);
        }
        self.last = Some(model.now);
        Ok(())
    }
}

/// Applies the first answer of an agent, which has all groups: those that went meanwhile may have had
/// the names of others by now.
fn begin(model: &mut Model, rows: Vec<ChangesRow>, since: f64) {
    let there: HashSet<u64> = rows.iter().flat_map(|row| &row.named).map(|(id, _)| *id).collect();
    model.retain(|id| there.contains(&id));
    // Those at the agent before; of a group that has none now there is no number.
    there.iter().for_each(|id| model.set_registrations(*id, 0));
    rows.into_iter().for_each(|row| apply(model, row, since));
}

fn apply(model: &mut Model, row: ChangesRow, since: f64) {
    let ChangesRow { gone, named, usage, limits, registrations } = row;
    gone.into_iter().for_each(|id| model.remove(id));
    named.iter().for_each(|(id, path)| model.add(*id, path));
    usage.into_iter().for_each(|(id, bytes)| model.set_usage(id, bytes, since));
    limits.into_iter().for_each(|(id, limit)| model.set_limit(id, limit));
    registrations.into_iter().for_each(|(id, count)| model.set_registrations(id, count));
}

/// Why the agent is of no use here, in a few words.
fn reason(error: &Error) -> String {
    use nix::errno::Errno;
    let text = match error.errno().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ECONNREFUSED) => "no agent",
        Some(Errno::EACCES | Errno::EPERM) => "not an operator of the agent",
        Some(Errno::EOPNOTSUPP) => "agent: sampled",
        Some(Errno::EINVAL) => "the agent is of an older version",
        Some(Errno::EBUSY) => "too many are at the agent",
        _ if error.is_timeout() => "the agent does not answer",
        _ => "no answer of an agent",
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use std::{
        os::{fd::AsRawFd as _, unix::net::UnixListener},
        path::Path,
        thread,
    };

    use memcg_monitor::cgroup::Version;
    use nix::sys::socket::{
        AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, listen, send, socket,
    };

    use super::*;

    /// A socket that takes a connection, and has no agent.
    fn listener(path: &Path) -> UnixListener {
        let fd =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        bind(fd.as_raw_fd(), &UnixAddr::new(path).expect("an address")).expect("bind");
        listen(&fd, Backlog::new(1).expect("a number")).expect("listen");
        UnixListener::from(fd)
    }

    #[test]
    fn an_agent_that_does_not_answer_is_asked_less_and_less() {
        let directory = tempfile::tempdir().expect("a directory");
        let hierarchy = Hierarchy { version: Version::V2, root: directory.path().to_owned() };
        let path = directory.path().join("socket");
        let _listener = listener(&path);
        let connection = AdminConnection::connect_within(&path, Duration::from_millis(1)).expect("a backlog");
        let silent = connection.status().expect_err("nobody answers");
        let mut source = GroupSource::new(&hierarchy, path);
        let pauses = [10, 20, 40, 60, 60].map(|seconds| {
            source.give_up(&silent);
            assert_eq!(source.note(), "the agent does not answer: from files");
            source.pause == Duration::from_secs(seconds)
        });
        assert_eq!(pauses, [true; 5]);
        source.give_up(&Error::Ended("it ended"));
        assert_eq!(source.pause, AGAIN);
    }

    #[test]
    fn an_agent_whose_answer_does_not_end_is_given_up() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = listener(&path);
        let agent = thread::spawn(move || {
            let (peer, _) = listener.accept().expect("a connection");
            let changes = br#"{"type":"changes"}"#;
            while send(peer.as_raw_fd(), changes, MsgFlags::MSG_NOSIGNAL).is_ok() {
                thread::sleep(Duration::from_millis(10));
            }
        });
        let mut source =
            AgentSource::new(AdminConnection::connect_within(&path, PATIENCE).expect("a backlog"));
        let deadline = Instant::now() + Duration::from_millis(200);
        let error = source.renew(&mut Model::new("/cg"), deadline).expect_err("no end");
        assert!(error.is_timeout(), "{error}");
        drop(source);
        agent.join().expect("its socket is closed");
    }

    #[test]
    fn changes_are_applied_in_order_and_unknown_groups_are_left_out() {
        let mut model = Model::new("/cg");
        model.begin(0.0);
        let row = ChangesRow {
            named: vec![(1, "/cg/a".into()), (2, "/cg/b".into())],
            usage: vec![(1, 4096), (9, 1)],
            limits: vec![(1, Some(8192)), (2, None)],
            registrations: vec![(2, 3)],
            gone: vec![7],
        };
        apply(&mut model, row, 0.0);
        model.begin(2.0);
        apply(&mut model, ChangesRow { usage: vec![(1, 12_288)], gone: vec![2], ..Default::default() }, 0.0);
        let a = model.node(model.place_of(1).expect("there"));
        assert_eq!((a.usage, a.limit, model.len()), (Some(12_288), Some(8192), 1));
        assert_eq!(a.growth.at(2.0), Some(4096.0));
    }

    #[test]
    fn a_service_that_is_started_again_has_its_name() {
        let mut model = Model::new("/cg");
        let named = |id| ChangesRow { named: vec![(id, "/cg/x.service".into())], ..Default::default() };
        let path = |model: &Model, id| model.place_of(id).map(|place| model.node(place).path.clone());
        apply(&mut model, named(1), 0.0);
        apply(&mut model, ChangesRow { gone: vec![1], ..named(2) }, 0.0);
        assert_eq!((path(&model, 1), path(&model, 2).as_deref()), (None, Some("/x.service")));
        // Once more, while the agent was away.
        begin(&mut model, vec![named(3)], 0.0);
        assert_eq!((path(&model, 2), path(&model, 3).as_deref()), (None, Some("/x.service")));
    }

    #[test]
    fn registrations_at_the_agent_before_are_not_shown() {
        let mut model = Model::new("/cg");
        let row = |registrations| ChangesRow {
            named: vec![(1, "/cg/a".into()), (2, "/cg/b".into())],
            registrations,
            ..Default::default()
        };
        begin(&mut model, vec![row(vec![(1, 3), (2, 4)])], 0.0);
        begin(&mut model, vec![row(vec![(2, 1)])], 0.0);
        let shown = [1, 2].map(|id| model.node(model.place_of(id).expect("there")).registrations);
        assert_eq!(shown, [0, 1]);
    }
}
