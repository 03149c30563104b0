//! Events other than crossings of memory, on cgroup v2. The kernel has no such
//! notifications there: its counters and files are the witnesses.

mod extensions;
pub(crate) mod oom;
mod pressure;
mod swap;

use anyhow::{Result, ensure};
use monitor_common::grammar::control_file::ControlFile;

use crate::harness::MIB;
use crate::harness::agent::until;
use crate::harness::client::Waiter;
use crate::harness::group::Group;

/// A client that waits, and its signals so far.
struct Heard {
    name: String,
    waiter: Waiter,
    total: u64,
}

impl Heard {
    fn at(name: &str, group: &Group, file: ControlFile, args: &str) -> Result<Self> {
        Ok(Self { name: name.to_owned(), waiter: Waiter::at(group, file, args)?, total: 0 })
    }

    fn total(&mut self) -> Result<u64> {
        self.total += self.waiter.take()?;
        Ok(self.total)
    }

    /// Signals since the last look.
    fn new_ones(&mut self) -> Result<u64> {
        let before = self.total;
        Ok(self.total()? - before)
    }

    /// Waits for the signals to come to `count`; never may there be more.
    fn await_total(&mut self, count: u64) -> Result<()> {
        let name = self.name.clone();
        until(&format!("{name} has received {count}"), || {
            let total = self.total()?;
            ensure!(total <= count, "{name} has received {total} instead of {count}");
            Ok(total == count)
        })
    }
}

/// Those of `names` receive `count` signals in all, the others none.
fn expect(all: &mut [Heard], names: &[&str], count: u64) -> Result<()> {
    for heard in all.iter_mut().filter(|heard| names.contains(&heard.name.as_str())) {
        heard.await_total(count)?;
    }
    for heard in all.iter_mut().filter(|heard| !names.contains(&heard.name.as_str())) {
        heard.await_total(0)?;
    }
    Ok(())
}
