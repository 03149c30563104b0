//! The connection of `watch`, to one agent after another.

use std::{
    borrow::Cow,
    io,
    os::fd::AsFd as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use memcg_monitor::printable;
use monitor_client::{
    AdminConnection, Error, UNANSWERED,
    wire::{AdminRequest, Answer, WatchRequest},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::commands::{connect, deadline, output, say};

/// Time between two attempts to reach an agent that has ended.
const RETRY: Duration = Duration::from_millis(200);
/// Longest that one attempt takes where an agent does not accept; the output's reader is looked at then.
const ATTEMPT: Duration = Duration::from_secs(1);
/// The longest pause before an agent that ends each connection is asked again.
const LONGEST: Duration = Duration::from_secs(5);

/// The pauses before a watch begins again, which grow while agents end it sooner than that.
struct Pauses {
    next: Duration,
}

impl Pauses {
    const fn new() -> Self {
        Self { next: RETRY }
    }

    /// The pause after a watch that was served for so long.
    fn after(&mut self, served: Duration) -> Duration {
        if served > self.next {
            self.next = RETRY;
            return Duration::ZERO;
        }
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        pause
    }
}

/// The reason for which a watch ends, if it does not fail.
#[derive(Debug, PartialEq, Eq)]
pub enum WatchEnd {
    /// All events that were asked for are told.
    Counted,
    /// Nobody reads the output any more.
    ReaderGone,
    TimedOut,
}

/// The next thing that a watch has to handle.
#[derive(Debug)]
pub enum News {
    Answer(Box<Answer>),
    AgentEnded,
    Ends(WatchEnd),
}

/// A watch that an agent serves.
struct Served {
    connection: AdminConnection,
    /// The registrations live as long as this.
    _eventfd: EventFd,
    since: Instant,
}

impl Served {
    fn begin(
        eventfd: EventFd,
        socket: &Path,
        request: &WatchRequest,
        deadline: Option<Instant>,
    ) -> Result<Self, Error> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let limit = left.map_or(ATTEMPT, |left| left.min(ATTEMPT));
        let connection = AdminConnection::connect_within(socket, limit)?;
        connection.set_timeout(None)?;
        connection.send(&AdminRequest::Watch(request.clone()), &[eventfd.as_fd()])?;
        Ok(Self { connection, _eventfd: eventfd, since: Instant::now() })
    }
}

/// The stream of a watch's answers.
pub struct Stream<'a> {
    socket: &'a Path,
    request: WatchRequest,
    deadline: Option<Instant>,
    served: Option<Served>,
    /// Whether any agent has answered so far.
    is_begun: bool,
    pauses: Pauses,
    /// Why the agent that serves it ends the connection, should it do that now.
    why: Cow<'static, str>,
    /// Whether that was said, since a watch was last served for long.
    is_said: bool,
}

impl<'a> Stream<'a> {
    /// Prepares a watch of these groups, which ends at the deadline.
    pub const fn new(socket: &'a Path, request: WatchRequest, deadline: Option<Instant>) -> Self {
        Self {
            socket,
            request,
            deadline,
            served: None,
            is_begun: false,
            pauses: Pauses::new(),
            why: Cow::Borrowed(UNANSWERED),
            is_said: false,
        }
    }

    /// Begins the watch; the first agent has to be there. Returns the reason where the watch ends before.
    ///
    /// # Errors
    /// There is no agent, or it is not for this user.
    pub fn begin(&mut self) -> Result<Option<WatchEnd>> {
        loop {
            match self.connect()? {
                Ok(()) => return Ok(None),
                // It is there, and does not accept yet.
                Err(error) if is_for_later(&error) => {}
                Err(error) => return Err(explained(error)),
            }
            if let Some(end) = self.wait(Duration::ZERO)? {
                return Ok(Some(end));
            }
        }
    }

    /// Waits for the next agent, and begins there. Returns the reason where the watch ends before.
    ///
    /// # Errors
    /// As [`Stream::begin`], but that there is no agent.
    pub fn begin_again(&mut self) -> Result<Option<WatchEnd>> {
        self.request.again = true;
        let served = self.served.take().map_or(Duration::ZERO, |served| served.since.elapsed());
        let mut pause = self.pause_after(served);
        loop {
            if let Some(end) = self.wait(pause)? {
                return Ok(Some(end));
            }
            pause = match self.connect()? {
                Ok(()) => return Ok(None),
                // It was there, and is about to end, or admits no more.
                Err(Error::Ended(_)) => self.pause_after(Duration::ZERO),
                // It is not there yet.
                Err(Error::Syscall { .. }) => RETRY,
                Err(error) => return Err(explained(error)),
            };
        }
    }

