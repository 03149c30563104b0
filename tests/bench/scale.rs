//! `cargo xtask bench scale`: what registrations, thresholds and groups cost the
//! agent, one by one and by the hundred thousand, in instructions and bytes.

pub(super) mod cost;
mod frontend;
mod many;
mod one;

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::bench::Scope;
use crate::harness::init::Hierarchy;

pub(crate) fn run(scope: Scope, hierarchy: Hierarchy) -> Result<()> {
    frontend::allow_descriptors(scope.of(200_000, 1000))?;
    let (_, agent) = many::start("no groups")?;
    one::run(scope, hierarchy, &agent)?;
    if hierarchy == Hierarchy::V2 {
        many::churn(scope, hierarchy.root(), &agent)?;
        agent.end(Signal::SIGTERM)?;
        many::run(scope, hierarchy.root())?;
    }
    Ok(())
}
