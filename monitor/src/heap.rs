//! What glibc's allocator is told, so that an agent is as big as what it holds.

/// One arena for all threads. Each of FUSE's threads would get its own, and with huge
/// pages that is 2 MiB each, for a few hundred bytes.
pub fn use_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: called before there is a second thread; takes two numbers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives free memory back to the kernel after much was let go of.
#[derive(Debug, Default)]
pub struct Trim {
    /// The most that was held since the last time.
    most: u64,
}

impl Trim {
    /// Fewer than this are not worth a system call.
    const MANY: u64 = 4096;

    /// To be told now and then how much is held.
    pub fn now_held(&mut self, count: u64) {
        self.most = self.most.max(count);
        if self.most >= Self::MANY && count <= self.most / 2 {
            self.most = count;
            #[cfg(target_env = "gnu")]
            // SAFETY: takes a number; the allocator locks itself.
            unsafe {
                libc::malloc_trim(0);
            }
        }
    }
}
