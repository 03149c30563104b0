//! Follows the kernel's log for kills, where no program sees them (the backend `sampled`), by a thread of
//! its own. Each kill is told once: a line that cannot be read, was left out or lost is made up for by
//! the groups' counts ([`counts`](super::counts)), with a victim that is not known.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{Seek as _, SeekFrom},
    os::{fd::AsFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use monitor_common::protocol::ring::{Doorbell, KillReason, Victim, VictimMemory};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
    unistd::read,
};

use crate::{
    backend::Backend,
    cgroup::{Hierarchy, Version, handle::Directories},
    error::{Error, Result},
    kernel::oom_log::{Logged, LoggedVictim, OomLog},
    kills::{Kill, LoggedGroups, counts::KillCounts, lookup::TICK},
    procfs,
    sandbox::{self, Sandbox},
    watcher::SharedWatcher,
};

const LOG: &str = "/dev/kmsg";
const WHO: &str = "the thread that reads the kernel's log";
/// The first pid namespace (`PROC_PID_INIT_INO`), whose numbers are in the log.
const FIRST_PIDS: &str = "pid:[4026531836]";

/// Room for a record: the kernel's longest has 8 KiB.
const RECORD: usize = 16 << 10;
/// Records that are read at once, before other work.
const RECORDS: usize = 4096;
/// Kills that wait for their group at most; the counts tell of others.
const HELD: usize = 256;
/// Longest time between two looks at the counts, where lines are read and where not.
const LOOK: Duration = Duration::from_secs(10);
const LOOK_WITHOUT: Duration = Duration::from_secs(1);
/// Time in which the line of a kill that was counted comes.
const LATE: Duration = Duration::from_secs(1);
/// Parts of its time that the thread rests for one part that it looks at counts.
const REST: u32 = 19;

/// The log, opened while the agent has the right to, or the reason why it is not read.
#[derive(Debug)]
pub struct KernelLog(std::result::Result<File, String>);

impl KernelLog {
    /// Opens the log at its end.
    #[must_use]
    pub fn open() -> Self {
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(LOG);
        let opened = opened.and_then(|mut file| file.seek(SeekFrom::End(0)).map(|_| file));
        Self(opened.map_err(|error| format!("{LOG}: {error} (it takes CAP_SYSLOG or kernel.dmesg_restrict=0, and in a container the device)")))
    }
}

/// The running thread. Drop ends it and waits for that.
#[derive(Debug)]
pub struct LogFollower {
    begin: Option<mpsc::Sender<()>>,
    stop: Arc<EventFd>,
    thread: Option<thread::JoinHandle<()>>,
}

impl LogFollower {
    /// Starts the thread, which restricts itself before it waits for [`begin`](Self::begin).
    ///
    /// # Errors
    /// There is no thread or descriptor left.
    pub fn start(
        log: KernelLog,
        watcher: &SharedWatcher<Box<dyn Backend>>,
        (hierarchy, directories): (&Hierarchy, &Arc<Directories>),
        mode: Sandbox,
    ) -> Result<Self> {
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::syscall("eventfd2", errno))?;
        let (stop, (begin, begins)) = (Arc::new(stop), mpsc::channel());
        let teller = Teller {
            watcher: watcher.clone(),
            directories: Arc::clone(directories),
            hierarchy: hierarchy.clone(),
            has_first_pids: std::fs::read_link("/proc/self/ns/pid")
                .is_ok_and(|pids| pids == Path::new(FIRST_PIDS)),
        };
        let stopped = Arc::clone(&stop);
        let begin_thread = move || {
            sandbox::reader(mode, &teller.hierarchy.root, WHO);
            move || {
                if begins.recv().is_ok() {
                    Follower::new(log, teller).run(&stopped);
                }
            }
        };
        let thread = sandbox::start_thread("kernel-log", WHO, begin_thread)?;
        Ok(Self { begin: Some(begin), stop, thread: Some(thread) })
    }

    /// Has the thread tell of kills from now on.
    pub fn begin(&self) {
        let _ = self.begin.as_ref().map(|begin| begin.send(()));
    }
}

