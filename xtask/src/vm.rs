//! Boots a kernel with our guest in it and hears its verdict.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::build::Guest;
use crate::clients;
use crate::initramfs::Archive;
use crate::kernels::Kernel;
use crate::modules;
use crate::process::{command, output};
use crate::qemu::{self, End, Limits, Line, Machine, Processors};
use crate::setup;
use crate::workspace::{short, target};

/// Opens each line of the guest that is meant for people.
const SAID: &str = "memcg-guest: ";
/// Opens each line of the guest that is data.
const DATA: &str = "memcg-guest-json: ";

/// How often to boot where QEMU itself goes wrong.
const TRIES: u32 = 3;

/// What a guest has of memory, unless it needs more.
pub(crate) const MEMORY: &str = "1G";

/// Modules that the guest needs where the kernel has them not built in.
const MODULES: [&str; 3] = ["fuse", "lzo-rle", "zram"];

/// Those that it needs for a disk.
const DISK: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];

/// What the guest's shell opens with.
const MOTD: &[u8] = b"The agent is running; its log is /run/memcg-monitor.log. Try:
  mkdir /sys/fs/cgroup/a
  memcg-monitor listen /sys/fs/cgroup/a/memory.current 8M &
  (echo 0 > /sys/fs/cgroup/a/cgroup.procs; head -c 16M /dev/zero | tail > /dev/null)
";

/// Which cgroup hierarchy the guest mounts.
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
}

/// What to boot, and what the guest is to do.
#[derive(Debug)]
pub(crate) struct Boot<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) hierarchy: Hierarchy,
    /// `test`, `demo`, `prometheus`, `bench`, `differential`, `soak`, `shell` or `debian`.
    pub(crate) mode: &'static str,
    /// More kernel parameters.
    pub(crate) parameters: String,
    pub(crate) processors: Processors,
    /// As QEMU's `-m` takes it.
    pub(crate) memory: &'static str,
    pub(crate) limit: Duration,
}

/// The verdict of a guest that ended well.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// The guest's data lines.
    pub(crate) data: Vec<String>,
}

/// What came out of one boot.
#[derive(Debug)]
struct Heard {
    end: End,
    verdicts: Vec<String>,
    data: Vec<String>,
    /// The console's last line.
    last: String,
}

