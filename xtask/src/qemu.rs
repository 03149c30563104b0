//! Runs QEMU: its command line, its two serial lines, and when to give up.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::{Context, Result, ensure};

use crate::apt;
use crate::arch::Arch;
use crate::process::{self, command, end_with_parent};
use crate::setup::{self, Need};

/// The emulator of an architecture.
const fn program(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "qemu-system-x86_64",
        Arch::Arm64 => "qemu-system-aarch64",
    }
}

/// Returns the oldest version that will do.
const fn oldest(arch: Arch) -> (u32, u32) {
    match arch {
        // Older ones run code that the kernel has replaced: one of their threads may
        // translate a page while another writes it.
        Arch::Amd64 => (8, 1),
        // The first whose machine has a second serial line.
        Arch::Arm64 => (9, 1),
    }
}

/// The marks on the kernel's console after which the guest will not go on by itself.
const FATAL: [&str; 7] = [
    "Kernel panic",
    "BUG: soft lockup",
    "BUG: unable to handle",
    " [#1]",
    "detected stall",
    "blocked for more than",
    "Unable to mount root fs",
];

/// The emulator counts each turn of a `rep` instruction. Without these two the kernel
/// clears and copies by the word, not by the byte: 512 instructions for a page, which is
/// nearer to its price on a real processor than 4096.
const COUNTED_CPU: &str = "max,-erms,-fsrm";

/// The processor that the emulator makes most of. arm64's pointers are signed by an
/// algorithm of the emulator's own, which is a fraction of the work of the architecture's.
const fn default_cpu(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "max",
        Arch::Arm64 => "max,pauth-impdef=on",
    }
}

/// The emulator that runs the kernels of an architecture, new enough, and xz for their
/// modules.
#[derive(Debug)]
pub(crate) struct Qemu(pub(crate) Arch);

impl Need for Qemu {
    fn name(&self) -> &'static str {
        program(self.0)
    }

    fn find(&self) -> Result<String> {
        let xz = setup::programs(&["xz"])?;
        let (program, oldest) = (program(self.0), oldest(self.0));
        let text = process::output(command(program).arg("--version"))?;
        let version =
            parse_version(&text).with_context(|| format!("{program} --version prints no version"))?;
        let (major, minor) = version;
        ensure!(
            version >= oldest,
            "{program} is {major}.{minor}; {}.{} is the oldest that runs the test VM",
            oldest.0,
            oldest.1
        );
        Ok(format!("{program} {major}.{minor} and {xz}"))
    }

    fn fetch(&self) -> Result<()> {
        apt::install(&["xz-utils"])?;
        // A stable release's own may be older than what is needed.
        let package = match self.0 {
            Arch::Amd64 => "qemu-system-x86",
            Arch::Arm64 => "qemu-system-arm",
        };
        apt::install_backports(&[package]).or_else(|_| apt::install(&[package]))
    }
}

/// A machine to start.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) arch: Arch,
    /// A processor by the emulator's name; None: one with all that it can do.
    pub(crate) cpu: Option<&'a str>,
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) parameters: String,
    pub(crate) processors: Processors,
    pub(crate) memory: &'static str,
    /// The raw image of a disk; writes go to a copy that ends with the machine.
    pub(crate) disk: Option<&'a Path>,
}

/// How the machine's processors are emulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Processors {
    /// Side by side, as real ones; by KVM where `MEMCG_VM_ACCEL=kvm`.
    Two,
    /// A single one, with a clock of one nanosecond per instruction.
    Counted,
}

/// The serial line that a text came on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// The first: the kernel's messages.
    Console,
    /// The second: the guest's first process, unmixed with the kernel's messages.
    Report,
}

/// How long to wait before ending QEMU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) total: Duration,
    /// The longest time without a word on either line.
    pub(crate) silence: Duration,
}

/// Why the machine is no longer running.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    PoweredOff,
    /// The kernel wrote one of the fatal marks.
    Fatal(String),
    TooLong(Duration),
    Silent(Duration),
    Failed(ExitStatus),
}

