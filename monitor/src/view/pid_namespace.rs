//! Numbers of processes and threads in a reader's pid namespace, as cgroup v1's `cgroup.procs`
//! and `tasks` had them (`pidlist_array_load`).

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, OwnedFd},
};

use monitor_sys::namespace;
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::stat::{Mode, fstat, fstatat},
};

use crate::procfs::{self, has_ended};

/// The link of a task to its pid namespace, below its directory in `/proc`.
const LINK: &str = "ns/pid";

/// Number of namespaces between the agent's pid namespace and a task's: 0 in the agent's own.
///
/// # Errors
/// `ESRCH` when the task has ended, or is outside the agent's namespace (id 0).
pub fn depth(task: i32) -> Result<usize, Errno> {
    Ok(numbers(&status(&directory(task)?)?).len().saturating_sub(1))
}

/// Tells which tasks a pid namespace has, and by which numbers.
#[derive(Debug)]
pub struct PidNamespace {
    /// Number of namespaces above it, up to the agent's.
    depth: usize,
    /// Inode number of the namespace.
    inode: u64,
    /// Whether a namespace, by its inode number, is this one or lies below it.
    known: HashMap<u64, bool>,
}

impl PidNamespace {
    /// The pid namespace of a task. Needs `CAP_SYS_PTRACE`, for tasks of other users.
    ///
    /// # Errors
    /// `ESRCH` when the task has ended, or is outside the agent's namespace.
    pub fn of(task: i32) -> Result<Self, Errno> {
        let directory = directory(task)?;
        let depth = numbers(&status(&directory)?).len().saturating_sub(1);
        let inode = inode(&directory)?;
        Ok(Self { depth, inode, known: HashMap::new() })
    }

    /// Number of a task in this namespace; `None` outside it, and when the task has ended.
    ///
    /// # Errors
    /// A file in `/proc` could not be read.
    pub fn number(&mut self, task: i32) -> Result<Option<i32>, Errno> {
        match self.find(task) {
            Err(Errno::ESRCH) => Ok(None),
            found => found,
        }
    }

    fn find(&mut self, task: i32) -> Result<Option<i32>, Errno> {
        let directory = directory(task)?;
        let numbers = numbers(&status(&directory)?);
        let Some(&number) = numbers.get(self.depth) else { return Ok(None) };
        let inode = inode(&directory)?;
        let has = match self.known.get(&inode) {
            Some(known) => *known,
            None => {
                let levels = numbers.len() - 1 - self.depth;
                let has = self.is_above(&directory, levels)?;
                self.known.insert(inode, has);
                has
            }
        };
        Ok(has.then_some(number))
    }

    /// Whether this namespace is so many levels above the namespace of a task.
    fn is_above(&self, directory: &OwnedFd, levels: usize) -> Result<bool, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let opened = openat(directory, LINK, flags, Mode::empty());
        let mut above = opened.map_err(|errno| not_followed(directory, errno))?;
        for _ in 0..levels {
            above = namespace::parent(above.as_fd())?;
        }
        Ok(fstat(&above)?.st_ino == self.inode)
    }
}

fn directory(task: i32) -> Result<OwnedFd, Errno> {
    if task <= 0 {
        return Err(Errno::ESRCH);
    }
    procfs::task(task).map_err(ended)
}

/// Inode number of the pid namespace of a task.
fn inode(directory: &OwnedFd) -> Result<u64, Errno> {
    let found = fstatat(directory, LINK, AtFlags::empty());
    found.map(|stat| stat.st_ino).map_err(|errno| not_followed(directory, errno))
}

/// The failure to follow a task's link.
fn not_followed(directory: &OwnedFd, errno: Errno) -> Errno {
    if errno == Errno::EACCES && has_ended(directory) { Errno::ESRCH } else { ended(errno) }
}

fn status(directory: &OwnedFd) -> Result<String, Errno> {
    procfs::status(directory).map_err(ended)
}

/// The numbers of a task, from the agent's namespace to the task's own. Kernels without pid
/// namespaces have no such line.
fn numbers(status: &str) -> Vec<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    line.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

const fn ended(errno: Errno) -> Errno {
    match errno {
        Errno::ENOENT | Errno::ESRCH => Errno::ESRCH,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::{PidNamespace, depth, directory, inode, not_followed, numbers};

    #[test]
    fn the_numbers_are_those_of_the_line() {
        assert_eq!(numbers("Name:\tNSpid: 3\nNSpid:\t812\t7\t1\nNSpgid:\t812\t7\t1\n"), [812, 7, 1]);
        assert!(numbers("Pid:\t812\n").is_empty());
    }

    #[test]
    fn a_process_has_its_own_number_in_its_own_namespace() {
        let own = std::process::id().cast_signed();
        let mut namespace = PidNamespace::of(own).expect("it is running");
        assert_eq!(namespace.depth, depth(own).expect("it is running"));
        assert_eq!(namespace.depth, 0);
        assert_eq!(namespace.number(own), Ok(Some(own)));
        // Beyond the kernel's largest pid, 2^22.
        assert_eq!(namespace.number(i32::MAX), Ok(None));
        assert_eq!(depth(0), Err(Errno::ESRCH));
    }

    #[test]
    fn a_task_that_has_ended_is_no_task_without_permission() {
        let mut child = std::process::Command::new("true").spawn().expect("it starts");
        let directory = directory(child.id().cast_signed()).expect("it is not waited for");
        assert_eq!(not_followed(&directory, Errno::EACCES), Errno::EACCES);
        child.wait().expect("it ends");
        assert_eq!(not_followed(&directory, Errno::EACCES), Errno::ESRCH);
        assert_eq!(inode(&directory), Err(Errno::ESRCH));
    }

    #[test]
    fn a_namespace_beside_it_has_no_number_in_it() {
        let own = std::process::id().cast_signed();
        let mut other = PidNamespace::of(own).expect("it is running");
        other.inode += 1;
        assert_eq!(other.number(own), Ok(None));
    }
}
