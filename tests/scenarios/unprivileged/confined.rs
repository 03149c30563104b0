//! Rights that the agent has given up by the time that it is ready.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use memcg_monitor::sandbox::{self, Sandbox, seccomp};
use memcg_monitor::view::POINT;
use monitor_client::SOCKET;
use monitor_common::grammar::control_file::ControlFile;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::process::{self, Process, USER};
use crate::harness::test::vm_test;

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().trim_start_matches(':').trim().to_owned()
}

const LOOP: u64 = 1 << 19 | 1 << 2;
const VIEW: u64 = 1 << 2;
const UNMOUNTER: u64 = 1 << 21;

vm_test!(
    unprivileged_rights_of_each_thread,
    "a ready agent's threads have the capabilities that they need, no_new_privs and seccomp",
    Any,
    [Kernel]
);
fn unprivileged_rights_of_each_thread() -> Result<()> {
    let agent = Agent::start(&[])?;
    let has = |status: &str, wanted: u64| -> Result<()> {
        let name = field(status, "Name");
        for set in ["CapEff", "CapPrm"] {
            let found = u64::from_str_radix(&field(status, set), 16)?;
            ensure!(found == wanted, "{name}: {set} {found:#x} instead of {wanted:#x}");
        }
        for set in ["CapInh", "CapBnd", "CapAmb"] {
            ensure!(u64::from_str_radix(&field(status, set), 16)? == 0, "{name} has something in {set}");
        }
        let found = (field(status, "NoNewPrivs"), field(status, "Seccomp"));
        ensure!(found == ("1".into(), "2".into()), "{name}: NoNewPrivs and Seccomp are {found:?}");
        Ok(())
    };
    let mut names = Vec::new();
    for thread in fs::read_dir(format!("/proc/{}/task", agent.pid()))?.flatten() {
        let status = fs::read_to_string(thread.path().join("status"))?;
        let name = field(&status, "Name");
        let wanted = match name.as_str() {
            name if name.starts_with("fuser") => VIEW,
            name if name.starts_with("closer") => 0,
            _ => LOOP,
        };
        has(&status, wanted)?;
        names.push(name);
    }
    for kind in ["memcg-monitor", "fuser", "closer", "task-lists"] {
        ensure!(names.iter().any(|name| name.starts_with(kind)), "no thread {kind} among {names:?}");
    }
    let children = agent.children()?;
    ensure!(children.len() == 1, "it has children {children:?}");
    has(&fs::read_to_string(format!("/proc/{}/status", children[0]))?, UNMOUNTER)?;
    ensure!(sandbox::landlock::available().is_ok(), "this kernel has no Landlock");
    let log = Agent::log();
    ensure!(log.contains("Landlock is on"), "Landlock is not on: {log}");
    // Threads that start later are born with the same.
    ensure!(agent.end(Signal::SIGTERM)? == 0 && !Path::new(POINT).exists(), "it ends as any other");
    Ok(())
}

/// How a child that was confined, and then did this, ended.
fn confined(attempt: impl FnOnce() -> Result<()>) -> Result<(WaitStatus, String)> {
    let process = Process::start(|| {
        sandbox::agent(Sandbox::On, false, Default::default());
        attempt()
    })?;
    process.wait()
}

