//! Counts what the code under test takes from the heap, so that a target can hold it to
//! "nothing that the other side sizes".

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

struct Counted;

#[global_allocator]
static ALLOCATOR: Counted = Counted;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

/// Length of the buffer that fuser reads requests into, whatever is read.
const FUSER_BUFFER: usize = (16 << 20) + 4096;

fn count(bytes: usize) {
    COUNT.fetch_add(1, Relaxed);
    if bytes != FUSER_BUFFER {
        LARGEST.fetch_max(bytes, Relaxed);
    }
}

// SAFETY: all is the system's allocator's; the numbers beside it touch no memory of it.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is the one that is required.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as above.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

/// Memory that was taken in all threads meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Number of times that memory was taken.
    pub count: usize,
    /// The most at once, in bytes.
    pub largest: usize,
}

/// Runs `work`, and says what it took.
pub fn watch<T>(work: impl FnOnce() -> T) -> (T, Taken) {
    COUNT.store(0, Relaxed);
    LARGEST.store(0, Relaxed);
    let result = work();
    (result, Taken { count: COUNT.load(Relaxed), largest: LARGEST.load(Relaxed) })
}
