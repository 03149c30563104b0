//! Random lines at the kernel's own `cgroup.event_control`, and through our parsers:
//! the same verdict, the same errno. No agent: one system call for a line.

mod lines;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{Context, Result, ensure};
use monitor_common::grammar::control_file::{self, ControlFile, Trigger};
use monitor_common::grammar::line::{self, LineError};
use monitor_common::grammar::threshold;
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::unistd::dup2;

use super::errno::named;
use crate::harness::client::page;
use crate::harness::group::Group;
use crate::harness::report::say;
use crate::harness::test::vm_test;
use lines::Lines;

/// Enough for each form and each mutation many times over.
const SHORT: u64 = 20_000;
/// Lines between two words of progress.
const PROGRESS: u64 = 50_000;
/// Registrations on one eventfd before it is closed: each one more costs the kernel a
/// longer table.
const HELD: u32 = 64;

vm_test!(
    conformance_grammar_differential,
    "random lines get the same verdict and errno from the kernel's parser and ours",
    V1,
    [Oracle]
);
fn conformance_grammar_differential() -> Result<()> {
    super::seeded(|seed| run(SHORT, seed))
}

/// Kinds of descriptors by the kernel's checks, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Eventfd,
    Control(ControlFile),
    /// Open for no use: counts as closed.
    PathOnly,
    Other,
}

/// Compares so many lines.
pub(crate) fn run(lines: u64, seed: u64) -> Result<()> {
    // Each registered threshold waits for the kernel's readers.
    fs::write("/sys/kernel/rcu_expedited", "1").context("cannot hurry the kernel's RCU")?;
    let group = Group::new("grammar")?;
    let mut bench = Bench::new(&group)?;
    let mut random = Lines::new(seed, &bench.kinds);
    let mut verdicts: HashMap<i32, u64> = HashMap::new();
    let (mut ours_only, mut differing) = (0, Vec::new());
    for count in 1..=lines {
        let line = random.next();
        let (ours, is_ours) = bench.ours(&line);
        let kernel = bench.kernel(&line)?;
        *verdicts.entry(kernel).or_default() += 1;
        ours_only += u64::from(is_ours);
        if ours != kernel {
            let shown = line.escape_ascii().to_string().chars().take(200).collect::<String>();
            differing.push(format!("`{shown}`: ours {}, the kernel's {}", named(ours), named(kernel)));
        }
        ensure!(differing.len() < 10, "seed {seed:#x}: {}", differing.join("; "));
        if count % PROGRESS == 0 {
            say!("{count} lines, {} differ", differing.len());
        }
    }
    ensure!(differing.is_empty(), "seed {seed:#x}: {}", differing.join("; "));
    let mut verdicts: Vec<_> = verdicts.into_iter().collect();
    verdicts.sort_unstable();
    let shown: Vec<_> = verdicts.iter().map(|(errno, count)| format!("{} {count}", named(*errno))).collect();
    say!(
        "{lines} lines, seed {seed:#x}, no difference: {}; {ours_only} of the EINVAL are what ours takes beyond",
        shown.join(", ")
    );
    for (errno, at_least) in [(0, 50), (libc::EINVAL, 2), (libc::EBADF, 50), (libc::E2BIG, 1000)] {
        let seen = verdicts.iter().find(|(seen, _)| *seen == errno).map_or(0, |(_, count)| *count);
        ensure!(seen >= lines / at_least, "{} only {seen} times: the lines are no good", named(errno));
    }
    Ok(())
}

/// The descriptors that lines name, and the file that they are written to.
struct Bench {
    event_control: File,
    event: OwnedFd,
    kinds: HashMap<u32, Kind>,
    held: u32,
    _open: Vec<OwnedFd>,
}

impl Bench {
    fn new(group: &Group) -> Result<Self> {
        let at = |name: &str| group.path.join(name);
        let open = |name: &str| File::open(at(name)).with_context(|| format!("cannot open {name}"));
        let path_only = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(group.usage_file())
            .context("cannot open it with O_PATH")?;
        let event_control = OpenOptions::new()
            .write(true)
            .open(at("cgroup.event_control"))
            .context("cannot open cgroup.event_control")?;
        let event: OwnedFd = EventFd::new().context("eventfd failed")?.into();
        let named = [
            (open("memory.usage_in_bytes")?, Kind::Control(ControlFile::Usage)),
            (open("memory.memsw.usage_in_bytes")?, Kind::Control(ControlFile::Memsw)),
            (open("memory.oom_control")?, Kind::Control(ControlFile::Oom)),
            (open("memory.pressure_level")?, Kind::Control(ControlFile::Pressure)),
            (path_only, Kind::PathOnly),
            (open("memory.stat")?, Kind::Other),
            (open("cgroup.procs")?, Kind::Other),
            (open("")?, Kind::Other),
        ];
        let number = |fd: i32| u32::try_from(fd).context("descriptors are positive");
        // Whatever else this process has open, a line may name it, too.
        let mut kinds = HashMap::new();
        for entry in fs::read_dir("/proc/self/fd").context("cannot list descriptors")? {
            let name = entry?.file_name();
            let fd: u32 = name.to_string_lossy().parse().context("descriptors are numbers")?;
            kinds.insert(fd, Kind::Other);
        }
        // The one that listed them is closed by now.
        kinds.retain(|fd, _| fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok());
        kinds.insert(number(event.as_raw_fd())?, Kind::Eventfd);
        let mut open = Vec::new();
        for (file, kind) in named {
            kinds.insert(number(file.as_raw_fd())?, kind);
            open.push(file.into());
        }
        Ok(Self { event_control, event, kinds, held: 0, _open: open })
    }

    /// The errno by our parsers and the order of checks; and whether it is one that we
    /// would take, the kernel not.
    fn ours(&self, line: &[u8]) -> (i32, bool) {
        let line = match line::parse(line) {
            Ok(line) => line,
            Err(LineError::Empty) => return (0, false),
            Err(error) => return (error.errno(), false),
        };
        match self.kinds.get(&line.event_fd) {
            Some(Kind::Eventfd) => {}
            None | Some(Kind::PathOnly) => return (libc::EBADF, false),
            Some(_) => return (libc::EINVAL, false),
        }
        let file = match self.kinds.get(&line.control_fd) {
            Some(Kind::Control(file)) => *file,
            None | Some(Kind::PathOnly) => return (libc::EBADF, false),
            Some(_) => return (libc::EINVAL, false),
        };
        match control_file::parse(file, line.args, page()) {
            Ok(Trigger::Threshold(_)) => {
                let plain = threshold::parse_threshold(line.args, page());
                plain.map_or_else(|error| (error.errno(), true), |_| (0, false))
            }
            Ok(_) => (0, false),
            Err(error) => (error.errno(), false),
        }
    }

    /// The kernel's errno for a line.
    fn kernel(&mut self, line: &[u8]) -> Result<i32> {
        match nix::unistd::write(&self.event_control, line) {
            Ok(written) => {
                ensure!(written == line.len(), "{written} of {} bytes written", line.len());
                self.held += u32::from(written > 0);
                if self.held >= HELD {
                    self.held = 0;
                    // With the last reference go its registrations.
                    let fresh = EventFd::new().context("eventfd failed")?;
                    dup2(fresh.as_fd(), &mut self.event).context("dup2 failed")?;
                }
                Ok(0)
            }
            Err(errno) => {
                ensure!(errno != Errno::ENOMEM, "the guest is out of memory");
                Ok(errno as i32)
            }
        }
    }
}
