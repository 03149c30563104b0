//! Programs, links and maps in the BPF file system, so that the kernel's side keeps working while there
//! is no agent: `DIR/SCHEMA/{map,prog,link}-NAME`. The answer cell is pinned last: a directory
//! without it was not finished. `DIR/SCHEMA-new` and `DIR/SCHEMA-old` exist while one agent's
//! programs replace another's.
//!
//! Any user may write to a BPF file system that systemd did not mount (mode 1777). So the
//! directory has to be the agent's own, and is used by its descriptor, wherever its name leads to
//! later. Only names of the agent's pins are touched.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use monitor_common::protocol::slot::SCHEMA;
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, Flock, FlockArg, OFlag, openat, renameat},
    libc,
    sys::{
        stat::{FileStat, Mode, fchmod, fstat, fstatat, lstat, mkdirat, stat},
        statfs::{BPF_FS_MAGIC, fstatfs, statfs},
    },
    unistd::{UnlinkatFlags, geteuid, unlinkat},
};

use crate::{
    error::{Error, Result},
    kernel::settings::is_ftrace_off,
    programs::error::PinsError,
};

/// The default directory for pins.
pub const PINS_DIRECTORY: &str = "/sys/fs/bpf/memcg-monitor";

/// The maps that an agent needs again, in the order in which they are pinned.
pub(super) const MAPS: [&str; 10] = [
    "SLOTS",
    "TALLIES",
    "FREE",
    "FILES",
    "THREAD_MARKS",
    "DOORBELLS",
    "BOX_OF",
    "BOXES",
    "BOX_POINTS",
    "SCRATCH",
];
/// The last of the pinned maps.
const LAST: &str = "map-SCRATCH";

/// Prefixes of names in a schema's directory.
const KINDS: [&str; 3] = ["map-", "prog-", "link-"];
/// Suffixes of a directory's name while one replaces another.
const FRESH: &str = "-new";
const REPLACED: &str = "-old";

/// Flags that open a directory itself, and not what it links to.
const AS_DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
/// Write permission for others than the owner.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;
/// Permission bits of a mode.
const PERMISSIONS: u32 = 0o7777;

/// The directory with the pins of all schemas, held by one agent.
#[derive(Debug)]
pub struct Pins {
    path: PathBuf,
    directory: Flock<File>,
}

/// Programs that were pinned before the present ones, and are to be removed.
#[derive(Debug)]
pub struct OlderPins {
    /// The layout of their tables.
    pub schema: u32,
    /// The directory of their pins.
    pub path: PathBuf,
}

