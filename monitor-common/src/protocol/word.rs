//! One shared 64-bit word, so that the same protocol code runs on the kernel's
//! side (BPF atomics), in the agent (`AtomicU64` on the mapped table) and under
//! the model checker.

/// A 64-bit word that several CPUs read and write at once.
///
/// `xchg`, `or` and a `cas` that wrote are full barriers, as the kernel's value-returning
/// atomics and BPF's fetching atomics are (`Documentation/atomic_t.txt`). A `cas` that did
/// not write orders nothing, and neither do `get` and `set`. So what is to be read behind a
/// barrier is read by `or(0)`, which always writes.
pub trait Word {
    /// Reads the word; orders nothing.
    fn get(&self) -> u64;
    /// Writes the word; orders nothing.
    fn set(&self, value: u64);
    /// Writes the word, returns what it held; full barrier.
    fn xchg(&self, value: u64) -> u64;
    /// Writes `new` if the word holds `old`; returns what it held; full barrier if it wrote.
    fn cas(&self, old: u64, new: u64) -> u64;
    /// Sets `bits`, returns what it held; full barrier. A program has to use what it held:
    /// else the compiler emits an atomic that fetches nothing, which orders nothing.
    fn or(&self, bits: u64) -> u64;
    /// Adds `value`, wrapping; orders nothing.
    fn add(&self, value: u64);
}

#[cfg(all(not(loom), not(target_arch = "bpf")))]
mod native {
    use core::sync::atomic::{AtomicU64, Ordering, fence};

    use super::Word;

    /// Rust's sequentially consistent read-modify-writes order what comes before them by
    /// their store's release. But on ARMv8.0 (`ldaxr`, `stlxr`, no `dmb`) a plain load that
    /// comes after may pass that store: the agent's next is the kernel's, in a program.
    fn full(held: u64) -> u64 {
        fence(Ordering::SeqCst);
        held
    }

    impl Word for AtomicU64 {
        fn get(&self) -> u64 {
            Self::load(self, Ordering::Acquire)
        }

        fn set(&self, value: u64) {
            Self::store(self, value, Ordering::Release);
        }

        fn xchg(&self, value: u64) -> u64 {
            full(Self::swap(self, value, Ordering::SeqCst))
        }

        fn cas(&self, old: u64, new: u64) -> u64 {
            match self.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(held) => full(held),
                Err(held) => held,
            }
        }

        fn or(&self, bits: u64) -> u64 {
            full(self.fetch_or(bits, Ordering::SeqCst))
        }

        fn add(&self, value: u64) {
            self.fetch_add(value, Ordering::Relaxed);
        }
    }
}
