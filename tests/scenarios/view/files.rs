//! Contents of the view's files, their owners, and how they can be opened.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::Version;
use memcg_monitor::view::{POINT, values};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::{EVENT_CONTROL, MIB, USAGE, errno_of, register_in, shown, write_line};
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, page};
use crate::harness::group::{Group, read_number};
use crate::harness::process::check_as_user;
use crate::harness::report::say;
use crate::harness::test::vm_test;

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Waits until both say the same: counters move between two reads.
fn same(what: &str, mut pair: impl FnMut() -> Result<(String, String)>) -> Result<()> {
    let mut last = Default::default();
    let outcome = until(what, || {
        last = pair()?;
        Ok(last.0 == last.1)
    });
    outcome.with_context(|| format!("{last:?}"))
}

/// Files that v1 did not have.
pub(super) const OURS: [&str; 2] = ["memory.working_set_bytes", "memory.anon_bytes"];

vm_test!(
    view_values,
    "the files say what the kernel's own files say, as cgroup v1 spelled it",
    Any,
    [Oracle, Kernel, Standing]
);
fn view_values() -> Result<()> {
    let _agent = Agent::standing()?;
    let group = Group::new("values")?;
    let directory = shown(&group.path)?;
    if group.version == Version::V2 {
        let text = read(&directory.join("memory.limit_in_bytes"))?;
        ensure!(text == "9223372036854771712\n", "no limit is {text:?}");
        group.write("memory.max", "64M")?;
        group.write("memory.swap.max", "1M")?;
    }
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    charger.grow(Kind::File, 2 * MIB)?;
    for name in fs::read_dir(&directory)?.flatten().map(|entry| entry.file_name()) {
        let name = name.to_string_lossy().into_owned();
        let path = directory.join(&name);
        if [EVENT_CONTROL, "memory.pressure_level", "memory.force_empty"].contains(&name.as_str()) {
            let errno = errno_of(fs::read(&path));
            ensure!(errno == libc::EINVAL, "reading {name}: errno {errno}");
        } else if group.version == Version::V1 && !OURS.contains(&name.as_str()) {
            same(&name, || Ok((read(&path)?, read(&group.path.join(&name))?)))?;
        } else if name != "memory.stat" && name != "memory.numa_stat" {
            same(&name, || Ok((read(&path)?, expected(&group, &name)?)))?;
        }
    }
    if group.version == Version::V2 {
        let stat =
            |name: &str| Ok::<_, anyhow::Error>(values::keyed(&read(&directory.join("memory.stat"))?, name));
        for (ours, theirs) in
            [("cache", "file"), ("total_rss", "anon"), ("total_inactive_file", "inactive_file")]
        {
            same(ours, || {
                let theirs = values::keyed(&read(&group.path.join("memory.stat"))?, theirs);
                Ok((stat(ours)?.to_string(), theirs.to_string()))
            })?;
        }
        same("memory.numa_stat", || {
            let total = read(&directory.join("memory.numa_stat"))?;
            let lists = ["inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable"];
            let text = read(&group.path.join("memory.stat"))?;
            let bytes: u64 = lists.iter().map(|list| values::keyed(&text, list)).sum();
            let first = total.lines().next().unwrap_or_default().to_owned();
            Ok((first, format!("total={0} N0={0}", bytes / page())))
        })?;
        ensure!(stat("hierarchical_memory_limit")? == 64 * MIB, "the limit in memory.stat");
    }
    charger.end()
}