impl Boot<'_> {
    /// Boots, calls `say` with each line of the guest as it comes, and returns
    /// its verdict. A guest that ends in any other way is an error.
    pub(crate) fn run(&self, guest: &Guest, say: &mut dyn FnMut(&str)) -> Result<Report> {
        let initramfs = self.pack(guest)?;
        let mut heard = self.hear(guest, &initramfs, say)?;
        for _ in 1..TRIES {
            if heard.end == End::EmulatorFault {
                println!("QEMU ran code that the kernel had replaced; booting again");
                heard = self.hear(guest, &initramfs, say)?;
            }
        }
        let log = short(&self.file("log"));
        match heard.end {
            End::PoweredOff => {}
            End::Fatal(mark) => bail!("the kernel failed (see {log}): {mark}"),
            End::EmulatorFault => bail!("QEMU ran replaced code {TRIES} times (see {log})"),
            End::TooLong(limit) => bail!("not done after {} s (see {log})", limit.as_secs()),
            End::Silent(limit) => bail!("not a word for {} s (see {log})", limit.as_secs()),
            End::Failed(status) => bail!("QEMU failed ({status}; see {log}): {}", heard.last),
        }
        let [verdict] = heard.verdicts.as_slice() else {
            bail!("{} verdicts instead of one (see {log})", heard.verdicts.len());
        };
        let (passed, failed) = parse_verdict(verdict)
            .with_context(|| format!("cannot read the verdict `{verdict}` (see {log})"))?;
        Ok(Report { passed, failed, data: heard.data })
    }

    /// Boots once, logging all and sorting the guest's lines.
    fn hear(&self, guest: &Guest, initramfs: &Path, say: &mut dyn FnMut(&str)) -> Result<Heard> {
        let path = self.file("log");
        let mut log = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let mut verdicts = Vec::new();
        let mut data = Vec::new();
        let mut last = String::new();
        let silence = self.limit.min(Duration::from_secs(200));
        let limits = Limits { total: self.limit, silence };
        let machine = self.machine(guest, initramfs);
        let end = qemu::run(&machine, limits, &mut |line, text| {
            // A full disk must not stop the VM; the log is for people.
            let _ = writeln!(log, "{}{text}", if line == Line::Report { "> " } else { "" });
            if line == Line::Console {
                last = text.to_owned();
            } else if let Some(text) = text.strip_prefix(DATA) {
                data.push(text.to_owned());
            } else if let Some(text) = text.strip_prefix(SAID) {
                match text.strip_prefix("verdict ") {
                    Some(verdict) => verdicts.push(verdict.to_owned()),
                    None => say(text),
                }
            }
        })?;
        Ok(Heard { end, verdicts, data, last })
    }

    /// Boots with the console on this terminal.
    pub(crate) fn interact(&self, guest: &Guest) -> Result<()> {
        let initramfs = self.pack(guest)?;
        let status = qemu::interact(&self.machine(guest, &initramfs))?;
        if !status.success() {
            bail!("QEMU failed ({status})");
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
            // The guest brings up the others. While the kernel boots it rewrites its
            // hottest code, and QEMU's processors may run what was there before.
            "maxcpus=1",
        ];
        if self.mode == "shell" {
            parameters.push("quiet");
        }
        if self.processors == Processors::Counted {
            parameters.push("nokaslr norandmaps");
        }
        let asked = format!("guest.mode={} guest.cgroup={}", self.mode, self.hierarchy.name());
        parameters.extend([asked.as_str(), self.parameters.as_str()]);
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
        for folder in ["bin", "dev", "etc", "modules", "proc", "root", "run", "sys", "tmp"] {
            archive.folder(folder);
        }
        archive.character_device("dev/console", 5, 1);
        archive.character_device("dev/null", 1, 3);
        archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n");
        archive.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n");
        archive.file("etc/motd", MOTD);
        archive.program("init", &read(&guest.init)?);
        archive.program("bin/memcg-monitor", &read(&guest.monitor)?);
        let busybox = setup::busybox();
        archive.program("bin/busybox", &read(&busybox)?);
        for name in output(command(&busybox).arg("--list"))?.lines() {
            if name != "busybox" {
                archive.link(&format!("bin/{name}"), "busybox");
            }
        }
        if let Some(folder) = &self.kernel.modules {
            let disk = guest.disk.as_ref().map_or(&[][..], |_| &DISK);
            let wanted = [disk, &MODULES].concat();
            for (place, (name, contents)) in modules::collect(folder, &wanted)?.into_iter().enumerate() {
                archive.file(&format!("modules/{place:02}-{name}.ko"), &contents);
            }
        }
        // Some are there already, which the kernel takes in good part.
        for folder in clients::folders(&guest.more) {
            archive.folder(folder);
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
        let folder = target().join("vm");
        // If this fails, so does the write, and that one names the path.
        let _ = fs::create_dir_all(&folder);
        let preempt = self.parameters.contains("preempt=full").then_some("-preempt");
        folder.join(format!(
            "{}-{}{}-{}.{extension}",
            self.kernel.release,
            self.hierarchy.name(),
            preempt.unwrap_or_default(),
            self.mode,
        ))
    }
}

/// Reads `pass=N fail=M`.
fn parse_verdict(text: &str) -> Option<(usize, usize)> {
    let (passed, failed) = text.split_once(' ')?;
    Some((passed.strip_prefix("pass=")?.parse().ok()?, failed.strip_prefix("fail=")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_two_numbers_or_nothing() {
        assert_eq!(parse_verdict("pass=12 fail=0"), Some((12, 0)));
        assert_eq!(parse_verdict("pass=12"), None);
        assert_eq!(parse_verdict("pass= fail=0"), None);
    }
}