vm_test!(
    unprivileged_calls_refused,
    "what a captured agent would call fails, or ends it",
    Any,
    [Kernel, Variant, Quick]
);
fn unprivileged_calls_refused() -> Result<()> {
    // SAFETY: each takes numbers, or a null pointer that the kernel is never let read.
    let refused = |call: libc::c_long, arguments: [u64; 3]| -> Result<()> {
        // SAFETY: as above.
        let result = unsafe { libc::syscall(call, arguments[0], arguments[1], arguments[2]) };
        let outcome = Errno::result(result);
        ensure!(outcome == Err(Errno::EPERM), "call {call}: {outcome:?}");
        Ok(())
    };
    let (status, why) = confined(|| {
        for outcome in [File::create("/run/made"), OpenOptions::new().write(true).open("/dev/null")] {
            let errno = outcome.err().and_then(|error| error.raw_os_error());
            ensure!(errno == Some(libc::EPERM), "opened for writing: {errno:?}");
        }
        let number = |number: i32| number as u64;
        refused(libc::SYS_socket, [number(libc::AF_INET), number(libc::SOCK_STREAM), 0])?;
        refused(libc::SYS_clone, [number(libc::SIGCHLD), 0, 0])?;
        refused(libc::SYS_kill, [number(nix::unistd::getppid().as_raw()), 0, 0])?;
        // BPF_PROG_LOAD and BPF_MAP_CREATE
        refused(libc::SYS_bpf, [5, 0, 0])?;
        refused(libc::SYS_bpf, [0, 0, 0])?;
        refused(libc::SYS_mmap, [0, 4096, number(libc::PROT_READ | libc::PROT_EXEC)])?;
        refused(libc::SYS_fchmodat, [0, 0, 0])?;
        refused(libc::SYS_umount2, [0, 0, 0])?;
        refused(libc::SYS_capset, [0, 0, 0])?;
        ensure!(File::open("/proc/meminfo").is_ok(), "reading is allowed");
        // Threads may start; processes may not.
        ensure!(std::thread::spawn(|| 7).join().is_ok_and(|seven| seven == 7), "a thread");
        Ok(())
    })?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}: {why}");
    for (what, call) in [
        ("execve", libc::SYS_execve),
        ("ptrace", libc::SYS_ptrace),
        ("mount", libc::SYS_mount),
        ("finit_module", libc::SYS_finit_module),
    ] {
        let (status, _) = confined(|| refused(call, [0, 0, 0]))?;
        ensure!(matches!(status, WaitStatus::Signaled(_, Signal::SIGSYS, _)), "{what}: {status:?}");
    }
    Ok(())
}

/// Lines of the kernel's log about system calls.
fn kernel_log() -> Result<Vec<String>> {
    use std::os::unix::fs::OpenOptionsExt;
    let log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    let mut found = Vec::new();
    let mut line = [0; 8192];
    while let Ok(length) = nix::unistd::read(&log, &mut line) {
        let text = String::from_utf8_lossy(&line[..length]);
        if text.contains("type=1326") {
            found.push(text.trim().to_owned());
        }
    }
    Ok(found)
}

vm_test!(
    unprivileged_calls_measured,
    "an agent in use calls nothing that is not on its list, by the kernel's log",
    Any,
    [Kernel, Variant]
);
fn unprivileged_calls_measured() -> Result<()> {
    fs::write("/proc/sys/kernel/printk_ratelimit", "0")?;
    // What the kernel would say is seen here.
    let child = Process::start(|| {
        seccomp::restrict(&seccomp::Set::unmounter(), Sandbox::Warn)?;
        nix::unistd::gethostname().map(drop)?;
        nix::sys::utsname::uname().map(drop)?;
        Ok(())
    })?;
    let number = child.pid();
    child.end()?;
    until("the kernel logs a call that is not on a list", || {
        Ok(kernel_log()?.iter().any(|line| line.contains(&format!("pid={number} "))))
    })
    .with_context(|| format!("{:?}", kernel_log()))?;

    let agent = Agent::start(&["--sandbox", "warn"])?;
    let group = Group::new("measured")?;
    let mut charger = Charger::start(&group)?;
    let waiter = Waiter::on(&group, "4M")?;
    for (file, args) in [
        (ControlFile::Usage, "1%"),
        (ControlFile::Memsw, "1M"),
        (ControlFile::WorkingSet, "1M"),
        (ControlFile::Oom, ""),
        (ControlFile::Pressure, "low"),
        (ControlFile::Procs, ""),
    ] {
        Waiter::at(&group, file, args).with_context(|| format!("{file:?}"))?;
    }
    let root = Group::root()?;
    let sampled = Waiter::at(&root, ControlFile::Usage, "64M")?;
    let directory = Path::new(POINT).join("measured");
    for entry in fs::read_dir(&directory)?.flatten() {
        let _ = fs::read(entry.path());
    }
    process::run_as(USER, || {
        let _ = fs::read(directory.join("memory.stat"));
        Ok(())
    })?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    ensure!(waiter.wait()? == 1, "it is signalled");
    let _ = crate::scenarios::abuse::fails(&["list"], |_| {})?;
    let _ = crate::scenarios::abuse::fails(&["listen", "-o", "json", "/nowhere", "1M"], |_| {})?;
    agent.settle()?;
    drop(sampled);
    charger.end()?;
    group.remove()?;
    ensure!(waiter.wait()? == 1, "and is signalled at the end");
    let pid = agent.pid();
    ensure!(agent.end(Signal::SIGTERM)? == 0, "it ends as any other");
    let lines: Vec<_> =
        kernel_log()?.into_iter().filter(|line| line.contains(&format!("pid={pid} "))).collect();
    ensure!(lines.is_empty(), "not on the list: {lines:?}");
    Ok(())
}

