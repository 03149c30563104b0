//! Lists a group's tasks for readers in other pid namespaces.
//!
//! Only a thread with `CAP_SYS_PTRACE` and without Landlock may see which pid namespace a task
//! is in; the threads that answer the kernel have neither. So these reads are handed to a thread
//! of its own, which takes one read of each user in turn: a user with many, or with large
//! groups, delays each other user by one list.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use fuser::ReplyData;
use nix::errno::Errno;

use crate::{
    sandbox,
    view::{
        share::{QueuePlace, Shares},
        texts::{ReadRequest, Texts},
    },
};

/// Reads that wait, of all users together; each is a reader's blocked thread.
const WAITING: usize = 256;

/// One read, which is answered at the latest when it is dropped.
#[derive(Debug)]
struct TaskRead {
    read: ReadRequest,
    /// Thread id of the reader.
    reader: i32,
    reply: ReplyData,
    _place: QueuePlace,
}

/// Reads by user. Each user in `turns` has one that waits.
#[derive(Debug)]
struct Waiting<Read> {
    by_user: HashMap<u32, VecDeque<Read>>,
    turns: VecDeque<u32>,
}

impl<Read> Default for Waiting<Read> {
    fn default() -> Self {
        Self { by_user: HashMap::new(), turns: VecDeque::new() }
    }
}

impl<Read> Waiting<Read> {
    fn push(&mut self, user: u32, read: Read) {
        let reads = self.by_user.entry(user).or_default();
        if reads.is_empty() {
            self.turns.push_back(user);
        }
        reads.push_back(read);
    }

    fn pop(&mut self) -> Option<Read> {
        let user = self.turns.pop_front()?;
        let reads = self.by_user.get_mut(&user)?;
        let read = reads.pop_front();
        if reads.is_empty() {
            self.by_user.remove(&user);
        } else {
            self.turns.push_back(user);
        }
        read
    }
}

#[derive(Debug)]
struct Shared {
    texts: Arc<Texts>,
    shares: Shares,
    waiting: Mutex<Waiting<TaskRead>>,
    work: Condvar,
}

/// The queue of those reads.
#[derive(Clone, Debug)]
pub struct TaskLists(Arc<Shared>);

impl TaskLists {
    /// A queue that no thread serves yet.
    #[must_use]
    pub fn new(texts: Arc<Texts>) -> Self {
        let (waiting, work) = Default::default();
        Self(Arc::new(Shared { texts, shares: Shares::new(WAITING), waiting, work }))
    }

    /// Starts the thread that answers, which ends with the process.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(&self, mode: sandbox::Sandbox) -> io::Result<()> {
        let lists = self.clone();
        let (confined, is_confined) = std::sync::mpsc::sync_channel(0);
        let work = move || {
            sandbox::task_lists(mode);
            // The later filter for the whole process permits no thread to give up rights.
            drop(confined);
            lists.serve();
        };
        thread::Builder::new().name("task-lists".into()).spawn(work)?;
        // Returns when the thread has dropped its end.
        let _: Result<(), _> = is_confined.recv();
        Ok(())
    }

    /// Queues a read of `user`, whose thread `reader` waits for the reply.
    pub fn submit(&self, user: u32, reader: i32, read: ReadRequest, reply: ReplyData) {
        let Some(place) = self.0.shares.take(user) else {
            log::warn!("a list of tasks for uid {user} was refused: too many of that user's are waiting");
            return reply.error(fuser::Errno::ENOMEM);
        };
        let read = TaskRead { read, reader, reply, _place: place };
        if cfg!(fuzzing) {
            // Every answer is given before the next request is looked at.
            return self.answer(read);
        }
        self.waiting().push(user, read);
        self.0.work.notify_one();
    }

    /// Whether every read that was queued is answered.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.shares.is_idle()
    }

    fn serve(&self) {
        loop {
            let mut waiting = self.waiting();
            let read = loop {
                match waiting.pop() {
                    Some(read) => break read,
                    None => waiting = self.0.work.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(waiting);
            self.answer(read);
        }
    }

    fn answer(&self, asked: TaskRead) {
        let TaskRead { read, reader, reply, .. } = asked;
        match self.0.texts.begin_for(&read, reader) {
            Ok(text) => reply.data(&text),
            Err(errno) => {
                if errno != Errno::ENODEV {
                    log::debug!("tasks of group #{} for the reader {reader}: {errno}", read.group);
                }
                reply.error(fuser::Errno::from_i32(errno as i32));
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<TaskRead>> {
        // No change under the lock can be left half done.
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::Waiting;

    #[test]
    fn one_list_of_each_user_in_turn() {
        let mut waiting = Waiting::default();
        for (user, read) in [(1, 'a'), (1, 'b'), (1, 'c'), (2, 'd'), (3, 'e'), (2, 'f')] {
            waiting.push(user, read);
        }
        let order: String = std::iter::from_fn(|| waiting.pop()).collect();
        assert_eq!(order, "adebfc");
        assert!(waiting.by_user.is_empty() && waiting.turns.is_empty());
        waiting.push(1, 'g');
        assert_eq!(waiting.pop(), Some('g'));
    }
}
