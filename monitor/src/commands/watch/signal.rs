//! `watch --signal`: signals processes of the group in which something happened.
//!
//! The group is its directory's number: one that was made anew under the same name is another. A process is
//! held by a descriptor before it is checked to be in the group, so that a number that has become another
//! process's meanwhile is not signalled.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, Result, bail, ensure};
use monitor_client::wire::EventRow;
use monitor_sys::pidfd;
use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::{
        signal::Signal,
        stat::{Mode, fstat},
    },
};

use crate::{cli::Recipients, commands::watch::directory};

/// Processes that are held at once; the tree is read again for each so many.
const BATCH: usize = 256;
const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);
const GONE: &str = "the group is gone, so nothing is signalled (one of its name is another group)";
const UNNAMED: &str = "the group's path is not known, so nothing is signalled (it has more than 1,024 bytes, or \
    the group is gone)";

/// Signals what `--to` names.
pub struct GroupSignal {
    signal: Signal,
    to: Target,
}

enum Target {
    Main,
    All,
    /// One process, whoever has its number later.
    Process {
        pid: i32,
        process: OwnedFd,
        /// Whether its end was said.
        said: AtomicBool,
    },
}

impl GroupSignal {
    /// Prepares the signal; one process is held from now on.
    ///
    /// # Errors
    /// There is no such process.
    pub fn new(signal: Signal, to: Recipients) -> Result<Self> {
        let to = match to {
            Recipients::Main => Target::Main,
            Recipients::All => Target::All,
            Recipients::Process(pid) => {
                let process = match pidfd::open(pid, 0) {
                    Err(Errno::ESRCH) => {
                        bail!("--to {pid}: there is no such process; name one that runs, or main or all")
                    }
                    opened => opened.with_context(|| format!("--to {pid}: pidfd_open"))?,
                };
                Target::Process { pid, process, said: AtomicBool::new(false) }
            }
        };
        Ok(Self { signal, to })
    }

    /// Signals the processes for an event.
    ///
    /// # Errors
    /// The group is gone, or something could not be read or signalled; the rest was signalled.
    pub fn send(&self, event: &EventRow) -> Result<()> {
        let mut trouble = Trouble::default();
        match &self.to {
            Target::Process { pid, process, said } => match pidfd::send_signal(process, self.signal) {
                Err(Errno::ESRCH) => ensure!(
                    said.swap(true, Ordering::Relaxed),
                    "process {pid} has ended, so nothing is signalled any more; start watch again with another --to"
                ),
                sent => sent.with_context(|| format!("pidfd_send_signal to process {pid}"))?,
            },
            Target::All => {
                let group = OpenGroup::of(event)?;
                let found = group.members(&mut trouble)?;
                let all: Vec<_> = found.own.into_iter().chain(found.below).collect();
                group.signal(self.signal, &all, &mut trouble)?;
            }
            Target::Main => {
                let group = OpenGroup::of(event)?;
                let oldest = group.members(&mut trouble)?.oldest(started);
                group.signal(self.signal, oldest.as_slice(), &mut trouble)?;
            }
        }
        trouble.told()
    }
}

/// Failures that were met while the rest was done.
#[derive(Debug, Default)]
struct Trouble {
    first: Option<String>,
    more: usize,
    /// Processes outside of this pid namespace, which have no number in it.
    unseen: usize,
}

impl Trouble {
    fn add(&mut self, text: String) {
        match self.first {
            None => self.first = Some(text),
            Some(_) => self.more += 1,
        }
    }

    /// Notes what could not be read below the group. A threaded group there lists nothing: its processes
    /// are among those of the group above.
    fn add_unless_gone(&mut self, path: &Path, errno: Errno) {
        if !matches!(errno, Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP) {
            self.add(format!("cannot read {}: {errno}", path.display()));
        }
    }

