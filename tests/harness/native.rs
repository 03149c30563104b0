//! Tests on a host instead of a VM: in a root directory, mounts, pids and a network of their own,
//! laid out as the VM's, and below one group of their own.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use memcg_monitor::cgroup::{self, Version};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, chdir, chroot, fork};

use crate::harness::group::{self, Group};
use crate::harness::init::{self, Hierarchy};

/// Runs `work` in namespaces of its own; 1 where it failed.
pub(crate) fn run(work: impl FnOnce(Hierarchy) -> Result<()>) -> Result<usize> {
    let hierarchy = cgroup::Hierarchy::find(None)?;
    let name = format!("memcg-monitor-tests-{}", std::process::id());
    let below = Below::make(hierarchy.root.join(&name), hierarchy.version)?;
    let root = Root::make(std::env::temp_dir().join(&name))?;
    let flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET;
    unshare(flags).context("unshare: tests on the host need root")?;
    root.prepare()?;
    // SAFETY: no other thread has been started.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => {
            let status = waitpid(child, None).context("waitpid")?;
            drop((root, below));
            Ok(usize::from(status != WaitStatus::Exited(child, 0)))
        }
        ForkResult::Child => {
            let kind = match hierarchy.version {
                Version::V1 => Hierarchy::V1,
                Version::V2 => Hierarchy::V2,
            };
            let _ = group::BELOW.set(below.0.path.clone());
            let outcome = root.enter().and_then(|()| work(kind));
            if let Err(error) = &outcome {
                eprintln!("{error:#}");
            }
            // What is to be removed is the parent's.
            std::process::exit(i32::from(outcome.is_err()));
        }
    }
}

/// The group of all tests.
struct Below(Group);

impl Below {
    fn make(path: PathBuf, version: Version) -> Result<Self> {
        fs::create_dir(&path)
            .with_context(|| format!("cannot make {}: tests on the host need root", path.display()))?;
        let below = Self(Group { path, version });
        below.0.enable(true).context(
            "the hierarchy's root does not give the memory controller to groups below: write +memory to its cgroup.subtree_control",
        )?;
        Ok(below)
    }
}

/// The directory that becomes the root.
struct Root(PathBuf);

impl Root {
    fn make(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Mounts a file system of its own there, seen by nobody else, with the programs.
    fn prepare(&self) -> Result<()> {
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        bind(None, Path::new("/"), private).context("cannot make the mounts private")?;
        mount(Some("tmpfs"), &self.0, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .context("cannot mount a tmpfs")?;
        for directory in ["bin", "proc", "sys", "dev", "run", "tmp", "etc"] {
            fs::create_dir(self.0.join(directory))?;
        }
        fs::set_permissions(self.0.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        let guest = std::env::current_exe().context("cannot find the path of this program")?;
        let monitor = guest.with_file_name("memcg-monitor");
        for (from, to) in [(&guest, "init"), (&monitor, "bin/memcg-monitor")] {
            fs::copy(from, self.0.join(to))
                .with_context(|| format!("cannot copy {}: cargo xtask build makes it", from.display()))?;
        }
        for directory in ["sys", "dev"] {
            let from = Path::new("/").join(directory);
            bind(Some(&from), &self.0.join(directory), MsFlags::MS_BIND | MsFlags::MS_REC)
                .with_context(|| format!("cannot bind {}", from.display()))?;
        }
        Ok(())
    }

    /// Makes it the root of this process, the first of its pid namespace.
    fn enter(&self) -> Result<()> {
        if std::process::id() != 1 {
            bail!("no pid namespace of its own");
        }
        mount(Some("proc"), &self.0.join("proc"), Some("proc"), MsFlags::empty(), None::<&OsStr>)
            .context("cannot mount proc")?;
        chroot(&self.0).context("chroot")?;
        chdir("/").context("chdir")?;
        init::loopback_up().context("cannot bring the loopback interface up")
    }
}

fn bind(from: Option<&Path>, to: &Path, flags: MsFlags) -> nix::Result<()> {
    mount(from, to, None::<&OsStr>, flags, None::<&OsStr>)
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}
