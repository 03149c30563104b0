//! Gives up capabilities of the calling thread.

use std::collections::HashSet;

use caps::{CapSet, Capability, errors::CapsError};
use nix::sys::prctl;

use crate::{
    error::{Error, Result},
    sandbox::error::SandboxError,
};

fn failed(call: &'static str) -> impl FnOnce(CapsError) -> SandboxError {
    move |error| SandboxError::Capabilities { call, error }
}

/// Keeps these of the thread's capabilities, and no others in any set, nor those that it
/// could get by running a program.
///
/// # Errors
/// `prctl` or `capset` failed.
pub fn keep(kept: &[Capability]) -> Result<()> {
    prctl::set_no_new_privs().map_err(|errno| Error::syscall("prctl PR_SET_NO_NEW_PRIVS", errno))?;
    caps::clear(None, CapSet::Ambient).map_err(failed("prctl PR_CAP_AMBIENT"))?;
    for capability in caps::runtime::thread_all_supported() {
        // Without CAP_SETPCAP it stays, and no_new_privs makes it useless.
        if caps::drop(None, CapSet::Bounding, capability).is_err() {
            break;
        }
    }
    let has = caps::read(None, CapSet::Permitted).map_err(failed("capget"))?;
    let kept: HashSet<_> = kept.iter().copied().filter(|capability| has.contains(capability)).collect();
    // In this order each step is a subset of the sets before.
    for (set, capabilities) in
        [(CapSet::Inheritable, &HashSet::new()), (CapSet::Effective, &kept), (CapSet::Permitted, &kept)]
    {
        caps::set(None, set, capabilities).map_err(failed("capset"))?;
    }
    Ok(())
}

/// Whether `work` fails without these capabilities, and only then. Kernels differ in what
/// they require, so it is tried on the running one.
pub fn needed_for(capabilities: &[Capability], mut work: impl FnMut() -> bool) -> bool {
    let Ok(before) = caps::read(None, CapSet::Effective) else { return true };
    let without: HashSet<_> = before.iter().copied().filter(|one| !capabilities.contains(one)).collect();
    if caps::set(None, CapSet::Effective, &without).is_err() {
        return true;
    }
    let works = work();
    if let Err(error) = caps::set(None, CapSet::Effective, &before) {
        log::warn!("capset: {error}");
    }
    !works
}

#[cfg(test)]
mod tests {
    use super::{keep, needed_for};

    #[test]
    fn what_is_given_up_is_this_threads_alone() {
        let before = caps::read(None, caps::CapSet::Permitted).expect("capget");
        let after = std::thread::spawn(|| {
            keep(&[]).expect("everything can be given up");
            caps::read(None, caps::CapSet::Permitted).expect("capget")
        });
        assert!(after.join().expect("the thread").is_empty());
        assert_eq!(caps::read(None, caps::CapSet::Permitted).expect("capget"), before);
    }

    #[test]
    fn a_trial_leaves_everything_as_it_was() {
        let before = caps::read(None, caps::CapSet::Effective).expect("capget");
        assert!(!needed_for(&super::super::QUERY, || true));
        assert!(needed_for(&super::super::QUERY, || false));
        assert_eq!(caps::read(None, caps::CapSet::Effective).expect("capget"), before);
    }
}
