//! The watcher, shared by the thread that signals and the frontends.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use tokio::task::yield_now;

use crate::{
    source::{GroupId, Source},
    watcher::Watcher,
};

/// One watcher, which threads use in the order of their requests. So neither the frontends, which
/// lock again and again, nor the thread that signals can keep the other out for longer than one
/// use. A use is a bounded piece of work, and reads no file of a client's.
pub struct SharedWatcher<S>(Arc<Inner<S>>);

struct Inner<S> {
    watcher: Mutex<Watcher<S>>,
    line: Mutex<Line>,
    moved: Condvar,
}

/// Numbers of the line for the lock: the next to give out, and the one that is served.
#[derive(Debug, Default)]
struct Line {
    next: u64,
    served: u64,
}

impl<S> Clone for SharedWatcher<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> fmt::Debug for SharedWatcher<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl<S> SharedWatcher<S> {
    /// Wraps a watcher, to be shared by clones.
    #[must_use]
    pub fn new(watcher: Watcher<S>) -> Self {
        Self(Arc::new(Inner { watcher: Mutex::new(watcher), line: Mutex::default(), moved: Condvar::new() }))
    }

    /// Locks the watcher, after all that requested it before. Not to be held across an `await`,
    /// nor requested by a thread that has it.
    #[must_use]
    pub fn lock(&self) -> Guard<'_, S> {
        let inner = &*self.0;
        let mut line = inner.line();
        let mine = line.next;
        line.next += 1;
        while line.served != mine {
            line = inner.moved.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
        drop(line);
        // Free, or about to be: the guard before releases the watcher and then its turn.
        let watcher = inner.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        Guard { watcher, _turn: Turn(inner) }
    }
}

impl<S: Source> SharedWatcher<S> {
    /// Locks the watcher once the work begun on a group's slot has ended, or the group is going:
    /// a piece at a time, and between two of them the other clients of this thread have their
    /// turns.
    pub async fn settled(&self, group: GroupId) -> Guard<'_, S> {
        /// Pieces for as many registrations as there can be by default. If other work was begun
        /// each time, the request is served then: the watcher ends that work.
        const PIECES: u32 = 4096;
        for _ in 0..PIECES {
            {
                let mut watcher = self.lock();
                if !watcher.is_there(group) || !watcher.goes_on_with(group.slot) {
                    return watcher;
                }
            }
            yield_now().await;
        }
        self.lock()
    }
}

impl<S> Inner<S> {
    fn line(&self) -> MutexGuard<'_, Line> {
        // The line is consistent between any two steps.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The locked watcher, which is unlocked when this is dropped.
pub struct Guard<'a, S> {
    watcher: MutexGuard<'a, Watcher<S>>,
    _turn: Turn<'a, S>,
}

impl<S> fmt::Debug for Guard<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

impl<S> Deref for Guard<'_, S> {
    type Target = Watcher<S>;

    fn deref(&self) -> &Watcher<S> {
        &self.watcher
    }
}

impl<S> DerefMut for Guard<'_, S> {
    fn deref_mut(&mut self) -> &mut Watcher<S> {
        &mut self.watcher
    }
}

struct Turn<'a, S>(&'a Inner<S>);

impl<S> Drop for Turn<'_, S> {
    fn drop(&mut self) {
        let mut line = self.0.line();
        line.served += 1;
        if line.served != line.next {
            self.0.moved.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use super::SharedWatcher;
    use crate::watcher::tests::watcher;

    /// A thread that locks again and again does not keep another out, nor the other way round.
    #[test]
    fn the_first_request_is_served_first() {
        let shared = SharedWatcher::new(watcher());
        let (waits, had) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let guard = shared.lock();
            scope.spawn(|| {
                waits.store(true, SeqCst);
                let _guard = shared.lock();
                had.store(true, SeqCst);
            });
            // In the line, not only on the way there.
            while !waits.load(SeqCst) || shared.0.line().next < 2 {
                std::thread::yield_now();
            }
            drop(guard);
            drop(shared.lock());
            assert!(had.load(SeqCst), "the other's turn came before our second");
        });
    }
}