impl Drop for LogFollower {
    fn drop(&mut self) {
        drop(self.begin.take());
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A group that a victim was in.
#[derive(Debug)]
struct Found {
    /// The id of its directory; 0: it is gone.
    id: u64,
    /// Path of the group below the root.
    path: Option<PathBuf>,
}

/// A kill whose group is not known yet.
#[derive(Debug)]
struct Held {
    victim: LoggedVictim,
    process: Process,
    looks: u32,
}

/// Facts that `/proc` has of a victim while it ends.
#[derive(Debug, Default)]
struct Process {
    start: u64,
    own_pid: u32,
    group: Option<PathBuf>,
}

struct Follower {
    file: Option<File>,
    lines: OomLog,
    teller: Teller,
    counts: KillCounts,
    held: Vec<Held>,
    /// Processes of the OOM under way, and the ids of their groups, where these are known.
    killed: HashMap<u64, u64>,
    next_look: Instant,
}

impl Follower {
    fn new(KernelLog(file): KernelLog, teller: Teller) -> Self {
        let counts = match teller.hierarchy.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let without = "kills are found by the groups' counts";
        let unknown = format!("{without} ({counts}), and their victims are not known");
        // Its paths are those of the host.
        let file = file.inspect_err(|why| log::warn!("{why}: {unknown}")).ok().filter(|_| {
            let is_host = teller.directories.host_root().is_some();
            if !is_host {
                log::warn!("the hierarchy's root is a group, and the kernel's log names others: {unknown}");
            }
            is_host
        });
        let counts = KillCounts::new(&teller.directories);
        Self {
            file,
            lines: OomLog::default(),
            teller,
            counts,
            held: Vec::new(),
            killed: HashMap::new(),
            next_look: Instant::now() + LOOK_WITHOUT,
        }
    }

    fn run(&mut self, stop: &EventFd) {
        while stop.read().is_err() {
            self.read_log();
            if self.next_look <= Instant::now() {
                self.look();
            }
            let time = self.next_look.saturating_duration_since(Instant::now());
            let milliseconds = u16::try_from(time.as_millis() + 1).unwrap_or(u16::MAX);
            let log = self.file.as_ref().map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN));
            let mut waits: Vec<_> =
                [PollFd::new(stop.as_fd(), PollFlags::POLLIN)].into_iter().chain(log).collect();
            // EINTR is as good as a time that is over.
            let _ = poll(&mut waits, PollTimeout::from(milliseconds));
        }
    }

    /// Reads the records that there are.
    fn read_log(&mut self) {
        let mut record = vec![0; RECORD];
        for _ in 0..RECORDS {
            let Some(file) = &self.file else { return };
            match read(file, &mut record) {
                Ok(length) => match self.lines.read(record.get(..length).unwrap_or_default()) {
                    Some(Logged::Process(victim)) => self.killed(victim),
                    Some(Logged::Group { group, reason, limit }) => {
                        self.teller.tell_group(&group, reason, limit);
                    }
                    None => {}
                },
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                // What was to be read next is overwritten.
                Err(Errno::EPIPE) => {
                    log::warn!(
                        "records of the kernel's log were lost: kills among them are told without their victims"
                    );
                    self.lines.forget();
                    self.look_soon();
                }
                Err(errno) => {
                    log::error!("{LOG}: {errno}: from now on the victims of kills are not known");
                    self.file = None;
                    self.look_soon();
                }
            }
        }
    }

    fn look_soon(&mut self) {
        self.next_look = self.next_look.min(Instant::now() + LATE);
    }

