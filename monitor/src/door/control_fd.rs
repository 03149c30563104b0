//! What a line's control fd stands for: which control file, of which group.

use std::{
    fs,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
};

use monitor_common::control::{ControlFile, split_directory_args};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::{
        stat::{FileStat, Mode, SFlag, fstat},
        statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, fstatfs},
    },
};

use crate::{
    cgroup::handle::{Directories, Directory},
    door::{
        peer::Credentials,
        request::{Refusal, Which},
    },
    source::{GroupId, Located, Source},
};

/// A control file of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Which group.
    pub group: GroupId,
    /// Which of its files.
    pub file: ControlFile,
}

/// What `fd`, open in the agent, stands for, and the arguments for it. Checks in
/// the kernel's order: may the client read it, is it a cgroup file, of a kind that
/// notifies, of an online group.
///
/// # Errors
/// `EACCES` and `EINVAL` as the kernel; `ENOMEM` when the table of groups is full.
pub fn resolve<'a, S: Source>(
    source: &S,
    directories: &Directories,
    (fd, which): (BorrowedFd<'_>, Which),
    client: &Credentials,
    args: &'a [u8],
) -> Result<(Control, &'a [u8]), Refusal> {
    let stat = fstat(fd).map_err(|errno| Refusal::new(errno, format!("fstat of {which} failed")))?;
    may_read(client, &stat, which)?;
    let filesystem = fstatfs(fd).map(|fs| fs.filesystem_type()).ok();
    if !matches!(filesystem, Some(CGROUP_SUPER_MAGIC | CGROUP2_SUPER_MAGIC)) {
        return Err(Refusal::new(Errno::EINVAL, format!("{which} is not a file of a cgroup")));
    }
    let invalid = |why: String| Refusal::new(Errno::EINVAL, why);
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => {
            let (file, args) = split_directory_args(args).ok_or_else(|| {
                invalid(format!(
                    "{which} is a directory; then the arguments begin with the name of a control file"
                ))
            })?;
            let directory = directories.open(stat.st_ino).map_err(|_| gone(which))?;
            let group = group_of(source, directories, &directory, stat.st_ino, which)?;
            if let Ok(stat) = directory.stat_file(real_name(directories, file)) {
                may_read(client, &stat, which)?;
            }
            Ok((Control { group, file }, args))
        }
        SFlag::S_IFREG => {
            let name = name_of(fd);
            let Some(file) = ControlFile::from_name(&name).filter(|file| is_real(directories, *file)) else {
                return Err(invalid(format!(
                    "{which} is {}, on which there are no notifications",
                    String::from_utf8_lossy(&name)
                )));
            };
            let group = if file == ControlFile::Usage {
                located(source, fd, which)?
            } else {
                let directory = directories.home_of(stat.st_ino).map_err(|_| gone(which))?;
                let id = directory.stat().map_err(|_| gone(which))?.st_ino;
                group_of(source, directories, &directory, id, which)?
            };
            Ok((Control { group, file }, args))
        }
        _ => Err(invalid(format!("{which} is not a regular file"))),
    }
}

/// The group whose directory has this id, for a control file that is not a file
/// of the hierarchy's own.
///
/// # Errors
/// `EINVAL` when it is going or gone; `ENOMEM` when the table of groups is full.
pub fn group_by_id<S: Source>(
    source: &S,
    directories: &Directories,
    id: u64,
    which: Which,
) -> Result<GroupId, Refusal> {
    let directory = directories.open(id).map_err(|_| gone(which))?;
    group_of(source, directories, &directory, id, which)
}

/// May the client read a file with these attributes (`file_permission`)?
///
/// # Errors
/// `EACCES` when not.
pub fn may_read(client: &Credentials, stat: &FileStat, which: Which) -> Result<(), Refusal> {
    if client.may_read(stat.st_mode, stat.st_uid, stat.st_gid) {
        return Ok(());
    }
    let (uid, mode) = (client.uid, stat.st_mode & 0o777);
    Err(Refusal::new(
        Errno::EACCES,
        format!("uid {uid} may not read the file behind {which} (mode {mode:03o})"),
    ))
}

fn gone(which: Which) -> Refusal {
    Refusal::new(Errno::EINVAL, format!("{which}: the group is gone"))
}

/// Whether this hierarchy has that control file as a file of its own.
fn is_real(directories: &Directories, file: ControlFile) -> bool {
    use crate::cgroup::Version;
    match file {
        ControlFile::Usage | ControlFile::Procs => true,
        ControlFile::WorkingSet => false,
        ControlFile::Memsw | ControlFile::Oom | ControlFile::Pressure => directories.version() == Version::V1,
    }
}

/// The file of this hierarchy whose permissions stand for those of a control file
/// that it does not have.
fn real_name(directories: &Directories, file: ControlFile) -> &'static str {
    match file {
        ControlFile::Usage => directories.version().usage_file(),
        file if is_real(directories, file) => file.name(),
        ControlFile::Memsw => "memory.swap.current",
        ControlFile::Oom => "memory.events",
        ControlFile::Pressure => "memory.pressure",
        ControlFile::WorkingSet => "memory.stat",
        ControlFile::Procs => "cgroup.procs",
    }
}

/// The last part of the link is the file's own name in every mount namespace;
/// the rest of it is not looked at.
fn name_of(fd: BorrowedFd<'_>) -> Vec<u8> {
    let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default();
    link.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default()
}

fn group_of<S: Source>(
    source: &S,
    directories: &Directories,
    directory: &Directory,
    id: u64,
    which: Which,
) -> Result<GroupId, Refusal> {
    if id == directories.root_id() {
        return Ok(source.root());
    }
    let usage = directory.file(directories.version().usage_file()).map_err(|_| gone(which))?;
    located(source, usage.as_fd(), which)
}

/// The group whose usage file `fd` is, by the kernel's own word.
fn located<S: Source>(source: &S, fd: BorrowedFd<'_>, which: Which) -> Result<GroupId, Refusal> {
    // The client may have opened it for writing; its own descriptor's position
    // must not move either. The link leads to the very same file.
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let readable =
        open(link.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(|_| gone(which))?;
    match source.locate(readable.as_fd()) {
        Ok(Located::Group(id)) => Ok(id),
        Ok(Located::Root) => Ok(source.root()),
        Ok(Located::TableFull) => Err(Refusal::new(
            Errno::ENOMEM,
            "the agent's table of groups is full; start it with a larger --max-groups",
        )),
        Ok(Located::Nobody) => Err(gone(which)),
        Err(error) => {
            log::error!("{error}");
            Err(Refusal::new(Errno::EIO, "the agent could not ask the kernel; see its log"))
        }
    }
}
