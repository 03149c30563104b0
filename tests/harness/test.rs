//! The declaration of a test: one line above its function says what it shows and which
//! boots run it.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use linkme::distributed_slice;
use serde_json::{Value, json};

use crate::harness::init::Hierarchy;

/// A test of the running system.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Test {
    /// The function's name, which begins with the name of its module.
    pub(crate) name: &'static str,
    /// One sentence on the behaviour that it shows.
    pub(crate) what: &'static str,
    pub(crate) on: On,
    pub(crate) tags: &'static [Tag],
    pub(crate) file: &'static str,
    pub(crate) line: u32,
    pub(crate) run: fn() -> Result<()>,
}

/// Every test, in the linker's order.
#[distributed_slice]
pub(crate) static DECLARED: [Test];

/// Declares the function below it as a test:
/// `vm_test!(NAME, "the behaviour that it shows", ON, [TAG, ..]);`.
macro_rules! vm_test {
    ($name:ident, $what:literal, $on:ident, [$($tag:ident),*]) => {
        const _: () = {
            #[linkme::distributed_slice($crate::harness::test::DECLARED)]
            static TEST: $crate::harness::test::Test = $crate::harness::test::Test {
                name: stringify!($name),
                what: $what,
                on: $crate::harness::test::On::$on,
                tags: &[$($crate::harness::test::Tag::$tag),*],
                file: file!(),
                line: line!(),
                run: $name,
            };
        };
    };
}
pub(crate) use vm_test;

/// The machine that a test makes sense on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    /// Either of the cgroup hierarchies.
    Any,
    V1,
    V2,
    /// cgroup v2, on a kernel that is booted with `lockdown=confidentiality`.
    Locked,
    /// Debian, with systemd as the first process.
    Debian,
    /// Debian 12 with nothing but systemd, on its own kernel.
    Debian12,
    /// Debian 13 with nothing but systemd, on its own kernel.
    Debian13,
}

impl On {
    pub(crate) fn includes(self, hierarchy: Hierarchy, is_locked: bool) -> bool {
        match self {
            Self::Locked => is_locked,
            Self::Any => true,
            Self::V1 => hierarchy == Hierarchy::V1,
            Self::V2 => hierarchy == Hierarchy::V2,
            Self::Debian | Self::Debian12 | Self::Debian13 => false,
        }
    }

    /// Returns the Debian whose number is the argument of the boot; without one, the tests' own.
    pub(crate) fn debian(args: &[String]) -> Result<Self> {
        match args {
            [] => Ok(Self::Debian),
            [version] if version == "12" => Ok(Self::Debian12),
            [version] if version == "13" => Ok(Self::Debian13),
            _ => bail!("guest.args={args:?}: the number of a bare Debian, 12 or 13"),
        }
    }
}

/// A reason to run a test on one boot, or to leave it out on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    /// Runs beside the real cgroup v1 of the oldest kernel.
    Oracle,
    /// Depends on the kernel more than on us: runs also on the oldest.
    Kernel,
    /// Depends on when the kernel calls the programs: runs also on a kernel between these, where
    /// tasks are preempted anywhere.
    Preempt,
    /// Holds where the groups' files are sampled, too: runs with that backend, also on the host
    /// itself.
    Sampled,
    /// Runs also on kernels that are built otherwise: with PREEMPT_RT, and for arm64.
    Variant,
    /// Breaks first when a change is wrong: run alone for an answer within a minute.
    Quick,
    /// Takes up the agent that the test before has left (`Agent::standing`): before any other test
    /// it is ended.
    Standing,
}

impl Tag {
    const ALL: [Self; 7] = [
        Self::Oracle,
        Self::Kernel,
        Self::Preempt,
        Self::Sampled,
        Self::Variant,
        Self::Quick,
        Self::Standing,
    ];
}

impl Display for Tag {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Oracle => "oracle",
            Self::Kernel => "kernel",
            Self::Preempt => "preempt",
            Self::Sampled => "sampled",
            Self::Variant => "variant",
            Self::Quick => "quick",
            Self::Standing => "standing",
        })
    }
}

impl FromStr for Tag {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|tag| tag.to_string() == text).with_context(|| format!("no tag {text:?}"))
    }
}

impl Test {
    /// Returns the declaration as JSON, for programs to read.
    pub(crate) fn row(&self) -> Value {
        let tags: Vec<_> = self.tags.iter().map(Tag::to_string).collect();
        let on = format!("{:?}", self.on);
        json!({ "name": self.name, "what": self.what, "on": on, "tags": tags, "file": self.file })
    }
}
