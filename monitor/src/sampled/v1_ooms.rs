//! OOMs on cgroup v1, from the kernel's own notice: an eventfd for each group, registered with
//! `cgroup.event_control` on `memory.oom_control`.
//!
//! The kernel signals the group whose limit was reached, first, and then all below it
//! (`mem_cgroup_oom_notify`). So the OOMs by a group's own limit are those of its eventfd less
//! those of its parent's, where the parent's is read after it.

use std::{
    collections::HashMap,
    fs::File,
    io::Write as _,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        eventfd::{EfdFlags, EventFd},
        stat::Mode,
    },
};

use crate::{
    cgroup::handle::{Directories, Directory},
    error::{Error, Result},
};

/// The notice of one group.
struct Notice {
    eventfd: EventFd,
    /// Signals of the eventfd so far.
    total: u64,
    /// Signals of the parent's eventfd before this one was registered.
    parent_before: u64,
    /// OOMs by the group's own limit that were returned already.
    returned: u64,
}

impl Notice {
    fn read(&mut self) -> u64 {
        self.total += self.eventfd.read().unwrap_or(0);
        self.total
    }
}

/// The notices of all groups, by slot.
pub(super) struct V1Ooms {
    epoll: Epoll,
    notices: HashMap<u32, Notice>,
}

impl V1Ooms {
    pub(super) fn new() -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|errno| Error::syscall("epoll_create1", errno))?;
        Ok(Self { epoll, notices: HashMap::new() })
    }

    /// OOMs by the limit of the group in `slot` since the last call; the first call registers, and
    /// so it has to be made for the parent first.
    ///
    /// # Errors
    /// The kernel refuses the registration.
    pub(super) fn new_ooms(
        &mut self,
        slot: u32,
        parent: Option<u32>,
        directory: &Directory,
    ) -> Result<u64, Errno> {
        let above = |notices: &mut HashMap<u32, Notice>| {
            parent.and_then(|parent| notices.get_mut(&parent)).map_or(0, Notice::read)
        };
        if !self.notices.contains_key(&slot) {
            let parent_before = above(&mut self.notices);
            let eventfd = register(directory.as_fd())?;
            self.epoll.add(&eventfd, EpollEvent::new(EpollFlags::EPOLLIN, u64::from(slot)))?;
            self.notices.insert(slot, Notice { eventfd, total: 0, parent_before, returned: 0 });
            return Ok(0);
        }
        let Some(total) = self.notices.get_mut(&slot).map(Notice::read) else { return Ok(0) };
        let above = above(&mut self.notices);
        let Some(notice) = self.notices.get_mut(&slot) else { return Ok(0) };
        // Less than before while those below a group in OOM are being signalled.
        let own = total.saturating_sub(above.saturating_sub(notice.parent_before));
        let new = own.saturating_sub(notice.returned);
        notice.returned += new;
        Ok(new)
    }

    /// Ends a group's notice.
    pub(super) fn forget(&mut self, slot: u32) {
        if let Some(notice) = self.notices.remove(&slot) {
            let _ = self.epoll.delete(&notice.eventfd);
        }
    }
}

/// Tries, on the root, whether the kernel gives this process notice; that registration ends at once.
///
/// # Errors
/// As of [`V1Ooms::new_ooms`]: `EROFS` where this process has the hierarchy to read only.
pub(super) fn probe(directories: &Directories) -> Result<(), Errno> {
    register(directories.open(directories.root_id())?.as_fd()).map(drop)
}

/// Registers an eventfd of the agent's own, as any v1 client does.
fn register(directory: BorrowedFd<'_>) -> Result<EventFd, Errno> {
    let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let open = |name: &str, flags: OFlag| openat(directory, name, flags | OFlag::O_CLOEXEC, Mode::empty());
    let control = open("memory.oom_control", OFlag::O_RDONLY)?;
    let door = open("cgroup.event_control", OFlag::O_WRONLY)?;
    let line = format!("{} {}", eventfd.as_fd().as_raw_fd(), control.as_raw_fd());
    File::from(door)
        .write_all(line.as_bytes())
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    Ok(eventfd)
}

impl AsFd for V1Ooms {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::fd::AsFd as _,
    };

    use nix::errno::Errno;

    use super::register;

    #[test]
    fn a_hierarchy_that_cannot_be_written_gives_no_notice() {
        let directory = tempfile::tempdir().expect("a directory");
        let tried = || register(File::open(directory.path()).expect("there").as_fd()).map(drop);
        assert_eq!(tried(), Err(Errno::ENOENT), "no memory.oom_control");
        fs::write(directory.path().join("memory.oom_control"), "").expect("a file");
        let door = directory.path().join("cgroup.event_control");
        fs::create_dir(&door).expect("a directory");
        assert_eq!(tried(), Err(Errno::EISDIR), "as EROFS, it cannot be opened to be written");
        fs::remove_dir(&door).expect("it is empty");
        fs::write(&door, "").expect("a file");
        assert_eq!(tried(), Ok(()));
        let line = fs::read_to_string(&door).expect("there");
        assert!(line.split(' ').all(|fd| fd.parse::<i32>().is_ok()) && line.contains(' '), "{line}");
    }
}
