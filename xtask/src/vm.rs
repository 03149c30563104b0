//! Boots a kernel with the guest in it and reads its verdict.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use serde_json::Value;

use crate::arch::Arch;
use crate::build::Guest;
use crate::busybox::{self, Busybox};
use crate::initramfs::Archive;
use crate::kernels::{self, Kernel, KernelImage};
use crate::process::{command, output};
use crate::qemu::{self, End, Limits, Line, Machine, Processors, Qemu};
use crate::workspace::{short, target};
use crate::{clients, cross, modules, setup, toolchain};

/// Advice for a guest that took too long.
const SLOW: &str = "on a busy machine, try again when it is idle";

/// Opens each line of the guest that is meant for people.
const TEXT: &str = "memcg-guest: ";
/// Opens each line of the guest that is data.
const DATA: &str = "memcg-guest-json: ";

/// The memory of a guest, unless it needs more.
pub(crate) const MEMORY: &str = "1G";

/// Modules that the guest needs where the kernel has them not built in.
const MODULES: [&str; 3] = ["fuse", "lzo-rle", "zram"];

/// Modules that it needs for a disk.
const DISK: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];

/// The cgroup hierarchy that the guest mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Hierarchy {
    V1,
    V2,
}

impl Hierarchy {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }

    /// The words that the guest's shell opens with. A test runs the indented lines as
    /// they are.
    fn hint(self) -> String {
        let (group, file) = match self {
            Self::V1 => ("/sys/fs/cgroup/memory/a", "memory.usage_in_bytes"),
            Self::V2 => ("/sys/fs/cgroup/a", "memory.current"),
        };
        format!(
            "The agent is running; its log is /run/memcg-monitor.log. Try:\n  \
             mkdir {group}\n  \
             memcg-monitor listen {group}/{file} 8M &\n  \
             (echo 0 > {group}/cgroup.procs; head -c 16m /dev/zero | tail > /dev/null)\n"
        )
    }
}

/// Provides what it takes to build the guest and to boot one kernel.
pub(crate) fn ensure(kernel: &str) -> Result<()> {
    let arch = kernels::arch(kernel)?;
    setup::ensure(&toolchain::NEEDS)?;
    if arch == Arch::Arm64 {
        setup::ensure(&cross::NEEDS)?;
    }
    ensure_machine(kernel)
}

/// Provides what it takes to boot one kernel.
pub(crate) fn ensure_machine(kernel: &str) -> Result<()> {
    let arch = kernels::arch(kernel)?;
    // The list of busybox's programs is made by this machine's own.
    setup::ensure(&[&Qemu(arch), &Busybox(Arch::Amd64), &Busybox(arch), &KernelImage(kernel)])
}

/// Returns a line on the kernel and the hierarchy that are about to boot.
pub(crate) fn booting(kernel: &Kernel, hierarchy: Hierarchy) -> String {
    let remark = kernels::remark(kernel).map_or(String::new(), |text| format!(" ({text})"));
    format!("booting kernel {}{remark} with cgroup {} in QEMU", kernel.release, hierarchy.name())
}

/// A boot: the kernel, and the work of the guest.
#[derive(Debug)]
pub(crate) struct Boot<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) hierarchy: Hierarchy,
    /// `test`, `demo`, `prometheus`, `bench`, `differential`, `soak`, `shell` or `debian`.
    pub(crate) mode: &'static str,
    /// Further parameters for the kernel's command line.
    pub(crate) parameters: String,
    pub(crate) processors: Processors,
    /// The processors by the emulator's name; None: with all that it can do.
    pub(crate) cpu: Option<String>,
    /// The guest's memory, as QEMU's `-m` takes it.
    pub(crate) memory: &'static str,
    pub(crate) limit: Duration,
    /// Sets its files apart from those of boots that are alike; empty: it is alone.
    pub(crate) label: String,
}

/// The verdict of a guest that ended well.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// The guest's lines on tests that failed.
    pub(crate) failures: Vec<String>,
    /// The guest's data lines.
    pub(crate) data: Vec<String>,
}

/// The lines of one guest, sorted.
#[derive(Debug, Default)]
pub(crate) struct Output {
    verdicts: Vec<String>,
    tests: Vec<Tested>,
    /// The lines for people since the last test.
    said: Vec<String>,
    data: Vec<String>,
    /// The console's last line.
    last: String,
    /// Whether the guest has printed a line of its own.
    has_begun: bool,
}

