//! The end of a command's time (`--timeout`), for `poll` and as an exit code.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::poll::PollTimeout;

use crate::commands::TIMED_OUT;

/// The error of a command whose time is over while it has more to print.
#[derive(Debug, thiserror::Error)]
#[error("the time is over (--timeout)")]
pub struct TimeOver;

/// Time until the deadline; without one, there is no limit.
pub fn left(deadline: Option<Instant>) -> PollTimeout {
    let Some(at) = deadline else { return PollTimeout::NONE };
    let left = at.saturating_duration_since(Instant::now());
    // Rounded up, so as not to wake just before the deadline.
    PollTimeout::try_from((left + Duration::from_micros(999)).as_millis()).unwrap_or(PollTimeout::MAX)
}

/// Whether there is a deadline, and it has passed.
pub fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|at| Instant::now() >= at)
}

/// The outcome of a command, which ends with an exit code where its time is over.
pub fn outcome(of: Result<ExitCode>) -> Result<ExitCode> {
    match of {
        Err(error) if error.is::<TimeOver>() => Ok(ExitCode::from(TIMED_OUT)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::ExitCode,
        time::{Duration, Instant},
    };

    use nix::poll::PollTimeout;

    use super::{TimeOver, is_over, left, outcome};
    use crate::commands::TIMED_OUT;

    #[test]
    fn a_deadline_is_not_waited_for_in_vain() {
        assert_eq!((left(None), is_over(None)), (PollTimeout::NONE, false));
        let now = Instant::now();
        assert_eq!((left(Some(now)), is_over(Some(now))), (PollTimeout::ZERO, true));
        let later = Some(now + Duration::from_secs(600));
        assert!(left(later) > PollTimeout::ZERO && !is_over(later));
        let never = Some(now + Duration::from_secs(86_400 * 365));
        assert_eq!(left(never), PollTimeout::MAX);
    }

    #[test]
    fn a_time_that_is_over_is_an_exit_code() {
        let code = outcome(Err(TimeOver.into())).expect("an exit code");
        assert_eq!(code, ExitCode::from(TIMED_OUT));
        assert!(outcome(Err(anyhow::anyhow!("another"))).is_err());
    }
}