impl Pins {
    /// Makes the directory, if need be, and locks it against other agents.
    ///
    /// # Errors
    /// There is no BPF file system, or it is read-only or full; the directory, or one above it,
    /// belongs to another user; or another agent has it.
    pub fn open(path: &Path) -> Result<Self> {
        let named = |call: &str, errno| Error::syscall(format!("{call} {}", path.display()), errno);
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(PinsError::NoName { path: path.into() }.into());
        };
        fs::create_dir_all(above).map_err(|error| Error::file("make the directory", above, error))?;
        let above = above.canonicalize().map_err(|error| Error::file("look up", above, error))?;
        for path in above.ancestors() {
            check_parent(path)?;
        }
        let above = File::open(&above).map_err(|error| Error::file("open", &above, error))?;
        match mkdirat(&above, name, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(named("mkdir", errno)),
        }
        let directory = match openat(&above, name, AS_DIRECTORY, Mode::empty()) {
            Ok(directory) => File::from(directory),
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                let found = fstatat(&above, name, AtFlags::AT_SYMLINK_NOFOLLOW);
                let owner = found.ok().map(|found| found.st_uid);
                return Err(PinsError::NotADirectory { path: path.into(), owner }.into());
            }
            Err(errno) => return Err(named("open", errno)),
        };
        let kind = fstatfs(&directory).map_err(|errno| named("statfs", errno))?.filesystem_type();
        if kind != BPF_FS_MAGIC {
            return Err(PinsError::NotOnBpffs { path: path.into() }.into());
        }
        check_owner(path, &fstat(&directory).map_err(|errno| named("stat", errno))?)?;
        // A process that can open it can lock it. Earlier versions left the mode to the umask.
        let _ = fchmod(&directory, Mode::S_IRWXU);
        let directory =
            Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
                Errno::EWOULDBLOCK => PinsError::InUse { path: path.into() }.into(),
                _ => named("flock", errno),
            })?;
        let pins = Self { path: path.into(), directory };
        pins.finish();
        Ok(pins)
    }

    /// Whether pins can be made in `directory`, as far as can be seen without making it.
    ///
    /// # Errors
    /// The errors of [`Pins::open`].
    pub fn possible(path: &Path) -> Result<String> {
        let name = path.display();
        let above = path.parent().unwrap_or(path);
        let found =
            stat(above).map_err(|errno| Error::syscall(format!("stat {}", above.display()), errno))?;
        let kind =
            statfs(above).map_err(|errno| Error::syscall(format!("statfs {}", above.display()), errno))?;
        if kind.filesystem_type() != BPF_FS_MAGIC {
            return Err(PinsError::NotOnBpffs { path: path.into() }.into());
        }
        for path in above.ancestors() {
            check_parent(path)?;
        }
        match lstat(path) {
            Ok(found) if found.st_mode & libc::S_IFMT != libc::S_IFDIR => {
                Err(PinsError::NotADirectory { path: path.into(), owner: Some(found.st_uid) }.into())
            }
            Ok(found) => {
                check_owner(path, &found)?;
                Ok(format!("in {name}"))
            }
            Err(_) if found.st_mode & OTHERS_WRITE != 0 => Ok(format!(
                "in {name}; but until an agent has been there any user may make that directory: chmod 0700 {}",
                above.display()
            )),
            Err(_) => Ok(format!("in {name}")),
        }
    }

    /// Whether programs or links are pinned in `directory`, as far as they can be seen: they stay
    /// attached even if no agent opens them.
    #[must_use]
    pub fn hold_programs(path: &Path) -> bool {
        let names = |path: &Path| {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
        };
        let is_attached = |name: &String| name.starts_with("prog-") || name.starts_with("link-");
        let schemas = names(path).into_iter().filter(|name| schema_of(name).is_some());
        schemas.into_iter().any(|schema| names(&path.join(schema)).iter().any(is_attached))
    }

    /// The path of the present schema's pins, by the directory's descriptor.
    #[must_use]
    pub fn present(&self) -> PathBuf {
        self.at(&SCHEMA.to_string())
    }

    /// Whether the present schema's pins are all there.
    #[must_use]
    pub fn are_complete(&self) -> bool {
        self.is_complete(&SCHEMA.to_string())
    }

    /// Pins of other programs, beside the present ones: perhaps not all of them.
    #[must_use]
    pub fn older(&self) -> Vec<OlderPins> {
        let present = SCHEMA.to_string();
        let others = self.names().into_iter().filter(|name| *name != present && !name.ends_with(FRESH));
        others
            .filter_map(|name| Some(OlderPins { schema: schema_of(&name)?, path: self.at(&name) }))
            .collect()
    }

    /// Pins by `pin`, which is given a new directory, then makes that the present one. The earlier
    /// pins stay beside it until [`Pins::remove_older`].
    ///
    /// # Errors
    /// A directory cannot be made or renamed, or `pin` failed: nothing is pinned anew.
    pub fn replace(&self, pin: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let fresh = format!("{SCHEMA}{FRESH}");
        self.remove(&fresh);
        mkdirat(self.directory.as_fd(), fresh.as_str(), Mode::S_IRWXU)
            .map_err(|errno| self.failed("mkdir", &fresh, errno))?;
        pin(&self.at(&fresh)).inspect_err(|_| self.remove(&fresh))?;
        self.make_present(&fresh).inspect_err(|_| self.remove(&fresh))
    }

    /// Removes all but the present pins: what is pinned nowhere else, and not open, is detached.
    pub fn remove_older(&self) {
        let present = SCHEMA.to_string();
        for name in self.names() {
            if name != present && schema_of(&name).is_some() {
                self.remove(&name);
            }
        }
    }

    /// Removes all pins, and keeps the directory: what is pinned nowhere else, and not open, is
    /// detached. Returns whether they are gone: while the kernel's function tracing is off all stay, since a
    /// program that is detached then keeps every later one from being attached, until the next boot (`ENODEV`; seen
    /// on 7.2).
    pub fn remove_programs(&self) -> bool {
        let pinned: Vec<_> = self.names().into_iter().filter(|name| schema_of(name).is_some()).collect();
        if !pinned.is_empty() && is_ftrace_off() {
            log::warn!(
                "programs stay attached: to detach them while kernel.ftrace_enabled is 0 would keep all later ones \
                 from being attached, until the next boot; the agent's next end or start detaches them with it on, or \
                 rm -r {}",
                self.path.display()
            );
            return false;
        }
        pinned.iter().for_each(|name| self.remove(name));
        true
    }

    /// Removes all pins, as [`Pins::remove_programs`], and the directory. Where any user may make directories, the
    /// empty one stays, so that no other user makes it before the next agent.
    pub fn clear(&self) -> bool {
        if !self.remove_programs() {
            return false;
        }
        let (Some(above), Some(name)) = (self.path.parent(), self.path.file_name()) else { return true };
        let Ok(above) = File::open(above) else { return true };
        if fstat(&above).is_ok_and(|found| found.st_mode & OTHERS_WRITE != 0) {
            return true;
        }
        if let Err(errno) = unlinkat(&above, name, UnlinkatFlags::RemoveDir) {
            log::warn!("remove {}: {errno}", self.path.display());
        }
        true
    }

    /// Completes what a killed agent had begun: to replace pins, or to make them.
    fn finish(&self) {
        let fresh = format!("{SCHEMA}{FRESH}");
        if self.is_complete(&fresh)
            && let Err(error) = self.make_present(&fresh)
        {
            log::warn!("{error}");
        }
        for name in self.names() {
            let halfway = schema_of(&name) == Some(SCHEMA) && !self.is_complete(&name);
            if halfway || schema_of(&name).is_some() && name.ends_with(FRESH) {
                self.remove(&name);
            }
        }
    }

    fn make_present(&self, fresh: &str) -> Result<()> {
        let present = SCHEMA.to_string();
        let moved = |from: &str, to: &str| renameat(self.directory.as_fd(), from, self.directory.as_fd(), to);
        let replaced = format!("{SCHEMA}{REPLACED}");
        if self.is_complete(&present) {
            // Left by an agent that could not remove it: two generations of programs have seen
            // the same.
            self.remove(&replaced);
            moved(&present, &replaced).map_err(|errno| self.failed("rename", &present, errno))?;
        } else {
            self.remove(&present);
        }
        moved(fresh, &present).map_err(|errno| self.failed("rename", fresh, errno))
    }

    fn failed(&self, call: &str, name: &str, errno: Errno) -> Error {
        Error::syscall(format!("{call} {}/{name}", self.path.display()), errno)
    }

    /// A path to `name` in the directory, whatever the directory is called by now.
    fn at(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd()))
    }

    fn is_complete(&self, name: &str) -> bool {
        let last = format!("{name}/{LAST}");
        fstatat(self.directory.as_fd(), last.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }

    /// Names in the directory that could be the agent's.
    fn names(&self) -> Vec<String> {
        let directory = Dir::openat(self.directory.as_fd(), ".", AS_DIRECTORY, Mode::empty());
        directory
            .map(names_of)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .collect()
    }

    /// Removes what can be removed: the log names what stays, and the next agent tries again.
    fn remove(&self, name: &str) {
        let outcome = match Dir::openat(self.directory.as_fd(), name, AS_DIRECTORY, Mode::empty()) {
            Ok(opened) => {
                empty(opened).and_then(|()| unlinkat(self.directory.as_fd(), name, UnlinkatFlags::RemoveDir))
            }
            Err(errno) => Err(errno),
        };
        match outcome {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => log::warn!("remove {}/{name}: {errno}", self.path.display()),
        }
    }
}