    fn told(self) -> Result<()> {
        let unseen = (self.unseen > 0).then(|| {
            format!("{} processes are outside of this pid namespace, and not signalled", self.unseen)
        });
        let more = (self.more > 0).then(|| format!("{} more failures", self.more));
        let all: Vec<_> = [self.first, more, unseen].into_iter().flatten().collect();
        ensure!(all.is_empty(), "{}", all.join("; "));
        Ok(())
    }
}

/// Processes of a group.
#[derive(Debug, Default, PartialEq, Eq)]
struct Members {
    /// Those in the group itself.
    own: Vec<i32>,
    /// Those in groups below.
    below: Vec<i32>,
}

impl Members {
    /// The group's own oldest process, or that of the groups below where it has none.
    fn oldest(&self, started: impl Fn(i32) -> Option<u64>) -> Option<i32> {
        let among = if self.own.is_empty() { &self.below } else { &self.own };
        among.iter().copied().min_by_key(|pid| (started(*pid).unwrap_or(u64::MAX), *pid))
    }
}

/// The directory of the group that an event is about.
struct OpenGroup(OwnedFd);

impl OpenGroup {
    fn of(event: &EventRow) -> Result<Self> {
        // As a path it would be one below the present directory.
        ensure!(event.cgroup != format!("#{}", event.id), UNNAMED);
        let path = directory::of_group(&event.cgroup, event.id);
        let directory = match open(&path, DIRECTORY, Mode::empty()) {
            Err(Errno::ENOENT) => bail!(GONE),
            opened => opened.context("open")?,
        };
        let found = fstat(&directory).context("fstat")?.st_ino;
        ensure!(found == event.id, GONE);
        Ok(Self(directory))
    }

