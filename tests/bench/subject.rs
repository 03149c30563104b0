//! The process whose page faults are measured. Nothing but its work changes its
//! address space, since finding a mapping among others is part of a fault.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::ptr;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{ForkResult, Pid, fork};

use crate::client::page;
use crate::group::Group;

/// Faults in a round.
const FAULTS: u32 = 8192;
/// Pages of a mapping: few enough to come from and go back to the CPU's own list
/// of free pages. The allocator behind it works the harder the more scattered
/// the free pages are, which differs before and after an agent by more than the
/// programs add.
const CHUNK: usize = 256;
/// Rounds that count, and rounds before them that do not.
const ROUNDS: usize = 5;
const WARM_UP: usize = 2;

/// What the process does in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Work {
    /// Touches each page of a fresh mapping of 1 MiB, then unmaps it: pages are
    /// charged and given back by the batch, as in most programs.
    Batch = 1,
    /// Touches one page and gives it back at once, again and again: the kernel
    /// uncharges each by itself, so the programs run for every single fault.
    Single = 2,
    /// Clears a page by the instruction that the kernel clears pages by.
    Clear = 3,
}

/// Instructions per fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    pub(crate) touch: f64,
    /// 0 where touching and giving back are one.
    pub(crate) unmap: f64,
}

impl Cost {
    pub(crate) fn sum(self) -> f64 {
        self.touch + self.unmap
    }
}

/// The process.
#[derive(Debug)]
pub(crate) struct Subject {
    pid: Pid,
    pipe: UnixStream,
}

/// Nanoseconds of guest time, that is instructions: touching, unmapping.
type Round = [u64; 2];
const ANSWER: usize = ROUNDS * size_of::<Round>();

impl Subject {
    /// Starts it in `group`; idle until told.
    pub(crate) fn start(group: &Group) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
        // SAFETY: a benchmark has a single thread, so the child may go on as any
        // program does.
        match unsafe { fork() }.context("cannot fork")? {
            ForkResult::Child => {
                drop(ours);
                let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
                let ended = serve(theirs);
                // SAFETY: ends the child without running the parent's exit work.
                unsafe { libc::_exit(i32::from(ended.is_err())) }
            }
            ForkResult::Parent { child } => {
                let subject = Self { pid: child, pipe: ours };
                group.add(child)?;
                Ok(subject)
            }
        }
    }

    /// Works for all rounds; the middle one's cost, so that a timer or the
    /// agent's sweep in one of them does not count.
    pub(crate) fn measure(&mut self, work: Work) -> Result<Cost> {
        self.pipe.write_all(&[work as u8]).context("the measured process died")?;
        let mut answer = [0; ANSWER];
        self.pipe.read_exact(&mut answer).context("the measured process died")?;
        let words: Vec<u64> = answer
            .chunks_exact(size_of::<u64>())
            .map(|chunk| chunk.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)))
            .collect();
        let middle = |part: usize| {
            let mut times: Vec<u64> = words.iter().skip(part).step_by(2).copied().collect();
            times.sort_unstable();
            times[ROUNDS / 2] as f64 / f64::from(FAULTS)
        };
        Ok(Cost { touch: middle(0), unmap: middle(1) })
    }

    /// Faults of one call of `measure`.
    pub(crate) fn faults() -> f64 {
        (WARM_UP + ROUNDS) as f64 * f64::from(FAULTS)
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
    let mut order = [0];
    while pipe.read_exact(&mut order).is_ok() {
        // No heap here: it would grow the address space.
        let mut answer = [0; ANSWER];
        for round in 0..WARM_UP + ROUNDS {
            let [touch, unmap] = match order[0] {
                order if order == Work::Batch as u8 => batch(size)?,
                order if order == Work::Single as u8 => single(size)?,
                _ => clear(size)?,
            };
            if let Some(at) = round.checked_sub(WARM_UP) {
                answer[at * 16..at * 16 + 8].copy_from_slice(&touch.to_le_bytes());
                answer[at * 16 + 8..at * 16 + 16].copy_from_slice(&unmap.to_le_bytes());
            }
        }
        pipe.write_all(&answer)?;
    }
    Ok(())
}

fn batch(page: usize) -> Result<Round> {
    let [mut touch, mut unmap] = [0, 0];
    for _ in 0..FAULTS as usize / CHUNK {
        let memory = Mapping::new(page * CHUNK)?;
        let start = now()?;
        for at in 0..CHUNK {
            memory.touch(at * page);
        }
        let touched = now()?;
        drop(memory);
        touch += touched - start;
        unmap += now()? - touched;
    }
    Ok([touch, unmap])
}

fn single(page: usize) -> Result<Round> {
    let memory = Mapping::new(page)?;
    let start = now()?;
    for _ in 0..FAULTS {
        memory.touch(0);
        // SAFETY: our own mapping, in which nothing is kept.
        unsafe { libc::madvise(memory.base.cast(), page, libc::MADV_DONTNEED) };
    }
    Ok([now()? - start, 0])
}

#[cfg(target_arch = "x86_64")]
fn clear(page: usize) -> Result<Round> {
    use std::arch::asm;
    let memory = Mapping::new(page)?;
    memory.touch(0);
    let bytes = std::arch::is_x86_feature_detected!("ermsb");
    let start = now()?;
    for _ in 0..FAULTS {
        if bytes {
            // SAFETY: writes the one page that is mapped there.
            unsafe { asm!("rep stosb", inout("rdi") memory.base => _, inout("rcx") page => _, in("al") 0u8) };
        } else {
            // SAFETY: as above.
            unsafe {
                asm!("rep stosq", inout("rdi") memory.base => _, inout("rcx") page / 8 => _, in("rax") 0u64);
            }
        }
    }
    Ok([now()? - start, 0])
}

/// Elsewhere pages are cleared by plain loops, whose instructions count for
/// what they are.
#[cfg(not(target_arch = "x86_64"))]
#[expect(clippy::unnecessary_wraps, reason = "fails on x86-64")]
fn clear(_page: usize) -> Result<Round> {
    Ok([0, 0])
}

fn now() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("clock_gettime failed")?;
    Ok(u64::try_from(now.tv_sec())? * 1_000_000_000 + u64::try_from(now.tv_nsec())?)
}

/// Anonymous memory in small pages.
struct Mapping {
    base: *mut u8,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> Result<Self> {
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
    fn touch(&self, at: usize) {
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
