//! Bad registrations, and odd ones that are good: the same errno from the
//! kernel's `cgroup.event_control` and from us.
//!
//! Left out: a write of no bytes, which the kernel takes for nothing; on a socket
//! it is no packet to answer.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::Version;
use monitor_common::grammar::line::MAX_LINE;
use monitor_common::grammar::threshold::{ACCEPTED, REFUSED};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::unistd::pipe;

use super::book::Book;
use crate::harness::agent::Agent;
use crate::harness::client::{agent_errno, kernel_errno};
use crate::harness::group::Group;
use crate::harness::process::check_as_user;
use crate::harness::test::vm_test;

const OK: i32 = 0;
const EBADF: i32 = libc::EBADF;
const EACCES: i32 = libc::EACCES;
const EINVAL: i32 = libc::EINVAL;

/// A case: its title, the line with names of descriptors in it, and the errno.
pub(crate) type Row = (&'static str, &'static str, i32);

/// `{e}` and `{c}` are as they should be; the others are made in `Fixture::new`.
pub(crate) const GRAMMAR: &[Row] = &[
    ("a registration", "{e} {c} 1M", OK),
    ("trailing newline", "{e} {c} 1M\n", OK),
    ("trailing NUL", "{e} {c} 1M\0", OK),
    ("all after NUL ignored", "{e} {c} 1M\0 junk", OK),
    ("white space around", " \t{e} {c} 1M \t\n\u{b}\u{c}\r", OK),
    ("byte A0 around", "{A0}{e} {c} 1M{A0}", OK),
    ("no arguments", "{e} {c}", OK),
    ("no arguments, a space", "{e} {c} ", OK),
    ("no arguments, NUL", "{e} {c}\0 x", OK),
    ("leading zeros", "000{e} 00{c} 1M", OK),
    ("32 bits overflow", "{e+2^32} {c} 1M", OK),
    ("64 bits overflow", "{e+2^64} {c+2^64} 1M", OK),
    ("no digits are 0, which is a control file here", "{e}  1M", OK),
    ("double space: the second number is an argument", "{e}  {c} 1M", EINVAL),
    ("double space before arguments", "{e} {c}  1M", EINVAL),
    ("blank", " \n", EINVAL),
    ("nothing before NUL", "\0{e} {c} 1M", EINVAL),
    ("one number", "{e}", EINVAL),
    ("one number, a space", "{e} ", EINVAL),
    ("tab", "{e}\t{c} 1M", EINVAL),
    ("tab before arguments", "{e} {c}\t1M", EINVAL),
    ("comma", "{e},{c},1M", EINVAL),
    ("comma before arguments", "{e} {c},1M", EINVAL),
    ("minus", "-{e} {c} 1M", EINVAL),
    ("plus", "+{e} {c} 1M", EINVAL),
    ("hexadecimal", "0x{e} {c} 1M", EINVAL),
    ("a letter", "{e}x {c} 1M", EINVAL),
    ("second number: minus", "{e} -{c} 1M", EINVAL),
    ("second number: plus", "{e} +{c} 1M", EINVAL),
    ("second number: hexadecimal", "{e} 0x{c} 1M", EINVAL),
    ("second number: a letter", "{e} {c}x 1M", EINVAL),
    ("words", "event control 1M", EINVAL),
];

pub(crate) const DESCRIPTORS: &[Row] = &[
    ("control file opened for writing only", "{e} {write-only} 1M", OK),
    ("no such eventfd", "{closed} {c} 1M", EBADF),
    ("no such eventfd, as a negative number", "4294967295 {c} 1M", EBADF),
    ("no such eventfd, out of any range", "99999999999999999999999 {c} 1M", EBADF),
    ("no such control file", "{e} {closed} 1M", EBADF),
    ("neither", "{closed} {closed} 1M", EBADF),
    ("O_PATH eventfd", "{e-path} {c} 1M", EBADF),
    ("O_PATH control file", "{e} {c-path} 1M", EBADF),
    ("/dev/null is no eventfd", "{null} {c} 1M", EINVAL),
    ("a pipe is no eventfd", "{pipe} {c} 1M", EINVAL),
    ("a control file is no eventfd", "{c} {c} 1M", EINVAL),
    ("an eventfd is no control file", "{e} {e} 1M", EINVAL),
    ("/dev/null is no control file", "{e} {null} 1M", EINVAL),
    ("a file of the same name elsewhere", "{e} {namesake} 1M", EINVAL),
    ("the group's directory", "{e} {directory} 1M", EINVAL),
    ("a file that notifies nothing", "{e} {limit} 1M", EINVAL),
    ("a file of the group's processes", "{e} {procs} 1M", EINVAL),
    ("a removed group's", "{e} {gone} 1M", EINVAL),
    // Which check comes first.
    ("grammar before eventfd", "{closed} {c}x 1M", EINVAL),
    ("eventfd before control file", "{null} {closed} 1M", EINVAL),
    ("closed eventfd before wrong control file", "{closed} {null} 1M", EBADF),
    ("closed eventfd before arguments", "{closed} {c} x", EBADF),
    ("closed control file before arguments", "{e} {closed} x", EBADF),
    ("O_PATH control file before arguments", "{e} {c-path} x", EBADF),
    ("wrong control file before arguments", "{e} {null} x", EINVAL),
];

