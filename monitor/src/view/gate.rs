//! Stops the view's threads between two requests, so that an agent that hands its view over
//! leaves none that it has read and not answered.
//!
//! fuser's threads read the device by themselves, and cannot be interrupted there. But each
//! comes by here after it has answered, and before it reads the next request.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread,
};

/// The gate that each of the view's threads passes once for a request.
#[derive(Debug, Default)]
pub struct Gate {
    shut: AtomicBool,
    stopped: AtomicUsize,
}

/// A thread at its request, which passes the gate when this is dropped: after the answer.
#[derive(Debug)]
pub struct Passage<'gate>(&'gate Gate);

impl Gate {
    /// Enters with a request. Kept until the request is answered, or in a queue.
    #[must_use]
    pub const fn enter(&self) -> Passage<'_> {
        Passage(self)
    }

    /// Stops each thread at its next passage, for ever: the process is about to end.
    pub fn shut(&self) {
        self.shut.store(true, SeqCst);
    }

    /// The number of threads that are stopped.
    #[must_use]
    pub fn stopped(&self) -> usize {
        self.stopped.load(SeqCst)
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        if self.0.shut.load(SeqCst) {
            self.0.stopped.fetch_add(1, SeqCst);
            loop {
                thread::park();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::Gate;

    #[test]
    fn threads_stop_after_their_answer() {
        let gate = Arc::new(Gate::default());
        drop(gate.enter());
        gate.shut();
        let (answer, answered) = std::sync::mpsc::channel();
        let theirs = Arc::clone(&gate);
        thread::spawn(move || {
            let _passage = theirs.enter();
            answer.send(1).expect("a receiver");
        });
        assert_eq!(answered.recv(), Ok(1));
        while gate.stopped() == 0 {
            thread::yield_now();
        }
        assert!(answered.try_recv().is_err(), "it is still in its passage");
    }
}