/// The expected contents of a file, from the files of v2 (or v1, for what v1 had not).
fn expected(group: &Group, name: &str) -> Result<String> {
    let number = |name: &str| read_number(&group.path.join(name));
    let events = || read(&group.path.join("memory.events.local"));
    let usage = group.version.usage_file();
    let value = match name {
        "memory.usage_in_bytes" => number("memory.current")?,
        "memory.memsw.usage_in_bytes" => {
            number("memory.current")? + number("memory.swap.current").unwrap_or(0)
        }
        "memory.max_usage_in_bytes" => number("memory.peak")?,
        "memory.limit_in_bytes" => 64 * MIB,
        "memory.memsw.limit_in_bytes" => 65 * MIB,
        "memory.memsw.max_usage_in_bytes" => {
            number("memory.peak")?.max(number("memory.current")? + number("memory.swap.current").unwrap_or(0))
        }
        "memory.soft_limit_in_bytes" | "memory.kmem.limit_in_bytes" | "memory.kmem.tcp.limit_in_bytes" => {
            values::unlimited(page())
        }
        "memory.kmem.usage_in_bytes" | "memory.kmem.max_usage_in_bytes" => {
            values::keyed(&read(&group.path.join("memory.stat"))?, "kernel")
        }
        "memory.kmem.tcp.usage_in_bytes" | "memory.kmem.tcp.max_usage_in_bytes" => {
            values::keyed(&read(&group.path.join("memory.stat"))?, "sock")
        }
        "memory.memsw.failcnt" => values::keyed(&read(&group.path.join("memory.swap.events"))?, "max"),
        "memory.swappiness" => read_number(Path::new("/proc/sys/vm/swappiness"))?,
        "memory.use_hierarchy" => 1,
        "memory.failcnt" => values::keyed(&events()?, "max"),
        "memory.working_set_bytes" => {
            let key = if group.version == Version::V1 { "total_inactive_file" } else { "inactive_file" };
            number(usage)?.saturating_sub(values::keyed(&read(&group.path.join("memory.stat"))?, key))
        }
        "memory.anon_bytes" => {
            let stat = read(&group.path.join("memory.stat"))?;
            let [anon, shared] = match group.version {
                Version::V1 => ["total_rss", "total_shmem"],
                Version::V2 => ["anon", "shmem"],
            };
            let kernel = match group.version {
                Version::V1 => number("memory.kmem.usage_in_bytes")?,
                Version::V2 => values::keyed(&stat, "kernel") - values::keyed(&stat, "slab_reclaimable"),
            };
            values::keyed(&stat, anon) + values::keyed(&stat, shared) + kernel
        }
        "notify_on_release"
        | "cgroup.clone_children"
        | "memory.move_charge_at_immigrate"
        | "memory.kmem.failcnt"
        | "memory.kmem.tcp.failcnt" => 0,
        "memory.oom_control" => {
            let kills = values::keyed(&events()?, "oom_kill");
            return Ok(format!("oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"));
        }
        "cgroup.procs" => return read(&group.path.join("cgroup.procs")),
        "tasks" => return read(&group.path.join("cgroup.threads")),
        other => anyhow::bail!("{other} is not a file of the view"),
    };
    Ok(format!("{value}\n"))
}

vm_test!(view_root_values, "the root's files say what the host uses", Any, [Standing]);
fn view_root_values() -> Result<()> {
    let _agent = Agent::standing()?;
    let root = Path::new(POINT);
    let usage = || read_number(&root.join(USAGE));
    // Kernel threads of the host come and go; a sixteenth is far more.
    let text = read(Path::new("/proc/vmstat"))?;
    let pages = |name| values::keyed(&text, name);
    let vmstat = (pages("nr_file_pages") + pages("nr_anon_pages")) * page();
    ensure!(
        usage()?.abs_diff(vmstat) <= vmstat / 16 + MIB,
        "usage {} but {vmstat} by /proc/vmstat",
        usage()?
    );
    if root.join("memory.memsw.usage_in_bytes").exists() {
        // The host continues in between.
        let before = usage()?;
        let with_swap = read_number(&root.join("memory.memsw.usage_in_bytes"))?;
        let without = before.min(usage()?);
        ensure!(with_swap + MIB >= without, "with swap {with_swap}, without {without}");
    }
    ensure!(read_number(&root.join("memory.limit_in_bytes"))? == values::unlimited(page()), "no limit");
    for name in
        ["memory.max_usage_in_bytes", "memory.stat", "memory.oom_control", "memory.failcnt", "cgroup.procs"]
    {
        ensure!(!read(&root.join(name))?.is_empty(), "{name} is empty");
    }
    ensure!(fs::metadata(root)?.ino() == 1, "the root's inode number");
    Ok(())
}

