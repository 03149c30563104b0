//! Memory that the trial charges, in each way that a process can bring about by itself, and the
//! comparison of what an agent has seen of it with the kernel's own file.

use std::{
    fs::File,
    io::{self, Write as _},
    num::NonZeroUsize,
    os::fd::OwnedFd,
};

use memcg_monitor::kernel::page_size;
use monitor_sys::memory::ChargedPages;
use nix::{
    fcntl::OFlag,
    sys::memfd::{MFdFlags, memfd_create},
    unistd::pipe2,
};

/// Pages by which two readings may differ: what the kernel charges ahead (`MEMCG_CHARGE_BATCH`).
const BATCH: u64 = 64;

/// The kernel's function by which all that follows is charged.
pub(super) const CHARGE: &str = "page_counter_try_charge";
/// The kernel's function by which it is given back.
pub(super) const UNCHARGE: &str = "page_counter_uncharge";
/// The kernel's function that no process brings about by itself: charges that must not fail, such as
/// those for a page that the kernel moves.
pub(super) const BY_FORCE: &str = "page_counter_charge";

/// Charges anonymous memory until the value is dropped.
pub(super) fn anonymous(bytes: u64) -> io::Result<ChargedPages> {
    let length = usize::try_from(bytes).ok().and_then(NonZeroUsize::new);
    Ok(ChargedPages::new(length.ok_or(io::ErrorKind::OutOfMemory)?)?)
}

/// Charges pages of a file in memory until it is dropped.
pub(super) fn page_cache(bytes: u64) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"memcg-monitor-check", MFdFlags::MFD_CLOEXEC)?);
    let page = vec![1; usize::try_from(page_size()).unwrap_or(4096)];
    for _ in 0..bytes / page_size() {
        file.write_all(&page)?;
    }
    Ok(file)
}

/// Charges kernel memory, by full pipes, until they are dropped. Where the kernel does not account
/// kernel memory it charges nothing.
pub(super) fn kernel(bytes: u64) -> io::Result<Vec<(OwnedFd, File)>> {
    let page = vec![1; usize::try_from(page_size()).unwrap_or(4096)];
    let (mut pipes, mut written) = (Vec::new(), 0);
    while written < bytes {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let mut write = File::from(write);
        while written < bytes {
            match write.write(&page) {
                Ok(length) => written += length as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        pipes.push((read, write));
    }
    Ok(pipes)
}

/// The disagreement after `what`, which changes usage by this function of the kernel's; `None` where
/// the agent has seen what the kernel has counted.
pub(super) fn disagreement(what: &str, function: &str, kernel: u64, agent: u64) -> Option<String> {
    (kernel.abs_diff(agent) > BATCH * page_size()).then(|| {
        format!(
            "after {what} the kernel's file says {kernel} bytes, and the agent {agent}: calls of {function} are not \
             seen (inlined, or renamed by the compiler)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{BATCH, CHARGE, disagreement, kernel, page_cache, page_size};

    #[test]
    fn a_function_that_is_not_seen_is_named() {
        let (usage, batch) = (512 * page_size(), BATCH * page_size());
        assert_eq!(disagreement("page cache", CHARGE, usage, usage - batch), None);
        let text = disagreement("page cache", CHARGE, usage + batch + 1, usage).expect("more than a batch");
        assert!(text.contains("after page cache") && text.contains(CHARGE), "{text}");
        assert!(disagreement("giving back", CHARGE, 0, usage).is_some());
    }

    #[test]
    fn what_is_to_be_charged_is_written() {
        let bytes = 64 * page_size();
        assert_eq!(page_cache(bytes).expect("memfd").metadata().expect("fstat").len(), bytes);
        assert!(!kernel(bytes).expect("pipes").is_empty());
    }
}
