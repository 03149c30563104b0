//! Children that run a function of ours: as another user or in other namespaces, too, and
//! with a report of why it failed.

use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd as _, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::{ForkResult, Gid, Pid, Uid, close, fork, setgid, setgroups, setsid, setuid};

use crate::harness::report::chain;
use crate::harness::shared::{Atomics, Shared};

/// User id of an ordinary user.
pub(crate) const USER: u32 = 65_534;

/// Runs `work` in a child, which then ends: with code 0, or 1 where the work failed. The
/// caller has no other thread at work.
pub(crate) fn spawn(work: impl FnOnce() -> Result<()>) -> Result<Pid> {
    // SAFETY: tests and benchmarks fork with a single thread, so no lock is held that the
    // child may need.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Child => {
            let outcome = catch_unwind(AssertUnwindSafe(work));
            end(matches!(outcome, Ok(Ok(()))))
        }
        ForkResult::Parent { child } => Ok(child),
    }
}

/// Runs `work` in a child that gets one end of a socket and is killed when its parent
/// ends; returns the other end.
pub(crate) fn spawn_with_socket(work: impl FnOnce(UnixStream) -> Result<()>) -> Result<(Pid, UnixStream)> {
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
    let parents = ours.as_raw_fd();
    let pid = spawn(move || {
        let _ = close(parents);
        let _ = set_pdeathsig(Signal::SIGKILL);
        work(theirs)
    })?;
    Ok((pid, ours))
}

/// Makes a program be killed when its parent ends, whatever becomes of that.
pub(crate) fn kill_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches only the child.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
}

/// How long the threads of a process have been on a CPU, in nanoseconds; those that have ended, too.
pub(crate) fn on_cpu(process: u32) -> Result<u64> {
    let clock =
        clock_getcpuclockid(Pid::from_raw(process.try_into()?)).context("clock_getcpuclockid failed")?;
    let time = clock_gettime(clock).context("clock_gettime failed")?;
    Ok(u64::try_from(time.tv_sec())? * 1_000_000_000 + u64::try_from(time.tv_nsec())?)
}

/// Gives a program a session of its own, whose terminal is that of its standard input.
pub(crate) fn own_terminal(command: &mut Command) {
    let take = || {
        setsid()?;
        // SAFETY: standard input is open, and the request takes a plain number.
        Errno::result(unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) })?;
        Ok(set_pdeathsig(Signal::SIGKILL)?)
    };
    // SAFETY: three system calls, which are async-signal-safe and touch only the child.
    unsafe { command.pre_exec(take) };
}

/// Hands a descriptor over to a program, under this name, as a service manager does
/// (`sd_listen_fds_with_names(3)`).
pub(crate) fn hand_over(command: &mut Command, fd: &impl AsFd, name: &str) -> Result<()> {
    const FIRST: i32 = 3;
    let program = CString::new(command.get_program().as_bytes())?;
    let arguments = std::iter::once(Ok(program.clone()))
        .chain(command.get_args().map(|argument| CString::new(argument.as_bytes())))
        .collect::<Result<Vec<_>, _>>()?;
    let set = command.get_envs().filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())));
    let kept =
        std::env::vars_os().chain(set).map(|(key, value)| [key.as_bytes(), b"=", value.as_bytes()].concat());
    let named = [b"LISTEN_FDS=1".to_vec(), format!("LISTEN_FDNAMES={name}").into_bytes()];
    let environment: Vec<_> = kept.chain(named).map(CString::new).collect::<Result<_, _>>()?;
    let fd = fd.as_fd().try_clone_to_owned()?;
    let become_it = move || {
        // SAFETY: takes two numbers; what is at the second is of no use to the program.
        Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), FIRST) })?;
        if fd.as_raw_fd() == FIRST {
            fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        let mut environment = environment.clone();
        environment.push(CString::new(format!("LISTEN_PID={}", nix::unistd::getpid()))?);
        match nix::unistd::execve(&program, &arguments, &environment)? {}
    };
    // SAFETY: the parent has a single thread, so the child may allocate.
    unsafe { command.pre_exec(become_it) };
    Ok(())
}

