//! Looks up what a record does not have: paths of groups, and what `/proc` has of a process.
//!
//! A read of a process's command line waits as long as the process keeps its own memory map locked, so
//! a thread apart reads, which is given up after a second. By then the kill is kept and counted.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use monitor_common::protocol::ring::KillReason;

use crate::{
    cgroup::handle::Directories,
    kills::{CommandLine, Kill, KillDetails, KillLog},
    procfs,
};

/// Kills that wait to be looked up; further ones are kept without.
const WAITING: usize = 256;

/// Longest path of a program or a group that is kept, in bytes.
const LONGEST: usize = 1024;

/// Nanoseconds of a tick in `/proc/PID/stat` (`USER_HZ`).
pub(super) const TICK: u64 = 10_000_000;

/// Time after which a thread that reads in `/proc` is given up.
const PATIENCE: Duration = Duration::from_secs(1);

/// Threads that read in `/proc` at most, those that were given up and still wait included.
const READERS: usize = 4;

/// Takes kills in: has them looked up, and keeps them.
#[derive(Debug)]
pub struct KillTeller {
    waiting: mpsc::SyncSender<Arc<Kill>>,
    log: Arc<KillLog>,
    /// Whether the hierarchy's root stands for the host, so that every kill is told.
    is_of_host: bool,
}

impl KillTeller {
    /// Starts the thread that looks up, with the rights of the calling thread. It ends with the
    /// teller.
    ///
    /// # Errors
    /// The kernel has no thread left.
    pub fn start(directories: Arc<Directories>) -> io::Result<Self> {
        let (waiting, next) = mpsc::sync_channel::<Arc<Kill>>(WAITING);
        let log = Arc::new(KillLog::default());
        let (kept, is_of_host) = (Arc::clone(&log), directories.host_root().is_some());
        thread::Builder::new().name("kills".into()).spawn(move || {
            let mut readers = ProcessReaders::new(of_process);
            while let Ok(kill) = next.recv() {
                look_up(&kill, &directories, &kept, &mut readers);
            }
        })?;
        Ok(Self { waiting, log, is_of_host })
    }

    /// Makes one for which too many kills wait already.
    #[cfg(test)]
    pub(crate) fn full(is_of_host: bool) -> Self {
        let (waiting, _) = mpsc::sync_channel(0);
        Self { waiting, log: Arc::default(), is_of_host }
    }

    /// Takes in a kill; never waits. False where it is not kept: too many wait, and it may be of a group beside
    /// a root that is a group, which is not this agent's.
    pub fn tell(&self, kill: &Arc<Kill>) -> bool {
        if self.waiting.try_send(Arc::clone(kill)).is_ok() {
            return true;
        }
        // Of which group it is, is not known.
        let command = if self.is_of_host { kill.recorded_command() } else { None };
        kill.set_details(KillDetails { command, ..KillDetails::default() });
        if self.is_of_host {
            self.log.add(kill, number(kill.victim.bell.value));
        }
        self.is_of_host
    }

    /// The log of the last kills.
    #[must_use]
    pub fn log(&self) -> &KillLog {
        &self.log
    }
}

/// In place of the path of a group that has none any more; 0: it was never known.
fn number(id: u64) -> String {
    if id == 0 { "a group that is gone".to_owned() } else { format!("#{id}") }
}

fn look_up(kill: &Arc<Kill>, directories: &Directories, log: &KillLog, readers: &mut ProcessReaders) {
    let id = kill.victim.bell.value;
    // The programs see the whole host. Kills that are not this agent's keep the others waiting for no process.
    if directories.is_outside(id) {
        return kill.set_details(KillDetails::default());
    }
    // First, since it goes first.
    let reads = readers.begin(kill);
    let path = |id| {
        let path = directories.path_of(id)?.to_string_lossy().into_owned();
        (path.len() <= LONGEST).then_some(path)
    };
    // One that was logged may be gone by now.
    let logged = |below: &Option<String>| {
        let path = below.as_ref().map(|below| directories.named(below).to_string_lossy().into_owned());
        path.filter(|path| path.len() <= LONGEST)
    };
    let cgroup = path(id).or_else(|| logged(&kill.groups().cgroup));
    // Where the root is a group, one that has gone may have been beside it.
    let is_told = cgroup.is_some() || directories.host_root().is_some();
    let limit = kill.limit.and_then(path).or_else(|| logged(&kill.groups().limit));
    if is_told {
        let shown = cgroup.clone().unwrap_or_else(|| number(id));
        if kill.reason == KillReason::Host {
            log::warn!(
                "the host ran out of memory: the OOM killer killed {} (process {}) of {shown}",
                kill.name(),
                kill.victim.pid
            );
        }
        log.add(kill, shown);
    }
    let found = if reads { readers.end() } else { None };
    if !is_told {
        return kill.set_details(KillDetails::default());
    }
    let (command, exe) = found.unwrap_or_else(|| (kill.recorded_command(), None));
    kill.set_details(KillDetails { cgroup, limit, command, exe });
}

/// A process by `/proc`: its command line, and its program's path.
type OfProcess = (Option<CommandLine>, Option<String>);

/// A thread that reads in `/proc`. It ends when it has nobody to answer.
#[derive(Debug)]
struct ProcessReader {
    kills: mpsc::SyncSender<Arc<Kill>>,
    found: mpsc::Receiver<OfProcess>,
}