const AGENTS_USER: u32 = 990;

/// An agent without root, ended with its value.
struct Own(Child);

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

vm_test!(
    unprivileged_own_user,
    "the agent runs as a user of its own with the capabilities that README.md names",
    Any,
    []
);
fn unprivileged_own_user() -> Result<()> {
    let directory = Path::new(SOCKET).parent().context("no directory")?;
    fs::create_dir_all(directory)?;
    // What killed agents left there, too.
    for path in fs::read_dir(directory)?.flatten().map(|entry| entry.path()).chain([directory.to_owned()]) {
        // Where an agent was killed with its unmounter, no process answers there.
        let _ = nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH);
        std::os::unix::fs::chown(path, Some(AGENTS_USER), Some(AGENTS_USER))?;
    }
    // As `AmbientCapabilities=` of a unit: CAP_BPF, CAP_PERFMON, CAP_SYS_RESOURCE,
    // CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN.
    const CAPABILITIES: [u32; 6] = [39, 38, 24, 19, 2, 21];
    // As udev leaves it.
    fs::set_permissions("/dev/fuse", std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    let log = File::create("/run/own.log")?;
    let mut command = Command::new(crate::harness::agent::BINARY);
    command.args(["-v", "agent"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    // SAFETY: only system calls.
    unsafe { command.pre_exec(|| as_agents_user(&CAPABILITIES)) };
    let mut own = Own(command.spawn()?);
    let said = || fs::read_to_string("/run/own.log").unwrap_or_default();
    let group = Group::new("own")?;
    until("it is ready", || {
        ensure!(own.0.try_wait()?.is_none(), "it ended: {}", said());
        Ok(said().contains("ready:"))
    })?;
    let mut charger = Charger::start(&group)?;
    let waiter = Waiter::on(&group, "4M")?;
    let file = Path::new(POINT).join("own/memory.stat");
    fs::read(&file).with_context(|| format!("{} cannot be read: {}", file.display(), said()))?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    ensure!(waiter.wait()? == 1, "it is signalled");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(own.0.id())?);
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(u64::from_str_radix(&field(&status, "CapEff"), 16)? == LOOP, "its rights: {status}");
    nix::sys::signal::kill(pid, Signal::SIGTERM)?;
    let ended = own.0.wait()?;
    std::os::unix::fs::chown(directory, Some(0), Some(0))?;
    ensure!(ended.success() && !Path::new(POINT).exists(), "{ended}: {}", said());
    Ok(())
}

fn as_agents_user(capabilities: &[u32]) -> std::io::Result<()> {
    let all = capabilities.iter().fold(0_u64, |all, one| all | 1 << one);
    nix::sys::prctl::set_keepcaps(true)?;
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(AGENTS_USER.into(), AGENTS_USER.into(), AGENTS_USER.into())?;
    nix::unistd::setresuid(AGENTS_USER.into(), AGENTS_USER.into(), AGENTS_USER.into())?;
    // struct __user_cap_header_struct, version 3, and two of __user_cap_data_struct.
    let header = [0x2008_0522_u32, 0];
    let (low, high) = (all as u32, (all >> 32) as u32);
    let data = [low, low, low, high, high, high];
    // SAFETY: laid out as the kernel's, which reads them.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) })?;
    for one in capabilities {
        let (option, raise) = (libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE);
        // SAFETY: takes numbers.
        Errno::result(unsafe { libc::prctl(option, raise, u64::from(*one), 0_u64, 0_u64) })?;
    }
    Ok(())
}