    /// Waits for what is next.
    ///
    /// # Errors
    /// The agent refuses the watch, or its answer is not understood.
    pub fn news(&mut self) -> Result<News> {
        loop {
            let Some(served) = &self.served else { return Ok(News::AgentEnded) };
            let stdout = io::stdout();
            let mut watched = [
                PollFd::new(served.connection.as_fd(), PollFlags::POLLIN),
                PollFd::new(stdout.as_fd(), output::READER_ALONE),
            ];
            match poll(&mut watched, deadline::left(self.deadline)) {
                Ok(0) if deadline::is_over(self.deadline) => return Ok(News::Ends(WatchEnd::TimedOut)),
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => bail!("poll: {errno}"),
            }
            if watched[1].any().unwrap_or(false) {
                return Ok(News::Ends(WatchEnd::ReaderGone));
            }
            let answer = served.connection.next();
            return self.heard(answer);
        }
    }

    fn heard(&mut self, answer: Result<Option<Answer>, Error>) -> Result<News> {
        match answer {
            Ok(Some(answer)) => {
                self.is_begun = true;
                self.why = Cow::Borrowed("the agent ended soon after it began to answer");
                Ok(News::Answer(Box::new(answer)))
            }
            Ok(None) | Err(Error::Syscall { .. }) if !self.is_begun => {
                Err(explained(Error::Ended(UNANSWERED)))
            }
            Ok(None) | Err(Error::Syscall { .. }) => Ok(News::AgentEnded),
            Err(error) if self.request.again && is_shortage(&error) => {
                self.why = Cow::Owned(error.to_string());
                Ok(News::AgentEnded)
            }
            Err(error) => Err(explained(error)),
        }
    }

    /// The pause after a watch that was served for so long; says why, once it has become a long one.
    fn pause_after(&mut self, served: Duration) -> Duration {
        let pause = self.pauses.after(served);
        if pause.is_zero() {
            self.is_said = false;
        } else if pause == LONGEST && !std::mem::replace(&mut self.is_said, true) {
            say(&format!("{}; this tries again every {} s", printable(&self.why), LONGEST.as_secs()));
        }
        pause
    }

    /// Tries to begin at the agent that is there.
    fn connect(&mut self) -> Result<Result<(), Error>> {
        let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("eventfd2 failed")?;
        let served = Served::begin(eventfd, self.socket, &self.request, self.deadline);
        self.why = Cow::Borrowed(UNANSWERED);
        Ok(served.map(|served| self.served = Some(served)))
    }

    /// Waits so long, and returns the reason where the watch ends before.
    fn wait(&self, pause: Duration) -> Result<Option<WatchEnd>> {
        let then = Instant::now() + pause;
        let then = self.deadline.map_or(then, |deadline| deadline.min(then));
        if output::is_left_before(then)? {
            return Ok(Some(WatchEnd::ReaderGone));
        }
        Ok(deadline::is_over(self.deadline).then_some(WatchEnd::TimedOut))
    }
}

/// Whether an attempt took too long, or was interrupted: a stop signal ends one that has a limit.
fn is_for_later(error: &Error) -> bool {
    error.is_timeout() || error.errno() == Some(Errno::EINTR as i32)
}

/// Whether the agent refuses for a reason that may pass by itself.
fn is_shortage(error: &Error) -> bool {
    let shortages = [Errno::EBUSY, Errno::EAGAIN, Errno::ENOMEM, Errno::EMFILE, Errno::ENFILE];
    matches!(error, Error::Refused { errno, .. } if shortages.contains(&Errno::from_raw(*errno)))
}

fn explained(error: Error) -> anyhow::Error {
    connect::explained(error, "--control-socket")
}

#[cfg(test)]
mod tests {
    use std::{
        iter,
        os::fd::AsRawFd as _,
        time::{Duration, Instant},
    };