/// The thread that reads in `/proc`, and how many others were given up and have not ended.
#[derive(Debug)]
struct ProcessReaders {
    read: fn(&Kill) -> OfProcess,
    patience: Duration,
    current: Option<ProcessReader>,
    /// Each thread has a reference.
    threads: Arc<()>,
}

impl ProcessReaders {
    fn new(read: fn(&Kill) -> OfProcess) -> Self {
        Self { read, patience: PATIENCE, current: None, threads: Arc::new(()) }
    }

    /// Begins to read what `/proc` has of a victim; false where no thread can.
    fn begin(&mut self, kill: &Arc<Kill>) -> bool {
        if self.current.is_none() && Arc::strong_count(&self.threads) <= READERS {
            let started = self.start().inspect_err(|error| log::warn!("a thread for /proc: {error}"));
            self.current = started.ok();
        }
        self.current.as_ref().is_some_and(|reader| reader.kills.try_send(Arc::clone(kill)).is_ok())
    }

    fn start(&self) -> io::Result<ProcessReader> {
        let (kills, next) = mpsc::sync_channel::<Arc<Kill>>(1);
        let (answer, found) = mpsc::sync_channel(1);
        let (read, held) = (self.read, Arc::clone(&self.threads));
        thread::Builder::new().name("kills-proc".into()).spawn(move || {
            let _held = held;
            while let Ok(kill) = next.recv() {
                if answer.send(read(&kill)).is_err() {
                    break;
                }
            }
        })?;
        Ok(ProcessReader { kills, found })
    }

    /// Waits for what was begun; `None` where that takes too long, and the thread is given up.
    fn end(&mut self) -> Option<OfProcess> {
        let found = self.current.as_ref()?.found.recv_timeout(self.patience).ok();
        if found.is_none() {
            log::warn!("a kill is told without what /proc has: reading that takes too long");
            self.current = None;
        }
        found
    }
}

/// The command line and the program's path. The process may be gone, and its number another's.
fn of_process(kill: &Kill) -> OfProcess {
    let recorded = kill.recorded_command();
    let number = i32::try_from(kill.victim.pid).ok().filter(|number| *number > 0);
    let Some(directory) = number.and_then(|number| procfs::task(number).ok()) else {
        return (recorded, None);
    };
    // What is read in this directory from here on is of this one process.
    let start = procfs::start_ticks(&directory);
    if kill.victim.start == 0 || start != Some(kill.victim.start / TICK) {
        return (recorded, None);
    }
    let is_whole = recorded.as_ref().is_some_and(|line| !line.is_cut);
    let command = if is_whole { recorded } else { command_of(&directory).or(recorded) };
    let exe = procfs::link(&directory, "exe").ok().filter(|path| path.len() <= LONGEST);
    (command, exe)
}

fn command_of(directory: &std::os::fd::OwnedFd) -> Option<CommandLine> {
    let bytes = procfs::read_at_most(directory, "cmdline", CommandLine::MOST + 1).ok()?;
    let part = bytes.get(..CommandLine::MOST).unwrap_or(&bytes);
    CommandLine::from_bytes(part, bytes.len() > CommandLine::MOST)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::{ProcessReaders, READERS};
    use crate::{
        kills::{lookup::of_process, tests::kill},
        procfs,
    };

    #[test]
    fn a_victim_that_holds_up_its_reader_holds_up_no_others_for_good() {
        // Process 1 is never read to its end.
        let mut readers = ProcessReaders::new(|kill| {
            if kill.victim.pid == 1 {
                loop {
                    std::thread::park();
                }
            }
            (None, Some(kill.victim.pid.to_string()))
        });
        let (short, long) = (Duration::from_millis(1), Duration::from_secs(600));
        let [stuck, other] = [1, 2].map(|pid| Arc::new(kill(pid, 7, b"")));
        readers.patience = short;
        for _ in 1..READERS {
            assert!(readers.begin(&stuck));
            assert_eq!(readers.end(), None, "it is given up");
        }
        readers.patience = long;
        assert!(readers.begin(&other));
        assert_eq!(readers.end(), Some((None, Some("2".to_owned()))));
        readers.patience = short;
        assert!(readers.begin(&stuck));
        assert_eq!(readers.end(), None);
        assert!(!readers.begin(&other), "there are so many threads at most");
    }

    #[test]
    fn a_process_is_known_by_its_start_and_no_other_is_taken_for_it() {
        let this = u64::from(std::process::id());
        let directory = procfs::task(i32::try_from(this).expect("a number")).expect("a directory");
        let start = procfs::start_ticks(&directory).expect("a start") * super::TICK + 5;
        let mut found = kill(this, 7, b"");
        found.victim.start = start;
        let (command, exe) = of_process(&found);
        let args: Vec<_> = std::env::args().collect();
        assert_eq!(command.map(|line| (line.args(), line.is_cut)), Some((args, false)));
        let own = std::env::current_exe().expect("a path");
        assert_eq!(exe.as_deref(), own.to_str());
        // The number is another process's by now.
        found.victim.start = start + super::TICK;
        assert_eq!(of_process(&found), (None, None));
        found.victim.start = 0;
        assert_eq!(of_process(&found), (None, None), "a process of unknown start was taken for it");
        let mut recorded = kill(this, 7, b"sh\0");
        recorded.victim.start = 1;
        assert_eq!(of_process(&recorded).0.map(|line| line.args()), Some(vec!["sh".into()]));
    }
}
