//! Groups of the test's own, on either hierarchy.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use memcg_monitor::cgroup::{Hierarchy, Version};
use nix::unistd::Pid;

/// The group that holds those of the tests, where they run on a host.
pub(crate) static BELOW: OnceLock<PathBuf> = OnceLock::new();

/// A group; removed with its value.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) path: PathBuf,
    pub(crate) version: Version,
}

impl Group {
    /// A group right below the root, or below the tests' own group on a host.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let hierarchy = Hierarchy::find(None)?;
        let above = BELOW.get().unwrap_or(&hierarchy.root);
        Self::make(above.join(name), hierarchy.version)
    }

    /// A group below this one, with its own accounting.
    pub(crate) fn child(&self, name: &str) -> Result<Self> {
        self.enable(true)?;
        Self::make(self.path.join(name), self.version)
    }

    /// The root itself; it stays.
    pub(crate) fn root() -> Result<Self> {
        let hierarchy = Hierarchy::find(None)?;
        Ok(Self { path: hierarchy.root, version: hierarchy.version })
    }

    fn make(path: PathBuf, version: Version) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path, version })
    }

    /// Turns the memory controller on or off for the groups below (v2).
    pub(crate) fn enable(&self, on: bool) -> Result<()> {
        if self.version == Version::V2 {
            let word = if on { "+memory" } else { "-memory" };
            self.write("cgroup.subtree_control", word)?;
        }
        Ok(())
    }

    /// The file that says its usage.
    pub(crate) fn usage_file(&self) -> PathBuf {
        self.path.join(self.version.usage_file())
    }

    /// Bytes charged, by the kernel's word.
    pub(crate) fn usage(&self) -> Result<u64> {
        read_number(&self.usage_file())
    }

    /// Most bytes charged at once, by the kernel's word.
    pub(crate) fn peak(&self) -> Result<u64> {
        read_number(&self.path.join(match self.version {
            Version::V1 => "memory.max_usage_in_bytes",
            Version::V2 => "memory.peak",
        }))
    }

    /// Sets its limit, in bytes.
    pub(crate) fn set_limit(&self, bytes: u64) -> Result<()> {
        let file = match self.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        self.write(file, &bytes.to_string())
    }

    /// A number of one of its files of names and numbers.
    pub(crate) fn field(&self, file: &str, name: &str) -> Result<u64> {
        let path = self.path.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = value.with_context(|| format!("{} has no {name}", path.display()))?;
        value.trim().parse().with_context(|| format!("{} says {text:?}", path.display()))
    }

    pub(crate) fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {text:?} to {}", path.display()))
    }

    /// Moves a process in.
    pub(crate) fn add(&self, process: Pid) -> Result<()> {
        self.write("cgroup.procs", &process.to_string())
    }

    /// Removes the directory; a group whose last process has just ended may be
    /// busy for a moment.
    pub(crate) fn remove(&self) -> Result<()> {
        crate::harness::agent::until("the group can be removed", || match fs::remove_dir(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot remove {}", self.path.display())),
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

/// A group with a child, a sibling and a parent. Children go first.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) child: Group,
    pub(crate) group: Group,
    pub(crate) sibling: Group,
    pub(crate) parent: Group,
    pub(crate) root: Group,
}

impl Family {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let parent = Group::new(name)?;
        let sibling = parent.child("sibling")?;
        let group = parent.child("group")?;
        Ok(Self { child: group.child("child")?, group, sibling, parent, root: Group::root()? })
    }

    /// All, each with what it is to the group.
    pub(crate) fn all(&self) -> [(&'static str, &Group); 5] {
        [
            ("group", &self.group),
            ("child", &self.child),
            ("parent", &self.parent),
            ("sibling", &self.sibling),
            ("root", &self.root),
        ]
    }
}

pub(crate) fn read_number(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.trim().parse().with_context(|| format!("{} says {text:?}", path.display()))
}
