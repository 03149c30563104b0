//! By which way an eventfd is signalled.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use tokio::sync::Notify;

use crate::{
    eventfd::{
        EventFd,
        aio::Aio,
        lane::{Done, Lane, busy},
    },
    registry::Account,
};

/// A signal that takes longer has a hostile client: usual is less than a microsecond.
const SLOW: Duration = Duration::from_millis(1);
/// A user has slow signals after so many in a row that took the processor's time, and one
/// before by the clock. Fewer prove little: where a hypervisor has more guests than
/// processors, a thread that was kept waiting looks busy.
const PROOFS: u32 = 3;
/// For how long all of a user's eventfds are signalled by the lane after a slow one.
const REMEMBERED: Duration = Duration::from_secs(60);

/// What became of signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// So many are given.
    Now(u64),
    /// All will be; [`Signaller::done`] says when.
    Later,
}

/// Adds to eventfds without waiting for anybody.
#[derive(Debug)]
pub struct Signaller {
    /// `None` where the kernel has none for us, for now.
    aio: Option<Aio>,
    lane: Lane,
    /// Users whose signals take long, and until when that is remembered.
    slow: HashMap<Account, Instant>,
    /// Those of whom it only seems so, and how often in a row it did: the thread may have
    /// waited for a processor.
    suspects: HashMap<Account, u32>,
}

impl Signaller {
    /// By asynchronous reads, or where there are none by the lane. `told` is notified when
    /// the lane has done something.
    #[must_use]
    pub fn new(told: Arc<Notify>) -> Self {
        let aio = Aio::new()
            .inspect_err(|error| {
                log::warn!("{error}; signalling by threads until it can be had, a little later than usual");
            })
            .ok();
        Self { aio, lane: Lane::new(told), slow: HashMap::new(), suspects: HashMap::new() }
    }

    /// Whether the lane signals everybody, for want of asynchronous reads.
    #[must_use]
    pub const fn is_without_aio(&self) -> bool {
        self.aio.is_none()
    }

    /// How many users are signalled by the lane, since their signals take long.
    #[must_use]
    pub fn slow_users(&self) -> u64 {
        self.slow.len() as u64
    }

    /// What should be tried now and then: what the kernel refused before.
    pub fn try_again(&mut self) {
        let now = Instant::now();
        self.slow.retain(|_, until| *until > now);
        self.suspects.clear();
        self.lane.try_again();
        if self.aio.is_none()
            && let Ok(aio) = Aio::new()
        {
            log::info!("io_setup: asynchronous reads can be had, and signal from now on");
            self.aio = Some(aio);
        }
    }

    /// Gives up asynchronous reads, as on a host that has none left.
    #[cfg(test)]
    pub(crate) fn without_aio(&mut self) {
        self.aio = None;
    }

    /// Adds up to `count` to a user's `eventfd`, as so many signals of the kernel would,
    /// in about `time`; or all of it, later.
    ///
    /// # Errors
    /// `io_submit` or `io_getevents` failed.
    pub fn signal(
        &mut self,
        user: Account,
        serial: u64,
        eventfd: &EventFd,
        count: u64,
        time: Duration,
    ) -> Result<Given, Errno> {
        let Some(aio) = self.aio.as_ref().filter(|_| !self.slow.contains_key(&user)) else {
            self.lane.add(user, serial, eventfd, count);
            return Ok(Given::Later);
        };
        // The processor's time is asked for only where it may matter.
        let slow_ones = self.suspects.remove(&user);
        let is_suspect = slow_ones.is_some();
        let (start, before) = (Instant::now(), if is_suspect { busy() } else { Duration::ZERO });
        let given = aio.signal(eventfd, count, time)?;
        let took = if is_suspect { busy().saturating_sub(before) } else { start.elapsed() };
        let each = took / u32::try_from(given).unwrap_or(u32::MAX).max(1);
        if each > SLOW && slow_ones.is_none_or(|slow| slow < PROOFS) {
            self.suspects.insert(user, slow_ones.map_or(1, |slow| slow + 1));
        } else if each > SLOW {
            self.slow.insert(user, start + REMEMBERED);
            log::info!(
                "a signal to {user} took {} us: those of {user} are given by a thread apart",
                each.as_micros()
            );
        }
        Ok(Given::Now(given))
    }

    /// Lets go of a user's eventfd some time: the last reference may have as much to walk as
    /// a signal.
    pub fn close(&self, user: Account, eventfd: EventFd) {
        self.lane.close(user, eventfd);
    }

    /// How many eventfds are yet to be closed: the user's, and all.
    #[must_use]
    pub fn closing(&self, user: Account) -> (u64, u64) {
        self.lane.closing(user)
    }

    /// What the lane has done since the last time.
    #[must_use]
    pub fn done(&self) -> Vec<Done> {
        self.lane.done()
    }
}