/// One line of the guest on a test.
#[derive(Debug, PartialEq, Eq)]
struct Tested {
    name: String,
    /// The line, where the test failed.
    failure: Option<String>,
    /// The lines that it said before.
    evidence: Vec<String>,
    /// The agent's lines, where it failed.
    agent: Vec<String>,
}

impl Tested {
    /// The failure with the last lines of the test and of its agent.
    fn into_failure(self) -> Option<String> {
        const LINES: usize = 12;
        let last = |lines: &[String]| lines[lines.len().saturating_sub(LINES)..].to_vec();
        let lines = [last(&self.evidence), last(&self.agent)].concat();
        let text = |line: &String| format!("\n    {}", line.trim());
        self.failure.map(|failure| failure + &lines.iter().map(text).collect::<String>())
    }
}

impl Output {
    /// Takes one line of the guest, and shows it where it is meant for people.
    pub(crate) fn take(&mut self, text: &str, say: &mut dyn FnMut(&str)) {
        self.has_begun = true;
        if let Some(text) = text.strip_prefix(DATA) {
            self.data.push(text.to_owned());
        } else if let Some(text) = text.strip_prefix(TEXT) {
            match parse_test(text) {
                Some(test) => {
                    let evidence = std::mem::take(&mut self.said);
                    self.tests.push(Tested { evidence, ..test });
                }
                // After a failing test come the agent's lines, indented.
                None => match self.tests.last_mut().filter(|test| test.failure.is_some()) {
                    Some(test) if text.starts_with("  ") && self.said.is_empty() => {
                        test.agent.push(text.to_owned());
                    }
                    _ => self.said.push(text.to_owned()),
                },
            }
            match text.strip_prefix("verdict ") {
                Some(verdict) => self.verdicts.push(verdict.to_owned()),
                None => say(text),
            }
        }
    }

    /// The report of a guest that has ended.
    pub(crate) fn into_report(self) -> Result<Report> {
        let [verdict] = self.verdicts.as_slice() else {
            bail!("the guest gave {} verdicts instead of one", self.verdicts.len());
        };
        let (passed, failed) =
            parse_verdict(verdict).with_context(|| format!("cannot read the verdict `{verdict}`"))?;
        let failures = self.tests.into_iter().filter_map(Tested::into_failure).collect();
        Ok(Report { passed, failed, failures, data: self.data })
    }
}

/// Returns the text of this name that a guest's data line holds.
pub(crate) fn text_in(line: &str, name: &str) -> Option<String> {
    let value: Value = serde_json::from_str(line).ok()?;
    let is_it = value.get("text").and_then(Value::as_str) == Some(name);
    is_it.then(|| value.get("is").and_then(Value::as_str).map(str::to_owned)).flatten()
}

/// The report of a guest that powered off with a verdict; any other end is an error that names
/// the log.
fn verdict(end: &End, output: Output, log: &str) -> Result<Report> {
    match end {
        End::PoweredOff => output.into_report().with_context(|| format!("{log} shows how the guest ended")),
        End::Fatal(mark) => bail!("the kernel failed: {mark}; {log} has its messages"),
        End::TooLong(limit) => {
            bail!("the guest was not done after {} s; {log} shows how far it came; {SLOW}", limit.as_secs())
        }
        End::Silent(limit) => {
            bail!("the guest printed nothing for {} s; {log} shows how far it came; {SLOW}", limit.as_secs())
        }
        End::Failed(status) => bail!(
            "QEMU failed ({status}): {}; {log} has its messages, `cargo xtask setup` checks its version",
            output.last
        ),
    }
}

/// The end of a log, a line each, indented: whoever reads the summary of a run on another
/// machine has nothing else.
fn last_lines(path: &Path) -> String {
    const LINES: usize = 15;
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(LINES)..];
    last.iter().map(|line| format!("\n    {}", line.trim_end())).collect()
}

