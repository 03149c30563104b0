//! Programs, links and maps in the BPF file system, so that the kernel's side goes on
//! while there is no agent: `DIR/SCHEMA/{map,prog,link}-NAME`. The answer cell is pinned
//! last: a folder without it was not finished.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use monitor_common::slot::SCHEMA;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::error::{Error, Result};

/// Where pins are, unless told otherwise.
pub const FOLDER: &str = "/sys/fs/bpf/memcg-monitor";

/// The maps that an agent needs again, in the order in which they are pinned.
pub(super) const MAPS: [&str; 6] = ["SLOTS", "TALLIES", "FREE", "FILES", "DOORBELLS", "SCRATCH"];
/// The last of them.
const LAST: &str = "map-SCRATCH";

/// The folder with the pins of all schemas, held by one agent.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
    _lock: Flock<File>,
}

impl Pins {
    /// Makes the folder, if need be, and keeps others out of it.
    ///
    /// # Errors
    /// There is no BPF file system, or it is read-only or full; or another agent has it.
    pub fn open(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|error| Error::file("make the folder", folder, error))?;
        let kind = statfs(folder)
            .map_err(|errno| Error::syscall(format!("statfs {}", folder.display()), errno))?
            .filesystem_type();
        if kind != BPF_FS_MAGIC {
            return Err(Error::Host(format!(
                "{} is not on a BPF file system (mount -t bpf bpf /sys/fs/bpf)",
                folder.display()
            )));
        }
        let file = File::open(folder).map_err(|error| Error::file("open", folder, error))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => Error::Busy(format!(
                "another agent uses {}; give this one another folder with --pins",
                folder.display()
            )),
            _ => Error::syscall(format!("flock {}", folder.display()), errno),
        })?;
        let pins = Self { folder: folder.into(), _lock: lock };
        // Of an agent that was killed before it was done.
        pins.remove(&pins.unfinished());
        Ok(pins)
    }

    /// Where the present schema's pins are.
    #[must_use]
    pub fn present(&self) -> PathBuf {
        self.folder.join(SCHEMA.to_string())
    }

    /// Whether those are all there.
    #[must_use]
    pub fn are_complete(&self) -> bool {
        self.present().join(LAST).exists()
    }

    fn unfinished(&self) -> PathBuf {
        self.folder.join(format!("{SCHEMA}-new"))
    }

    /// Pins by `pin`, which is given the folder, then makes that the present one; what
    /// was there before, of any schema, is taken away.
    ///
    /// # Errors
    /// Then nothing is pinned anew.
    pub fn replace(&self, pin: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let fresh = self.unfinished();
        self.remove(&fresh);
        fs::create_dir(&fresh).map_err(|error| Error::file("make the folder", &fresh, error))?;
        pin(&fresh).inspect_err(|_| self.remove(&fresh))?;
        for old in self.folders().unwrap_or_default() {
            if old != fresh {
                self.remove(&old);
            }
        }
        let present = self.present();
        fs::rename(&fresh, &present).map_err(|error| Error::file("rename", &fresh, error))
    }

    /// Takes all pins away: what is pinned nowhere else, and not open, is detached.
    pub fn clear(&self) {
        for folder in self.folders().unwrap_or_default() {
            self.remove(&folder);
        }
        if let Err(error) = fs::remove_dir(&self.folder) {
            log::warn!("remove {}: {error}", self.folder.display());
        }
    }

    fn folders(&self) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.path())).collect()
    }

    /// Best effort: what stays is named, and tried again by the next agent.
    fn remove(&self, folder: &Path) {
        match fs::remove_dir_all(folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => log::warn!("remove {}: {error}", folder.display()),
        }
    }
}
