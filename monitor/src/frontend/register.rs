//! One registration, through the checks of the kernel's
//! `memcg_write_event_control` (5.15 to 7.2): same order, same errno.

use monitor_common::grammar::{
    control_file::{self, ControlFile, Trigger},
    line,
};
use nix::errno::Errno;

use crate::{
    eventfd::EventFd,
    frontend::{
        accounting::Accounting,
        control_file::{FrontendContext, ResolvedControlFile, resolve},
        deferred_close::UntrustedFd,
        inode::Inode,
        peer::Credentials,
    },
    kernel::page_size,
    registry::Account,
    source::{Identify, Source},
    watcher::{self, EventSink, Payer, Receipt, ReceivedEventFd, Sampled, SharedWatcher},
};

/// Why a registration was refused: the kernel's errno, and what to tell a person.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// As the kernel's `write` would have set it.
    pub errno: Errno,
    /// One line.
    pub why: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(errno: Errno, why: impl Into<String>) -> Self {
        Self { errno, why: why.into() }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.errno, self.why)
    }
}

/// Tells the operator of a refusal: each door does, here.
pub fn told(refusal: &Refusal, uid: u32, pid: i32) {
    log::info!(
        memcg_errno = refusal.errno as i32, memcg_uid = uid, memcg_pid = pid;
        "refused uid {uid}, process {pid}: {refusal}"
    );
}

/// Which descriptor of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorRole {
    /// The first number.
    Event(u32),
    /// The second.
    Control(u32),
}

impl std::fmt::Display for DescriptorRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Event(number) => write!(f, "event_fd {number}"),
            Self::Control(number) => write!(f, "control_fd {number}"),
        }
    }
}

/// A client: its descriptors, which come from its process or its message, and as
/// whom it asks. Each question is asked when the kernel would.
pub trait Requester {
    /// The client's eventfd.
    ///
    /// # Errors
    /// `EBADF` when it is not open, `EINVAL` when it is no eventfd.
    fn event(&self, number: u32, identity: &dyn Identify) -> Result<ReceivedEventFd, Refusal>;

    /// What the client's control descriptor leads to, where that is told at a glance;
    /// [`Requester::control`] tells the rest, and why not.
    fn peek(&self, number: u32) -> Option<Inode>;

    /// Something that leads to the client's control file, were it only by path.
    ///
    /// # Errors
    /// `EBADF` when it is not open, or an `O_PATH` descriptor of the client's.
    fn control(&self, number: u32) -> Result<UntrustedFd, Refusal>;

    /// As whom it asks now. Costs something; most control files are everybody's.
    ///
    /// # Errors
    /// `ESRCH` when the client has died since.
    fn credentials(&self) -> Result<Credentials, Refusal>;

    /// Whose quota the registration counts against, unless it is privileged
    /// ([`Credentials::is_privileged`]).
    fn account(&self, accounting: &Accounting) -> Account;
}

/// What a client sent, and the client.
#[derive(Debug)]
pub struct Client<'a, A> {
    /// The line, as a v1 client writes it.
    pub line: &'a [u8],
    /// Who sent it.
    pub requester: &'a A,
    /// Told the cause of each signal.
    pub follower: Option<EventSink>,
    /// `st_ino` of the group whose `cgroup.event_control` was written to, where
    /// that was done: the control file has to be the same group's.
    pub own: Option<u64>,
}

/// Registers one line for a client.
///
/// # Errors
/// The kernel's errno for each failure, and one line that says what was wrong.
pub async fn register<S: Source>(
    watcher: &SharedWatcher<S>,
    places: &FrontendContext,
    client: Client<'_, impl Requester>,
) -> Result<Receipt, Refusal> {
    let Client { line, requester, follower, own } = client;
    let line =
        line::parse(line).map_err(|error| Refusal::new(Errno::from_raw(error.errno()), error.to_string()))?;
    let eventfd = requester.event(line.event_fd, places.identity())?;
    let which = DescriptorRole::Control(line.control_fd);
    let (control, args) = resolve(places, line.control_fd, requester, line.args)?;
    if own.is_some_and(|own| own != control.cgroup_id) {
        return Err(Refusal::new(
            Errno::EINVAL,
            format!("{which} belongs to another group than this cgroup.event_control"),
        ));
    }
    let trigger = control_file::parse(control.file, args, page_size())
        .map_err(|error| Refusal::new(Errno::from_raw(error.errno()), error.to_string()))?;
    let sampled = sampled(watcher, places, &control, &trigger)?;
    let ResolvedControlFile { group, file: on, .. } = control;
    let account = payer(watcher, places, requester);
    let mut locked = watcher.settled(group).await;
    let request = watcher::RegistrationRequest { group, on, trigger, eventfd, follower, account, sampled };
    locked.register(request).map_err(|errno| refusal(errno, account, on, !locked.has_room(account)))
}