impl<'a> Boot<'a> {
    /// A boot with two processors, the usual memory, and five minutes to be done in.
    pub(crate) fn new(kernel: &'a Kernel, hierarchy: Hierarchy, mode: &'static str) -> Self {
        Self {
            kernel,
            hierarchy,
            mode,
            parameters: String::new(),
            processors: Processors::Two,
            cpu: None,
            memory: MEMORY,
            limit: Duration::from_secs(300),
            label: String::new(),
        }
    }
}

impl Boot<'_> {
    /// Boots, calls `say` with each line of the guest as it comes, and returns
    /// its verdict. A guest that ends in any other way is an error.
    pub(crate) fn run(&self, guest: &Guest, say: &mut dyn FnMut(&str)) -> Result<Report> {
        let initramfs = self.pack(guest)?;
        let path = self.file("log");
        let mut file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let (mut end, mut output) = self.boot(&self.machine(guest, &initramfs), &mut file, say)?;
        let log = short(&path);
        if let (End::Fatal(mark), false) = (&end, output.has_begun) {
            // Seen with 6.12: one emulated processor runs an instruction that the other patches.
            say(&format!("the kernel failed before it started the guest ({mark}); booting once more"));
            (end, output) = self.boot(&self.machine(guest, &initramfs), &mut file, say)?;
        }
        verdict(&end, output, &log).map_err(|error| anyhow!("{error:#}; it ends so:{}", last_lines(&path)))
    }

    /// Boots once, logging all and sorting the guest's lines.
    fn boot(
        &self,
        machine: &Machine<'_>,
        log: &mut File,
        say: &mut dyn FnMut(&str),
    ) -> Result<(End, Output)> {
        let mut output = Output::default();
        let silence = self.limit.min(Duration::from_secs(200));
        let limits = Limits { total: self.limit, silence };
        let end = qemu::run(machine, limits, &mut |line, text| {
            // A full disk must not stop the VM; the log is for people.
            let _ = writeln!(log, "{}{text}", if line == Line::Report { "> " } else { "" });
            if line == Line::Console {
                text.clone_into(&mut output.last);
            } else {
                output.take(text, say);
            }
        })?;
        Ok((end, output))
    }

    /// Boots with the console on this terminal.
    pub(crate) fn interact(&self, guest: &Guest) -> Result<()> {
        let initramfs = self.pack(guest)?;
        let status = qemu::interact(&self.machine(guest, &initramfs))?;
        if !status.success() {
            bail!("QEMU failed ({status}); its messages are above, `cargo xtask setup` checks its version");
        }
        Ok(())
    }

    fn machine<'a>(&'a self, guest: &'a Guest, initramfs: &'a Path) -> Machine<'a> {
        let console = format!("console={}", self.kernel.arch.console());
        let mut parameters = vec![
            console.as_str(),
            // A panic ends QEMU at once (-no-reboot), and an oops is one.
            "panic=-1 oops=panic",
            // An emulated CPU on a busy host is slow, not stuck.
            "watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120",
            "random.trust_cpu=on",
        ];
        if self.mode == "shell" {
            parameters.push("quiet");
        }
        if self.processors == Processors::Counted {
            parameters.push("nokaslr norandmaps");
        }
        let request = format!("guest.mode={} guest.cgroup={}", self.mode, self.hierarchy.name());
        parameters.extend([request.as_str(), self.parameters.as_str()]);
        Machine {
            arch: self.kernel.arch,
            cpu: self.cpu.as_deref(),
            kernel: &self.kernel.image,
            initramfs,
            parameters: parameters.join(" "),
            processors: self.processors,
            memory: self.memory,
            disk: guest.disk.as_deref(),
        }
    }

    /// Writes the guest's root file system.
    fn pack(&self, guest: &Guest) -> Result<PathBuf> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let mut archive = Archive::default();
        for directory in ["bin", "dev", "etc", "modules", "proc", "root", "run", "sys", "tmp"] {
            archive.directory(directory);
        }
        archive.character_device("dev/console", 5, 1);
        archive.character_device("dev/null", 1, 3);
        archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n");
        archive.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n");
        archive.file("etc/motd", self.hierarchy.hint().as_bytes());
        archive.program("init", &read(&guest.init)?);
        archive.program("bin/memcg-monitor", &read(&guest.monitor)?);
        archive.program("bin/busybox", &read(&busybox::program(self.kernel.arch))?);
        for name in output(command(busybox::program(Arch::Amd64)).arg("--list"))?.lines() {
            if name != "busybox" {
                archive.link(&format!("bin/{name}"), "busybox");
            }
        }
        if let Some(directory) = &self.kernel.modules {
            let disk = guest.disk.as_ref().map_or(&[][..], |_| &DISK);
            let wanted = [disk, &MODULES].concat();
            for (place, (name, contents)) in modules::collect(directory, &wanted)?.into_iter().enumerate() {
                archive.file(&format!("modules/{place:02}-{name}.ko"), &contents);
            }
        }
        // Some are in the archive already; the kernel accepts them twice.
        for directory in clients::directories(&guest.more) {
            archive.directory(directory);
        }
        for file in &guest.more {
            archive.program(&file.path, &read(&file.from)?);
        }
        let path = self.file("cpio");
        fs::write(&path, archive.finish()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// A file of this boot under `target/vm`.
    fn file(&self, extension: &str) -> PathBuf {
        let directory = target().join("vm");
        // If this fails, so does the write, and that one names the path.
        let _ = fs::create_dir_all(&directory);
        let mut name = format!("{}-{}-{}", self.kernel.release, self.hierarchy.name(), self.mode);
        if !self.label.is_empty() {
            name = format!("{name}-{}", self.label);
        }
        directory.join(format!("{name}.{extension}"))
    }
}

