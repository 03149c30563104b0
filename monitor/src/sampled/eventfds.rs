//! Which eventfds still have clients. Without programs nobody can count the references of a file;
//! instead all descriptors of all processes are looked through from time to time.
//!
//! An eventfd that two whole looks did not find in any process but the agent counts as closed.
//! One that is only in flight between two processes, or only an io_uring's, is not found.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use crate::{
    error::{Error, Result},
    eventfd::EVENTFD,
    source::FileId,
};

/// Shortest time between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// Parts of its time that the thread sleeps for one part that it looks.
const REST: u32 = 49;
/// Processes that are looked through at once, between two pauses.
const AT_ONCE: usize = 16;
/// Whole looks that have to miss an eventfd.
const LOOKS: u32 = 2;
/// An answer that stands for references beside the agent's.
const MANY: u64 = u64::MAX / 2;

/// Registered eventfds: for each, how many whole looks have missed it.
#[derive(Default)]
struct Known {
    missed: HashMap<FileId, u32>,
    /// Those that were noted during the present look: it may have passed them.
    fresh: HashSet<FileId>,
    /// Those of which the agent itself is a client.
    own: HashSet<FileId>,
}

/// The looks, and what they found. Clones share it; the thread ends with the last.
#[derive(Clone)]
pub(super) struct Census {
    known: Arc<Mutex<Known>>,
    _alive: Arc<mpsc::Sender<()>>,
}

/// The eventfd's number in the text of its fdinfo.
pub(super) fn id_in(fdinfo: &str) -> Option<FileId> {
    fdinfo.lines().find_map(|line| line.strip_prefix("eventfd-id:")?.trim().parse().ok()).map(FileId)
}

impl Census {
    /// Starts the thread that looks.
    pub(super) fn start() -> Result<Self> {
        let known = Arc::<Mutex<Known>>::default();
        let (alive, ended) = mpsc::channel::<()>();
        let shared = Arc::clone(&known);
        let work = move || {
            let mut pause = PAUSE;
            while ended.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout) {
                let mut busy = Duration::ZERO;
                if lock(&shared).begin_look() {
                    let Some((found, time)) = look(&ended) else { return };
                    lock(&shared).end_look(&found);
                    busy = time;
                }
                pause = PAUSE.max(busy * REST);
            }
        };
        thread::Builder::new()
            .name("census".into())
            .spawn(work)
            .map_err(|error| Error::start("the thread that looks for closed eventfds", error))?;
        Ok(Self { known, _alive: Arc::new(alive) })
    }

    /// Notes an eventfd that a client has shown.
    pub(super) fn note(&self, file: FileId) {
        let mut known = lock(&self.known);
        known.missed.insert(file, 0);
        known.fresh.insert(file);
    }

    /// Notes an eventfd of which the agent itself is a client, or that it is one no more.
    pub(super) fn set_own(&self, file: FileId, is_there: bool) {
        let mut known = lock(&self.known);
        if is_there {
            known.own.insert(file)
        } else {
            known.own.remove(&file)
        };
    }

    /// References to each of `files`: one, the agent's, where it was closed, else many.
    pub(super) fn references(&self, files: &[FileId]) -> Vec<u64> {
        let known = lock(&self.known);
        let is_closed = |file| known.missed.get(file).is_some_and(|missed| *missed >= LOOKS);
        files.iter().map(|file| if is_closed(file) { 1 } else { MANY }).collect()
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Known {
    /// Begins a look; false where nothing is registered.
    fn begin_look(&mut self) -> bool {
        self.fresh.clear();
        // Ended, or never registered: their numbers may be others' by now.
        self.missed.retain(|_, missed| *missed < LOOKS * 16);
        !self.missed.is_empty()
    }

    fn end_look(&mut self, found: &HashSet<FileId>) {
        for (file, missed) in &mut self.missed {
            if [found, &self.fresh, &self.own].into_iter().any(|files| files.contains(file)) {
                *missed = 0;
            } else {
                *missed += 1;
            }
        }
    }
}

/// Looks through all processes but this one, with pauses; `None` when it is to end.
fn look(ended: &mpsc::Receiver<()>) -> Option<(HashSet<FileId>, Duration)> {
    let own = std::process::id().to_string();
    let mut found = HashSet::new();
    let mut busy = Duration::ZERO;
    let processes: Vec<_> = fs::read_dir("/proc").into_iter().flatten().flatten().collect();
    for some in processes.chunks(AT_ONCE) {
        let start = Instant::now();
        for process in some {
            let name = process.file_name();
            let is_process = name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
            if is_process && name.to_str() != Some(&own) {
                look_at(&process.path(), &mut found);
            }
        }
        let time = start.elapsed();
        busy += time;
        if ended.recv_timeout(time * REST) != Err(mpsc::RecvTimeoutError::Timeout) {
            return None;
        }
    }
    Some((found, busy))
}

/// Adds the eventfds of one process. A process that ends meanwhile has none.
fn look_at(process: &Path, found: &mut HashSet<FileId>) {
    for descriptor in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
        if fs::read_link(descriptor.path()).is_ok_and(|link| link.as_os_str() == EVENTFD) {
            let fdinfo = process.join("fdinfo").join(descriptor.file_name());
            found.extend(fs::read_to_string(fdinfo).ok().as_deref().and_then(id_in));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{FileId, Known, LOOKS, id_in};

    #[test]
    fn an_eventfd_is_closed_once_two_whole_looks_missed_it() {
        let (seen, closed, late, own) = (FileId(1), FileId(2), FileId(3), FileId(4));
        let mut known = Known::default();
        known.missed.extend([(seen, 0), (closed, 0), (own, 0)]);
        known.own.insert(own);
        let found = HashSet::from([seen]);
        for look in 1..=LOOKS {
            assert!(known.begin_look());
            // Registered while the look is under way: it may have passed the client already.
            known.missed.insert(late, 0);
            known.fresh.insert(late);
            known.end_look(&found);
            assert_eq!((known.missed[&seen], known.missed[&closed], known.missed[&late]), (0, look, 0));
            assert_eq!(known.missed[&own], 0, "the agent is its client");
        }
    }

    #[test]
    fn the_kernels_number_is_found() {
        let text = "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1057\neventfd-count:                0\neventfd-id: 42\neventfd-semaphore: 0\n";
        assert_eq!(id_in(text), Some(FileId(42)));
        assert_eq!(id_in("pos:\t0\nflags:\t02\n"), None);
    }
}
