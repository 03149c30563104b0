//! A process in a group that charges and gives back memory on command.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd as _, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::harness::block::DISK;
use crate::harness::group::Group;
use crate::harness::process;

/// Kinds of memory that is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Anonymous pages, one fault each.
    Anonymous = 0,
    /// Pages of a file in memory.
    File = 1,
    /// Buffers of pipes: kernel memory.
    Kernel = 2,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Anonymous, Self::File, Self::Kernel];
}

const GROW: u8 = 0x10;
const SHRINK: u8 = 0x20;
const END: u8 = 0x30;
const SPIKE: u8 = 0x40;
const READ: u8 = 0x50;
const MAP: u8 = 0x60;

/// The process that charges.
#[derive(Debug)]
pub(crate) struct Charger {
    pid: Pid,
    pipe: UnixStream,
}

impl Charger {
    /// Starts one in `group`, idle until it gets an order.
    pub(crate) fn start(group: &Group) -> Result<Self> {
        let (pid, pipe) = process::spawn_with_socket(|pipe| {
            // Nor any client's eventfd: the test's own references are to be the last.
            process::close_all_but(pipe.as_raw_fd());
            serve(pipe)
        })?;
        let charger = Self { pid, pipe };
        group.add(pid)?;
        Ok(charger)
    }

    /// Charges this many bytes more; returns when they are charged.
    pub(crate) fn grow(&mut self, kind: Kind, bytes: u64) -> Result<()> {
        self.order(GROW | kind as u8, bytes)
    }

    /// Gives back what the last `grow` of this kind charged.
    pub(crate) fn shrink(&mut self, kind: Kind) -> Result<()> {
        self.order(SHRINK | kind as u8, 0)
    }

    /// Charges and gives back at once, `times` times.
    pub(crate) fn spike(&mut self, kind: Kind, bytes: u64, times: u8) -> Result<()> {
        self.begin(SPIKE | kind as u8, bytes << 8 | u64::from(times))?;
        self.finish()
    }

    /// Begins a spike, and does not wait for its end.
    pub(crate) fn begin_spike(&mut self, kind: Kind, bytes: u64, times: u8) -> Result<()> {
        self.begin(SPIKE | kind as u8, bytes << 8 | u64::from(times))
    }

    /// Begins to grow, and does not wait.
    pub(crate) fn begin_grow(&mut self, kind: Kind, bytes: u64) -> Result<()> {
        self.begin(GROW | kind as u8, bytes)
    }

    /// Charges until the OOM killer ends it.
    pub(crate) fn grow_to_death(&mut self, bytes: u64) -> Result<()> {
        ensure!(self.grow(Kind::Anonymous, bytes).is_err(), "it outlived {bytes} bytes");
        Ok(())
    }

    /// Reads this much of the disk, from its start.
    pub(crate) fn read_disk(&mut self, bytes: u64) -> Result<()> {
        self.order(READ, bytes)
    }