    fn killed(&mut self, victim: LoggedVictim) {
        if victim.whole.is_none() {
            self.killed.clear();
        } else if let Some(group) = self.killed.get(&victim.pid) {
            // Of a whole group the kernel kills, counts and logs the one that it chose once more, if that has
            // not ended by then (`oom_kill_memcg_member`).
            return self.counts.told(*group);
        }
        let process = self.teller.process(&victim);
        let group = victim.group.clone().or_else(|| process.group.clone());
        match group {
            Some(group) => {
                let found = self.teller.found(group);
                self.killed.insert(victim.pid, found.id);
                self.tell(&victim, &process, &found);
            }
            None if self.held.len() < HELD => {
                self.held.push(Held { victim, process, looks: 0 });
                self.look_soon();
            }
            None => self.look_soon(),
        }
    }

    fn tell(&mut self, victim: &LoggedVictim, process: &Process, found: &Found) {
        self.counts.told(found.id);
        self.teller.tell(victim, process, found);
    }

    /// Looks at the counts, for kills that were not told.
    fn look(&mut self) {
        let start = Instant::now();
        let is_read = self.file.is_some();
        let untold = self.counts.look(&self.teller.directories, is_read);
        // Where one group has as many kills as wait for a group, they are these.
        let mut waiting = self.counts.waiting();
        let only = waiting.next().filter(|(_, kills)| *kills == self.held.len() as u64 && untold.is_empty());
        let only = only.filter(|_| waiting.next().is_none());
        drop(waiting);
        if let Some((group, _)) = only {
            self.counts.settle(group);
            for Held { victim, process, .. } in std::mem::take(&mut self.held) {
                let found = self.teller.group(group);
                self.teller.tell(&victim, &process, &found);
            }
        }
        for one in &untold {
            self.teller.tell_untold(one.group, one.kills, one.whole, one.limit);
        }
        // As many of those that wait were told by their number now; the groups of others are gone.
        let told = untold.iter().map(|one| one.kills).sum::<u64>();
        let told = usize::try_from(told).unwrap_or(usize::MAX).min(self.held.len());
        self.held.drain(..told);
        self.held.iter_mut().for_each(|held| held.looks += 1);
        for Held { victim, process, .. } in self.held.extract_if(.., |held| held.looks > 1) {
            self.teller.tell(&victim, &process, &Found { id: 0, path: None });
        }
        let mut pause = if is_read { LOOK } else { LOOK_WITHOUT };
        if !self.held.is_empty() || self.counts.waiting().next().is_some() {
            pause = LATE;
        }
        self.next_look = Instant::now() + pause.max(start.elapsed() * REST);
    }
}

/// Finds groups and processes, and tells the watcher.
struct Teller {
    watcher: SharedWatcher<Box<dyn Backend>>,
    directories: Arc<Directories>,
    hierarchy: Hierarchy,
    /// Whether `/proc` has the numbers of the log.
    has_first_pids: bool,
}

impl Teller {
    /// The directory at a path below the root, as an id; 0 where there is none any more.
    fn id_of(&self, path: &Path) -> u64 {
        let below = path.strip_prefix("/").unwrap_or(path);
        let found = self.directories.below(below).and_then(|directory| directory.stat());
        found.map_or(0, |found| found.st_ino)
    }

    fn found(&self, path: PathBuf) -> Found {
        Found { id: self.id_of(&path), path: Some(path) }
    }

    /// The group whose directory has this id, and its path while it is there.
    fn group(&self, id: u64) -> Found {
        let path = self.directories.path_of(id);
        let below =
            path.and_then(|path| Some(Path::new("/").join(path.strip_prefix(&self.hierarchy.root).ok()?)));
        Found { id, path: below }
    }

