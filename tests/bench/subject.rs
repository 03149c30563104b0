//! The process whose work is measured. Nothing but its work changes its
//! address space, since finding a mapping among others is part of a fault.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::ptr;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::harness::client::page;
use crate::harness::group::Group;
use crate::harness::process;

/// Units of work in a round.
const UNITS: u32 = 4096;
/// Number of forks in a round, each of which is a thousand times the work.
const FORKS: u32 = 64;
/// Pages of a mapping: few enough to come from and go back to the CPU's own list
/// of free pages. The allocator behind it works the harder the more scattered
/// the free pages are, which differs before and after an agent by more than the
/// programs add.
const CHUNK: usize = 256;
/// Rounds that count, and rounds before them that do not.
const ROUNDS: usize = 5;
const WARM_UP: usize = 2;

/// Kinds of work that the process does in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Work {
    /// Touches each page of a fresh mapping of 1 MiB, then unmaps it: pages are
    /// charged and given back by the batch, as in most programs.
    Batch = 1,
    /// Touches one page and gives it back at once, again and again: the kernel
    /// uncharges each by itself, so the programs run for every single fault.
    Single = 2,
    /// Writes 1 MiB to a file in memory, then truncates it.
    File = 3,
    /// Sends 512 KiB to itself over TCP, a page at a time, and receives it.
    Socket = 4,
    /// Forks a child that ends at once.
    Fork = 5,
}

impl Work {
    /// Units of one call of `measure`.
    pub(crate) fn units(self) -> f64 {
        (WARM_UP + ROUNDS) as f64 * self.units_in_round()
    }

    fn units_in_round(self) -> f64 {
        f64::from(if self == Self::Fork { FORKS } else { UNITS })
    }
}

/// The process that works.
#[derive(Debug)]
pub(crate) struct Subject {
    pid: Pid,
    pipe: UnixStream,
}

const WORD: usize = size_of::<u64>();
const ANSWER: usize = ROUNDS * WORD;

impl Subject {
    /// Starts it in `group`, idle until it gets an order.
    pub(crate) fn start(group: &Group) -> Result<Self> {
        let (pid, pipe) = process::spawn_with_socket(serve)?;
        let subject = Self { pid, pipe };
        group.add(pid)?;
        Ok(subject)
    }

    /// Works for all rounds; the instructions per unit of the middle one, so that a
    /// timer or the agent's sweep in one of them does not count.
    pub(crate) fn measure(&mut self, work: Work) -> Result<f64> {
        self.pipe.write_all(&[work as u8]).context("the measured process died")?;
        let mut answer = [0; ANSWER];
        self.pipe.read_exact(&mut answer).context("the measured process died")?;
        let mut words: Vec<u64> = answer
            .chunks_exact(WORD)
            .map(|chunk| chunk.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)))
            .collect();
        words.sort_unstable();
        Ok(words[ROUNDS / 2] as f64 / work.units_in_round())
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

fn serve(mut pipe: UnixStream) -> Result<()> {
    let size = usize::try_from(page())?;
    let mut file = tempfile_in_memory()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
    let mut order = [0];
    while pipe.read_exact(&mut order).is_ok() {
        // No heap here: it would grow the address space.
        let mut answer = [0; ANSWER];
        for round in 0..WARM_UP + ROUNDS {
            let start = now()?;
            match order[0] {
                order if order == Work::Batch as u8 => batch(size)?,
                order if order == Work::Single as u8 => single(size)?,
                order if order == Work::File as u8 => write(&mut file)?,
                order if order == Work::Socket as u8 => send(&listener)?,
                _ => forks()?,
            }
            let took = now()? - start;
            if let Some(at) = round.checked_sub(WARM_UP) {
                answer[at * WORD..(at + 1) * WORD].copy_from_slice(&took.to_le_bytes());
            }
        }
        pipe.write_all(&answer)?;
    }
    Ok(())
}

fn batch(page: usize) -> Result<()> {
    for _ in 0..UNITS as usize / CHUNK {
        let memory = Mapping::new(page * CHUNK)?;
        for at in 0..CHUNK {
            memory.touch(at * page);
        }
    }
    Ok(())
}

fn single(page: usize) -> Result<()> {
    let memory = Mapping::new(page)?;
    for _ in 0..UNITS {
        memory.touch(0);
        // SAFETY: our own mapping, in which nothing is kept.
        unsafe { libc::madvise(memory.base.cast(), page, libc::MADV_DONTNEED) };
    }
    Ok(())
}

static BLOCK: [u8; 4096] = [1; 4096];

fn write(file: &mut File) -> Result<()> {
    for _ in 0..UNITS as usize / CHUNK {
        file.rewind()?;
        for _ in 0..CHUNK {
            file.write_all(&BLOCK)?;
        }
        file.set_len(0)?;
    }
    Ok(())
}

fn tempfile_in_memory() -> Result<File> {
    // SAFETY: a valid name; returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::memfd_create(c"written".as_ptr(), libc::MFD_CLOEXEC) })
        .context("memfd_create failed")?;
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Connections at once: more than the CPU keeps of charged pages without telling the
/// counter, so that the counter moves.
const WIRES: usize = 8;

/// New connections for each burst, so that buffers come and go.
fn send(listener: &TcpListener) -> Result<()> {
    const BURST: usize = 16;
    let address = listener.local_addr()?;
    let mut buffer = [0; BLOCK.len()];
    for _ in 0..UNITS as usize / (BURST * WIRES) {
        let mut wires: [Option<(TcpStream, TcpStream)>; WIRES] = Default::default();
        for wire in &mut wires {
            let mut sender = TcpStream::connect(address).context("cannot connect to loopback")?;
            let (receiver, _) = listener.accept()?;
            for _ in 0..BURST {
                sender.write_all(&BLOCK)?;
            }
            *wire = Some((sender, receiver));
        }
        for (_, receiver) in wires.iter_mut().flatten() {
            for _ in 0..BURST {
                receiver.read_exact(&mut buffer)?;
            }
        }
    }
    Ok(())
}

fn forks() -> Result<()> {
    for _ in 0..FORKS {
        waitpid(process::spawn(|| Ok(()))?, None)?;
    }
    Ok(())
}

fn now() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("clock_gettime failed")?;
    Ok(u64::try_from(now.tv_sec())? * 1_000_000_000 + u64::try_from(now.tv_nsec())?)
}

/// Anonymous memory in small pages.
pub(super) struct Mapping {
    base: *mut u8,
    bytes: usize,
}

impl Mapping {
    pub(super) fn new(bytes: usize) -> Result<Self> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
        ensure!(base != libc::MAP_FAILED, "mmap of {bytes} bytes failed");
        let mapping = Self { base: base.cast(), bytes };
        // SAFETY: our own mapping.
        unsafe { libc::madvise(base, bytes, libc::MADV_NOHUGEPAGE) };
        Ok(mapping)
    }

    #[inline(always)]
    pub(super) fn touch(&self, at: usize) {
        debug_assert!(at < self.bytes);
        // SAFETY: inside the mapping.
        let byte = unsafe { self.base.add(at) };
        // SAFETY: as above; volatile, so that the page is really written.
        unsafe { byte.write_volatile(1) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, with nothing borrowed from it.
        unsafe { libc::munmap(self.base.cast(), self.bytes) };
    }
}