/// Cases of a user without rights; descriptors were opened by root.
pub(crate) const NOBODY: &[Row] = &[
    ("may read the control file", "{e} {c} 1M", OK),
    ("may read it, though it was opened for writing only", "{e} {write-only} 1M", OK),
    ("may not read the control file", "{e} {private} 1M", EACCES),
    ("eventfd before permission", "{closed} {private} 1M", EBADF),
    ("not an eventfd before permission", "{null} {private} 1M", EINVAL),
    ("permission before the kind of file", "{e} {private-file} 1M", EACCES),
    ("permission before arguments", "{e} {private} x", EACCES),
    ("wrong kind of file that may be read", "{e} {namesake} 1M", EINVAL),
];

vm_test!(
    conformance_errno,
    "every bad registration gets the kernel's errno (cgroup v1: from the kernel, too)",
    Any,
    [Oracle]
);
fn conformance_errno() -> Result<()> {
    let fixture = Fixture::new()?;
    let mut wrong = Vec::new();
    for (what, line, errno) in GRAMMAR.iter().chain(DESCRIPTORS) {
        wrong.extend(fixture.compare(what, &fixture.fill(line)?, *errno)?);
    }
    for (args, _) in ACCEPTED {
        let line = fixture.fill(&format!("{{e}} {{c}} {args}"))?;
        wrong.extend(fixture.compare(&format!("threshold {args:?}"), &line, OK)?);
    }
    // White space at the line's end is trimmed before the arguments are looked at.
    for args in REFUSED.iter().filter(|args| args.trim_ascii_end() == **args) {
        let line = fixture.fill(&format!("{{e}} {{c}} {args}"))?;
        wrong.extend(fixture.compare(&format!("threshold {args:?}"), &line, EINVAL)?);
    }
    let mut line = fixture.fill("{e} {c} 1M")?;
    line.resize(MAX_LINE, b' ');
    wrong.extend(fixture.compare("a line of one page", &line, OK)?);
    line.push(b' ');
    wrong.extend(fixture.compare("a line longer than a page", &line, libc::E2BIG)?);
    wrong.extend(check_as_user(|| {
        let mut wrong = Vec::new();
        for (what, line, errno) in NOBODY {
            wrong.extend(fixture.compare(&format!("nobody: {what}"), &fixture.fill(line)?, *errno)?);
        }
        Ok(wrong.join("; "))
    })?);
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

/// Descriptors of all kinds, by name.
pub(crate) struct Fixture {
    names: Vec<(&'static str, OwnedFd)>,
    /// A descriptor number that names nothing.
    closed: i32,
    pub(crate) group: Group,
    _private: Group,
    _agent: Agent,
}

impl Fixture {
    fn new() -> Result<Self> {
        Self::on(&["--socket-mode", "0666"], |group| group.path.clone(), None)
    }

    /// Makes a fixture with an agent of these options, and control files in the directory that
    /// `shown` names for a group, and v1's names for them where `version` says so.
    pub(crate) fn on(
        options: &[&str],
        shown: impl Fn(&Group) -> PathBuf,
        version: Option<Version>,
    ) -> Result<Self> {
        let agent = Agent::start(options)?;
        let group = Group::new("errno")?;
        let private = Group::new("private")?;
        let gone = Group::new("gone")?;
        let version = version.unwrap_or(group.version);
        let usage = shown(&group).join(version.usage_file());
        let namesake = Path::new("/run").join(version.usage_file());
        fs::write(&namesake, "0\n").with_context(|| format!("cannot write {}", namesake.display()))?;
        let private_file = Path::new("/run/private");
        fs::write(private_file, "0\n").context("cannot write /run/private")?;
        for path in [private_file, &private.usage_file()] {
            fs::set_permissions(path, Permissions::from_mode(0o600))
                .with_context(|| format!("cannot change the mode of {}", path.display()))?;
        }

        let open = |path: &Path| -> Result<OwnedFd> {
            Ok(File::open(path).with_context(|| format!("cannot open {}", path.display()))?.into())
        };
        let path_only = |path: &Path| -> Result<OwnedFd> {
            let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
            Ok(file.with_context(|| format!("cannot open {} with O_PATH", path.display()))?.into())
        };
        let limit = match version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        let event: OwnedFd = EventFd::new().context("eventfd failed")?.into();
        let event_path = path_only(Path::new(&format!("/proc/self/fd/{}", event.as_raw_fd())))?;
        let (pipe_end, _) = pipe().context("cannot make a pipe")?;
        let write_only = OpenOptions::new().write(true).open(&usage).context("cannot open it for writing")?;
        let names = vec![
            ("e", event),
            ("c", open(&usage)?),
            ("e-path", event_path),
            ("c-path", path_only(&usage)?),
            ("write-only", write_only.into()),
            ("null", open(Path::new("/dev/null"))?),
            ("pipe", pipe_end),
            ("namesake", open(&namesake)?),
            ("directory", open(&shown(&group))?),
            ("limit", open(&shown(&group).join(limit))?),
            ("procs", open(&shown(&group).join("cgroup.procs"))?),
            ("gone", open(&shown(&gone).join(version.usage_file()))?),
            ("private", open(&shown(&private).join(version.usage_file()))?),
            ("private-file", open(private_file)?),
        ];
        gone.remove()?;
        // Zero digits name descriptor 0.
        nix::unistd::dup2_stdin(names[1].1.as_fd()).context("dup2 failed")?;
        let closed = 1 + names.iter().map(|(_, fd)| fd.as_raw_fd()).max().unwrap_or(0) + 100;
        Ok(Self { names, closed, group, _private: private, _agent: agent })
    }

    /// The line with numbers for names; a sum wraps in the kernel.
    pub(crate) fn fill(&self, line: &str) -> Result<Vec<u8>> {
        let mut line = line.replace("{closed}", &self.closed.to_string());
        for (name, fd) in &self.names {
            let number = fd.as_raw_fd();
            line = line.replace(&format!("{{{name}}}"), &number.to_string());
            for bits in [32, 64] {
                let sum = u128::try_from(number)? + (1 << bits);
                line = line.replace(&format!("{{{name}+2^{bits}}}"), &sum.to_string());
            }
        }
        // One byte, which no string holds.
        let mut bytes = Vec::new();
        for (place, part) in line.split("{A0}").enumerate() {
            if place > 0 {
                bytes.push(0xa0);
            }
            bytes.extend_from_slice(part.as_bytes());
        }
        ensure!(!bytes.contains(&b'{'), "{line:?} names no descriptor that there is");
        Ok(bytes)
    }

    /// Says what is wrong with the answers to a line, if anything.
    fn compare(&self, what: &str, line: &[u8], expected: i32) -> Result<Option<String>> {
        let shown = || line.escape_ascii().to_string().chars().take(60).collect::<String>();
        let ours = agent_errno(line).with_context(|| format!("{what}: no answer to {}", shown()))?;
        let kernel = match self.group.version {
            Version::V1 => kernel_errno(&self.group.path, line),
            Version::V2 => expected,
        };
        if self.group.version == Version::V1 {
            Book::default().row(&format!("errno: {what}"), &named(kernel), &named(ours), None);
        }
        let right = ours == expected && kernel == expected;
        Ok((!right).then(|| {
            format!("{what} ({}): expected {expected}, ours {ours}, the kernel's {kernel}", shown())
        }))
    }
}

/// An errno by its name.
pub(crate) fn named(errno: i32) -> String {
    if errno == 0 { "0".to_owned() } else { format!("{:?}", Errno::from_raw(errno)) }
}