vm_test!(
    view_modes_and_owners,
    "modes are the newest v1's, owners the directory's, and both are enforced",
    Any,
    [Oracle]
);
fn view_modes_and_owners() -> Result<()> {
    const NOBODY: u32 = 65_534;
    let agent = Agent::start(&[])?;
    let (ours, theirs) = (Group::new("ours")?, Group::new("theirs")?);
    chown(&theirs.path, Some(NOBODY), Some(NOBODY))?;
    let (our_directory, their_directory) = (shown(&ours.path)?, shown(&theirs.path)?);
    let mode = |directory: &Path, name: &str| {
        Ok::<_, anyhow::Error>(fs::metadata(directory.join(name))?.mode() & 0o7777)
    };
    for (name, expected) in [
        (EVENT_CONTROL, 0o200),
        (USAGE, 0o444),
        ("memory.oom_control", 0o644),
        ("memory.pressure_level", 0o444),
        ("memory.working_set_bytes", 0o444),
        ("memory.anon_bytes", 0o444),
        ("memory.limit_in_bytes", 0o644),
    ] {
        let found = mode(&our_directory, name)?;
        ensure!(found == expected, "{name} has mode {found:o}");
        for (directory, owner) in [(&our_directory, 0), (&their_directory, NOBODY)] {
            let stat = fs::metadata(directory.join(name))?;
            ensure!((stat.uid(), stat.gid(), stat.len()) == (owner, owner, 0), "{name}: {stat:?}");
        }
    }
    ensure!(fs::metadata(&their_directory)?.uid() == NOBODY, "the directory's owner");
    let found = check_as_user(|| {
        ensure!(
            errno_of(OpenOptions::new().write(true).open(our_directory.join(EVENT_CONTROL))) == libc::EACCES
        );
        let errno = register_in(&their_directory, USAGE, &Waiter::new()?, "1M")?;
        ensure!(errno == 0, "its owner is refused: errno {errno}");
        Ok(String::new())
    })?;
    ensure!(found.is_none(), "{found:?}");
    drop(agent);

    let _agent = Agent::start(&["--event-control-mode", "0222"])?;
    ensure!(mode(&our_directory, EVENT_CONTROL)? == 0o222, "the mode requested");
    let found = check_as_user(|| {
        let errno = register_in(&our_directory, USAGE, &Waiter::new()?, "1M")?;
        ensure!(errno == 0, "errno {errno} where all may write");
        Ok(String::new())
    })?;
    ensure!(found.is_none(), "{found:?}");
    // What is kept from readers there is kept from them here.
    fs::set_permissions(ours.usage_file(), Permissions::from_mode(0o600))?;
    ensure!(mode(&our_directory, USAGE)? == 0o400, "the mode follows the real file's");
    let control = File::open(our_directory.join(USAGE))?;
    let found = check_as_user(|| {
        let waiter = Waiter::new()?;
        let line = format!("{} {} 1M", waiter.0.as_raw_fd(), control.as_raw_fd());
        let errno = write_line(&our_directory, line.as_bytes())?;
        ensure!(errno == libc::EACCES, "errno {errno} on a file that is not readable");
        ensure!(errno_of(File::open(our_directory.join(USAGE))) == libc::EACCES, "it was opened");
        Ok(String::new())
    })?;
    ensure!(found.is_none(), "{found:?}");
    Ok(())
}

vm_test!(
    view_open_modes,
    "files open in every mode that clients use, and nothing can be made or removed",
    Any,
    [Kernel, Standing]
);
fn view_open_modes() -> Result<()> {
    let agent = Agent::standing()?;
    let group = Group::new("modes")?;
    let directory = shown(&group.path)?;
    let waiter = Waiter::new()?;
    let options = |flags: i32| {
        let mut options = OpenOptions::new();
        options
            .read(flags & libc::O_ACCMODE != libc::O_WRONLY)
            .write(flags & libc::O_ACCMODE != libc::O_RDONLY);
        options.custom_flags(flags & !libc::O_ACCMODE).mode(0o666);
        options
    };
    let mut registered = 0;
    for more in
        [0, libc::O_TRUNC, libc::O_CREAT, libc::O_CREAT | libc::O_TRUNC, libc::O_NONBLOCK, libc::O_APPEND]
    {
        for access in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
            let open = |name: &str| {
                let file = options(access | more).open(directory.join(name));
                file.with_context(|| format!("{name} with {access:o} and {more:o}"))
            };
            let (control, event_control) = (open(USAGE)?, open(EVENT_CONTROL)?);
            let line = format!("{} {} 1M", waiter.0.as_raw_fd(), control.as_raw_fd());
            match (&event_control).write(line.as_bytes()) {
                Ok(taken) if access != libc::O_RDONLY => {
                    ensure!(taken == line.len(), "{taken} of {line:?}");
                    registered += 1;
                }
                Err(error) if access == libc::O_RDONLY => {
                    ensure!(error.raw_os_error() == Some(libc::EBADF), "{error}");
                }
                other => anyhow::bail!("{access:o} and {more:o}: {other:?}"),
            }
            if access != libc::O_WRONLY {
                ensure!(
                    errno_of((&event_control).read(&mut [0; 8])) == libc::EINVAL,
                    "event_control was read"
                );
                ensure!((&control).read(&mut [0; 32])? > 1, "{access:o} and {more:o}: nothing to read");
            }
            if access != libc::O_RDONLY {
                ensure!(errno_of((&control).write(b"0")) == libc::EINVAL, "usage was written");
            }
        }
    }
    ensure!(agent.status()?.registrations == registered, "{registered} were registered");

    // As a shell writes it.
    let (event, control) =
        (nix::unistd::dup(&waiter.0)?, nix::unistd::dup(&File::open(directory.join(USAGE))?)?);
    let script = format!(
        "echo '{} {} 2M' > {EVENT_CONTROL}; head -n 1 {USAGE}; read line < {USAGE}; echo $line",
        event.as_raw_fd(),
        control.as_raw_fd()
    );
    let shell = Command::new("/bin/busybox").args(["sh", "-c", &script]).current_dir(&directory).output()?;
    let said = String::from_utf8_lossy(&shell.stdout).into_owned();
    ensure!(shell.status.success() && shell.stderr.is_empty(), "{shell:?}");
    ensure!(said.lines().count() == 2 && said.lines().all(|line| line.parse::<u64>().is_ok()), "{said:?}");
    ensure!(agent.status()?.registrations == registered + 1, "the shell's is registered");

    let missing = directory.join("missing");
    let errno = errno_of(File::create(&missing));
    ensure!(errno == libc::EACCES, "a new file: errno {errno}");
    let usage = directory.join(USAGE);
    for (what, outcome) in [
        ("mkdir", fs::create_dir(&missing)),
        ("rmdir", fs::remove_dir(&directory)),
        ("unlink", fs::remove_file(&usage)),
        ("rename", fs::rename(&usage, &missing)),
        ("link", fs::hard_link(&usage, &missing)),
        ("symlink", std::os::unix::fs::symlink(&usage, &missing)),
        ("chmod", fs::set_permissions(&usage, Permissions::from_mode(0o777))),
        ("chown", chown(&usage, Some(1), None)),
    ] {
        ensure!(errno_of(outcome) == libc::EPERM, "{what} was not refused with EPERM");
    }
    Ok(())
}

