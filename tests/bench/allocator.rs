//! A process that allocates page by page, and knows which page moved its group's
//! counter across a threshold, and when it touched that one.
//!
//! The kernel charges by batches of 64 pages, of which the CPU keeps what is left.
//! So the process first allocates until the counter jumps, and knows then about
//! where it will jump again: there it reads the counter after each page.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{Signal, kill};
use nix::sys::uio::pread;
use nix::sys::wait::waitpid;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::harness::client::page;
use crate::harness::group::Group;
use crate::harness::process;
use crate::harness::shared::{Atomics, Shared};

/// The kernel's `MEMCG_CHARGE_BATCH`, in pages.
pub(crate) const BATCH: u64 = 64;
/// Pages under one table of the lowest level. The first of each stays, so that
/// the table does, which is charged, too.
const TABLE: u64 = 512;
const TABLES: u64 = 64;
/// Pages before the one expected to cross from which on the counter is read.
const EARLIER: u64 = 6;
/// Pages that come and go after each ascent: v1 looks only every 129 of them.
const CHURN: u64 = 300;

/// One ascent, and the way back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ascent {
    /// Nanoseconds of sleep before it.
    pub(crate) rest: u64,
    /// Threshold in bytes; the counter is below.
    pub(crate) threshold: u64,
    /// Distance below the threshold from which pages are paced; more than a
    /// batch.
    pub(crate) run_up: u64,
    /// Nanoseconds from one page to the next; 0: as fast as it goes.
    pub(crate) pace: u64,
    /// Pages beyond the one that crosses; fewer where the client stops it.
    pub(crate) beyond: u64,
    /// Nanoseconds of sleep up there.
    pub(crate) hold: u64,
    /// Whether to add to `Allocator::direct` when it has crossed.
    pub(crate) direct: bool,
}

/// Result of an ascent. Times are the monotonic clock's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ascended {
    /// Just before the touch that crosses.
    pub(crate) up: u64,
    /// After the pages were given back.
    pub(crate) down: u64,
    /// The page that crosses, counted as `Allocator::touching` counts.
    pub(crate) crossing: u64,
    /// Paced pages, and nanoseconds for them.
    pub(crate) touched: u64,
    pub(crate) took: u64,
    /// Whether it is known which page crosses.
    pub(crate) exact: bool,
}

const ORDER: usize = 7;
const ANSWER: usize = 6;

/// Memory that both processes see.
struct Course {
    touching: AtomicU64,
    stop: AtomicU64,
}

// SAFETY: atomics only, for which zeros are values.
unsafe impl Atomics for Course {}

/// The process that allocates.
#[derive(Debug)]
pub(crate) struct Allocator {
    pid: Pid,
    pub(crate) pipe: UnixStream,
    /// The eventfd that it writes to itself.
    pub(crate) direct: EventFd,
    course: Shared<Course>,
}

impl Allocator {
    /// Starts it in `group`, idle until it gets an order.
    pub(crate) fn start(group: &Group) -> Result<Self> {
        let course = Shared::<Course>::new()?;
        let usage = File::open(group.usage_file()).context("cannot open the usage file")?;
        let direct = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("eventfd failed")?;
        let (pid, pipe) = process::spawn_with_socket(|pipe| serve(pipe, &usage, &course, &direct))?;
        let mut allocator = Self { pid, pipe, direct, course };
        group.add(pid)?;
        // Only now it maps its memory: what it needs is charged to the group.
        allocator.pipe.write_all(&[1]).context("the allocator died")?;
        allocator.pipe.read_exact(&mut [0]).context("the allocator died")?;
        Ok(allocator)
    }

    /// Orders it to ascend; more than one at a time are done one after the other.
    pub(crate) fn begin(&mut self, ascent: Ascent) -> Result<()> {
        let Ascent { rest, threshold, run_up, pace, beyond, hold, direct } = ascent;
        ensure!(run_up > BATCH, "a run-up of {run_up} pages");
        self.course.stop.store(0, Ordering::SeqCst);
        let words = [rest, threshold, run_up, pace, beyond, hold, u64::from(direct)];
        self.pipe.write_all(&to_bytes::<{ ORDER * 8 }>(&words)).context("the allocator died")
    }

