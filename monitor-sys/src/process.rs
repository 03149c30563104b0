//! Starts a copy of this process (`fork`) and replaces its program (`execve`).

use std::{
    convert::Infallible,
    ffi::{CStr, CString},
    fs,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    unistd::{ForkResult, execve},
};

use crate::new_descriptor;

/// The number of the first descriptor that a service manager passes (`SD_LISTEN_FDS_START`).
pub const FIRST_PASSED: RawFd = 3;

/// Reports whether the calling thread is the only one of its process, and so stays the only one
/// until it starts another. Needs `/proc`.
///
/// # Errors
/// As `open` of `/proc/self/task`: `ENOENT` without `/proc`, `EMFILE` or `ENFILE` without a
/// descriptor.
pub fn is_single_threaded() -> Result<bool, Errno> {
    let failed = |error: std::io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let mut count = 0;
    for thread in fs::read_dir("/proc/self/task").map_err(failed)?.take(2) {
        thread.map_err(failed)?;
        count += 1;
    }
    Ok(count == 1)
}

/// Forks this process, which has to have a single thread: no lock is held then that the child
/// would wait for, and it may do what its parent may.
///
/// # Errors
/// `EBUSY` where there is another thread; as [`is_single_threaded`]; as `fork`: `EAGAIN` where
/// the user or the group may have no more processes, `ENOMEM` without memory.
pub fn fork() -> Result<ForkResult, Errno> {
    if !is_single_threaded()? {
        return Err(Errno::EBUSY);
    }
    // SAFETY: the process has this one thread, so the child may call any function.
    unsafe { nix::unistd::fork() }
}

/// Runs `program` in this process's place, which has to have a single thread. `arguments` begin
/// with the program's name. `descriptors` are open there from number 3 on, in this order, as a
/// service manager passes them; other descriptors are, where they are not close-on-exec.
/// Returns only where that fails, and then all descriptors are as before.
///
/// # Errors
/// `EBUSY` where there is another thread; as [`is_single_threaded`]; `EMFILE` without room for
/// two duplicates of each descriptor, which are made beforehand; as `execve`: `ENOENT` without
/// such a program, `EACCES` where it may not be run, `E2BIG` where the texts are too long.
pub fn execute(
    program: &CStr,
    arguments: &[CString],
    environment: &[CString],
    descriptors: &[BorrowedFd<'_>],
) -> Errno {
    match try_to_execute(program, arguments, environment, descriptors) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

fn try_to_execute(
    program: &CStr,
    arguments: &[CString],
    environment: &[CString],
    descriptors: &[BorrowedFd<'_>],
) -> Result<Infallible, Errno> {
    if !is_single_threaded()? {
        return Err(Errno::EBUSY);
    }
    let count = RawFd::try_from(descriptors.len()).map_err(|_| Errno::EMFILE)?;
    let end = FIRST_PASSED.checked_add(count).ok_or(Errno::EMFILE)?;
    // Out of the way first: the place of one may be where another is now.
    let moved: Vec<_> =
        descriptors.iter().map(|fd| duplicate_above(fd.as_raw_fd(), end)).collect::<Result<_, _>>()?;
    let mut places = Places { end, replaced: Vec::new() };
    for (place, from) in (FIRST_PASSED..end).zip(&moved) {
        // SAFETY: this is the only thread, and whatever owns `place` is not used until
        // `places` has put it back, or the program is another.
        unsafe { places.put(place, from) }?;
    }
    execve(program, arguments, environment)
}

/// Duplicates a descriptor, close-on-exec, to a number that is not below `lowest`.
fn duplicate_above(number: RawFd, lowest: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: takes three numbers; what it returns is a new descriptor or -1.
    let duplicate = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, lowest) };
    // SAFETY: as above.
    unsafe { new_descriptor(duplicate.into()) }
}

/// Descriptors that others are in the place of, until the value is dropped.
#[derive(Debug)]
struct Places {
    /// Duplicates are not made below this number.
    end: RawFd,
    /// Pairs of a number and what was open there, with its flags (`FD_CLOEXEC`).
    replaced: Vec<(RawFd, Option<(OwnedFd, libc::c_int)>)>,
}

impl Places {
    /// Puts a duplicate of `from`, which is not close-on-exec, in the place of what is open at
    /// `place`, if anything is.
    ///
    /// # Safety
    /// What owns the descriptor at `place` does not use it while `self` is there.
    unsafe fn put(&mut self, place: RawFd, from: &OwnedFd) -> Result<(), Errno> {
        // SAFETY: takes two numbers, and changes nothing.
        let flags = Errno::result(unsafe { libc::fcntl(place, libc::F_GETFD) });
        let before = match flags {
            Ok(flags) => Some((duplicate_above(place, self.end)?, flags)),
            Err(Errno::EBADF) => None,
            Err(errno) => return Err(errno),
        };
        // SAFETY: takes two numbers; the caller guarantees that the second is unused.
        Errno::result(unsafe { libc::dup2(from.as_raw_fd(), place) })?;
        self.replaced.push((place, before));
        Ok(())
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for (place, before) in self.replaced.drain(..) {
            match before {
                Some((before, flags)) => {
                    let flags = if flags & libc::FD_CLOEXEC == 0 { 0 } else { libc::O_CLOEXEC };
                    // SAFETY: takes numbers; what is at `place` was put there above.
                    unsafe { libc::dup3(before.as_raw_fd(), place, flags) };
                }
                // SAFETY: what is at `place` was put there above, and nothing owns it.
                None => drop(unsafe { new_descriptor(place.into()) }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::{
        fcntl::{FcntlArg, FdFlag, fcntl},
        sys::stat::fstat,
    };

    use super::*;

    #[test]
    fn a_process_with_threads_is_neither_forked_nor_replaced() {
        let outcome = std::thread::spawn(|| {
            let forked = fork().map(drop);
            (is_single_threaded(), forked, execute(c"/bin/true", &[], &[], &[]))
        });
        assert_eq!(outcome.join().expect("the thread"), (Ok(false), Err(Errno::EBUSY), Errno::EBUSY));
    }

    #[test]
    fn descriptors_are_put_back() -> Result<(), Box<dyn std::error::Error>> {
        let (one, other) = (File::open("/dev/null")?, OwnedFd::from(File::open("/proc/self/exe")?));
        let inode = |fd: &File| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
        let before = inode(&one)?;
        // Beyond the numbers that tests which pass hundreds of descriptors get meanwhile.
        let free = duplicate_above(other.as_raw_fd(), 900)?.as_raw_fd();
        let mut places = Places { end: 950, replaced: Vec::new() };
        // SAFETY: both numbers are this test's.
        unsafe { places.put(one.as_raw_fd(), &other) }?;
        // SAFETY: as above; what was there is closed.
        unsafe { places.put(free, &other) }?;
        assert_ne!(inode(&one)?, before);
        assert_eq!(fcntl(&one, FcntlArg::F_GETFD)?, 0);
        drop(places);
        assert_eq!(inode(&one)?, before);
        assert_eq!(fcntl(&one, FcntlArg::F_GETFD)?, FdFlag::FD_CLOEXEC.bits());
        assert_eq!(duplicate_above(free, 900).err(), Some(Errno::EBADF));
        Ok(())
    }
}