/// Who pays for one more registration of the client's. Whether it is privileged is asked
/// only where that may matter: it costs as much as all the other checks.
fn payer<S: Source>(
    watcher: &SharedWatcher<S>,
    places: &FrontendContext,
    requester: &impl Requester,
) -> Account {
    let account = requester.account(&places.accounting);
    let is_privileged = || requester.credentials().is_ok_and(|credentials| credentials.is_privileged());
    let is_near_bound = watcher.lock().is_near_bound(account);
    if is_near_bound && is_privileged() { Account::Privileged } else { account }
}

/// Takes a client's descriptor for what it is to be.
///
/// # Errors
/// The kernel's: `EBADF` for `O_PATH`, `EINVAL` for anything but an eventfd.
pub fn adopt(fd: UntrustedFd, which: DescriptorRole) -> Result<EventFd, Refusal> {
    let adopted = fd.descriptor().and_then(EventFd::check).and_then(|()| fd.into_inner()).map(EventFd::known);
    adopted.map_err(|errno| match errno {
        Errno::EBADF => Refusal::new(errno, format!("{which} is an O_PATH descriptor; open it for use")),
        _ => Refusal::new(errno, format!("{which} is not an eventfd")),
    })
}

/// Reads what only files tell of the quantity that is registered on, before the watcher is
/// locked.
fn sampled<S: Source>(
    watcher: &SharedWatcher<S>,
    places: &FrontendContext,
    control: &ResolvedControlFile,
    trigger: &Trigger,
) -> Result<Option<Sampled>, Refusal> {
    let ResolvedControlFile { group, cgroup_id, file: on } = *control;
    let is_root = group == places.identity().root();
    if !matches!(trigger, Trigger::Threshold(_)) || !(is_root || on == ControlFile::WorkingSet) {
        return Ok(None);
    }
    let host = watcher.lock().shared_host();
    match (Sampled { group, cgroup_id, on, is_root, payer: Payer::House, read: 0 }).read(host.as_ref()) {
        Ok(Some(sampled)) => Ok(Some(sampled)),
        Ok(None) => Err(Refusal::new(Errno::EINVAL, "the group is being removed")),
        Err(error) => {
            log::error!("registration failed: {error}");
            Err(Refusal::new(Errno::EIO, "the agent could not read the group's files; see its log"))
        }
    }
}

/// Why the watcher did not register what `account` asked for on a control file.
fn refusal(errno: Errno, account: Account, on: ControlFile, are_all_taken: bool) -> Refusal {
    match errno {
        Errno::EINVAL => Refusal::new(errno, "the group is being removed"),
        Errno::EDQUOT => Refusal::new(
            errno,
            format!("{account} has as many registrations as one may have; see the agent's --max-per-user"),
        ),
        Errno::ENOMEM if are_all_taken => Refusal::new(
            errno,
            format!(
                "there is no room for more registrations of {account}; see the agent's --max-registrations"
            ),
        ),
        Errno::ENOMEM => {
            Refusal::new(errno, "the agent's table of eventfds has no room; see its option --max-eventfds")
        }
        // v1 knew nothing of the kind: for the client it is memory that is short.
        Errno::ETOOMANYREFS => Refusal::new(
            Errno::ENOMEM,
            "too many descriptors are in flight for the agent to keep another eventfd; see its option --in-flight-uid and its LimitNOFILE",
        ),
        Errno::ENOBUFS => Refusal::new(
            Errno::ENOMEM,
            "the registration cannot be kept for the agent's successor; the agent's log says why",
        ),
        Errno::EOPNOTSUPP => Refusal::new(
            errno,
            format!("this kernel has no place to see that for {}; see `memcg-monitor check`", on.name()),
        ),
        _ => Refusal::new(errno, "the agent could not ask the kernel; see its log"),
    }
}
