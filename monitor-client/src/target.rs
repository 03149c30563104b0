//! A control file as a client names it, and the check that its group is still there.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use monitor_common::grammar::control_file::ControlFile;

use crate::error::{Error, Result};

/// A group's usage file on cgroup v2.
const USAGE_FILE: &str = "memory.current";

/// An open control file, or the directory of a group that has no such file: v2 has
/// no `memory.oom_control`. Then the arguments begin with the file's name.
///
/// ```no_run
/// use monitor_client::Target;
///
/// let target = Target::open("/sys/fs/cgroup/a/memory.oom_control".as_ref())?;
/// assert_eq!(target.args(""), "memory.oom_control ");
/// # Ok::<_, monitor_client::Error>(())
/// ```
#[derive(Debug)]
pub struct Target {
    file: File,
    prefix: String,
    /// A file that is gone once the group is, or its controller is off.
    mark: RemovalCheck,
}

impl Target {
    /// Opens the control file at `path`, or its directory if that has no such file.
    /// `memory.usage_in_bytes` under a v2 directory stands for `memory.current`.
    ///
    /// # Errors
    /// [`Error::File`] if there is neither such a file, nor a directory of which it could be one.
    pub fn open(path: &Path) -> Result<Self> {
        let missing = match File::open(path) {
            Ok(file) => {
                let mark = RemovalCheck::of(path, &file)?;
                return Ok(Self { file, prefix: String::new(), mark });
            }
            Err(error) => error,
        };
        let name = path.file_name().and_then(|name| ControlFile::from_name(name.as_bytes()));
        let (Some(name), Some(directory)) = (name, path.parent()) else {
            return Err(Error::file("open", path, missing));
        };
        // The root has no usage file: cgroup.procs is always there.
        let usage = directory.join(USAGE_FILE);
        let (found, mark_path) = match File::open(&usage) {
            Ok(current) if name == ControlFile::Usage => {
                let mark = RemovalCheck::of(&usage, &current)?;
                return Ok(Self { file: current, prefix: String::new(), mark });
            }
            Ok(current) => (current, usage),
            Err(_) => {
                let procs = directory.join(ControlFile::Procs.name());
                match File::open(&procs) {
                    Ok(file) => (file, procs),
                    Err(_) => return Err(Error::file("open", path, missing)),
                }
            }
        };
        let mark = RemovalCheck::of(&mark_path, &found)?;
        let file = File::open(directory).map_err(|error| Error::file("open", directory, error))?;
        Ok(Self { file, prefix: format!("{} ", name.name()), mark })
    }

    /// Returns the arguments to send: `args`, behind the file's name if a directory is open.
    #[must_use]
    pub fn args(&self, args: &str) -> String {
        format!("{}{args}", self.prefix)
    }

    /// Closes the descriptor, and leaves the check whether the group is still there.
    #[must_use]
    pub fn into_mark(self) -> RemovalCheck {
        self.mark
    }
}

/// Gives the open control file or directory, to send it to the agent.
impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A check whether a group is still there, by the name and identity of a file of it: a group
/// made anew under the same name is another one.
#[derive(Debug)]
pub struct RemovalCheck {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl RemovalCheck {
    fn of(path: &Path, file: &File) -> Result<Self> {
        let found = file.metadata().map_err(|error| Error::file("look at", path, error))?;
        Ok(Self { path: path.into(), device: found.dev(), inode: found.ino() })
    }

    /// Returns whether the file is still there: `false` once the group is removed, or the
    /// controller of the file is turned off.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be looked at.
    pub fn is_there(&self) -> Result<bool> {
        match self.path.metadata() {
            Ok(found) => Ok(found.dev() == self.device && found.ino() == self.inode),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::file("look at", &self.path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::Target;

    #[test]
    fn v1_names_lead_to_v2_groups() -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let path = |name: &str| directory.path().join(name);
        assert!(Target::open(&path("memory.oom_control")).is_err());
        fs::write(path("memory.current"), "0\n")?;
        let oom = Target::open(&path("memory.oom_control"))?;
        assert_eq!(oom.args("x"), "memory.oom_control x");
        let mark = oom.into_mark();
        assert!(mark.is_there()?);
        assert_eq!(Target::open(&path("memory.usage_in_bytes"))?.args("1M"), "1M");
        assert_eq!(Target::open(&path("memory.current"))?.args("1M"), "1M");
        assert!(Target::open(&path("memory.nonsense")).is_err());
        fs::remove_file(path("memory.current"))?;
        fs::write(path("memory.current"), "another\n")?;
        fs::write(path("one more"), "so that the inode differs")?;
        fs::remove_file(path("memory.current"))?;
        assert!(!mark.is_there()?);
        Ok(())
    }
}