/// The schema that a directory's name stands for.
fn schema_of(name: &str) -> Option<u32> {
    let number = name.strip_suffix(FRESH).or_else(|| name.strip_suffix(REPLACED)).unwrap_or(name);
    let schema = number.parse().ok()?;
    // The form that the agent writes: no sign, no leading zeros.
    (u32::to_string(&schema) == number).then_some(schema)
}

fn names_of(mut directory: Dir) -> Vec<OsString> {
    let entries = directory.iter().flatten();
    let names = entries.map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
    names.filter(|name| name != "." && name != "..").collect()
}

/// Removes the agent's names from a schema's directory.
fn empty(directory: Dir) -> nix::Result<()> {
    let descriptor = directory.as_fd().try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
    for name in names_of(directory) {
        if KINDS.iter().any(|kind| name.as_bytes().starts_with(kind.as_bytes())) {
            unlinkat(&descriptor, name.as_os_str(), UnlinkatFlags::NoRemoveDir)?;
        }
    }
    Ok(())
}

/// Checks that only this user, and root, can change what is in a directory.
fn check_owner(path: &Path, found: &FileStat) -> Result<(), PinsError> {
    let own = geteuid().as_raw();
    if found.st_uid != own {
        return Err(PinsError::OtherOwner { path: path.into(), owner: found.st_uid, own });
    }
    if found.st_mode & OTHERS_WRITE != 0 {
        return Err(PinsError::WritableByOthers { path: path.into(), mode: found.st_mode & PERMISSIONS });
    }
    Ok(())
}

