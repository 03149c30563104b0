//! One registration, through the checks of the kernel's
//! `memcg_write_event_control` (5.15 to 7.2): same order, same errno.

use monitor_common::grammar::{
    control_file::{self, ControlFile, Trigger},
    line,
};
use nix::errno::Errno;

use crate::{
    frontend::{
        cache::ResolvedControlFile,
        control_file::{FrontendContext, resolve},
        refusal::{DescriptorRole, Refusal, RefusalReason, failed_by},
        requester::Requester,
    },
    kernel::page_size,
    registry::Account,
    source::{Precision, Source},
    watcher::{self, EventSink, Payer, Receipt, ReceivedEventFd, Sampled, SharedWatcher},
};

/// A client and its request.
#[derive(Debug)]
pub struct Client<'a, A> {
    /// The line, as a v1 client writes it.
    pub line: &'a [u8],
    /// The sender of the line.
    pub requester: &'a A,
    /// Receives the cause of each signal.
    pub follower: Option<EventSink>,
    /// `st_ino` of the group whose `cgroup.event_control` was written to, where
    /// that was done: the control file has to be the same group's.
    pub own: Option<u64>,
}

/// Registers one line for a client.
///
/// # Errors
/// The kernel's errno for each failure, and one line with the reason.
pub async fn register<S: Source>(
    watcher: &SharedWatcher<S>,
    context: &FrontendContext,
    client: Client<'_, impl Requester>,
) -> Result<Receipt, Refusal> {
    let Client { line, requester, follower, own } = client;
    let line =
        line::parse(line).map_err(|error| Refusal::new(Errno::from_raw(error.errno()), error.into()))?;
    let eventfd = requester.event(line.event_fd, context.identity())?;
    let role = DescriptorRole::Control(line.control_fd);
    let (control, args) = resolve(context, line.control_fd, requester, line.args)?;
    if own.is_some_and(|own| own != control.cgroup_id) {
        return Err(Refusal::new(Errno::EINVAL, RefusalReason::OtherGroup(role)));
    }
    let (args, wants_exact) = control_file::split_exact(args);
    let trigger = control_file::parse(control.file, args, page_size())
        .map_err(|error| Refusal::new(Errno::from_raw(error.errno()), error.into()))?;
    let account = || payer(watcher, context, requester);
    on_group(watcher, context, &control, (trigger, wants_exact), (eventfd, follower), account).await
}

/// Registers on a control file that is known; `account` pays for it.
///
/// # Errors
/// As [`register`], as far as they are left.
pub(super) async fn on_group<S: Source>(
    watcher: &SharedWatcher<S>,
    context: &FrontendContext,
    control: &ResolvedControlFile,
    (trigger, wants_exact): (Trigger, bool),
    (eventfd, follower): (ReceivedEventFd, Option<EventSink>),
    account: impl FnOnce() -> Account,
) -> Result<Receipt, Refusal> {
    let sampled = sampled(watcher, context, control, &trigger)?;
    if wants_exact {
        check_exact(watcher.lock().source().precision(), control.file, sampled.is_some())?;
    }
    let ResolvedControlFile { group, file: on, .. } = *control;
    let account = account();
    let mut locked = watcher.settled(group).await;
    let request = watcher::RegistrationRequest { group, on, trigger, eventfd, follower, account, sampled };
    locked.register(request).map_err(|errno| match errno {
        Errno::EOPNOTSUPP => Refusal::new(errno, RefusalReason::NotReported(locked.source().why_not(on))),
        _ => refusal(errno, account, !locked.has_room(account)),
    })
}

/// The reason for sampling with the backend that has no programs.
pub(super) const BY_FILES: &str = "the agent reads the groups' files (see memcg-monitor status)";
/// The reason for sampling with every backend.
pub(super) const NO_COUNTER: &str = "no counter of the kernel has this quantity";

/// Refuses what would only be sampled: `by_files`, the quantity is one that no counter has.
const fn check_exact(precision: Precision, on: ControlFile, by_files: bool) -> Result<(), Refusal> {
    let why = match precision {
        Precision::Sampled => BY_FILES,
        Precision::Exact if by_files => NO_COUNTER,
        Precision::Exact => return Ok(()),
    };
    Err(Refusal::new(Errno::EOPNOTSUPP, RefusalReason::NotExact { on, why }))
}