    /// Maps this much of the disk, and touches all of it so many times.
    pub(crate) fn map_disk(&mut self, bytes: u64, times: u8) -> Result<()> {
        self.order(MAP, bytes << 8 | u64::from(times))
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for what was begun.
    pub(crate) fn finish(&mut self) -> Result<()> {
        let mut answer = [0];
        self.pipe.read_exact(&mut answer).context("the charger died")?;
        ensure!(answer == [0], "the charger failed");
        Ok(())
    }

    /// Ends it; everything it held is given back when this returns.
    pub(crate) fn end(mut self) -> Result<()> {
        self.begin(END, 0)?;
        waitpid(self.pid, None).context("cannot wait for the charger")?;
        self.pid = Pid::from_raw(0);
        Ok(())
    }

    fn order(&mut self, order: u8, bytes: u64) -> Result<()> {
        self.begin(order, bytes)?;
        self.finish()
    }

    fn begin(&mut self, order: u8, bytes: u64) -> Result<()> {
        let mut packet = [order; 9];
        packet[1..].copy_from_slice(&bytes.to_ne_bytes());
        self.pipe.write_all(&packet).context("the charger died")
    }
}

impl Drop for Charger {
    fn drop(&mut self) {
        if self.pid.as_raw() > 0 {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

/// Charges this process's group anonymous memory and gives it back, without end. By mappings
/// of its own: an allocator keeps what it has.
pub(crate) fn come_and_go(bytes: u64) -> Result<()> {
    loop {
        drop(Pages::touch(usize::try_from(bytes)?)?);
    }
}

/// Memory that is given back when dropped.
#[expect(dead_code, reason = "held, never read")]
enum Held {
    Pages(Pages),
    File(File),
    Pipes(Vec<(OwnedFd, OwnedFd)>),
}

fn serve(mut pipe: UnixStream) -> Result<()> {
    let mut held: [Vec<Held>; 3] = [Vec::new(), Vec::new(), Vec::new()];
    let mut packet = [0; 9];
    while pipe.read_exact(&mut packet).is_ok() {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&packet[1..]);
        let bytes = u64::from_ne_bytes(bytes);
        let kind = usize::from(packet[0] & 0xf);
        let done = match packet[0] & 0xf0 {
            GROW => charge(kind, bytes).map(|memory| held[kind].push(memory)),
            SHRINK => {
                held[kind].pop();
                Ok(())
            }
            SPIKE => (0..bytes & 0xff).try_for_each(|_| charge(kind, bytes >> 8).map(drop)),
            READ => read_disk(bytes),
            MAP => Pages::of_disk(usize::try_from(bytes >> 8)?)
                .map(|pages| (0..bytes & 0xff).for_each(|_| pages.read())),
            _ => return Ok(()),
        };
        pipe.write_all(&[u8::from(done.is_err())])?;
    }
    Ok(())
}

fn charge(kind: usize, bytes: u64) -> Result<Held> {
    match kind {
        0 => Pages::touch(usize::try_from(bytes)?).map(Held::Pages),
        1 => {
            let name = c"charged";
            // SAFETY: a valid name; returns a new descriptor or -1.
            let fd =
                nix::errno::Errno::result(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })?;
            // SAFETY: the kernel just made it for us.
            let mut file = unsafe { File::from_raw_fd(fd) };
            let block = [1; 65_536];
            let mut left = bytes;
            while left > 0 {
                let length = left.min(block.len() as u64);
                file.write_all(&block[..usize::try_from(length)?])?;
                left -= length;
            }
            Ok(Held::File(file))
        }
        2 => {
            let mut pipes = Vec::new();
            let mut left = bytes;
            while left > 0 {
                let (reader, writer) =
                    nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC)?;
                fcntl(&writer, FcntlArg::F_SETPIPE_SZ(1 << 20))?;
                let block = [1; 65_536];
                let mut here = left.min(1 << 20);
                while here > 0 {
                    let length = here.min(block.len() as u64);
                    let written = nix::unistd::write(&writer, &block[..usize::try_from(length)?])? as u64;
                    here -= written;
                    left -= written;
                }
                pipes.push((reader, writer));
            }
            Ok(Held::Pipes(pipes))
        }
        other => bail!("no kind {other}"),
    }
}

fn read_disk(bytes: u64) -> Result<()> {
    let mut file = File::open(DISK)?.take(bytes);
    let mut block = vec![0; 1 << 20];
    while file.read(&mut block)? > 0 {}
    Ok(())
}

/// A mapping: of anonymous pages, each touched, or of the disk.
pub(crate) struct Pages {
    base: *mut libc::c_void,
    bytes: usize,
}

impl Pages {
    pub(crate) fn touch(bytes: usize) -> Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        ensure!(base != libc::MAP_FAILED, "mmap of {bytes} bytes failed");
        let pages = Self { base, bytes };
        // Small pages only: one fault each, as the tests count on.
        // SAFETY: our own mapping.
        unsafe { libc::madvise(base, bytes, libc::MADV_NOHUGEPAGE) };
        for at in (0..bytes).step_by(4096) {
            // SAFETY: inside the mapping.
            let byte = unsafe { base.cast::<u8>().add(at) };
            // SAFETY: as above; volatile, so that the page is really written.
            unsafe { byte.write_volatile(1) };
        }
        Ok(pages)
    }
}

impl Pages {
    fn of_disk(bytes: usize) -> Result<Self> {
        let file = File::open(DISK)?;
        let (protection, flags) = (libc::PROT_READ, libc::MAP_SHARED);
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, file.as_raw_fd(), 0) };
        ensure!(base != libc::MAP_FAILED, "mmap of {bytes} bytes failed");
        Ok(Self { base, bytes })
    }

    fn read(&self) {
        for at in (0..self.bytes).step_by(4096) {
            // SAFETY: inside the mapping.
            let byte = unsafe { self.base.cast::<u8>().add(at) };
            // SAFETY: as above; volatile, so that the page is really read.
            unsafe { byte.read_volatile() };
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping, with nothing borrowed from it.
        unsafe { libc::munmap(self.base, self.bytes) };
    }
}
