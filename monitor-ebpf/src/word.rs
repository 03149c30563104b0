//! The shared words as BPF atomics (kernel 5.12 and newer, cpu v3).

use core::{
    cell::UnsafeCell,
    intrinsics::{AtomicOrdering, atomic_and, atomic_cxchg, atomic_or, atomic_xadd, atomic_xchg},
};

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use monitor_common::protocol::word::Word;

/// A word in a map that other CPUs and the agent write too.
#[repr(transparent)]
pub struct BpfWord(UnsafeCell<u64>);

impl BpfWord {
    /// A word of a global.
    pub const fn zero() -> Self {
        Self(UnsafeCell::new(0))
    }

    /// Counts one on; what it was before.
    #[inline(always)]
    pub fn take_number(&self) -> u64 {
        // SAFETY: as for `get`; BPF_ADD with BPF_FETCH.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(self.0.get(), 1) }
    }

    /// Clears `bits`; what it was before.
    #[inline(always)]
    pub fn clear(&self, bits: u64) -> u64 {
        // SAFETY: as for `get`; BPF_AND with BPF_FETCH.
        unsafe { atomic_and::<u64, u64, { AtomicOrdering::SeqCst }>(self.0.get(), !bits) }
    }
}

// SAFETY: every access is one whole-word load, store or atomic.
unsafe impl Sync for BpfWord {}

/// Words that carry nothing, on cache lines of their own; more CPUs share them.
static BARRIERS: [BpfWord; 64 * LINE] = [const { BpfWord::zero() }; 64 * LINE];

/// Words in a cache line.
const LINE: usize = 8;

/// A full barrier, in the only shape that these programs have one: an atomic that fetches.
#[inline(always)]
pub fn full_barrier() {
    // SAFETY: takes nothing, returns a number.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    BARRIERS[cpu as usize % 64 * LINE].xchg(0);
}

impl Word for BpfWord {
    #[inline(always)]
    fn get(&self) -> u64 {
        // SAFETY: the word lies in a map value that the verifier has bounded;
        // an aligned 8-byte load is one instruction, so it never tears.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    fn set(&self, value: u64) {
        // SAFETY: as for `get`.
        unsafe { self.0.get().write_volatile(value) }
    }

    #[inline(always)]
    fn xchg(&self, value: u64) -> u64 {
        // SAFETY: as for `get`; BPF_XCHG is a full barrier.
        unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(self.0.get(), value) }
    }

    #[inline(always)]
    fn cas(&self, old: u64, new: u64) -> u64 {
        // SAFETY: as for `get`; BPF_CMPXCHG that writes is a full barrier.
        let (held, _) = unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                self.0.get(),
                old,
                new,
            )
        };
        held
    }

    #[inline(always)]
    fn or(&self, bits: u64) -> u64 {
        // SAFETY: as for `get`; BPF_OR with BPF_FETCH is a full barrier.
        unsafe { atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(self.0.get(), bits) }
    }

    #[inline(always)]
    fn add(&self, value: u64) {
        // SAFETY: as for `get`.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(self.0.get(), value) };
    }
}
