//! The request of an operator for a watch, checked.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use monitor_client::wire::WatchRequest;
use monitor_common::{
    grammar::{
        control_file::{ControlFile, Trigger},
        spec::Spec,
        watch::{self as grammar, WatchError},
    },
    protocol::query::Subscriptions,
};
use nix::errno::Errno;

use crate::{
    backend::Backend,
    frontend::{
        accounting::credentials_of,
        control_file::FrontendContext,
        peer::hand_over,
        refusal::{DescriptorRole, Refusal, RefusalReason},
        register::{BY_FILES, NO_COUNTER},
        seqpacket::Packet,
        watch::{
            choice::Choice,
            late::Since,
            member::{self, Members, Told, WatchQueue},
            noted::Noted,
            refusals::Refusals,
        },
    },
    kernel::page_size,
    registry::Account,
    source::{GroupId, Precision, Source as _},
    watcher::{self, ReceivedEventFd},
};

pub(super) type SharedPrograms = watcher::SharedWatcher<Box<dyn Backend>>;

/// One watch of an operator's.
#[derive(Debug)]
pub(in crate::frontend) struct Watch {
    pub(super) choice: Arc<Choice>,
    /// The specifications, as they were given and what they mean.
    pub(super) specs: Vec<(Rc<str>, Spec)>,
    pub(super) again: bool,
    pub(super) account: Account,
    pub(super) eventfd: ReceivedEventFd,
    pub(super) members: Members,
    pub(super) queue: WatchQueue,
    pub(super) noted: RefCell<Noted>,
    pub(super) refusals: RefCell<Refusals>,
    /// Whether the groups that there were have been found, and the client knows.
    pub(super) is_begun: Cell<bool>,
}

impl Watch {
    /// Checks a request, and makes the watch that the [`Hub`] then serves.
    ///
    /// # Errors
    /// `EINVAL` for what does not follow the grammar, `EOPNOTSUPP` for what this host does not report.
    pub(in crate::frontend) fn of(
        request: &WatchRequest,
        packet: Packet,
        watcher: &SharedPrograms,
        context: &FrontendContext,
    ) -> Result<(Self, Told), Refusal> {
        let Packet { descriptors, descriptors_cut, sender, account, .. } = packet;
        if descriptors_cut {
            return Err(Refusal::new(Errno::ENOMEM, RefusalReason::OutOfDescriptors));
        }
        let sender = sender.ok_or_else(|| Refusal::new(Errno::EINVAL, RefusalReason::SenderUnknown))?;
        let root = context.directories.path_of(context.directories.root_id()).unwrap_or_default();
        let counts = grammar::check_counts(request.patterns.len() + request.units.len(), request.specs.len());
        if let Some(error) = counts.into_iter().flatten().next() {
            return Err(wrong(&error));
        }
        let choice = Arc::new(Choice::of(request, &root)?);
        let specs = request.specs.iter().map(|text| Ok((Rc::from(text.as_str()), spec(text, watcher)?)));
        let specs = specs.collect::<Result<Vec<_>, Refusal>>()?;
        let count = descriptors.len();
        let [eventfd] = <[_; 1]>::try_from(descriptors)
            .map_err(|_| Refusal::new(Errno::EINVAL, RefusalReason::WatchDescriptors { count }))?;
        let eventfd = hand_over(eventfd, DescriptorRole::Event(0), context.identity())?;
        let is_privileged = credentials_of(&sender).is_ok_and(|credentials| credentials.is_privileged());
        let account =
            if is_privileged { Account::Privileged } else { context.accounting.of_packet(&sender, account) };
        let (queue, told) = member::queue();
        let (again, members) = (request.again, Members::default());
        let (noted, refusals, is_begun) = Default::default();
        Ok((Self { choice, specs, again, account, eventfd, members, queue, noted, refusals, is_begun }, told))
    }

    /// Counts a group that is not watched, unless it was counted before.
    pub(super) fn miss_group(&self, id: u64, group: Option<GroupId>, since: Since, why: &str) {
        if self.refusals.borrow_mut().add(id, group, since) {
            self.queue.miss(why.to_owned(), 1);
        }
    }

    /// Whether growth of usage is told with what this watch tells.
    pub(super) fn tells_growth(&self) -> bool {
        self.specs.iter().any(|(_, spec)| *spec != Spec::Removed)
    }

    /// Whether any threshold is among the specifications.
    pub(super) fn has_thresholds(&self) -> bool {
        self.specs.iter().any(|(_, spec)| is_threshold(spec))
    }

    /// Whether anything else is among them.
    pub(super) fn has_more_than_thresholds(&self) -> bool {
        self.specs.iter().any(|(_, spec)| !is_threshold(spec))
    }

    /// The events that are counted in new groups before anyone has registered there: those that leave no
    /// trace in the kernel.
    pub(super) fn kinds(&self) -> u64 {
        let kind = |spec: &Spec| match spec {
            Spec::Event { trigger: Trigger::Pressure(_), .. } => Subscriptions::PRESSURE,
            Spec::Event { trigger: Trigger::Empty, .. } => Subscriptions::EMPTY,
            Spec::Event { .. } | Spec::Removed => 0,
        };
        self.specs.iter().fold(0, |kinds, (_, spec)| kinds | kind(spec))
    }
}

const fn is_threshold(spec: &Spec) -> bool {
    matches!(spec, Spec::Event { trigger: Trigger::Threshold(_), .. })
}

/// The refusal of a request that does not follow the grammar.
fn wrong(error: &WatchError<'_>) -> Refusal {
    let (text, why) = (error.text().to_owned(), error.to_string());
    Refusal::new(Errno::EINVAL, RefusalReason::NotAWatch { text, why })
}

/// Parses a specification, and checks that it can be told.
fn spec(text: &str, watcher: &SharedPrograms) -> Result<Spec, Refusal> {
    let spec = grammar::spec(text, page_size()).map_err(|error| wrong(&error))?;
    let Spec::Event { on, trigger, is_exact } = spec else { return Ok(spec) };
    let refused =
        |why| Refusal::new(Errno::EOPNOTSUPP, RefusalReason::NotAWatch { text: text.to_owned(), why });
    let watcher = watcher.lock();
    let features = watcher.source().features();
    let is_offered = match trigger {
        Trigger::Threshold(_) => true,
        Trigger::Oom => features.oom,
        Trigger::Pressure(_) => features.pressure,
        Trigger::Empty => features.empty,
    };
    if !is_offered {
        return Err(refused(RefusalReason::NotReported(watcher.source().why_not(on)).to_string()));
    }
    if is_exact && (ControlFile::SAMPLED.contains(&on) || watcher.source().precision() == Precision::Sampled)
    {
        let why = if ControlFile::SAMPLED.contains(&on) { NO_COUNTER } else { BY_FILES };
        return Err(refused(RefusalReason::NotExact { on, why }.to_string()));
    }
    Ok(spec)
}
