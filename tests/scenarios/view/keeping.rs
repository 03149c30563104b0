//! The view over a restart of the agent, as clients have it that bind-mounted it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use memcg_monitor::mounts;
use memcg_monitor::view::POINT;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};

use super::{EVENT_CONTROL, USAGE, errno_of, register_in, shown, written};
use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::process::Process;
use crate::harness::shared::{Atomics, Shared};
use crate::harness::test::vm_test;
use crate::scenarios::restart::Supervised;

/// Mounts `shown` on a directory of this process's own mount namespace.
fn bind(shown: &Path) -> Result<PathBuf> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("cannot part the mounts")?;
    let point = PathBuf::from(format!("/run/bound-{}", std::process::id()));
    fs::create_dir_all(&point)?;
    mount(Some(shown), &point, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("cannot bind")?;
    Ok(point)
}

/// A client of v1 in a mount namespace of its own, which has a part of the view bound there.
struct Bound {
    process: Process,
    socket: UnixStream,
}

/// The letters that make the client act; it answers each with the same letter.
const WAIT: u8 = b'w';
const REGISTER: u8 = b'r';
const USE_OPEN_FILES: u8 = b'o';
const END: u8 = b'e';

impl Bound {
    /// Binds `part` of the view, and registers in its directory `below` once.
    fn start(part: &Path, below: &'static str) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let process = Process::start(|| serve(&bind(part)?.join(below), theirs))?;
        let mut this = Self { process, socket: ours };
        this.answered()?;
        Ok(this)
    }

    fn answered(&mut self) -> Result<()> {
        let mut byte = [0];
        match self.socket.read_exact(&mut byte) {
            Ok(()) => Ok(()),
            Err(_) => bail!("the client ended"),
        }
    }

    fn does(&mut self, letter: u8) -> Result<()> {
        self.socket.write_all(&[letter])?;
        self.answered()
    }

    /// Does it, or gives the client's reason.
    fn all(clients: &mut [Self], letter: u8, what: &str) -> Result<()> {
        for client in clients {
            if let Err(error) = client.does(letter) {
                until("the client left a reason", || {
                    Ok(super::super::restart::is_dead(client.process.pid()))
                })?;
                let reason = std::mem::replace(client, Self::none()?).process.end().err();
                return Err(reason.unwrap_or(error)).with_context(|| what.to_owned());
            }
        }
        Ok(())
    }

    fn none() -> Result<Self> {
        Ok(Self { process: Process::start(|| Ok(()))?, socket: UnixStream::pair()?.0 })
    }
}

fn serve(directory: &Path, mut socket: UnixStream) -> Result<()> {
    let mut waiters = vec![Waiter::new()?];
    ensure!(register_in(directory, USAGE, &waiters[0], "4M")? == 0, "the first registration");
    let usage = File::open(directory.join(USAGE))?;
    let control = OpenOptions::new().write(true).open(directory.join(EVENT_CONTROL))?;
    let mut letter = [b'!'];
    loop {
        socket.write_all(&letter)?;
        socket.read_exact(&mut letter)?;
        match letter[0] {
            WAIT => {
                for (at, waiter) in waiters.iter().enumerate() {
                    let received = waiter.wait()?;
                    ensure!(received == 1, "waiter {at} of {}: {received} signals", waiters.len());
                }
            }
            REGISTER => {
                let waiter = Waiter::new()?;
                let errno = register_in(directory, USAGE, &waiter, "4M")?;
                ensure!(errno == 0, "a new registration: errno {errno}");
                ensure!(fs::read_dir(directory)?.count() > 1, "the directory is empty");
                waiters.push(waiter);
            }
            USE_OPEN_FILES => {
                let mut text = [0; 32];
                let length = usage.read_at(&mut text, 0).context("read of a file opened before")?;
                let text = String::from_utf8_lossy(&text[..length]).into_owned();
                let _: u64 = text.trim().parse().with_context(|| format!("usage {text:?}"))?;
                let waiter = Waiter::new()?;
                let line = format!("{} {} 4M", waiter.0.as_raw_fd(), usage.as_raw_fd());
                let errno = written(nix::unistd::write(&control, line.as_bytes()), line.len())?;
                ensure!(errno == 0, "a line into a file opened before: errno {errno}");
                waiters.push(waiter);
            }
            _ => return Ok(()),
        }
    }
}