    /// Waits until one is done.
    pub(crate) fn finish(&mut self) -> Result<Ascended> {
        let mut answer = [0; ANSWER * 8];
        self.pipe.read_exact(&mut answer).context("the allocator died")?;
        let [up, down, crossing, touched, took, exact] = to_words(&answer);
        Ok(Ascended { up, down, crossing, touched, took, exact: exact == 1 })
    }

    /// The paced page that it touches just now.
    pub(crate) fn touching(&self) -> u64 {
        self.course.touching.load(Ordering::Relaxed)
    }

    /// Lets it ascend no further.
    pub(crate) fn stop(&self) {
        self.course.stop.store(1, Ordering::SeqCst);
    }
}

impl Drop for Allocator {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

fn serve(mut pipe: UnixStream, usage: &File, course: &Course, direct: &EventFd) -> Result<()> {
    // The last CPU: what is kept of a batch is kept there.
    let cpus = std::thread::available_parallelism()?.get();
    let mut last = CpuSet::new();
    last.set(cpus - 1)?;
    sched_setaffinity(Pid::from_raw(0), &last)?;
    pipe.read_exact(&mut [0])?;
    let mut memory = Memory::new(usage, direct)?;
    pipe.write_all(&[1])?;
    let mut order = [0; ORDER * 8];
    while pipe.read_exact(&mut order).is_ok() {
        let [rest, threshold, run_up, pace, beyond, hold, direct] = to_words(&order);
        let ascended = memory
            .ascend(&Ascent { rest, threshold, run_up, pace, beyond, hold, direct: direct == 1 }, course)?;
        let Ascended { up, down, crossing, touched, took, exact } = ascended;
        pipe.write_all(&to_bytes::<{ ANSWER * 8 }>(&[up, down, crossing, touched, took, u64::from(exact)]))?;
    }
    Ok(())
}

/// Pages of anonymous memory, by number; never unmapped.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: *mut u8,
    page: u64,
}

impl Mapping {
    /// Maps so many pages, at the start of a page table.
    pub(crate) fn new(pages: u64) -> Result<Self> {
        let page = page();
        let bytes = usize::try_from((pages + TABLE) * page)?;
        let base = map(bytes, libc::MAP_PRIVATE)?;
        // SAFETY: our own mapping.
        unsafe { libc::madvise(base.cast(), bytes, libc::MADV_NOHUGEPAGE) };
        let align = base.align_offset(usize::try_from(TABLE * page)?);
        // SAFETY: there is one table's worth of pages more than are used.
        Ok(Self { base: unsafe { base.add(align) }, page })
    }

    fn at(&self, number: u64) -> *mut u8 {
        let offset = usize::try_from(number * self.page).unwrap_or(0);
        // SAFETY: callers stay inside the mapping.
        unsafe { self.base.add(offset) }
    }

    pub(crate) fn touch(&self, number: u64) {
        let byte = self.at(number);
        // SAFETY: inside the mapping; volatile, so that the page is really written.
        unsafe { byte.write_volatile(1) };
    }

    pub(crate) fn give_back(&self, first: u64, pages: u64) {
        let bytes = usize::try_from(pages * self.page).unwrap_or(0);
        // SAFETY: our own mapping, in which nothing is kept.
        unsafe { libc::madvise(self.at(first).cast(), bytes, libc::MADV_DONTNEED) };
    }
}

/// Pages that are touched in order, and given back.
struct Memory<'a> {
    pages: Mapping,
    page: u64,
    usage: &'a File,
    direct: &'a EventFd,
    /// How many are touched.
    held: u64,
    /// When each paced page was touched.
    times: Vec<u64>,
}

impl<'a> Memory<'a> {
    fn new(usage: &'a File, direct: &'a EventFd) -> Result<Self> {
        let pages = Mapping::new(TABLES * TABLE)?;
        (0..TABLES).for_each(|at| pages.touch(at * TABLE));
        Ok(Self { pages, page: page(), usage, direct, held: 0, times: vec![1; 1 << 16] })
    }

