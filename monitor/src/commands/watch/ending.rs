//! The end of `watch` by a signal: the commands that it runs are ended before, since nobody else ends them.

use std::{
    future::poll_fn,
    os::fd::{AsFd, BorrowedFd},
    process,
    sync::atomic::{AtomicBool, Ordering},
    task::Poll,
    thread,
};

use anyhow::{Context as _, Result};
use monitor_sys::signals;
use nix::sys::{
    eventfd::{EfdFlags, EventFd},
    signal::{Signal, raise},
};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

/// Signals by which a person, a terminal or a service manager ends a program.
const ENDS: [Signal; 3] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];

/// Tells the threads of a watch that it is to end.
pub struct Ending {
    event: EventFd,
    is_begun: AtomicBool,
}

impl Ending {
    /// Makes one that has not begun.
    ///
    /// # Errors
    /// There is no descriptor for it.
    pub fn new() -> Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Self { event: event.context("eventfd2 failed")?, is_begun: AtomicBool::new(false) })
    }

    /// Begins the end; the descriptor is readable from now on.
    pub fn begin(&self) {
        self.is_begun.store(true, Ordering::SeqCst);
        // It has room for as many as there may be.
        let _ = self.event.write(1);
    }

    /// Whether the end has begun.
    pub fn is_begun(&self) -> bool {
        self.is_begun.load(Ordering::SeqCst)
    }
}

/// Gives the descriptor that is readable once the end has begun.
impl AsFd for Ending {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Has a thread of its own do `first` when one of the signals that end a program arrives, and end the process
/// by that signal then. Those that are ignored (`nohup`) stay so.
///
/// # Errors
/// The signals cannot be caught, or no thread can be started.
pub fn before_a_signal_ends(first: impl FnOnce() + Send + 'static) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build().context("cannot start tokio")?;
    let mut caught = Vec::new();
    let context = runtime.enter();
    for ends in ENDS {
        if !signals::is_ignored(ends).context("sigaction failed")? {
            let arrivals = signal(SignalKind::from_raw(ends as i32));
            caught.push((ends, arrivals.with_context(|| format!("cannot catch {ends}"))?));
        }
    }
    drop(context);
    let wait = move || {
        let arrived = runtime.block_on(poll_fn(|context| {
            let mut caught = caught.iter_mut();
            let arrived =
                caught.find_map(|(ends, arrivals)| arrivals.poll_recv(context).is_ready().then_some(*ends));
            arrived.map_or(Poll::Pending, Poll::Ready)
        }));
        first();
        end_by(arrived);
    };
    thread::Builder::new().name("signals".into()).spawn(wait).context("cannot start a thread")?;
    Ok(())
}

/// Ends the process as the signal does by itself.
fn end_by(ends: Signal) {
    let _ = signals::restore(ends);
    let _ = raise(ends);
    // The first process of a container has no default action.
    process::exit(128 + ends as i32);
}
