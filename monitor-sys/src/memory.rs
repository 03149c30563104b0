//! Memory that is charged on purpose, and memory that is given back.

use std::{fmt, num::NonZeroUsize, ptr::NonNull};

use nix::{
    errno::Errno,
    sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap},
};

/// Private pages that are there, and charged to this process's memory cgroup, until the value
/// is dropped. Nothing can be read from or written to them.
pub struct ChargedPages {
    start: NonNull<libc::c_void>,
    bytes: NonZeroUsize,
}

impl fmt::Debug for ChargedPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChargedPages").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl ChargedPages {
    /// Maps `bytes` of memory, rounded up to whole pages, and has the kernel fill them in
    /// (`MAP_POPULATE`). Where it cannot fill in all, those that are left are not charged.
    ///
    /// # Errors
    /// As `mmap`: `ENOMEM` without that much address space; `EAGAIN` where memory is locked
    /// (`mlockall`), and more may not be.
    pub fn new(bytes: NonZeroUsize) -> Result<Self, Errno> {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: new pages at an address of the kernel's choice, to which no other pointer exists.
        let start = unsafe { mmap_anonymous(None, bytes, access, flags) }?;
        Ok(Self { start, bytes })
    }
}

impl Drop for ChargedPages {
    fn drop(&mut self) {
        // SAFETY: made with this length, and no reference into it was ever made.
        let _ = unsafe { munmap(self.start, self.bytes.get()) };
    }
}

/// Has glibc's allocator use one arena for all threads (`M_ARENA_MAX`), so that threads that
/// allocate little do not get a heap each. True where it does; with another C library there is
/// nothing to do, and it is false.
///
/// # Errors
/// `EBUSY` where the process has a second thread, which may be allocating; what
/// [`is_single_threaded`](crate::process::is_single_threaded) fails with.
pub fn use_one_arena() -> Result<bool, Errno> {
    if !crate::process::is_single_threaded()? {
        return Err(Errno::EBUSY);
    }
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two numbers; there is no other thread that could allocate meanwhile.
    return Ok(unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } == 1);
    #[cfg(not(target_env = "gnu"))]
    Ok(false)
}

/// Gives the allocator's free memory back to the kernel, with glibc; with another C library
/// nothing is done. Takes the time to walk the heap.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number; the allocator locks itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_there_and_go_with_the_value() {
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
            text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("a number")
        };
        const BYTES: usize = 64 << 20;
        let before = resident();
        let pages = ChargedPages::new(NonZeroUsize::new(BYTES).expect("not 0")).expect("memory");
        // Pages have 64 KiB at most; other tests come and go.
        assert!(resident() >= before + (BYTES >> 16) / 2);
        drop(pages);
        trim();
    }

    #[test]
    fn the_allocator_is_left_alone_while_there_are_threads() {
        std::thread::spawn(|| assert_eq!(use_one_arena(), Err(Errno::EBUSY))).join().expect("the thread");
    }
}
