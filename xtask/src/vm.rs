//! Boots a kernel with the guest in it and reads its verdict.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::build::Guest;
use crate::busybox::{self, Busybox};
use crate::initramfs::Archive;
use crate::kernels::{self, Kernel, KernelImage};
use crate::process::{command, output};
use crate::qemu::{self, End, Limits, Line, Machine, Processors, Qemu};
use crate::workspace::{short, target};
use crate::{clients, modules, setup, toolchain};

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
    setup::ensure(&toolchain::NEEDS)?;
    setup::ensure(&[&Qemu, &Busybox, &KernelImage(kernel)])
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

/// The lines of one boot, sorted.
#[derive(Debug, Default)]
struct Output {
    verdicts: Vec<String>,
    tests: Vec<Tested>,
    data: Vec<String>,
    /// The console's last line.
    last: String,
}

/// One line of the guest on a test.
#[derive(Debug, PartialEq, Eq)]
struct Tested {
    name: String,
    /// The line, where the test failed.
    failure: Option<String>,
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
        let log = self.file("log");
        let mut file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let (end, output) = self.boot(&self.machine(guest, &initramfs), &mut file, say)?;
        let log = short(&log);
        match end {
            End::PoweredOff => {}
            End::Fatal(mark) => bail!("the kernel failed: {mark}; {log} has its messages"),
            End::TooLong(limit) => bail!(
                "the guest was not done after {} s; {log} shows how far it came; {SLOW}",
                limit.as_secs()
            ),
            End::Silent(limit) => bail!(
                "the guest printed nothing for {} s; {log} shows how far it came; {SLOW}",
                limit.as_secs()
            ),
            End::Failed(status) => bail!(
                "QEMU failed ({status}): {}; {log} has its messages, `cargo xtask setup` checks its version",
                output.last
            ),
        }
        let [verdict] = output.verdicts.as_slice() else {
            bail!(
                "the guest gave {} verdicts instead of one; {log} shows how it ended",
                output.verdicts.len()
            );
        };
        let (passed, failed) = parse_verdict(verdict)
            .with_context(|| format!("cannot read the verdict `{verdict}`; {log} shows how it ended"))?;
        Ok(Report {
            passed,
            failed,
            failures: output.tests.into_iter().filter_map(|test| test.failure).collect(),
            data: output.data,
        })
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
            } else if let Some(text) = text.strip_prefix(DATA) {
                output.data.push(text.to_owned());
            } else if let Some(text) = text.strip_prefix(TEXT) {
                output.tests.extend(parse_test(text));
                match text.strip_prefix("verdict ") {
                    Some(verdict) => output.verdicts.push(verdict.to_owned()),
                    None => say(text),
                }
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
        let mut parameters = vec![
            // A panic ends QEMU at once (-no-reboot), and an oops is one.
            "console=ttyS0 panic=-1 oops=panic",
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
        let busybox = busybox::program();
        archive.program("bin/busybox", &read(&busybox)?);
        for name in output(command(&busybox).arg("--list"))?.lines() {
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
    Some(Tested { name, failure: outcome.starts_with("FAILED").then(|| text.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_has_a_name_and_perhaps_a_failure() {
        let tested = |name: &str, failure: Option<&str>| {
            Some(Tested { name: name.to_owned(), failure: failure.map(str::to_owned) })
        };
        assert_eq!(parse_test("test a ... ok (1.2 s)"), tested("a", None));
        let failed = "test a (b goes on) ... FAILED: no signal (60.1 s)";
        assert_eq!(parse_test(failed), tested("a", Some(failed)));
        assert_eq!(parse_test("a word ... ok"), None);
        assert_eq!(parse_test("test of something"), None);
    }

    #[test]
    fn a_verdict_is_two_numbers_or_nothing() {
        assert_eq!(parse_verdict("pass=12 fail=0"), Some((12, 0)));
        assert_eq!(parse_verdict("pass=12"), None);
        assert_eq!(parse_verdict("pass= fail=0"), None);
    }
}