/// Restarts the agent by a signal: SIGHUP hands over, SIGKILL leaves it to the supervisor.
fn restart(agent: &mut Supervised, signal: Signal) -> Result<()> {
    // A signal that it has given, and not noted yet, would be given once more.
    agent.0.settle()?;
    match signal {
        Signal::SIGKILL => kill(agent.0.supervised()?, signal)?,
        _ => agent.0.signal(signal)?,
    }
    agent.0.ready()
}

vm_test!(
    view_kept_for_bind_mounts,
    "over SIGHUP and kill -9, bind mounts of the view and of a part of it, and files open in them, go on",
    Any,
    [Oracle, Kernel, Sampled, Quick]
);
fn view_kept_for_bind_mounts() -> Result<()> {
    let mut agent = Supervised::start(&[])?;
    let group = Group::new("bound")?;
    let mut charger = Charger::start(&group)?;
    let below =
        Box::leak(shown(&group.path)?.strip_prefix(POINT)?.to_string_lossy().into_owned().into_boxed_str());
    let mut clients = [Bound::start(Path::new(POINT), below)?, Bound::start(&shown(&group.path)?, "")?];
    let device = mounts::on(Path::new(POINT))?.context("no view")?.device;
    for signal in [Signal::SIGHUP, Signal::SIGKILL, Signal::SIGHUP, Signal::SIGKILL] {
        restart(&mut agent, signal)?;
        let now = mounts::on(Path::new(POINT))?.context("no view")?;
        ensure!(now.device == device, "{signal}: it is another mount");
        charger.grow(Kind::Anonymous, 6 * MIB)?;
        Bound::all(&mut clients, WAIT, &format!("{signal}: those that waited, up"))?;
        charger.shrink(Kind::Anonymous)?;
        Bound::all(&mut clients, WAIT, &format!("{signal}: those that waited, down"))?;
        Bound::all(&mut clients, REGISTER, &format!("{signal}: a new one"))?;
        Bound::all(&mut clients, USE_OPEN_FILES, &format!("{signal}: open files"))?;
        charger.grow(Kind::Anonymous, 6 * MIB)?;
        Bound::all(&mut clients, WAIT, &format!("{signal}: all of them, up"))?;
        charger.shrink(Kind::Anonymous)?;
        Bound::all(&mut clients, WAIT, &format!("{signal}: all of them, down"))?;
    }
    for client in &mut clients {
        client.socket.write_all(&[END])?;
    }
    for Bound { process, .. } in clients {
        process.end()?;
    }
    let code = agent.0.end(Signal::SIGTERM)?;
    ensure!(code == 0 && mounts::on(Path::new(POINT))?.is_none(), "SIGTERM unmounts it");
    charger.end()
}

/// Counts of a reader in a loop.
struct Seen {
    reads: AtomicU64,
    interrupted: AtomicU64,
}

// SAFETY: atomics only, for which zeros are values.
unsafe impl Atomics for Seen {}

/// Reads through a bind mount, in a loop, whatever there is; only EINTR is no failure.
fn read_on(directory: &Path, seen: &Seen) -> Result<()> {
    let open = File::open(directory.join(USAGE))?;
    loop {
        let steps: [&dyn Fn() -> std::io::Result<()>; 4] = [
            &|| fs::read_to_string(directory.join(USAGE)).map(drop),
            &|| open.read_at(&mut [0; 32], 0).map(drop),
            &|| fs::metadata(directory.join(EVENT_CONTROL)).map(drop),
            &|| fs::read_dir(directory)?.try_for_each(|entry| entry.map(drop)),
        ];
        for (at, step) in steps.iter().enumerate() {
            match errno_of(step()) {
                0 => seen.reads.fetch_add(1, Ordering::Relaxed),
                libc::EINTR => seen.interrupted.fetch_add(1, Ordering::Relaxed),
                errno => bail!("step {at}: errno {errno}"),
            };
        }
    }
}

