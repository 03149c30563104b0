//! A comparison, row by row, of what the kernel did and what we did.

use std::borrow::BorrowMut;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use monitor_common::grammar::control_file::ControlFile;
use serde_json::Value;

use crate::harness::agent::until;
use crate::harness::client::{Waiter, register_line, write_event_control};
use crate::harness::group::Group;
use crate::harness::report;

/// The rows of one test; what differs fails it when it is closed.
#[derive(Debug, Default)]
pub(crate) struct Book(Vec<String>);

impl Book {
    /// One check. `better` says why ours may be another.
    pub(crate) fn row(&mut self, rule: &str, kernel: &str, ours: &str, better: Option<&str>) {
        let verdict = match better {
            _ if kernel == ours => "same".to_owned(),
            Some(why) => format!("better: {why}"),
            None => "differs".to_owned(),
        };
        if verdict == "differs" {
            self.0.push(format!("{rule}: the kernel {kernel}, ours {ours}"));
        }
        let columns = [("kernel", kernel), ("ours", ours), ("verdict", &verdict)];
        let (section, check) = rule.split_once(": ").unwrap_or(("other", rule));
        report::row(section, check, &columns.map(|(name, text)| (name, Value::from(text))));
    }

    /// Compares counts, which have to be equal.
    pub(crate) fn counts(&mut self, rule: &str, (kernel, ours): (u64, u64)) {
        self.row(rule, &kernel.to_string(), &ours.to_string(), None);
    }

    /// Compares counts that have to be equal, but are others in each run: written is only
    /// whether there were any.
    pub(crate) fn equal(&mut self, rule: &str, (kernel, ours): (u64, u64)) {
        let shown = |count: u64| if count == 0 { "none" } else { "some" };
        if kernel == ours {
            self.row(rule, shown(kernel), shown(ours), None);
        } else {
            self.counts(rule, (kernel, ours));
        }
    }

    /// Compares the side of a threshold that was signalled last, which began below; how often is
    /// by chance where the counter goes to and fro between the kernel's looks.
    pub(crate) fn side(&mut self, rule: &str, (kernel, ours): (u64, u64), registrations: u64) {
        let shown = |count: u64| match count {
            0 => "nothing".to_owned(),
            count if count % registrations != 0 => format!("{count} for {registrations}"),
            count => if count / registrations % 2 == 1 { "above" } else { "below" }.to_owned(),
        };
        self.row(rule, &shown(kernel), &shown(ours), None);
    }

    pub(crate) fn close(self) -> Result<()> {
        if !self.0.is_empty() {
            bail!("{}", self.0.join("; "));
        }
        Ok(())
    }
}

/// Equal registrations with the kernel and with us, and the signals so far.
#[derive(Debug)]
pub(crate) struct Both {
    pub(crate) kernel: Waiter,
    pub(crate) ours: Waiter,
    pub(crate) total: (u64, u64),
    /// The kernel's total less ours, where a comparison has accepted that they differ.
    pub(crate) accepted: i128,
}

impl Both {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { kernel: Waiter::new()?, ours: Waiter::new()?, total: (0, 0), accepted: 0 })
    }

    pub(crate) fn at(group: &Group, file: ControlFile, args: &str) -> Result<Self> {
        let both = Self::new()?;
        both.register(group, file, args)?;
        Ok(both)
    }

    /// Registers once more, by the same open file.
    pub(crate) fn register(&self, group: &Group, file: ControlFile, args: &str) -> Result<()> {
        let path = group.path.join(file.name());
        let control = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let line =
            |waiter: &Waiter| format!("{} {} {args}", waiter.0.as_raw_fd(), control.as_raw_fd()).into_bytes();
        write_event_control(&group.path, &line(&self.kernel))
            .with_context(|| format!("the kernel refused {args:?} on {}", path.display()))?;
        register_line(&line(&self.ours))
            .with_context(|| format!("the agent refused {args:?} on {}", path.display()))
    }

    /// The signals since the last look.
    pub(crate) fn take(&mut self) -> Result<(u64, u64)> {
        let new = (self.kernel.take()?, self.ours.take()?);
        self.total.0 += new.0;
        self.total.1 += new.1;
        Ok(new)
    }

    /// All signals so far.
    pub(crate) fn total(&mut self) -> Result<(u64, u64)> {
        self.take()?;
        Ok(self.total)
    }

    /// Takes the difference so far as one that stays.
    pub(crate) fn accept(&mut self) {
        self.accepted = self.difference();
    }

    fn difference(&self) -> i128 {
        i128::from(self.total.0) - i128::from(self.total.1)
    }

    /// Waits until each side has `count` in all, or more.
    pub(crate) fn reach(&mut self, what: &str, count: u64) -> Result<(u64, u64)> {
        until(what, || {
            let total = self.total()?;
            Ok(total.0 >= count && total.1 >= count)
        })
        .with_context(|| format!("the kernel signalled {}, we {}", self.total.0, self.total.1))?;
        self.total()
    }
}

/// How long two sides may take to agree: only those that differ take all of it,
/// and a schedule that is made smaller has to fail soon.
const PATIENCE: Duration = Duration::from_secs(8);

/// Waits until the two sides of all agree but for an accepted difference, and rest, or have
/// had their time.
pub(crate) fn agree(all: &mut [impl BorrowMut<Both>]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut before = Vec::new();
    loop {
        let totals = all.iter_mut().map(|both| both.borrow_mut().total()).collect::<Result<Vec<_>>>()?;
        let agree = |both: &Both| both.difference() == both.accepted;
        let rest = totals == before && all.iter().all(|both| agree(both.borrow()));
        if rest || Instant::now() >= deadline {
            return Ok(());
        }
        before = totals;
        std::thread::sleep(Duration::from_millis(5));
    }
}
