//! The parent process of `agent --supervised`, which holds the state that outlives the agent,
//! and starts the agent again when it dies. It handles a service manager's part of
//! `sd_notify(3)`: `FDSTORE=1`, `FDSTOREREMOVE=1`, `FDNAME=`; the rest it passes on.

mod child;
mod message;
mod oom_score;

use std::{
    ffi::OsString,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

pub use child::{Worker, start};
pub use message::{Mailbox, Message};

use crate::{
    error::{Error, Result},
    fd_store::StoredDescriptors,
};

/// Most descriptors that are kept, like `FileDescriptorStoreMax=`.
const ROOM: usize = 256;
/// The longest time between two attempts to start an agent that dies at once.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Time after which an agent that dies did not die at once.
const LONG_ENOUGH: Duration = Duration::from_secs(10);

/// Reasons for the end of the loop.
enum WorkerEnd {
    /// Ended by a signal, with the agent's exit code.
    Stopped(u8),
    /// Restarted by a signal, perhaps as another version.
    Again,
}

/// State of the parent process.
struct Supervisor {
    program: PathBuf,
    arguments: Vec<OsString>,
    mailbox: Mailbox,
    signals: SignalFd,
    kept: StoredDescriptors,
    worker: Option<Worker>,
    /// Time at which the next agent is to be started.
    due: Instant,
    pause: Duration,
    was_ready: bool,
    /// Whether the present agent was ready.
    came_up: bool,
    stopping: Option<Signal>,
}

/// Runs `program` with `arguments` as the agent, again and again, until SIGTERM or SIGINT, and
/// returns its exit code. The agent sends its notifications to `mailbox`. SIGHUP ends the agent,
/// which leaves its state to the next, and begins with the program as it is then. `kept` are
/// the descriptors that this process was started with.
///
/// # Errors
/// The parent's own sockets cannot be made, or the first agent does not start.
pub fn run(
    program: PathBuf,
    arguments: Vec<OsString>,
    mailbox: PathBuf,
    kept: StoredDescriptors,
) -> Result<u8> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        mask.add(signal);
    }
    mask.thread_block().map_err(|errno| Error::syscall("sigprocmask", errno))?;
    oom_score::take_out();
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let mut supervisor = Supervisor {
        program,
        arguments,
        mailbox: Mailbox::new(mailbox)?,
        signals: SignalFd::with_flags(&mask, flags).map_err(|errno| Error::syscall("signalfd", errno))?,
        kept,
        worker: None,
        due: Instant::now(),
        pause: Duration::ZERO,
        was_ready: false,
        came_up: false,
        stopping: None,
    };
    match supervisor.serve()? {
        WorkerEnd::Stopped(code) => Ok(code),
        WorkerEnd::Again => Err(child::begin_again(&supervisor.program, &supervisor.kept)),
    }
}

impl Supervisor {
    fn serve(&mut self) -> Result<WorkerEnd> {
        loop {
            if self.worker.is_none() && Instant::now() >= self.due {
                let notify = self.mailbox.path();
                match start(&self.program, &self.arguments, &self.kept, notify, ROOM) {
                    Ok(worker) => {
                        log::debug!("the agent is process {}", worker.pid);
                        self.worker = Some(worker);
                    }
                    // Tried again for the sake of the state kept: out of memory, or of processes.
                    Err(error) if self.was_ready => {
                        log::warn!("cannot start the agent: {error}");
                        self.wait_longer();
                    }
                    Err(error) => return Err(error),
                }
            }
            self.wait()?;
            self.take_all();
            while let Ok(Some(signal)) = self.signals.read_signal() {
                if let Some(end) = self.handle(Signal::try_from(signal.ssi_signo.cast_signed()))? {
                    return Ok(end);
                }
            }
        }
    }

    fn wait(&self) -> Result<()> {
        let timeout = match self.worker {
            Some(_) => PollTimeout::NONE,
            None => {
                let left = self.due.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut waited =
            [self.mailbox.as_fd(), self.signals.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut waited, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(Error::syscall("poll", errno)),
        }
    }

    fn next_pause(&self) -> Duration {
        (self.pause * 2).clamp(Duration::from_millis(10), LONGEST_PAUSE)
    }

    fn wait_longer(&mut self) {
        self.pause = self.next_pause();
        self.due = Instant::now() + self.pause;
    }

    fn take_all(&mut self) {
        let worker = self.worker.as_ref().map(|worker| worker.pid);
        while let Some(message) = self.mailbox.receive(worker) {
            self.take(message);
        }
    }

    fn take(&mut self, message: Message) {
        let Message { store, forget, name, ready, rest, descriptors } = message;
        let name = name.unwrap_or_else(|| "stored".into());
        if forget {
            self.kept.retain(|(kept, _)| *kept != name);
        } else if store {
            self.keep(&name, descriptors);
        }
        self.was_ready |= ready;
        self.came_up |= ready;
        if !rest.is_empty()
            && let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Custom(&rest)])
        {
            log::warn!("cannot notify the service manager (NOTIFY_SOCKET): {error}");
        }
    }

    fn keep(&mut self, name: &str, descriptors: Vec<OwnedFd>) {
        for fd in descriptors {
            if self.kept.len() == ROOM {
                log::error!("more than {ROOM} descriptors to keep: {name} is not kept");
                return;
            }
            self.kept.push((name.to_owned(), fd));
        }
    }

    fn handle(&mut self, signal: nix::Result<Signal>) -> Result<Option<WorkerEnd>> {
        match signal {
            Ok(Signal::SIGCHLD) => self.bury(),
            Ok(signal) => {
                let Some(worker) = &self.worker else {
                    return Ok(Some(if signal == Signal::SIGHUP {
                        WorkerEnd::Again
                    } else {
                        WorkerEnd::Stopped(0)
                    }));
                };
                self.stopping = Some(signal);
                kill(worker.pid, signal).map_err(|errno| Error::syscall("kill", errno))?;
                Ok(None)
            }
            Err(_) => Ok(None),
        }
    }

    fn bury(&mut self) -> Result<Option<WorkerEnd>> {
        let code = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => u8::try_from(code).unwrap_or(1),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                log::warn!("the agent was killed by {signal}");
                1
            }
            Ok(_) | Err(Errno::ECHILD) => return Ok(None),
            Err(errno) => return Err(Error::syscall("waitpid", errno)),
        };
        // Its last messages count, too.
        self.take_all();
        let Some(worker) = self.worker.take() else { return Ok(None) };
        match self.stopping.take() {
            Some(Signal::SIGHUP) => return Ok(Some(WorkerEnd::Again)),
            Some(_) => return Ok(Some(WorkerEnd::Stopped(code))),
            None if !self.was_ready => return Ok(Some(WorkerEnd::Stopped(code.max(1)))),
            None => {}
        }
        self.pause = match worker.began.elapsed() {
            lived if lived >= LONG_ENOUGH => Duration::ZERO,
            _ => self.next_pause(),
        };
        // An agent that was ready is started again at once.
        if std::mem::take(&mut self.came_up) {
            self.pause = Duration::ZERO;
        }
        self.due = Instant::now() + self.pause;
        log::info!("starting the agent again, with {} descriptors kept for it", self.kept.len());
        Ok(None)
    }
}
