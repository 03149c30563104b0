//! One shared 64-bit word, so that the same protocol code runs on the kernel's
//! side (BPF atomics), in the agent (`AtomicU64` on the mapped table) and under
//! the model checker.

/// A 64-bit word that several CPUs read and write at once.
///
/// `xchg`, `or` and a `cas` that wrote are full barriers (as the kernel's value-returning
/// atomics and BPF's fetching atomics are); `get` and `set` order nothing. A `cas` that did
/// not write is one on x86-64 only.
pub trait Word {
    /// Reads the word.
    fn get(&self) -> u64;
    /// Writes the word.
    fn set(&self, value: u64);
    /// Writes the word, returns what it held; full barrier.
    fn xchg(&self, value: u64) -> u64;
    /// Writes `new` if the word holds `old`; returns what it held; full barrier if it wrote.
    fn cas(&self, old: u64, new: u64) -> u64;
    /// Sets `bits`, returns what it held; full barrier.
    fn or(&self, bits: u64) -> u64;
    /// Adds `value`, wrapping; orders nothing.
    fn add(&self, value: u64);
}

#[cfg(all(not(loom), not(target_arch = "bpf")))]
mod native {
    use core::sync::atomic::{AtomicU64, Ordering};

    use super::Word;

    impl Word for AtomicU64 {
        fn get(&self) -> u64 {
            Self::load(self, Ordering::Acquire)
        }

        fn set(&self, value: u64) {
            Self::store(self, value, Ordering::Release);
        }

        fn xchg(&self, value: u64) -> u64 {
            Self::swap(self, value, Ordering::SeqCst)
        }

        fn cas(&self, old: u64, new: u64) -> u64 {
            match self.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(held) | Err(held) => held,
            }
        }

        fn or(&self, bits: u64) -> u64 {
            self.fetch_or(bits, Ordering::SeqCst)
        }

        fn add(&self, value: u64) {
            self.fetch_add(value, Ordering::Relaxed);
        }
    }
}