    /// Signals those of the processes that are still in the group; one that has ended is no failure.
    fn signal(&self, signal: Signal, pids: &[i32], trouble: &mut Trouble) -> Result<()> {
        for batch in pids.chunks(BATCH) {
            let mut held = Vec::with_capacity(batch.len());
            for pid in batch {
                match pidfd::open(*pid, 0) {
                    Ok(process) => held.push((*pid, process)),
                    Err(Errno::ESRCH) => {}
                    Err(errno) => trouble.add(format!("pidfd_open of process {pid}: {errno}")),
                }
            }
            // What cannot be read was said at the first reading.
            let now = self.members(&mut Trouble::default())?;
            let now: HashSet<_> = now.own.into_iter().chain(now.below).collect();
            for (pid, process) in held.into_iter().filter(|(pid, _)| now.contains(pid)) {
                match pidfd::send_signal(&process, signal) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => {
                        trouble.add(format!("pidfd_send_signal {signal} to process {pid}: {errno}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// The processes of the group and of those below it.
    fn members(&self, trouble: &mut Trouble) -> Result<Members> {
        let own = match self.processes(Path::new("."), trouble) {
            Err(Errno::ENOENT | Errno::ENODEV) => bail!(GONE),
            Err(Errno::EOPNOTSUPP) => {
                bail!(
                    "the group is threaded: its processes are listed by a group above it, and not signalled"
                )
            }
            read => read.context("cannot read cgroup.procs")?,
        };
        let mut members = Members { own, below: Vec::new() };
        let mut left = vec![PathBuf::from(".")];
        while let Some(at) = left.pop() {
            match self.groups(&at) {
                Ok(groups) => {
                    for below in groups {
                        match self.processes(&below, trouble) {
                            Ok(pids) => members.below.extend(pids),
                            Err(errno) => trouble.add_unless_gone(&below.join("cgroup.procs"), errno),
                        }
                        left.push(below);
                    }
                }
                Err(errno) => trouble.add_unless_gone(&at, errno),
            }
        }
        Ok(members)
    }

    fn processes(&self, group: &Path, trouble: &mut Trouble) -> nix::Result<Vec<i32>> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = openat(&self.0, &group.join("cgroup.procs"), flags, Mode::empty())?;
        let mut text = String::new();
        File::from(file).read_to_string(&mut text).map_err(|error| errno_of(&error))?;
        let (seen, unseen): (Vec<i32>, Vec<i32>) =
            text.lines().filter_map(|line| line.parse().ok()).partition(|pid: &i32| *pid > 0);
        trouble.unseen += unseen.len();
        Ok(seen)
    }

    /// The groups directly in one, as paths below this directory.
    fn groups(&self, group: &Path) -> nix::Result<Vec<PathBuf>> {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
        let mut groups = Vec::new();
        for entry in Dir::openat(&self.0, group, DIRECTORY, Mode::empty())?.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if entry.file_type() == Some(Type::Directory) && !matches!(name, b"." | b"..") {
                groups.push(group.join(OsStr::from_bytes(name)));
            }
        }
        Ok(groups)
    }
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The time at which a process was started, in ticks since boot.
fn started(pid: i32) -> Option<u64> {
    let line = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name may have anything in it, and half of a character at its end, since it has 15 bytes at most.
    let name_end = line.windows(2).rposition(|two| two == b") ")?;
    // `starttime` is field 22 (`proc_pid_stat(5)`).
    str::from_utf8(&line[name_end + 2..]).ok()?.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::OsStr,
        fs,
        os::unix::{
            ffi::OsStrExt as _,
            fs::{MetadataExt as _, symlink},
            process::{CommandExt as _, ExitStatusExt as _},
        },
        path::Path,
        process::{Child, Command, Stdio},
    };

    use monitor_client::wire::EventRow;
    use nix::{sys::signal::Signal, unistd::getpid};

    use super::{GroupSignal, Members, OpenGroup, Trouble, started};
    use crate::cli::Recipients;

    fn event(group: &Path) -> EventRow {
        let id = fs::metadata(group).expect("a directory").ino();
        EventRow { id, cgroup: group.display().to_string(), ..EventRow::default() }
    }

    fn sleeper() -> (Child, i32) {
        let child = Command::new("sleep").arg("600").spawn().expect("sleep");
        let pid = child.id().try_into().expect("a number");
        (child, pid)
    }

    fn group(text: &str) -> tempfile::TempDir {
        let group = tempfile::tempdir().expect("a directory");
        fs::write(group.path().join("cgroup.procs"), text).expect("a file");
        group
    }

    #[test]
    fn processes_are_those_of_the_group_and_below() {
        let group = group("12\n0\n");
        fs::create_dir_all(group.path().join("below/deeper")).expect("a directory");
        fs::write(group.path().join("below/cgroup.procs"), "34\n").expect("a file");
        fs::write(group.path().join("below/deeper/cgroup.procs"), "56\n").expect("a file");
        let mut trouble = Trouble::default();
        let found = OpenGroup::of(&event(group.path())).expect("a group").members(&mut trouble);
        assert_eq!(found.expect("processes"), Members { own: vec![12], below: vec![34, 56] });
        let told = trouble.told().expect_err("one has no number").to_string();
        assert!(told.contains("1 processes are outside"), "{told}");
    }

    #[test]
    fn a_group_whose_name_is_no_text_is_found() {
        let above = tempfile::tempdir().expect("a directory");
        let path = above.path().join(OsStr::from_bytes(b"a\xff"));
        fs::create_dir(&path).expect("a directory");
        fs::write(path.join("cgroup.procs"), "12\n").expect("a file");
        let event = event(&path);
        assert!(!Path::new(&event.cgroup).exists(), "an event names it in text");
        let found = OpenGroup::of(&event).expect("a group").members(&mut Trouble::default());
        assert_eq!(found.expect("processes").own, [12]);
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let group = group("12\n");
        fs::create_dir_all(group.path().join("below/cgroup.procs")).expect("a directory");
        let mut trouble = Trouble::default();
        let found = OpenGroup::of(&event(group.path())).expect("a group").members(&mut trouble);
        assert_eq!(found.expect("processes").own, [12], "the others are found");
        let told = trouble.told().expect_err("a directory is no file").to_string();
        assert!(told.contains("below/cgroup.procs: EISDIR"), "{told}");
    }

    #[test]
    fn only_the_group_of_the_event_is_signalled_and_none_of_its_name() {
        let (mut child, pid) = sleeper();
        let group = group(&format!("{pid}\n"));
        let signal = |event, signal| GroupSignal::new(signal, Recipients::All).expect("all").send(event);
        let event = event(group.path());
        let another = EventRow { id: event.id + 1, ..event.clone() };
        let error = signal(&another, Signal::SIGKILL).expect_err("another group").to_string();
        assert!(error.contains("the group is gone"), "{error}");
        let absent = EventRow { cgroup: format!("{}/absent", event.cgroup), ..event.clone() };
        let error = signal(&absent, Signal::SIGKILL).expect_err("no group").to_string();
        assert!(error.contains("the group is gone"), "{error}");
        let unnamed = EventRow { cgroup: format!("#{}", event.id), ..event.clone() };
        let error = signal(&unnamed, Signal::SIGKILL).expect_err("no path").to_string();
        assert!(error.contains("path is not known"), "{error}");
        // The first to reach it shows in its status.
        signal(&event, Signal::SIGTERM).expect("a signal");
        assert_eq!(child.wait().expect("its end").signal(), Some(Signal::SIGTERM as i32));
    }

    #[test]
    fn a_named_process_is_held_and_nobody_with_its_number_is_signalled() {
        let (mut child, pid) = sleeper();
        let signal = GroupSignal::new(Signal::SIGTERM, Recipients::Process(pid)).expect("a process");
        signal.send(&EventRow::default()).expect("a signal");
        assert_eq!(child.wait().expect("its end").signal(), Some(Signal::SIGTERM as i32));
        let error = signal.send(&EventRow::default()).expect_err("it is gone").to_string();
        assert!(error.contains("has ended"), "{error}");
        assert!(signal.send(&EventRow::default()).is_ok(), "it is said once");
        let absent = GroupSignal::new(Signal::SIGTERM, Recipients::Process(i32::MAX)).map(drop);
        assert!(absent.expect_err("no such process").to_string().contains("no such process; name one"));
    }

    #[test]
    fn the_main_process_is_the_groups_own_oldest_or_of_those_below() {
        let age = |pid: i32| u64::try_from(100 - pid).ok();
        let oldest =
            |own: &[i32], below: &[i32]| Members { own: own.to_vec(), below: below.to_vec() }.oldest(age);
        assert_eq!(oldest(&[1, 2], &[3, 4]), Some(2), "those below are older");
        assert_eq!(oldest(&[], &[3, 4]), Some(4));
        assert_eq!(oldest(&[], &[]), None);
    }

    #[test]
    fn more_than_a_batch_is_signalled() {
        let (mut child, pid) = sleeper();
        // Numbers beyond `pid_max` are nobody's.
        let nobody: String = (0..600).map(|at| format!("{}\n", i32::MAX - at)).collect();
        let group = group(&format!("{nobody}{pid}\n"));
        let signal = GroupSignal::new(Signal::SIGTERM, Recipients::All).expect("all");
        signal.send(&event(group.path())).expect("a signal");
        assert_eq!(child.wait().expect("its end").signal(), Some(Signal::SIGTERM as i32));
    }

    #[test]
    fn a_process_was_started_after_the_first() {
        assert!(started(getpid().as_raw()) >= started(1));
    }

    #[test]
    fn a_process_was_started_whatever_its_name_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let program = directory.path().join(OsStr::from_bytes(b"caf\xc3) R 1"));
        symlink("/bin/sh", &program).expect("a link");
        let mut command = Command::new(&program);
        // It waits until its input ends.
        command.arg0("sh").args(["-c", "read line"]).stdin(Stdio::piped());
        let mut child = command.spawn().expect("a shell");
        let stat = fs::read(format!("/proc/{}/stat", child.id())).expect("a file");
        let found = started(child.id().try_into().expect("a number"));
        child.wait().expect("its end");
        assert!(stat.contains(&0xc3), "its name is that of the link");
        assert!(found >= started(getpid().as_raw()) && found.is_some(), "{found:?}");
    }
}
