//! Attacks, the worst that an ordinary user can do: each runs in processes of that user,
//! in a group that was delegated to it, from [`Attack::start`] until its value is
//! stopped. Benchmarks and the soak do their work beside it.
//!
//! Attackers put up with whatever becomes of the agent: what is refused is requested again,
//! and a client that has lost it connects anew.

mod estate;
mod frontends;
mod groups;
mod requester;
mod signals;

use anyhow::{Context, Result};

use self::estate::Estate;
use crate::harness::process::USER;

/// User id of the attacker.
const ATTACKER: u32 = USER;
/// Another user that it needs, whose registrations make it costly.
const OTHER: u32 = 1002;

/// The agent's options for the attack that needs a table of groups which is full.
const FEW_GROUPS: [&str; 2] = ["--max-groups", "64"];

/// An attack on the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attack {
    /// Two threads that compute: none, but what the processor's time costs by itself.
    Compute,
    /// Two threads `dup2` over a registered eventfd: each closes a duplicate.
    Dup2,
    /// `memory.max` of an own group is written in a loop; another user is registered on a
    /// percentage.
    Limits,
    /// Two threads read `memory.current` of groups for which the table has no room.
    Untracked,
    /// One level that is crossed all the time, with thresholds by the ten thousand.
    Thresholds,
    /// OOM listeners by the thousand with an eventfd each, whose process ends.
    Exit,
    /// An eventfd in an epoll set with a hundred thousand duplicates, whose threshold is
    /// crossed all the time.
    Epoll,
    /// Groups that are made, used, registered on and removed; each leaves a page behind.
    Churn,
    /// A group seventy levels deep that allocates, while another user is registered on many.
    Deep,
    /// Connections that send registrations and read no answer.
    Deaf,
    /// Writers at the view's `cgroup.event_control`, all at once.
    Writers,
    /// An OOM ten times a second, with listeners by the thousand.
    Ooms,
    /// Root reads the list in a loop, while a user has groups by the thousand.
    Lists,
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) thresholds: usize,
    pub(crate) listeners: usize,
    pub(crate) duplicates: usize,
    pub(crate) groups: usize,
    /// Groups that fill the table; 0: it is not to be filled.
    pub(crate) fill: usize,
    /// Removed groups that are kept from being freed.
    pub(crate) dying: usize,
    /// Groups that another user is registered on.
    pub(crate) watched: usize,
    pub(crate) connections: usize,
    pub(crate) writers: usize,
}

impl Size {
    /// The size of what a user can do within its quotas.
    pub(crate) const FULL: Self = Self {
        thresholds: 65_000,
        listeners: 4_000,
        duplicates: 100_000,
        groups: 2_000,
        fill: 100,
        dying: 1_000,
        watched: 1_000,
        connections: 256,
        writers: 1_000,
    };
    /// Enough to go through everything.
    pub(crate) const BRIEF: Self = Self {
        thresholds: 500,
        listeners: 100,
        duplicates: 2_000,
        groups: 100,
        fill: 100,
        dying: 20,
        watched: 30,
        connections: 64,
        writers: 50,
    };
    /// The size that leaves room in small tables for those who are not to notice.
    pub(crate) const SMALL: Self =
        Self { listeners: 300, groups: 150, fill: 0, dying: 30, watched: 40, ..Self::BRIEF };
}

impl Attack {
    pub(crate) const ALL: [Self; 13] = [
        Self::Compute,
        Self::Dup2,
        Self::Limits,
        Self::Thresholds,
        Self::Exit,
        Self::Epoll,
        Self::Churn,
        Self::Deep,
        Self::Deaf,
        Self::Writers,
        Self::Ooms,
        Self::Lists,
        Self::Untracked,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute (no attack)",
            Self::Dup2 => "dup2",
            Self::Limits => "memory.max",
            Self::Untracked => "memory.current",
            Self::Thresholds => "thresholds",
            Self::Exit => "exit",
            Self::Epoll => "epoll",
            Self::Churn => "groups",
            Self::Deep => "deep",
            Self::Deaf => "connections",
            Self::Writers => "writers",
            Self::Ooms => "OOMs",
            Self::Lists => "list",
        }
    }

    /// Options that the agent is started with, for the attack to be one.
    pub(crate) const fn options(self) -> &'static [&'static str] {
        match self {
            Self::Untracked => &FEW_GROUPS,
            _ => &[],
        }
    }

    /// Starts it; when this returns it is under way. The agent's socket is open to all.
    pub(crate) fn start(self, size: Size) -> Result<Running> {
        let mut estate = Estate::new()?;
        let begin = match self {
            Self::Compute => signals::compute,
            Self::Dup2 => signals::dup2,
            Self::Limits => groups::limits,
            Self::Untracked => groups::untracked,
            Self::Thresholds => signals::thresholds,
            Self::Exit => signals::exit,
            Self::Epoll => signals::epoll,
            Self::Churn => groups::churn,
            Self::Deep => groups::deep,
            Self::Deaf => frontends::deaf,
            Self::Writers => frontends::writers,
            Self::Ooms => signals::ooms,
            Self::Lists => frontends::lists,
        };
        begin(&mut estate, size).with_context(|| format!("the attack `{}`", self.name()))?;
        Ok(Running(estate))
    }
}

/// Registers so many OOM listeners with an eventfd each, on one group; they end with the value.
pub(crate) fn listeners(count: usize) -> Result<Running> {
    let mut estate = Estate::new()?;
    signals::listeners(&mut estate, count)?;
    Ok(Running(estate))
}

/// An attack that is under way; it ends with its value.
#[derive(Debug)]
pub(crate) struct Running(Estate);

impl Running {
    /// Ends its processes and removes its groups.
    pub(crate) fn stop(self) -> Result<()> {
        self.0.clear()
    }
}
