//! Semantics that a client may rely on, to the signal, on both sides alike. The numbers
//! are those of the kernel.

use std::os::fd::AsRawFd as _;

use anyhow::{Context, Result, ensure};

use super::book::Book;
use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, page, write_event_control};
use crate::harness::group::Group;
use crate::harness::test::vm_test;

/// Equal registrations with the kernel and with us.
struct Both {
    kernel: Waiter,
    ours: Waiter,
}

impl Both {
    fn on(group: &Group, arguments: &[&str]) -> Result<Self> {
        let both = Self { kernel: Waiter::new()?, ours: Waiter::new()? };
        let control = std::fs::File::open(group.usage_file()).context("cannot open the control file")?;
        for args in arguments {
            let line = format!("{} {} {args}", both.kernel.0.as_raw_fd(), control.as_raw_fd());
            write_event_control(&group.path, line.as_bytes())
                .with_context(|| format!("the kernel refused {line:?}"))?;
            both.ours.register(group, args)?;
        }
        Ok(both)
    }

    /// The signals since the last look.
    fn expect(&self, count: u64, what: &str) -> Result<()> {
        let seen = (self.kernel.take()?, self.ours.take()?);
        Book::default().counts(&format!("usage: {what}"), seen);
        ensure!(
            seen == (count, count),
            "{what}: expected {count}, the kernel signalled {}, we {}",
            seen.0,
            seen.1
        );
        Ok(())
    }

    /// The signals until there are `count`; the kernel's come from a work queue.
    fn await_removal(&self, count: u64, what: &str) -> Result<()> {
        let mut seen = (0, 0);
        until(what, || {
            seen = (seen.0 + self.kernel.take()?, seen.1 + self.ours.take()?);
            Ok(seen.0 >= count && seen.1 >= count)
        })?;
        Book::default().counts(&format!("usage: {what}"), seen);
        ensure!(seen == (count, count), "{what}: expected {count}, seen (kernel, ours) {seen:?}");
        Ok(())
    }
}

/// Makes the kernel look, and waits until we have.
pub(crate) fn look(charger: &mut Charger, agent: &Agent) -> Result<()> {
    charger.spike(Kind::Anonymous, page(), 160)?;
    agent.settle()
}

vm_test!(
    conformance_registration_rules,
    "registration is silent, equality counts as reached, each registration adds one",
    V1,
    [Oracle, Standing]
);
fn conformance_registration_rules() -> Result<()> {
    let group = Group::new("rules")?;
    let agent = Agent::standing()?;
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    look(&mut charger, &agent)?;

    // The charger rests, so usage does.
    let usage = group.usage()?;
    let at = Both::on(&group, &[&usage.to_string()])?;
    let above = Both::on(&group, &[&(usage + page()).to_string()])?;
    let one = Both::on(&group, &["4M"])?;
    let twice = Both::on(&group, &["5M", "5M"])?;
    let several = Both::on(&group, &["3M", "4M", "6M"])?;
    let never = ["0", "-1", "", "K", "4095", "16E"].map(|args| (args, Both::on(&group, &[args])));
    let silent = |when: &str| {
        never.iter().try_for_each(|(args, both)| match both {
            Ok(both) => both.expect(0, &format!("{args:?}, {when}")),
            Err(error) => anyhow::bail!("{args:?}: {error:#}"),
        })
    };
    agent.settle()?;
    at.expect(0, "registered while usage was exactly at it")?;
    above.expect(0, "registered while usage was one page below it")?;
    one.expect(0, "registered while usage was above it")?;
    twice.expect(0, "registered twice while usage was above it")?;
    several.expect(0, "three thresholds of one eventfd, registered while usage was above them")?;
    silent("while above")?;
    let now = group.usage()?;
    ensure!(now == usage, "usage moved by itself, from {usage} to {now} bytes: nothing was shown");

    charger.shrink(Kind::Anonymous)?;
    look(&mut charger, &agent)?;
    at.expect(1, "usage was exactly at the threshold and fell")?;
    above.expect(0, "usage was one page below the threshold and fell")?;
    one.expect(1, "fell below")?;
    twice.expect(2, "fell below a threshold registered twice")?;
    several.expect(3, "fell below three thresholds of one eventfd")?;
    silent("fell")?;

    charger.grow(Kind::Anonymous, 8 * MIB)?;
    look(&mut charger, &agent)?;
    one.expect(1, "rose above")?;
    twice.expect(2, "rose above a threshold registered twice")?;
    several.expect(3, "rose above three thresholds of one eventfd")?;
    silent("rose")?;

    // Nothing is left of usage but what the next process brings.
    charger.end()?;
    let mut charger = Charger::start(&group)?;
    look(&mut charger, &agent)?;
    one.expect(1, "the process ended above it")?;
    several.expect(3, "the process ended above three thresholds of one eventfd")?;
    silent("the process ended")
}

vm_test!(
    conformance_removal,
    "a group that goes signals each of its registrations once, and no others",
    V1,
    [Oracle, Standing]
);
fn conformance_removal() -> Result<()> {
    let parent = Group::new("parent")?;
    let child = parent.child("child")?;
    let agent = Agent::standing()?;
    let of_parent = Both::on(&parent, &["512M"])?;
    let one = Both::on(&child, &["512M"])?;
    let several = Both::on(&child, &["1M", "1M", "-1", "0"])?;
    let mut charger = Charger::start(&child)?;
    charger.grow(Kind::File, 4 * MIB)?;
    look(&mut charger, &agent)?;
    several.expect(2, "rose above a threshold registered twice, with others that it cannot cross")?;
    charger.end()?;
    // Below the threshold again: how often the kernel looked is its own affair.
    agent.settle()?;
    several.ours.take()?;
    several.kernel.take()?;

    child.remove()?;
    one.await_removal(1, "one registration on a removed group")?;
    several.await_removal(4, "four registrations on a removed group")?;
    agent.settle()?;
    of_parent.expect(0, "the parent of a removed group")?;
    parent.remove()?;
    of_parent.await_removal(1, "the parent removed in turn")
}