/// Runs the machine to its end, handing over each line as it comes.
pub(crate) fn run(machine: &Machine<'_>, limits: Limits, on_line: &mut dyn FnMut(Line, &str)) -> Result<End> {
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair for QEMU")?;
    let mut command = machine.command();
    command.args(["-serial", "stdio", "-chardev"]);
    command.arg(format!("socket,id=report,fd={}", theirs.as_raw_fd()));
    command.args(["-serial", "chardev:report"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    inherit(&mut command, OwnedFd::from(theirs));
    let mut guard = Guard(start(&mut command, machine.arch)?);
    drop(command);

    let (sender, lines) = mpsc::channel();
    let stdout = guard.0.stdout.take().context("QEMU's stdout is a pipe")?;
    read_lines(Line::Console, stdout, sender.clone());
    read_lines(Line::Report, ours, sender);

    let deadline = Instant::now() + limits.total;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(limits.silence.min(left)) {
            Ok((line, text)) => {
                on_line(line, &text);
                let Some(end) = fatal(line, &text) else { continue };
                // What follows shows the place: registers, call trace.
                let more = Instant::now() + Duration::from_secs(2);
                while let Ok((line, text)) =
                    lines.recv_timeout(more.saturating_duration_since(Instant::now()))
                {
                    on_line(line, &text);
                }
                return Ok(end);
            }
            Err(RecvTimeoutError::Timeout) if left.is_zero() || left < limits.silence => {
                return Ok(End::TooLong(limits.total));
            }
            Err(RecvTimeoutError::Timeout) => return Ok(End::Silent(limits.silence)),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = guard.0.wait().context("cannot wait for QEMU")?;
    Ok(if status.success() { End::PoweredOff } else { End::Failed(status) })
}

/// Reads `QEMU emulator version 10.0.2 (...)`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (_, version) = text.lines().next()?.split_once(" version ")?;
    let mut numbers = version.split('.').map(|word| word.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Whether the host's processors run the guest.
fn by_kvm() -> bool {
    env::var_os("MEMCG_VM_ACCEL") == Some(OsString::from("kvm"))
}

/// The end that a line of the console announces.
fn fatal(line: Line, text: &str) -> Option<End> {
    let is_fatal = line == Line::Console && FATAL.iter().any(|mark| text.contains(mark));
    is_fatal.then(|| End::Fatal(text.to_owned()))
}

/// Runs the machine with its console on this terminal. Ctrl-A X ends QEMU.
pub(crate) fn interact(machine: &Machine<'_>) -> Result<ExitStatus> {
    let mut command = machine.command();
    command.args(["-serial", "mon:stdio", "-serial", "null"]);
    Guard(start(&mut command, machine.arch)?).0.wait().context("cannot wait for QEMU")
}

impl Machine<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(program(self.arch));
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.args(["-m", self.memory]);
        if self.arch == Arch::Arm64 {
            command.args(["-M", "virt"]);
        }
        let cpu = self.cpu.unwrap_or(default_cpu(self.arch));
        command.args(match (self.processors, self.arch) {
            (Processors::Two, Arch::Amd64) if by_kvm() => ["-accel", "kvm", "-cpu", "host", "-smp", "2"],
            (Processors::Two, _) => ["-accel", "tcg", "-cpu", cpu, "-smp", "2"],
            (Processors::Counted, Arch::Amd64) => {
                ["-accel", "tcg,thread=single", "-cpu", COUNTED_CPU, "-smp", "1"]
            }
            (Processors::Counted, _) => ["-accel", "tcg,thread=single", "-cpu", cpu, "-smp", "1"],
        });
        if self.processors == Processors::Counted {
            command.args(["-icount", "shift=0,sleep=off"]);
        }
        command.arg("-kernel").arg(self.kernel).arg("-initrd").arg(self.initramfs);
        command.arg("-append").arg(&self.parameters);
        if let Some(disk) = self.disk {
            // A comma in a path is doubled.
            let path = disk.display().to_string().replace(',', ",,");
            command.arg("-drive").arg(format!("file={path},format=raw,if=virtio,snapshot=on"));
        }
        command
    }
}

/// Ends the child, and no other process, when it goes out of scope.
#[derive(Debug)]
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Already over is fine; any other error has no reader left.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts QEMU so that it ends with this process, in whatever way.
fn start(command: &mut Command, arch: Arch) -> Result<Child> {
    end_with_parent(command);
    command.spawn().with_context(|| format!("cannot start {}; run `cargo xtask setup`", program(arch)))
}

/// Keeps a descriptor open across exec; the command owns it until it is dropped.
fn inherit(command: &mut Command, descriptor: OwnedFd) {
    let keep = move || {
        // SAFETY: the descriptor is owned by this closure, hence open; fcntl is
        // async-signal-safe.
        match unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one async-signal-safe call and does not allocate.
    unsafe { command.pre_exec(keep) };
}

/// Sends a stream's lines until it ends.
fn read_lines(line: Line, stream: impl Read + Send + 'static, sender: Sender<(Line, String)>) {
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut bytes = Vec::new();
        // A serial line is not promised to be UTF-8, so no `lines()`.
        while matches!(reader.read_until(b'\n', &mut bytes), Ok(count) if count > 0) {
            let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            if sender.send((line, text)).is_err() {
                break;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_console_announces_an_end() {
        for text in ["[ 1.8] Oops: 0002 [#1] SMP", "Kernel panic - not syncing: x"] {
            assert_eq!(fatal(Line::Console, text), Some(End::Fatal(text.to_owned())));
        }
        assert_eq!(fatal(Line::Console, "[ 0.0] Linux version 7.2 #1 SMP"), None);
        assert_eq!(fatal(Line::Report, "a test says Kernel panic"), None);
    }

    #[test]
    fn the_version_is_read_from_the_first_line() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright 2003-2025 x\n";
        assert_eq!(parse_version(text), Some((10, 0)));
        assert_eq!(parse_version("QEMU emulator version 7.2.22 (Debian)"), Some((7, 2)));
        assert_eq!(parse_version("something else"), None);
    }
}