    /// Facts of a process that is being killed, if it is still there: another one by its number would have
    /// its name by chance.
    fn process(&self, victim: &LoggedVictim) -> Process {
        let number = i32::try_from(victim.pid).ok().filter(|_| self.has_first_pids);
        let found = number.and_then(|number| procfs::task(number).ok()).and_then(|directory| {
            let stat = procfs::read(&directory, "stat").ok()?;
            let (begin, end) =
                (stat.iter().position(|byte| *byte == b'(')?, stat.iter().rposition(|byte| *byte == b')')?);
            let name = victim.comm.split(|byte| *byte == 0).next()?;
            if stat.get(begin + 1..end)? != name {
                return None;
            }
            let start = procfs::start_ticks(&directory)?.saturating_mul(TICK);
            let status = procfs::status(&directory).unwrap_or_default();
            let own_pid = status
                .lines()
                .find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().last()?.parse().ok());
            let groups = procfs::read(&directory, "cgroup").unwrap_or_default();
            let group = self.hierarchy.version.group_of(&groups).map(Path::to_owned);
            Some(Process {
                start,
                own_pid: own_pid.unwrap_or(0),
                group: group.and_then(|group| self.with_memory(group)),
            })
        });
        found.unwrap_or_default()
    }

    /// The group that a process of a group is charged to: the nearest with the memory controller.
    fn with_memory(&self, mut group: PathBuf) -> Option<PathBuf> {
        // v1 shows the root for a process that ends.
        let is_known = |group: &Path| group != Path::new("/") || self.hierarchy.version == Version::V2;
        while group != Path::new("/") {
            let below = group.strip_prefix("/").unwrap_or(&group);
            let directory = self.directories.below(below).ok()?;
            if directory.file(self.hierarchy.version.usage_file()).is_ok() {
                break;
            }
            group.pop();
        }
        is_known(&group).then_some(group)
    }

    fn tell(&self, victim: &LoggedVictim, process: &Process, found: &Found) {
        let record = Victim {
            pid: victim.pid,
            comm: victim.comm,
            start: process.start,
            uid: victim.uid.unwrap_or(Victim::NO_USER),
            own_pid: process.own_pid,
            score_adj: victim.score_adj.unwrap_or(Victim::NO_SCORE),
            memory: victim.memory,
            ..nobody(found.id)
        };
        // The line of another OOM may have been left out since a group was killed as a whole.
        let is_of = |whole: &PathBuf| found.path.as_ref().is_some_and(|path| path.starts_with(whole));
        let logged_limit = victim.limit.as_deref().filter(|_| victim.whole.as_ref().is_none_or(is_of));
        let limit = logged_limit.map(|limit| self.id_of(limit)).filter(|limit| *limit != 0);
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let logged = LoggedGroups { cgroup: found.path.as_deref().map(text), limit: logged_limit.map(text) };
        self.watcher.lock().logged_kill(Kill::new(record, victim.reason, limit).with_groups(logged));
    }

    fn tell_group(&self, group: &Path, reason: KillReason, limit: Option<PathBuf>) {
        let id = self.id_of(group);
        let limit = limit.map(|limit| self.id_of(&limit)).filter(|limit| *limit != 0);
        if id != 0 {
            self.watcher.lock().logged_group_kill(reason, limit, id);
        }
    }

    /// Tells of kills that are known by their number alone.
    fn tell_untold(&self, group: u64, kills: u64, whole: u64, limit: Option<u64>) {
        let reason = if limit.is_some() { KillReason::Limit } else { KillReason::Unknown };
        for _ in 0..whole {
            self.watcher.lock().logged_group_kill(reason, limit, group);
        }
        for _ in 0..kills {
            self.watcher.lock().logged_kill(Kill::new(nobody(group), reason, limit));
        }
    }
}

/// A victim of which nothing is known but its group.
const fn nobody(group: u64) -> Victim {
    Victim {
        bell: Doorbell { kind: Doorbell::VICTIM, slot: KillReason::NO_SLOT, value: group },
        pid: 0,
        comm: [0; 16],
        start: 0,
        uid: Victim::NO_USER,
        own_pid: 0,
        score_adj: Victim::NO_SCORE,
        slot: KillReason::NO_SLOT,
        memory: VictimMemory::UNKNOWN,
        command_bytes: 0,
        command: [0; Victim::COMMAND],
    }
}
