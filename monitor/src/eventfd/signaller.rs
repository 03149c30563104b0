//! The way by which each eventfd is signalled: asynchronous reads, or the lane.

use std::{
    collections::HashMap,
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

use monitor_sys::aio::Aio;
use nix::errno::Errno;
use tokio::sync::Notify;

use crate::{
    error::{Error, Result},
    eventfd::{
        EventFd,
        lane::{Done, Lane, busy},
    },
    registry::Account,
};

/// Time above which a signal is slow: usual is less than a microsecond.
const SLOW: Duration = Duration::from_millis(1);
/// Processor time of slow signals that proves a user slow, after one signal that was slow by
/// the clock. Less proves little: where a hypervisor has more guests than processors, a
/// thread that was kept waiting looks busy.
const PROOF: Duration = Duration::from_millis(20);
/// Time without a slow signal in which a suspicion, however strong, fades to nothing.
const FADES: Duration = Duration::from_secs(10);
/// Time after a slow signal during which all of its user's eventfds are signalled by the lane.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Outcome of a request to signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalOutcome {
    /// Number of signals given at once.
    Now(u64),
    /// All signals will be given later; [`Signaller::done`] reports them.
    Later,
}

/// Adds to eventfds without waiting for any client.
#[derive(Debug)]
pub struct Signaller {
    /// Asynchronous reads; `None` while the kernel grants none.
    aio: Option<Aio>,
    lane: Lane,
    /// Users whose signals take long, each with the time at which that is forgotten.
    slow: HashMap<Account, Instant>,
    suspects: SuspectAccounts,
}

/// Users whose signals only seem to take long: the thread may have waited for a processor.
#[derive(Debug, Default)]
struct SuspectAccounts(HashMap<Account, Suspicion>);

#[derive(Debug)]
struct Suspicion {
    /// Processor time of slow signals, less what has faded.
    took: Duration,
    /// Time of the last slow signal.
    at: Instant,
}

impl SuspectAccounts {
    fn has(&self, user: Account) -> bool {
        self.0.contains_key(&user)
    }

    /// Notes that a signal to `user` `took` so long: in processor time where the user was a
    /// suspect before, else by the clock, which proves nothing yet. Returns whether the user is
    /// proved slow. A fast signal changes nothing, for it may be to another eventfd.
    fn note(&mut self, user: Account, took: Duration, now: Instant) -> bool {
        if took <= SLOW {
            return false;
        }
        let Some(known) = self.0.get_mut(&user) else {
            self.0.insert(user, Suspicion { took: Duration::ZERO, at: now });
            return false;
        };
        let faded = now.saturating_duration_since(known.at).mul_f64(PROOF.div_duration_f64(FADES));
        known.took = known.took.saturating_sub(faded) + took;
        known.at = now;
        let is_enough = known.took >= PROOF;
        if is_enough {
            self.0.remove(&user);
        }
        is_enough
    }

    /// Forgets users without a slow signal for [`FADES`].
    fn fade(&mut self, now: Instant) {
        self.0.retain(|_, known| now.saturating_duration_since(known.at) < FADES);
    }
}

impl Signaller {
    /// Signals by asynchronous reads, or where there are none by the lane. `finished` is notified
    /// when the lane has done a job.
    #[must_use]
    pub fn new(finished: Arc<Notify>) -> Self {
        let aio = open_aio()
            .inspect_err(|error| {
                log::warn!("{error}; signalling by threads until the kernel grants asynchronous reads, a little later than usual");
            })
            .ok();
        Self { aio, lane: Lane::new(finished), slow: HashMap::new(), suspects: SuspectAccounts::default() }
    }

    /// Whether the lane signals every user, for want of asynchronous reads.
    #[must_use]
    pub const fn is_without_aio(&self) -> bool {
        self.aio.is_none()
    }

    /// The number of users that the lane signals because their signals take long.
    #[must_use]
    pub fn slow_users(&self) -> u64 {
        self.slow.len() as u64
    }

    /// Retries what the kernel refused before; to be called now and then.
    pub fn try_again(&mut self) {
        let now = Instant::now();
        self.slow.retain(|_, until| *until > now);
        self.suspects.fade(now);
        self.lane.try_again();
        if self.aio.is_none()
            && let Ok(aio) = open_aio()
        {
            log::info!("io_setup: the kernel grants asynchronous reads, which signal from now on");
            self.aio = Some(aio);
        }
    }

    /// Gives up asynchronous reads, as on a host that has none left.
    #[cfg(test)]
    pub(crate) fn without_aio(&mut self) {
        self.aio = None;
    }

