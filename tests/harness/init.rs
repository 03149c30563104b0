//! The duties of an init: mounts, devices, network, and going off.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use crate::harness::{group, modules, report};

/// The cgroup hierarchy that has the memory controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Hierarchy {
    V1,
    #[default]
    V2,
}

/// Places of the memory controller's root group.
impl Hierarchy {
    pub(crate) fn root(self) -> &'static Path {
        Path::new(match self {
            Self::V1 => "/sys/fs/cgroup/memory",
            Self::V2 => "/sys/fs/cgroup",
        })
    }
}

impl FromStr for Hierarchy {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "v1" => Ok(Self::V1),
            "v2" => Ok(Self::V2),
            other => bail!("guest.cgroup={other}: v1 or v2"),
        }
    }
}

/// A file system and where it goes.
struct Mount {
    kind: &'static str,
    on: &'static str,
    options: &'static str,
}

const SYSTEM: [Mount; 8] = [
    Mount { kind: "proc", on: "/proc", options: "" },
    Mount { kind: "sysfs", on: "/sys", options: "" },
    Mount { kind: "devtmpfs", on: "/dev", options: "" },
    Mount { kind: "devpts", on: "/dev/pts", options: "" },
    Mount { kind: "tmpfs", on: "/run", options: "mode=755" },
    Mount { kind: "tmpfs", on: "/tmp", options: "mode=1777" },
    // As systemd mounts it.
    Mount { kind: "bpf", on: "/sys/fs/bpf", options: "mode=0700" },
    Mount { kind: "tracefs", on: "/sys/kernel/tracing", options: "" },
];

const V1: [Mount; 2] = [
    Mount { kind: "tmpfs", on: "/sys/fs/cgroup", options: "mode=755" },
    Mount { kind: "cgroup", on: "/sys/fs/cgroup/memory", options: "memory" },
];

const V2: [Mount; 1] = [Mount { kind: "cgroup2", on: "/sys/fs/cgroup", options: "" }];

/// Mounts what every mode needs.
pub(crate) fn mount_system() -> Result<()> {
    SYSTEM.iter().try_for_each(Mount::mount)
}

/// Modules, network and the cgroup hierarchy.
pub(crate) fn prepare(hierarchy: Hierarchy) -> Result<()> {
    // Only errors on the console: tests make the kernel talk a lot.
    write("/proc/sys/kernel/printk", "4")?;
    nix::unistd::sethostname("memcg-vm").context("cannot set the host's name")?;
    modules::load_all(Path::new("/modules"))?;
    loopback_up().context("cannot bring the loopback interface up")?;
    match hierarchy {
        Hierarchy::V1 => {
            V1.iter().try_for_each(Mount::mount)?;
            write("/sys/fs/cgroup/memory/memory.use_hierarchy", "1")
        }
        Hierarchy::V2 => {
            V2.iter().try_for_each(Mount::mount)?;
            let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
                .context("cannot read the controllers of the root group")?;
            for name in controllers.split_whitespace() {
                write("/sys/fs/cgroup/cgroup.subtree_control", &format!("+{name}"))?;
            }
            Ok(())
        }
    }
}

/// Removes all groups of tests, which must be empty of processes.
pub(crate) fn remove_groups(hierarchy: Hierarchy) {
    fn remove_below(directory: &Path) {
        let Ok(entries) = fs::read_dir(directory) else {
            return;
        };
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            if path.is_dir() {
                remove_below(&path);
                // One that stays fails the next test by name; nothing to add.
                let _ = fs::remove_dir(&path);
            }
        }
    }
    remove_below(group::BELOW.get().map_or(hierarchy.root(), PathBuf::as_path));
}

/// Ends the VM. There is nothing on disk to save.
pub(crate) fn power_off() -> ! {
    report::drain();
    let error = reboot(RebootMode::RB_POWER_OFF);
    // The kernel panics when its first process ends, which QEMU ends on, too.
    panic!("cannot power off: {error:?}");
}

impl Mount {
    fn mount(&self) -> Result<()> {
        let Self { kind, on, options } = *self;
        // A kernel without this file system has no such directory in sysfs.
        fs::create_dir_all(on).with_context(|| format!("cannot make {on} to mount {kind} on"))?;
        match mount(Some(kind), on, Some(kind), MsFlags::empty(), Some(options)) {
            // devtmpfs: the kernel may have mounted it already.
            Ok(()) | Err(nix::Error::EBUSY) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot mount {kind} on {on}")),
        }
    }
}

fn write(path: &str, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {text} to {path}"))
}

/// Brings the loopback up, as `ip link set lo up` does.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: an ifreq is plain data, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = libc::c_char::try_from(from).unwrap_or_default();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap_or_default();
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: the descriptor is open, and the request is a valid ifreq that the
    // kernel only reads.
    match unsafe { libc::ioctl(descriptor, libc::SIOCSIFFLAGS, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
