//! A client's eventfd: checked when it is taken in, signalled without ever
//! waiting.

use std::{
    fs::{self, File},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
};

use crate::error::Error;

/// What `/proc` says an eventfd's descriptor leads to.
pub const EVENTFD: &str = "anon_inode:[eventfd]";

/// A descriptor known to be an eventfd.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Whether `fd` is one, without a word to the file system that it may lie on.
    ///
    /// # Errors
    /// The kernel's: `EBADF` for an `O_PATH` descriptor, `EINVAL` for anything
    /// that is not an eventfd (`eventfd_ctx_fileget`).
    pub fn check(fd: BorrowedFd<'_>) -> Result<(), Errno> {
        if is_path_only(fd)? {
            return Err(Errno::EBADF);
        }
        let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|_| Errno::EINVAL)?;
        if link.as_os_str() != EVENTFD {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    /// Takes in what [`EventFd::check`] or the kernel has said is an eventfd.
    #[must_use]
    pub const fn known(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `O_PATH` descriptors count as closed for the kernel's `fdget`.
///
/// # Errors
/// `fcntl` failed.
pub fn is_path_only(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?).contains(OFlag::O_PATH))
}

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
pub struct Signaller {
    context: u64,
    nothing: File,
}

impl Signaller {
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

    /// Adds `count` to `eventfd`, as `count` signals of the kernel would.
    ///
    /// # Errors
    /// `io_submit` or `io_getevents` failed.
    pub fn signal(&self, eventfd: &EventFd, count: u64) -> Result<(), Errno> {
        let request = Iocb {
            opcode: READ,
            fd: number(self.nothing.as_fd()),
            flags: TELL_EVENTFD,
            result_fd: number(eventfd.as_fd()),
            ..Iocb::default()
        };
        let mut requests = [request; BATCH];
        let pointers = requests.each_mut().map(std::ptr::from_mut);
        let mut left = count;
        while left > 0 {
            let batch = left.min(BATCH as u64);
            // SAFETY: as many pointers to whole requests as it says, which outlive
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
            left -= begun;
        }
        Ok(())
    }
}

impl Drop for Signaller {
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
    use std::os::fd::AsFd as _;

    use nix::{
        errno::Errno,
        fcntl::{OFlag, open},
        sys::{
            eventfd::{EfdFlags, EventFd as NixEventFd},
            stat::Mode,
        },
    };

    use super::{EventFd, Signaller};

    #[test]
    fn signals_add_up() -> Result<(), Box<dyn std::error::Error>> {
        let client = NixEventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
        let ours = EventFd::known(nix::unistd::dup(&client)?);
        let signaller = Signaller::new()?;
        signaller.signal(&ours, 1)?;
        signaller.signal(&ours, 2)?;
        assert_eq!(client.read()?, 3);
        signaller.signal(&ours, 1000)?;
        assert_eq!(client.read()?, 1000);
        Ok(())
    }

    #[test]
    fn a_full_counter_stays_full_and_nobody_waits() -> Result<(), Box<dyn std::error::Error>> {
        // A write to this one would wait for ever.
        let client = NixEventFd::from_flags(EfdFlags::empty())?;
        client.write(u64::MAX - 1)?;
        let ours = EventFd::known(nix::unistd::dup(&client)?);
        let signaller = Signaller::new()?;
        signaller.signal(&ours, 1)?;
        signaller.signal(&ours, 1)?;
        assert_eq!(client.read()?, u64::MAX);
        Ok(())
    }

    #[test]
    fn other_descriptors_are_refused() -> Result<(), Errno> {
        let null = open("/dev/null", OFlag::O_RDWR, Mode::empty())?;
        assert_eq!(EventFd::check(null.as_fd()), Err(Errno::EINVAL));
        let path = open("/dev/null", OFlag::O_PATH, Mode::empty())?;
        assert_eq!(EventFd::check(path.as_fd()), Err(Errno::EBADF));
        assert_eq!(EventFd::check(NixEventFd::new()?.as_fd()), Ok(()));
        Ok(())
    }
}
