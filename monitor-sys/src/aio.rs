//! Signals by asynchronous reads of nothing.

use std::{
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    time::{Duration, Instant},
};

use nix::errno::Errno;

use crate::{error::Error, eventfd::EventFd};

/// `struct iocb` (`include/uapi/linux/aio_abi.h`), little-endian.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

/// `struct io_event`
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct IoEvent([u64; 4]);

const _: () = assert!(size_of::<Iocb>() == 64 && size_of::<IoEvent>() == 32);

/// `IOCB_CMD_PREAD`
const READ: u16 = 0;
/// `IOCB_FLAG_RESFD`
const TELL_EVENTFD: u32 = 1;
/// Signals that go to the kernel in one call.
const BATCH: usize = 64;

/// Adds to eventfds as the kernel does: a read of nothing, whose end the kernel
/// tells an eventfd (`aio_complete` calls `eventfd_signal`). Unlike a `write`, that
/// never waits, whatever the client does with its end at the same time, and at
/// 2^64 - 1 it stays there, as v1's signals did.
#[derive(Debug)]
pub struct Aio {
    context: u64,
    nothing: File,
}

impl Aio {
    /// Makes the kernel's side of it.
    ///
    /// # Errors
    /// `io_setup` failed: says what to look at.
    pub fn new() -> Result<Self, Error> {
        let nothing = File::open("/dev/null").map_err(|error| Error::file("open", "/dev/null", error))?;
        let mut context = 0_u64;
        // SAFETY: the kernel writes one word.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, BATCH, &raw mut context) };
        Errno::result(made).map_err(|errno| {
            let hint = "io_setup (AIO is how eventfds are signalled: is CONFIG_AIO on, and sysctl fs.aio-max-nr large enough?)";
            Error::syscall(hint, errno)
        })?;
        Ok(Self { context, nothing })
    }

    /// Adds to `eventfd`, as so many signals of the kernel would, until `count` are given
    /// or about `time` has gone by; how many. The kernel walks the client's wait queue for
    /// each, so the first is given alone, and says what the next cost.
    ///
    /// # Errors
    /// `io_submit` or `io_getevents` failed.
    pub fn signal(&self, eventfd: &EventFd, count: u64, time: Duration) -> Result<u64, Errno> {
        let start = Instant::now();
        let (mut given, mut batch) = (0, 1);
        while given < count {
            given += match self.submit(eventfd, batch) {
                // What was given is to be struck off; the error comes again.
                Err(_) if given > 0 => break,
                submitted => submitted?,
            };
            let (spent, left) = (start.elapsed(), count - given);
            let Some(rest) = time.checked_sub(spent).filter(|rest| !rest.is_zero()) else { break };
            let each = (spent.as_nanos() / u128::from(given)).max(1);
            let affordable = u64::try_from(rest.as_nanos() / each).unwrap_or(u64::MAX);
            batch = left.min(affordable.max(1)).min(BATCH as u64);
        }
        Ok(given)
    }

    /// As many as the kernel took.
    fn submit(&self, eventfd: &EventFd, batch: u64) -> Result<u64, Errno> {
        let request = Iocb {
            opcode: READ,
            fd: number(self.nothing.as_fd()),
            flags: TELL_EVENTFD,
            result_fd: number(eventfd.as_fd()),
            ..Iocb::default()
        };
        let mut requests = [request; BATCH];
        let pointers = requests.each_mut().map(std::ptr::from_mut);
        // SAFETY: at most as many pointers to whole requests as it says, which outlive
        // the call; the kernel keeps none, for a read of nothing ends at once.
        let begun = unsafe { libc::syscall(libc::SYS_io_submit, self.context, batch, pointers.as_ptr()) };
        let begun = u64::try_from(Errno::result(begun)?).unwrap_or(0);
        let mut ended = [IoEvent::default(); BATCH];
        let nowhere = std::ptr::null_mut::<libc::timespec>();
        // SAFETY: room for as many events as it asks for; no time limit, for
        // all have ended.
        let reaped = unsafe {
            libc::syscall(libc::SYS_io_getevents, self.context, begun, begun, ended.as_mut_ptr(), nowhere)
        };
        Errno::result(reaped)?;
        Ok(begun)
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: made by io_setup, and nothing is under way.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::{
        errno::Errno,
        sys::eventfd::{EfdFlags, EventFd as NixEventFd},
    };

    use super::{Aio, EventFd};

    fn all(aio: &Aio, eventfd: &EventFd, count: u64) -> Result<(), Errno> {
        assert_eq!(aio.signal(eventfd, count, Duration::MAX)?, count);
        Ok(())
    }

    #[test]
    fn without_time_one_is_given() -> Result<(), Box<dyn std::error::Error>> {
        let client = NixEventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
        let ours = EventFd::known(nix::unistd::dup(&client)?);
        assert_eq!(Aio::new()?.signal(&ours, 1000, Duration::ZERO)?, 1);
        assert_eq!(client.read()?, 1);
        Ok(())
    }

    #[test]
    fn signals_add_up() -> Result<(), Box<dyn std::error::Error>> {
        let client = NixEventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
        let ours = EventFd::known(nix::unistd::dup(&client)?);
        let signaller = Aio::new()?;
        all(&signaller, &ours, 1)?;
        all(&signaller, &ours, 2)?;
        assert_eq!(client.read()?, 3);
        all(&signaller, &ours, 1000)?;
        assert_eq!(client.read()?, 1000);
        Ok(())
    }

    #[test]
    fn a_full_counter_stays_full_and_nobody_waits() -> Result<(), Box<dyn std::error::Error>> {
        // A write to this one would wait for ever.
        let client = NixEventFd::from_flags(EfdFlags::empty())?;
        client.write(u64::MAX - 1)?;
        let ours = EventFd::known(nix::unistd::dup(&client)?);
        let signaller = Aio::new()?;
        all(&signaller, &ours, 1)?;
        all(&signaller, &ours, 1)?;
        assert_eq!(client.read()?, u64::MAX);
        Ok(())
    }
}