/// The account that pays for one more registration of the client's. Whether it is privileged is
/// looked up only where that may matter: it costs as much as all the other checks.
fn payer<S: Source>(
    watcher: &SharedWatcher<S>,
    context: &FrontendContext,
    requester: &impl Requester,
) -> Account {
    let account = requester.account(&context.accounting);
    let is_privileged = || requester.credentials().is_ok_and(|credentials| credentials.is_privileged());
    let is_near_bound = watcher.lock().is_near_bound(account);
    if is_near_bound && is_privileged() { Account::Privileged } else { account }
}

/// Samples the quantity that is registered on, where only files have it, before the watcher is
/// locked.
fn sampled<S: Source>(
    watcher: &SharedWatcher<S>,
    context: &FrontendContext,
    control: &ResolvedControlFile,
    trigger: &Trigger,
) -> Result<Option<Sampled>, Refusal> {
    let ResolvedControlFile { group, cgroup_id, file: on } = *control;
    let is_root = group == context.identity().root();
    if !matches!(trigger, Trigger::Threshold(_)) || !(is_root || ControlFile::SAMPLED.contains(&on)) {
        return Ok(None);
    }
    let host = watcher.lock().shared_host();
    match (Sampled { group, cgroup_id, on, is_root, payer: Payer::House, read: 0 }).read(host.as_ref()) {
        Ok(Some(sampled)) => Ok(Some(sampled)),
        Ok(None) => Err(Refusal::new(Errno::EINVAL, RefusalReason::GroupBeingRemoved)),
        Err(error) => Err(failed_by(&error, RefusalReason::GroupNotRead)),
    }
}

/// The refusal for an errno of the watcher, for a registration by `account`.
const fn refusal(errno: Errno, account: Account, are_all_taken: bool) -> Refusal {
    match errno {
        Errno::EINVAL => Refusal::new(errno, RefusalReason::GroupBeingRemoved),
        Errno::EDQUOT => Refusal::new(errno, RefusalReason::QuotaReached(account)),
        Errno::ENOMEM if are_all_taken => Refusal::new(errno, RefusalReason::RegistrationsFull(account)),
        Errno::ENOMEM => Refusal::new(errno, RefusalReason::EventFdsFull),
        // v1 had no such errno: to the client it is reported as a lack of memory.
        Errno::ETOOMANYREFS => Refusal::new(Errno::ENOMEM, RefusalReason::TooManyInFlight),
        Errno::ENOBUFS => Refusal::new(Errno::ENOMEM, RefusalReason::NotPersisted),
        _ => Refusal::new(errno, RefusalReason::QueryFailed),
    }
}

#[cfg(test)]
mod tests {
    use monitor_common::grammar::control_file::ControlFile;
    use nix::errno::Errno;

    use super::{check_exact, refusal};
    use crate::{frontend::refusal::RefusalReason, registry::Account, source::Precision};

    #[test]
    fn what_would_be_sampled_is_not_exact() {
        let check = |precision, by_files| {
            check_exact(precision, ControlFile::Usage, by_files).map_err(|refusal| refusal.errno)
        };
        assert_eq!(check(Precision::Exact, false), Ok(()));
        assert_eq!(check(Precision::Exact, true), Err(Errno::EOPNOTSUPP), "the root, a working set");
        assert_eq!(check(Precision::Sampled, false), Err(Errno::EOPNOTSUPP));
    }

    #[test]
    fn an_errno_of_the_watcher_is_a_reason_and_the_kernels_errno() {
        let account = Account::User(1000);
        let refused = |errno| refusal(errno, account, false);
        let quota = refused(Errno::EDQUOT);
        assert_eq!(quota.errno, Errno::EDQUOT);
        assert!(matches!(quota.reason, RefusalReason::QuotaReached(Account::User(1000))), "{quota}");
        let eventfds = refused(Errno::ENOMEM);
        assert!(matches!(eventfds.reason, RefusalReason::EventFdsFull), "{eventfds}");
        let registrations = refusal(Errno::ENOMEM, account, true);
        assert!(
            matches!(registrations.reason, RefusalReason::RegistrationsFull(Account::User(1000))),
            "{registrations}"
        );
        for (errno, reason) in [
            (Errno::ETOOMANYREFS, RefusalReason::TooManyInFlight),
            (Errno::ENOBUFS, RefusalReason::NotPersisted),
        ] {
            let refusal = refused(errno);
            assert_eq!(refusal.errno, Errno::ENOMEM, "v1 had no {errno}");
            assert_eq!(refusal.reason.to_string(), reason.to_string());
        }
        let other = refused(Errno::ENXIO);
        assert_eq!(other.errno, Errno::ENXIO);
        assert!(matches!(other.reason, RefusalReason::QueryFailed), "{other}");
    }
}