/// Reads the two numbers of `pass=N fail=M`.
fn parse_verdict(text: &str) -> Option<(usize, usize)> {
    let (passed, failed) = text.split_once(' ')?;
    Some((passed.strip_prefix("pass=")?.parse().ok()?, failed.strip_prefix("fail=")?.parse().ok()?))
}

/// Reads `test NAME ... ok` and `test NAME (WHAT) ... FAILED: WHY`.
fn parse_test(text: &str) -> Option<Tested> {
    let (test, outcome) = text.strip_prefix("test ")?.split_once(" ... ")?;
    let name = test.split(' ').next()?.to_owned();
    let failure = outcome.starts_with("FAILED").then(|| text.to_owned());
    Some(Tested { name, failure, evidence: Vec::new(), agent: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_has_a_name_and_perhaps_a_failure() {
        let tested = |name: &str, failure: Option<&str>| {
            let failure = failure.map(str::to_owned);
            Some(Tested { name: name.to_owned(), failure, evidence: Vec::new(), agent: Vec::new() })
        };
        assert_eq!(parse_test("test a ... ok (1.2 s)"), tested("a", None));
        let failed = "test a (b goes on) ... FAILED: no signal (60.1 s)";
        assert_eq!(parse_test(failed), tested("a", Some(failed)));
        assert_eq!(parse_test("a word ... ok"), None);
        assert_eq!(parse_test("test of something"), None);
    }

    #[test]
    fn a_failure_is_told_with_what_the_test_and_its_agent_said() {
        let mut output = Output::default();
        let lines = [
            "test a ... ok (1.0 s)",
            "seed 7",
            "test b (b holds) ... FAILED: no signal (2.0 s)",
            "  agent: lost one",
            "seed 8",
            "test c ... ok (1.0 s)",
            "verdict pass=2 fail=1",
        ];
        lines.iter().for_each(|line| output.take(&format!("{TEXT}{line}"), &mut |_| {}));
        let report = output.into_report().expect("the guest gave a verdict");
        let failure = "test b (b holds) ... FAILED: no signal (2.0 s)\n    seed 7\n    agent: lost one";
        assert_eq!(report.failures, [failure]);
    }

    #[test]
    fn a_scrape_is_distinguished_from_other_data() {
        let line = r##"{"text":"metrics","is":"a 1\n# x"}"##;
        assert_eq!(text_in(line, "metrics").as_deref(), Some("a 1\n# x"));
        assert_eq!(text_in(line, "dashboard"), None);
        assert_eq!(text_in(r#"{"table":"x"}"#, "metrics"), None);
        assert_eq!(text_in("nonsense", "metrics"), None);
    }

    #[test]
    fn a_verdict_is_two_numbers_or_nothing() {
        assert_eq!(parse_verdict("pass=12 fail=0"), Some((12, 0)));
        assert_eq!(parse_verdict("pass=12"), None);
        assert_eq!(parse_verdict("pass= fail=0"), None);
    }
}
