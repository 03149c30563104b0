//! Additions to eventfds by asynchronous reads of nothing (`io_submit(2)`).

use std::{
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::errno::Errno;

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

/// `struct io_event` of the same header.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct IoEvent([u64; 4]);

const _: () = assert!(size_of::<Iocb>() == 64 && size_of::<IoEvent>() == 32);

/// `IOCB_CMD_PREAD`, the operation of a read.
const READ: u16 = 0;
/// `IOCB_FLAG_RESFD`: the end of the operation is signalled to an eventfd.
const SIGNAL_EVENTFD: u32 = 1;
/// Signals that go to the kernel in one call.
const BATCH: usize = 64;

/// Adds to eventfds as the kernel does: a read of nothing, whose end the kernel signals to an
/// eventfd (`aio_complete` calls `eventfd_signal`). Unlike a `write`, that never waits, whatever
/// the client does with its end at the same time, and at 2^64 - 1 the counter stays there, as
/// with v1's signals. Needs `CONFIG_AIO`.
#[derive(Debug)]
pub struct Aio {
    context: u64,
    nothing: OwnedFd,
}

impl Aio {
    /// Makes an AIO context, one of those that all users of the host share. `nothing` is a
    /// file that can be read of at once, such as `/dev/null`.
    ///
    /// # Errors
    /// As `io_setup`: `ENOSYS` without `CONFIG_AIO`; `EAGAIN` where `fs.aio-max-nr` is used up
    /// (`ioctx_alloc`); `ENOMEM` without memory.
    pub fn new(nothing: OwnedFd) -> Result<Self, Errno> {
        let mut context = 0_u64;
        // SAFETY: the kernel writes one word.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, BATCH, &raw mut context) };
        Errno::result(made)?;
        Ok(Self { context, nothing })
    }

    /// Adds to `eventfd`, as so many signals of the kernel would, until `count` are given
    /// or about `time` has gone by, and returns how many are. The kernel walks the client's wait
    /// queue for each, so the first is given alone, and says what the next cost.
    ///
    /// # Errors
    /// As `io_submit` and `io_getevents`: `EINVAL` where `eventfd` is none; `EAGAIN` where as
    /// many as the context has room for are under way in other threads.
    pub fn signal(&self, eventfd: impl AsFd, count: u64, time: Duration) -> Result<u64, Errno> {
        let eventfd = eventfd.as_fd();
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

    /// Submits up to [`BATCH`] requests, and returns how many the kernel has taken.
    fn submit(&self, eventfd: BorrowedFd<'_>, batch: u64) -> Result<u64, Errno> {
        let request = Iocb {
            opcode: READ,
            fd: number(self.nothing.as_fd()),
            flags: SIGNAL_EVENTFD,
            result_fd: number(eventfd),
            ..Iocb::default()
        };
        let mut requests = [request; BATCH];
        let pointers = requests.each_mut().map(std::ptr::from_mut);
        let batch = batch.min(BATCH as u64);
        // SAFETY: as many pointers to whole requests as it says, or more, which outlive the
        // call; the kernel copies the requests, and writes to none but while it takes them in
        // (`aio_key`). They have no buffers.
        let begun = unsafe { libc::syscall(libc::SYS_io_submit, self.context, batch, pointers.as_ptr()) };
        let begun = u64::try_from(Errno::result(begun)?).unwrap_or(0).min(BATCH as u64);
        let mut ended = [IoEvent::default(); BATCH];
        let nowhere = std::ptr::null_mut::<libc::timespec>();
        // SAFETY: room for as many events as are requested, which outlives the call; no time
        // limit, for all have ended.
        let reaped = unsafe {
            libc::syscall(libc::SYS_io_getevents, self.context, begun, begun, ended.as_mut_ptr(), nowhere)
        };
        Errno::result(reaped)?;
        Ok(begun)
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: made by io_setup, and no other call on it is under way, for `self` is not
        // borrowed.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

/// Tries whether an AIO context can be had, and gives it back.
///
/// # Errors
/// As [`Aio::new`].
pub fn try_setup() -> Result<(), Errno> {
    let mut context = 0_u64;
    // SAFETY: the kernel writes one word.
    let made = unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) };
    Errno::result(made)?;
    // SAFETY: just made, and nothing is under way.
    unsafe { libc::syscall(libc::SYS_io_destroy, context) };
    Ok(())
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

#[cfg(test)]
mod tests {
    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::*;

    fn aio() -> Result<Aio, Box<dyn std::error::Error>> {
        Ok(Aio::new(std::fs::File::open("/dev/null")?.into())?)
    }

    fn all(aio: &Aio, eventfd: &EventFd, count: u64) -> Result<(), Errno> {
        assert_eq!(aio.signal(eventfd, count, Duration::MAX)?, count);
        Ok(())
    }

    #[test]
    fn without_time_one_is_given() -> Result<(), Box<dyn std::error::Error>> {
        let client = EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
        assert_eq!(aio()?.signal(&client, 1000, Duration::ZERO)?, 1);
        assert_eq!(client.read()?, 1);
        Ok(())
    }

    #[test]
    fn another_file_is_refused() -> Result<(), Box<dyn std::error::Error>> {
        let file = std::fs::File::open("/dev/null")?;
        assert_eq!(aio()?.signal(&file, 1, Duration::ZERO), Err(Errno::EINVAL));
        try_setup()?;
        Ok(())
    }

    #[test]
    fn signals_add_up() -> Result<(), Box<dyn std::error::Error>> {
        let client = EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
        let signaller = aio()?;
        all(&signaller, &client, 1)?;
        all(&signaller, &client, 2)?;
        assert_eq!(client.read()?, 3);
        all(&signaller, &client, 1000)?;
        assert_eq!(client.read()?, 1000);
        Ok(())
    }

    #[test]
    fn a_full_counter_stays_full_and_no_thread_waits() -> Result<(), Box<dyn std::error::Error>> {
        // A write to this one would wait for ever.
        let client = EventFd::from_flags(EfdFlags::empty())?;
        client.write(u64::MAX - 1)?;
        let signaller = aio()?;
        all(&signaller, &client, 1)?;
        all(&signaller, &client, 1)?;
        assert_eq!(client.read()?, u64::MAX);
        Ok(())
    }
}