/// Restarts the agent `times` times by these signals in turn, while there are readers; returns
/// how many of their requests were interrupted.
fn restarted_amid_readers(times: usize, signals: &[Signal]) -> Result<u64> {
    let mut agent = Supervised::start(&[])?;
    let group = Group::new("read")?;
    let directory = shown(&group.path)?;
    let seen = [(); 2].map(|()| Shared::<Seen>::new());
    let mut readers = Vec::new();
    for seen in seen {
        let seen = seen?;
        let process = Process::start(|| read_on(&bind(&directory)?, &seen))?;
        // What it does before it reads may be interrupted, too, before 6.9.
        until("a reader reads", || Ok(seen.reads.load(Ordering::Relaxed) > 0))?;
        readers.push((process, seen));
    }
    let mut before = None;
    for round in 0..times {
        restart(&mut agent, signals[round % signals.len()])?;
        for (reader, seen) in &readers {
            let reads = seen.reads.load(Ordering::Relaxed);
            let goes_on = || seen.reads.load(Ordering::Relaxed) > reads + 8;
            let waited =
                until("the readers go on", || Ok(goes_on() || super::super::restart::is_dead(reader.pid())));
            ensure!(waited.is_ok() && goes_on(), "round {round}: a reader does not go on");
        }
        let held = descriptors(&agent)?;
        match before {
            // The first ones have yet to settle.
            None if round < 3 => {}
            None => before = Some(held),
            Some(before) => until("no descriptor leaks", || Ok(descriptors(&agent)? <= before))
                .with_context(|| format!("round {round}: {before} before, then {held}"))?,
        }
    }
    let interrupted = readers.iter().map(|(_, seen)| seen.interrupted.load(Ordering::Relaxed)).sum();
    drop(readers);
    ensure!(agent.0.end(Signal::SIGTERM)? == 0, "exit code");
    Ok(interrupted)
}

/// Descriptors of the agent and of its supervisor, sockets included.
fn descriptors(agent: &Supervised) -> Result<usize> {
    let theirs = format!("/proc/{}/fd", agent.0.supervised()?);
    Ok(fs::read_dir(&theirs).with_context(|| theirs.clone())?.count() + agent.0.descriptors()?.len())
}

vm_test!(
    view_kept_again_and_again,
    "forty hand-overs amid readers: no request fails or is interrupted, no descriptor leaks",
    Any,
    []
);
fn view_kept_again_and_again() -> Result<()> {
    let interrupted = restarted_amid_readers(40, &[Signal::SIGHUP])?;
    ensure!(interrupted == 0, "{interrupted} requests were interrupted");
    Ok(())
}

vm_test!(
    view_kept_amid_readers,
    "kill -9 and SIGHUP amid readers: what was in flight is answered, or interrupted before 6.9; none hangs",
    Any,
    [Kernel, Sampled]
);
fn view_kept_amid_readers() -> Result<()> {
    let interrupted = restarted_amid_readers(12, &[Signal::SIGHUP])?;
    ensure!(interrupted == 0, "a hand-over interrupted {interrupted} requests");
    let interrupted = restarted_amid_readers(12, &[Signal::SIGKILL])?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let resends = !release.starts_with("6.1.") && !release.starts_with("5.");
    ensure!(interrupted == 0 || !resends, "{interrupted} requests were interrupted on {release}");
    Ok(())
}

vm_test!(
    view_kept_or_ended,
    "a view of another mount point ends with a line in the log, and leaves no mount",
    Any,
    []
);
fn view_kept_or_ended() -> Result<()> {
    let group = Group::new("other")?;
    let mut agent = Supervised::start(&[])?;
    let open = File::open(shown(&group.path)?.join(USAGE))?;
    // Unmounted behind the agent's back: the next one cannot go on with it, and mounts anew.
    nix::mount::umount2(POINT, nix::mount::MntFlags::MNT_DETACH)?;
    restart(&mut agent, Signal::SIGHUP)?;
    let errno = errno_of(open.read_at(&mut [0; 32], 0));
    ensure!(
        [libc::ENOTCONN, libc::ECONNABORTED].contains(&errno),
        "a file of the view before: errno {errno}"
    );
    ensure!(Agent::log().contains("an earlier agent's view"), "it is not said: {}", Agent::log());
    let waiter = Waiter::new()?;
    ensure!(register_in(&shown(&group.path)?, USAGE, &waiter, "4M")? == 0, "the new view works");
    restart(&mut agent, Signal::SIGHUP)?;
    ensure!(register_in(&shown(&group.path)?, USAGE, &waiter, "4M")? == 0, "and goes on");
    ensure!(agent.0.end(Signal::SIGTERM)? == 0 && !Path::new(POINT).exists(), "and ends");
    Ok(())
}