    /// The place of the page that is the `at`th to be touched.
    const fn place(at: u64) -> u64 {
        at / (TABLE - 1) * TABLE + at % (TABLE - 1) + 1
    }

    fn touch(&mut self) {
        self.pages.touch(Self::place(self.held));
        self.held += 1;
    }

    /// Gives back all but the first `keep`.
    fn give_back(&mut self, keep: u64) {
        while self.held > keep {
            // A table's pages at once.
            let from = keep.max((self.held - 1) / (TABLE - 1) * (TABLE - 1));
            self.pages.give_back(Self::place(from), self.held - from);
            self.held = from;
        }
    }

    fn usage(&self) -> Result<u64> {
        let mut text = [0; 32];
        let length = pread(self.usage.as_fd(), &mut text, 0).context("cannot read the usage")?;
        let digits = text[..length].iter().take_while(|byte| byte.is_ascii_digit());
        Ok(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
    }

    fn ascend(&mut self, ascent: &Ascent, course: &Course) -> Result<Ascended> {
        sleep(ascent.rest);
        let page = self.page;
        let left = |usage: u64| ascent.threshold.saturating_sub(usage) / page;
        let mut usage = self.usage()?;
        for _ in ascent.run_up + 2 * BATCH..left(usage) {
            self.touch();
        }
        let from = self.usage()?;
        usage = from;
        while usage == from || left(usage) > ascent.run_up {
            self.touch();
            usage = self.usage()?;
        }
        ensure!(usage < ascent.threshold, "the threshold lies below {usage}");
        // The batch that made the counter jump had this many left, or fewer: small
        // objects of the kernel's come out of it, too.
        let rest = BATCH - 1;
        let expected = rest + BATCH * ((ascent.threshold - usage).div_ceil(BATCH * page) - 1);
        let watched = expected.saturating_sub(EARLIER);
        let mut crossing = None;
        let mut last = (TABLES * (TABLE - 1) - self.held).min(self.times.len() as u64) - 1;
        let (before, start) = (self.held, now()?);
        let mut at = 0;
        while at <= last && course.stop.load(Ordering::Relaxed) == 0 {
            let mut time = now()?;
            while time < start + at * ascent.pace {
                time = now()?;
            }
            self.times[usize::try_from(at)?] = time;
            course.touching.store(at, Ordering::Relaxed);
            self.touch();
            if crossing.is_none() && at >= watched && self.usage()? >= ascent.threshold {
                crossing = Some(at);
                if ascent.direct {
                    self.direct.write(1)?;
                }
                last = at.saturating_add(ascent.beyond).min(last);
            }
            at += 1;
        }
        let took = now()? - start;
        sleep(ascent.hold);
        self.give_back(before);
        let down = now()?;
        self.give_back(0);
        (0..CHURN).for_each(|_| self.touch());
        self.give_back(0);
        let up = crossing.map_or(Ok(0), usize::try_from).map(|at| self.times[at])?;
        // Seen by the first look, it may have been before.
        let exact = crossing.is_some_and(|at| at > watched);
        let crossing = crossing.unwrap_or(0);
        Ok(Ascended { up, down, crossing, touched: at, took, exact })
    }
}

fn map(bytes: usize, kind: libc::c_int) -> Result<*mut u8> {
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, kind | libc::MAP_ANONYMOUS);
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let base = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
    ensure!(base != libc::MAP_FAILED, "mmap of {bytes} bytes failed");
    Ok(base.cast())
}

/// The monotonic clock, in nanoseconds.
pub(crate) fn now() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("clock_gettime failed")?;
    Ok(u64::try_from(now.tv_sec())? * 1_000_000_000 + u64::try_from(now.tv_nsec())?)
}

fn sleep(nanoseconds: u64) {
    if nanoseconds > 0 {
        std::thread::sleep(std::time::Duration::from_nanos(nanoseconds));
    }
}

fn to_bytes<const N: usize>(words: &[u64]) -> [u8; N] {
    let mut bytes = [0; N];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn to_words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut words = [0; N];
    for (word, from) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut eight = [0; 8];
        eight.copy_from_slice(from);
        *word = u64::from_ne_bytes(eight);
    }
    words
}
