//! Settings of the kernel's and glibc's allocators, so that an agent is as big as what it holds.

pub use monitor_sys::memory::trim;
use monitor_sys::memory::use_one_arena;

/// Call it before a second thread exists.
pub fn be_small() {
    // A huge page for each corner of the heap that is touched: 2 MiB for a few hundred
    // bytes, and no gain in speed. Refused, it costs memory only.
    if let Err(errno) = nix::sys::prctl::set_thp_disable(true) {
        log::debug!("prctl PR_SET_THP_DISABLE: {errno}");
    }
    // Else each of FUSE's threads gets a heap of its own.
    if let Err(errno) = use_one_arena() {
        log::debug!("mallopt M_ARENA_MAX: {errno}");
    }
}

/// Gives memory back after much was let go of.
#[derive(Debug, Default)]
pub struct Trim {
    /// The most that was held since the last time.
    most: u64,
}

impl Trim {
    /// Fewer than this are not worth a system call.
    const MANY: u64 = 4096;

    /// Receives, now and then, how much is held.
    pub fn now_held(&mut self, count: u64) {
        self.most = self.most.max(count);
        if self.most >= Self::MANY && count <= self.most / 2 {
            self.most = count;
            trim();
        }
    }
}
