//! Memory that a process shares with the children it forks.

use std::fmt::{self, Debug, Formatter};
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::ptr::NonNull;

use anyhow::{Context, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Values that processes may share.
///
/// # Safety
///
/// All zeros are a value of the type, it is no larger than it says, and it consists of
/// atomics, so that processes may use it at the same time.
pub(crate) unsafe trait Atomics: Sync {}

/// A value, zeros at first, that this process and its later children use together.
pub(crate) struct Shared<T: Atomics>(NonNull<T>);

// SAFETY: the mapping belongs to no thread, and the value is Sync.
unsafe impl<T: Atomics> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Atomics> Sync for Shared<T> {}

impl<T: Atomics> Shared<T> {
    const LENGTH: NonZeroUsize = NonZeroUsize::new(size_of::<T>()).expect("a value with a size");

    pub(crate) fn new() -> Result<Self> {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let memory = unsafe { mmap_anonymous(None, Self::LENGTH, access, MapFlags::MAP_SHARED) };
        Ok(Self(memory.context("cannot map shared memory")?.cast()))
    }
}

impl<T: Atomics> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: our own mapping, page-aligned and large enough, of which the trait says
        // that zeros are a value and that sharing is sound.
        unsafe { self.0.as_ref() }
    }
}

impl<T: Atomics> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of which nothing is borrowed any more.
        let _ = unsafe { munmap(self.0.cast(), Self::LENGTH.get()) };
    }
}

impl<T: Atomics> Debug for Shared<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}
