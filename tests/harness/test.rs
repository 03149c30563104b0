//! The declaration of a test: one line above its function says what it shows and which
//! boots run it.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use anyhow::{Context, Result};
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
    /// Debian, with systemd as the first process.
    Debian,
}

impl On {
    pub(crate) fn includes(self, hierarchy: Hierarchy) -> bool {
        match self {
            Self::Any => true,
            Self::V1 => hierarchy == Hierarchy::V1,
            Self::V2 => hierarchy == Hierarchy::V2,
            Self::Debian => false,
        }
    }
}

/// A reason to run a test on one boot, or to leave it out on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    /// Runs beside the real cgroup v1 of the oldest kernel.
    Oracle,
    /// Depends on the kernel more than on us: runs also on a kernel between the oldest
    /// and the newest.
    Kernel,
    /// Runs also where the kernel preempts tasks within our programs (`preempt=full`).
    Preempt,
    /// Does not depend on the kernel and takes long: runs on the newest kernel only.
    Newest,
    /// Breaks first when a change is wrong: run alone for an answer within a minute.
    Quick,
}

impl Tag {
    const ALL: [Self; 5] = [Self::Oracle, Self::Kernel, Self::Preempt, Self::Newest, Self::Quick];
}

impl Display for Tag {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Oracle => "oracle",
            Self::Kernel => "kernel",
            Self::Preempt => "preempt",
            Self::Newest => "newest",
            Self::Quick => "quick",
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