/// Closes all that was open when this process was forked, but for one descriptor and the
/// standard ones.
pub(crate) fn close_all_but(kept: RawFd) {
    for (first, last) in [(3, kept - 1), (kept + 1, i32::MAX)] {
        // SAFETY: nothing of what is closed is used in this process any more.
        let _ = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// Ends a child without the exit work that is its parent's.
pub(crate) fn end(well: bool) -> ! {
    let _ = io::stdout().flush();
    // SAFETY: takes a number, and does not return.
    unsafe { libc::_exit(i32::from(!well)) }
}

/// The reason of a failure, where the child leaves it: in memory, since descriptors and
/// files of a child are what some tests are about.
struct Reason {
    length: AtomicUsize,
    bytes: [AtomicU8; 8192],
}

// SAFETY: atomics only, for which zeros are values.
unsafe impl Atomics for Reason {}

impl Reason {
    fn write(&self, text: &str) {
        let length = text.len().min(self.bytes.len());
        for (to, from) in self.bytes.iter().zip(text.as_bytes()) {
            to.store(*from, Ordering::Relaxed);
        }
        self.length.store(length, Ordering::Release);
    }

    fn read(&self) -> String {
        let length = self.length.load(Ordering::Acquire);
        let bytes: Vec<_> = self.bytes[..length].iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A child that reports why it failed. It is killed with the value.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    reason: Shared<Reason>,
    is_reaped: bool,
}

impl Process {
    pub(crate) fn start(work: impl FnOnce() -> Result<()>) -> Result<Self> {
        let reason = Shared::<Reason>::new()?;
        let pid = spawn(|| {
            let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
                let text = payload.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
                bail!("panicked: {}", text.unwrap_or("with something else than text"))
            });
            outcome.inspect_err(|error| reason.write(&chain(error)))
        })?;
        Ok(Self { pid, reason, is_reaped: false })
    }

    pub(crate) fn start_as(user: u32, work: impl FnOnce() -> Result<()>) -> Result<Self> {
        Self::start(|| become_user(user).and_then(|()| work()))
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for its end, however that is: with the reason, if it gave one.
    pub(crate) fn wait(mut self) -> Result<(WaitStatus, String)> {
        let status = waitpid(self.pid, None).context("cannot wait for a child")?;
        self.is_reaped = true;
        Ok((status, self.reason.read()))
    }

    /// Waits for its end, which is to be a good one.
    pub(crate) fn end(self) -> Result<()> {
        match self.wait()? {
            (WaitStatus::Exited(_, 0), _) => Ok(()),
            (status, reason) if reason.is_empty() => bail!("{status:?}"),
            (_, reason) => bail!(reason),
        }
    }

    /// Returns the reason so far, for a caller that reaps the child itself.
    pub(crate) fn into_reason(mut self) -> String {
        self.is_reaped = true;
        self.reason.read()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.is_reaped {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

/// Runs `work` in a child to its end.
pub(crate) fn run(work: impl FnOnce() -> Result<()>) -> Result<()> {
    Process::start(work)?.end()
}

/// Runs `work` in a child as this user.
pub(crate) fn run_as(user: u32, work: impl FnOnce() -> Result<()>) -> Result<()> {
    Process::start_as(user, work)?.end()
}

/// Runs `work` in a child in namespaces of its own: as the first process of a pid
/// namespace, with mounts that stay in a mount namespace.
pub(crate) fn run_in(namespaces: CloneFlags, work: impl FnOnce() -> Result<()>) -> Result<()> {
    run(|| {
        unshare(namespaces).context("cannot make namespaces")?;
        if namespaces.contains(CloneFlags::CLONE_NEWNS) {
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
                .context("cannot part the mounts")?;
        }
        // Only children are in a new pid namespace.
        if namespaces.contains(CloneFlags::CLONE_NEWPID) { run(work) } else { work() }
    })
}

/// Runs a check as an ordinary user; returns what it found wrong, if anything.
pub(crate) fn check_as_user(check: impl FnOnce() -> Result<String>) -> Result<Option<String>> {
    let process = Process::start_as(USER, || {
        let found = check()?;
        if found.is_empty() { Ok(()) } else { bail!(found) }
    })?;
    Ok(process.end().err().map(|error| format!("{error:#}")))
}

/// Lets this process, and the children that it makes, have so many descriptors beside the
/// usual ones.
pub(crate) fn allow_descriptors(count: usize) -> Result<()> {
    let most = u64::try_from(count)? + 1024;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit RLIMIT_NOFILE failed")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, hard.max(most)).context("setrlimit RLIMIT_NOFILE failed")
}

/// Makes this process an ordinary user's, for good.
pub(crate) fn become_user(id: u32) -> Result<()> {
    setgroups(&[])
        .and_then(|()| setgid(Gid::from_raw(id)))
        .and_then(|()| setuid(Uid::from_raw(id)))
        .with_context(|| format!("cannot become user {id}"))
}

/// Makes this process a container's root, for good: user id 0 of the host's user
/// namespace, with the capabilities that container runtimes leave it.
pub(crate) fn become_container_root() -> Result<()> {
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP,
    // NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
    const LEFT: u32 = 0xa804_25fb;
    // struct __user_cap_header_struct, version 3, and two of __user_cap_data_struct.
    let (header, data) = ([0x2008_0522_u32, 0], [LEFT, LEFT, 0, 0, 0, 0]);
    // SAFETY: laid out as the kernel's, which reads them.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) })
        .map(drop)
        .context("cannot give up capabilities")
}
