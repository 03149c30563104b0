//! The time that a test spends on starting agents and on waiting for states, counted over
//! all of its processes.

use std::cell::Cell;
use std::ops::Sub;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::shared::{Atomics, Shared};
use anyhow::Result;

/// Counters in a page that the runner shares with the tests' processes.
struct Counters {
    agent_nanos: AtomicU64,
    agent_starts: AtomicU64,
    wait_nanos: AtomicU64,
}

// SAFETY: atomics only, for which zeros are values.
unsafe impl Atomics for Counters {}

static SHARED: OnceLock<Shared<Counters>> = OnceLock::new();

thread_local! {
    /// A span that begins within another one counts for that one.
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// The counters at one moment, or the difference of two.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reading {
    pub(crate) agent: Duration,
    pub(crate) agent_starts: u64,
    pub(crate) wait: Duration,
}

impl Sub for Reading {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            agent: self.agent.saturating_sub(before.agent),
            agent_starts: self.agent_starts - before.agent_starts,
            wait: self.wait.saturating_sub(before.wait),
        }
    }
}

/// Makes the shared page. The runner calls this before it forks; a process without it
/// counts nothing.
pub(crate) fn share() -> Result<()> {
    let _ = SHARED.set(Shared::new()?);
    Ok(())
}

/// Reads the counters; zeros without [`share`].
pub(crate) fn read() -> Reading {
    let Some(shared) = SHARED.get() else { return Reading::default() };
    Reading {
        agent: Duration::from_nanos(shared.agent_nanos.load(Ordering::Relaxed)),
        agent_starts: shared.agent_starts.load(Ordering::Relaxed),
        wait: Duration::from_nanos(shared.wait_nanos.load(Ordering::Relaxed)),
    }
}

/// Counts one start of an agent, the first or a later one.
pub(crate) fn agent_starts() {
    if let Some(shared) = SHARED.get() {
        shared.agent_starts.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts the time until the value is dropped as an agent's start.
pub(crate) fn starting() -> Span {
    Span::begin(|shared| &shared.agent_nanos)
}

/// Counts the time until the value is dropped as waiting.
pub(crate) fn waiting() -> Span {
    Span::begin(|shared| &shared.wait_nanos)
}

/// A time that is being counted.
#[derive(Debug)]
#[must_use]
pub(crate) struct Span {
    start: Instant,
    counter: Option<&'static AtomicU64>,
}

impl Span {
    fn begin(counter: impl FnOnce(&'static Counters) -> &'static AtomicU64) -> Self {
        let outermost = !RUNNING.replace(true);
        let counter = SHARED.get().filter(|_| outermost).map(|shared| counter(shared));
        if outermost && counter.is_none() {
            RUNNING.set(false);
        }
        Self { start: Instant::now(), counter }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(counter) = self.counter {
            let nanos = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            counter.fetch_add(nanos, Ordering::Relaxed);
            RUNNING.set(false);
        }
    }
}
