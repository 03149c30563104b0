//! Restricts the files that the calling thread may open (Landlock).
//!
//! The frontends' thread is not under Landlock: a thread under it may not inspect processes
//! outside (`hook_ptrace_access_check`), and that thread has to inspect clients. There, the
//! filter of system calls allows files to be opened for reading only.

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus,
    path_beneath_rules,
};
use nix::errno::Errno;

use crate::{error::Result, sandbox::error::SandboxError};

/// The ABI that is requested; older kernels do what they can of it.
const WANTED: ABI = ABI::V5;

/// Allows this thread, and threads that it starts, to read below `directories`, and to open
/// nothing else, neither files nor ports. Returns how far the kernel enforces that.
///
/// # Errors
/// The kernel has Landlock, and refused the rules.
pub fn read_only<'a>(directories: impl IntoIterator<Item = &'a Path>) -> Result<&'static str> {
    restrict(directories, None)
}

/// Allows what [`read_only`] does, and to make, write and remove files below `writable`.
///
/// # Errors
/// The kernel has Landlock, and refused the rules.
pub fn restrict<'a>(
    directories: impl IntoIterator<Item = &'a Path>,
    writable: Option<&'a Path>,
) -> Result<&'static str> {
    let writes = AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(WANTED))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(WANTED)))
        .and_then(Ruleset::create)
        .map_err(SandboxError::Landlock)?
        .add_rules(path_beneath_rules(directories, AccessFs::from_read(WANTED)))
        .and_then(|rules| rules.add_rules(path_beneath_rules(writable, AccessFs::from_read(WANTED) | writes)))
        .map_err(SandboxError::Landlock)?
        .restrict_self()
        .map_err(SandboxError::Landlock)?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => "is on",
        RulesetStatus::PartiallyEnforced => "is on, as far as this kernel has it",
        _ => "is not in this kernel, or off (lsm=)",
    })
}

/// The Landlock ABI of this kernel, in words.
///
/// # Errors
/// The reason why there is no Landlock.
pub fn available() -> Result<String, &'static str> {
    match monitor_sys::landlock::version() {
        Ok(abi) => Ok(format!("ABI {abi}")),
        Err(Errno::EOPNOTSUPP) => Err("off; the kernel's lsm= does not name it"),
        Err(_) => Err("not in this kernel"),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn what_is_below_may_be_read_and_nothing_else() {
        let on = std::thread::spawn(|| {
            let on = super::read_only([Path::new("/proc")]).expect("no trouble");
            assert!(fs::read("/proc/meminfo").is_ok());
            (on == "is on, as far as this kernel has it" || on == "is on")
                .then(|| assert!(fs::read("/etc/passwd").is_err()));
        });
        on.join().expect("the thread");
        assert!(fs::read("/etc/passwd").is_ok(), "other threads are as before");
    }
}