vm_test!(
    view_reads_are_fresh,
    "an open file is read anew at its start, in pieces it is one text; poll is ready",
    Any,
    [Standing]
);
fn view_reads_are_fresh() -> Result<()> {
    let _agent = Agent::standing()?;
    let group = Group::new("fresh")?;
    let path = shown(&group.path)?.join(USAGE);
    let kept = File::open(&path)?;
    let at_start = || -> Result<String> {
        let mut text = [0; 32];
        let length = kept.read_at(&mut text, 0)?;
        Ok(String::from_utf8_lossy(&text[..length]).into_owned())
    };
    let mut charger = Charger::start(&group)?;
    for _ in 0..3 {
        charger.grow(Kind::Anonymous, 2 * MIB)?;
        same("the open file says what a new one says", || Ok((at_start()?, read(&path)?)))?;
        charger.shrink(Kind::Anonymous)?;
    }
    // Byte by byte, while it changes: one number, that was true at the start.
    let mut slow = File::open(&path)?;
    let mut text = Vec::new();
    let mut byte = [0];
    ensure!(slow.read(&mut byte)? == 1, "the first byte");
    text.push(byte[0]);
    let before = at_start()?;
    charger.grow(Kind::Anonymous, 40 * MIB)?;
    slow.read_to_end(&mut text)?;
    ensure!(String::from_utf8_lossy(&text).len() == before.len(), "{before:?} became {text:?}");
    let mut ready = [PollFd::new(kept.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT)];
    ensure!(poll(&mut ready, PollTimeout::from(60_000u16))? == 1, "poll");
    // Go's runtime does this with each file that it opens.
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    epoll.add(&kept, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 7))?;
    charger.end()
}

vm_test!(
    view_sendfile,
    "sendfile and splice of an open file give its text: with O_DIRECT always, else that or nothing",
    Any,
    [Kernel, Standing]
);
fn view_sendfile() -> Result<()> {
    let _agent = Agent::standing()?;
    let group = Group::new("sent")?;
    let path = shown(&group.path)?.join("memory.limit_in_bytes");
    let text = read(&path)?;
    let mut plain = 0;
    for flags in [libc::O_DIRECT, 0] {
        for is_splice in [false, true] {
            let file = OpenOptions::new().read(true).custom_flags(flags).open(&path)?;
            // Twice from one open file: what was sent once is not kept.
            for round in 0..2 {
                let sent = sent(&file, is_splice)?;
                let nothing = flags == 0 && sent.is_empty();
                ensure!(
                    sent == text || nothing,
                    "flags {flags:o}, splice: {is_splice}, round {round}: {sent:?} instead of {text:?}"
                );
                plain += usize::from(flags == 0 && !nothing);
            }
        }
    }
    say!("without O_DIRECT {plain} of 4 gave the text");
    Ok(())
}

/// Reads a file from its start on by `sendfile`, or `splice`.
fn sent(file: &File, is_splice: bool) -> Result<String> {
    let (mut reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let (from, to) = (file.as_raw_fd(), writer.as_raw_fd());
    let mut offset = 0;
    loop {
        let moved = if is_splice {
            // SAFETY: the offset outlives the call; no offset for a pipe.
            unsafe { libc::splice(from, &raw mut offset, to, std::ptr::null_mut(), 4096, 0) }
        } else {
            // SAFETY: the offset outlives the call.
            unsafe { libc::sendfile(to, from, &raw mut offset, 4096) }
        };
        match Errno::result(moved).context("cannot move a file's text")? {
            0 => break,
            _ => continue,
        }
    }
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text)?;
    Ok(text)
}