    /// Adds up to `count` to a user's `eventfd`, as so many signals of the kernel would, in about
    /// `time`; or all of it later.
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
    ) -> Result<SignalOutcome, Errno> {
        let Some(aio) = self.aio.as_ref().filter(|_| !self.slow.contains_key(&user)) else {
            self.lane.add(user, serial, eventfd, count);
            return Ok(SignalOutcome::Later);
        };
        // Processor time is read only where it may matter.
        let is_suspect = self.suspects.has(user);
        let (start, before) = (Instant::now(), if is_suspect { busy() } else { Duration::ZERO });
        let given = aio.signal(eventfd, count, time)?;
        let took = if is_suspect { busy().saturating_sub(before) } else { start.elapsed() };
        let each = took / u32::try_from(given).unwrap_or(u32::MAX).max(1);
        if self.suspects.note(user, each, Instant::now()) {
            self.slow.insert(user, start + REMEMBERED);
            log::info!(
                "a signal to {user} took {} us: a separate thread gives those of {user} for now",
                each.as_micros()
            );
        }
        Ok(SignalOutcome::Now(given))
    }

    /// Closes a user's eventfd later: for the last reference the kernel may walk as much as for
    /// a signal.
    pub fn close(&self, user: Account, eventfd: EventFd) {
        self.lane.close(user, eventfd);
    }

    /// The numbers of eventfds yet to be closed: the user's, and all.
    #[must_use]
    pub fn closing(&self, user: Account) -> (u64, u64) {
        self.lane.closing(user)
    }

    /// The jobs that the lane has done since the last call.
    #[must_use]
    pub fn done(&self) -> Vec<Done> {
        self.lane.done()
    }
}

/// Makes the kernel's side of asynchronous reads, which read of `/dev/null`.
fn open_aio() -> Result<Aio> {
    let nothing = File::open("/dev/null").map_err(|error| Error::file("open", "/dev/null", error))?;
    Aio::new(nothing.into()).map_err(|errno| {
        let hint = "io_setup (AIO is how eventfds are signalled: is CONFIG_AIO on, and sysctl fs.aio-max-nr large enough?)";
        Error::syscall(hint, errno)
    })
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, Instant},
    };

    use nix::sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        eventfd::{EfdFlags, EventFd as Client},
    };
    use tokio::sync::Notify;

    use super::{Account, EventFd, FADES, PROOF, SLOW, Signaller, SuspectAccounts};

    const USER: Account = Account::User(1);
    const FAST: Duration = Duration::from_micros(1);

    /// The number of signals, with so much time between them, that proves the user slow.
    fn enough_after(signals: &[Duration], between: Duration) -> Option<usize> {
        let (mut suspects, mut now) = (SuspectAccounts::default(), Instant::now());
        signals.iter().position(|took| {
            now += between;
            suspects.fade(now);
            suspects.note(USER, *took, now)
        })
    }

    #[test]
    fn slow_signals_add_up_whatever_is_between_them() {
        let slow = SLOW * 5;
        assert_eq!(enough_after(&[slow; 9], FAST), Some(5), "few enough to have faded little");
        let mixed: Vec<_> = [slow, FAST, FAST].repeat(9);
        assert_eq!(enough_after(&mixed, FAST), Some(5 * 3));
        assert_eq!(enough_after(&mixed, FADES / 1000), Some(5 * 3));
        // The clock alone proves nothing; a very slow signal after it does.
        assert_eq!(enough_after(&[PROOF, FAST, PROOF], FAST), Some(2));
    }

    #[test]
    fn few_slow_signals_prove_nothing() {
        assert_eq!(
            enough_after(&[SLOW * 2; 1000], FADES / 9),
            None,
            "a guest that has to wait for a processor"
        );
        assert_eq!(enough_after(&[PROOF; 1000], FADES), None, "one by the clock, again and again");
        assert_eq!(enough_after(&[SLOW; 1000], FAST), None);
    }

    /// The kernel walks all sets for each signal.
    #[test]
    fn one_slow_eventfd_among_fast_ones_makes_its_user_slow() {
        const DUPLICATES: usize = 350;
        const SETS: usize = 350;
        let mut signaller = Signaller::new(Arc::new(Notify::new()));
        let client = || Client::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
        let ours = |client: &Client| EventFd::known(nix::unistd::dup(client).expect("dup"));
        let (slow, fast) = (client(), client());
        let duplicates: Vec<_> = (0..DUPLICATES).map(|_| nix::unistd::dup(&slow).expect("dup")).collect();
        let _sets: Vec<_> = (0..SETS)
            .map(|_| {
                let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll_create");
                for duplicate in &duplicates {
                    let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
                    set.add(duplicate, event).expect("epoll_ctl");
                }
                set
            })
            .collect();
        let (slow, fast) = (ours(&slow), ours(&fast));
        let is_known = (0..1000).any(|_| {
            for eventfd in [&slow, &fast, &fast] {
                signaller.signal(USER, 1, eventfd, 1, Duration::from_micros(100)).expect("AIO");
            }
            signaller.try_again();
            signaller.slow_users() > 0
        });
        assert!(is_known);
    }
}