/// Checks that only this user and root can put another directory in place of the agent's.
fn check_parent(path: &Path) -> Result<()> {
    let found = stat(path).map_err(|errno| Error::syscall(format!("stat {}", path.display()), errno))?;
    let own = [0, geteuid().as_raw()].contains(&found.st_uid);
    if own && (found.st_mode & OTHERS_WRITE == 0 || found.st_mode & STICKY != 0) {
        return Ok(());
    }
    let mode = found.st_mode & PERMISSIONS;
    Err(PinsError::AboveChangeable { path: path.into(), owner: found.st_uid, mode }.into())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _},
        path::Path,
    };

    use nix::sys::stat::stat;

    use super::{Pins, check_owner, schema_of};
    use crate::{error::Error, programs::error::PinsError};

    #[test]
    fn each_reason_against_a_directory_can_be_matched() {
        let unnamed = Pins::open(Path::new("/")).expect_err("no name");
        assert!(matches!(&unnamed, Error::Pins(PinsError::NoName { path }) if path == Path::new("/")));
        assert_eq!(unnamed.to_string(), "--pins /: name a directory");

        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        let elsewhere = Pins::possible(&path.join("pins")).expect_err("an ordinary file system");
        assert!(matches!(elsewhere, Error::Pins(PinsError::NotOnBpffs { .. })));
        assert!(
            elsewhere
                .to_string()
                .ends_with("/pins is not on a BPF file system (mount -t bpf -o mode=0700 bpf /sys/fs/bpf)")
        );

        let checked = || check_owner(path, &stat(path).expect("it is there"));
        assert!(checked().is_ok());
        fs::set_permissions(path, fs::Permissions::from_mode(0o770)).expect("the owner");
        let open = checked().expect_err("the group may write");
        assert!(matches!(open, PinsError::WritableByOthers { mode: 0o770, .. }));
        let name = path.display();
        assert_eq!(
            open.to_string(),
            format!("{name} may be written to by others (mode 770): chmod 0700 {name}")
        );
        let mut found = stat(path).expect("it is there");
        found.st_uid = found.st_uid.wrapping_add(1);
        let own = fs::metadata(path).expect("it is there").uid();
        let others = check_owner(path, &found).expect_err("another user's");
        assert!(matches!(others, PinsError::OtherOwner { owner, own: agent, .. }
            if owner == found.st_uid && agent == own));
    }

    #[test]
    fn programs_that_are_left_are_seen() {
        let path = tempfile::tempdir().expect("a directory");
        let hold = || Pins::hold_programs(path.path());
        assert!(!Pins::hold_programs(&path.path().join("none")) && !hold());
        for (name, holds) in [("other/prog-charge", false), ("4/map-SLOTS", false), ("4/link-charge", true)] {
            let path = path.path().join(name);
            fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            fs::write(path, "").expect("a file");
            assert_eq!(hold(), holds, "{name}");
        }
    }

    #[test]
    fn only_names_that_are_ours_are_ours() {
        for (name, schema) in [("4", 4), ("5-new", 5), ("12-old", 12)] {
            assert_eq!(schema_of(name), Some(schema));
        }
        for name in ["", "05", "+5", "5-", "5-newer", "5-new-old", "five", "-new", "4294967296"] {
            assert_eq!(schema_of(name), None, "{name}");
        }
    }
}
