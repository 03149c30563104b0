//! Events other than crossings of memory, on cgroup v2. The kernel has no such
//! notifications there: its counters and files are the witnesses.

mod extensions;
mod logged;
pub(crate) mod oom;
mod pressure;
mod rebuilt;
mod swap;
mod victims;

use anyhow::{Result, ensure};
use monitor_common::grammar::control_file::ControlFile;

use crate::harness::MIB;
use crate::harness::agent::until;
use crate::harness::client::Waiter;
use crate::harness::group::Group;

/// A client that waits, and its signals so far.
struct CountingWaiter {
    name: String,
    waiter: Waiter,
    total: u64,
}

impl CountingWaiter {
    fn at(name: &str, group: &Group, file: ControlFile, args: &str) -> Result<Self> {
        Ok(Self { name: name.to_owned(), waiter: Waiter::at(group, file, args)?, total: 0 })
    }

    fn total(&mut self) -> Result<u64> {
        self.total += self.waiter.take()?;
        Ok(self.total)
    }

    /// Takes the signals since the last call.
    fn new_ones(&mut self) -> Result<u64> {
        let before = self.total;
        Ok(self.total()? - before)
    }

    /// Waits until `count` signals have come; more of them are an error.
    fn await_total(&mut self, count: u64) -> Result<()> {
        let name = self.name.clone();
        until(&format!("{name} has received {count}"), || {
            let total = self.total()?;
            ensure!(total <= count, "{name} has received {total} instead of {count}");
            Ok(total == count)
        })
    }
}

/// Waits until those of `names` have `count` signals in all; the others have none.
fn expect(all: &mut [CountingWaiter], names: &[&str], count: u64) -> Result<()> {
    for waiter in all.iter_mut().filter(|waiter| names.contains(&waiter.name.as_str())) {
        waiter.await_total(count)?;
    }
    for waiter in all.iter_mut().filter(|waiter| !names.contains(&waiter.name.as_str())) {
        waiter.await_total(0)?;
    }
    Ok(())
}