    use monitor_client::{connect_within, wire::WatchRequest};
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};

    use super::{LONGEST, News, Pauses, RETRY, Stream, WatchEnd};
    use crate::commands::fake_agent::FakeAgent;

    const WATCHING: &str = r#"{"type":"watching","groups":0}"#;
    const BUSY: &str = r#"{"type":"error","errno":16,"why":"EBUSY: try later"}"#;

    #[test]
    fn an_agent_that_accepts_nothing_is_waited_for_until_the_deadline() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None);
        let listener = listener.expect("a socket");
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).expect("an address")).expect("bind");
        listen(&listener, Backlog::new(1).expect("a backlog")).expect("listen");
        let moment = Duration::from_millis(1);
        let _filling: Vec<_> = iter::from_fn(|| connect_within(&path, Some(moment)).ok()).collect();
        let stream = || Stream::new(&path, WatchRequest::default(), Some(Instant::now() + moment));
        assert_eq!(stream().begin().expect("an agent"), Some(WatchEnd::TimedOut));
        assert_eq!(stream().begin_again().expect("an agent"), Some(WatchEnd::TimedOut));
    }

    #[test]
    fn pauses_grow_while_a_watch_ends_sooner() {
        let mut pauses = Pauses::new();
        assert_eq!(pauses.after(Duration::from_secs(1)), Duration::ZERO, "it was served for long");
        let all: Vec<_> = (0..7).map(|_| pauses.after(RETRY)).collect();
        let millis = all.iter().map(Duration::as_millis).collect::<Vec<_>>();
        assert_eq!(millis, [200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(pauses.after(LONGEST + RETRY), Duration::ZERO);
        assert_eq!(pauses.after(Duration::ZERO), RETRY, "they begin anew");
    }

    #[test]
    fn a_first_connection_that_is_ended_unanswered_is_explained() {
        let agent = FakeAgent::start(|_, _| {});
        let path = agent.socket();
        let mut stream = Stream::new(&path, WatchRequest::default(), None);
        let error = stream.begin().and_then(|_| stream.news()).expect_err("no answer").to_string();
        assert!(error.contains("as many connections open as one may have"), "{error}");
    }

    #[test]
    fn a_shortage_of_the_next_agent_is_waited_out_and_another_refusal_is_not() {
        let agent = FakeAgent::start(|number, connection| match number {
            1 => connection.send(BUSY),
            3 => connection.send(r#"{"type":"error","errno":1,"why":"EPERM: no operator"}"#),
            _ => connection.send(WATCHING),
        });
        let path = agent.socket();
        let mut stream = Stream::new(&path, WatchRequest::default(), None);
        assert_eq!(stream.begin().expect("an agent"), None);
        let mut answers = 0;
        let error = loop {
            match stream.news() {
                Ok(News::Answer(_)) => answers += 1,
                Ok(News::AgentEnded) => assert_eq!(stream.begin_again().expect("an agent"), None),
                Ok(News::Ends(end)) => panic!("{end:?}"),
                Err(error) => break error,
            }
        };
        assert_eq!((answers, agent.connections()), (2, 4));
        assert_eq!(error.to_string(), "EPERM: no operator");
        let agent = FakeAgent::start(|_, connection| connection.send(BUSY));
        let path = agent.socket();
        let mut first = Stream::new(&path, WatchRequest::default(), None);
        let error = first.begin().and_then(|_| first.news()).expect_err("a refusal");
        assert_eq!(error.to_string(), "EBUSY: try later", "the first agent has to be there");
    }

    #[test]
    fn an_agent_that_ends_each_connection_is_not_asked_again_at_once() {
        let agent = FakeAgent::start(|number, connection| {
            if number == 0 {
                connection.send(WATCHING);
            }
        });
        let path = agent.socket();
        let deadline = Instant::now() + Duration::from_millis(500);
        let mut stream = Stream::new(&path, WatchRequest::default(), Some(deadline));
        assert_eq!(stream.begin().expect("an agent"), None);
        let end = loop {
            match stream.news().expect("news") {
                News::Answer(_) => {}
                News::Ends(end) => break end,
                News::AgentEnded => {
                    if let Some(end) = stream.begin_again().expect("an agent") {
                        break end;
                    }
                }
            }
        };
        assert_eq!(end, WatchEnd::TimedOut);
        assert!(agent.connections() < 10, "{} connections", agent.connections());
    }
}
