//! Directories of tasks in `/proc`, each held open: what is read in one is of that task, and of no
//! later one with its number.

use std::{fs::File, io::Read as _, os::fd::OwnedFd};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat, readlinkat},
    sys::stat::Mode,
};

/// Opens the directory of a process or thread.
///
/// # Errors
/// `ENOENT` where there is none.
pub fn task(number: i32) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(format!("/proc/{number}").as_str(), flags, Mode::empty())
}

/// A file of a task's directory, in full.
///
/// # Errors
/// `ESRCH` or `ENOENT` when the task has ended.
pub fn read(directory: &OwnedFd, name: &str) -> Result<Vec<u8>, Errno> {
    let fd = openat(directory, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut text = Vec::with_capacity(2048);
    File::from(fd)
        .read_to_end(&mut text)
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    Ok(text)
}

/// The beginning of a file of a task's directory, `most` bytes of it.
///
/// # Errors
/// As for [`read`].
pub fn read_at_most(directory: &OwnedFd, name: &str, most: usize) -> Result<Vec<u8>, Errno> {
    let fd = openat(directory, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::new();
    File::from(fd)
        .take(most as u64)
        .read_to_end(&mut bytes)
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    Ok(bytes)
}

/// The target of a link of a task's directory. What is not UTF-8 is replaced.
///
/// # Errors
/// As for [`read`]; `EACCES` where this process may not see it.
pub fn link(directory: &OwnedFd, name: &str) -> Result<String, Errno> {
    readlinkat(directory, name).map(|path| path.to_string_lossy().into_owned())
}

/// When a process began, in ticks since the start of the host.
#[must_use]
pub fn start_ticks(directory: &OwnedFd) -> Option<u64> {
    /// Place in `stat` after the name in parentheses, which may have spaces.
    const START: usize = 19;
    let text = read(directory, "stat").ok()?;
    let text = String::from_utf8_lossy(&text);
    text.rsplit_once(')')?.1.split_whitespace().nth(START)?.parse().ok()
}

/// The text of a task's `status`. What is not UTF-8 (the task's name may be) is replaced.
///
/// # Errors
/// As for [`read`].
pub fn status(directory: &OwnedFd) -> Result<String, Errno> {
    read(directory, "status").map(|text| String::from_utf8_lossy(&text).into_owned())
}

/// Whether a task has begun to end: it leaves its groups then, before its directory goes.
#[must_use]
pub fn is_ending(directory: &OwnedFd) -> bool {
    /// The kernel's flag of tasks that end, which is set before they leave their groups (`exit_signals`).
    const PF_EXITING: u32 = 4;
    /// Place of the flags in `stat` after the name in parentheses, which may have spaces.
    const FLAGS: usize = 6;
    let text = read(directory, "stat").unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let after = text.rsplit_once(')').and_then(|(_, after)| after.split_whitespace().nth(FLAGS));
    after.and_then(|flags| flags.parse::<u32>().ok()).is_none_or(|flags| flags & PF_EXITING != 0)
}

/// Whether a task has ended. The kernel answers `EACCES`, too, to who follows a link of a task that
/// has ended since the link was looked up (`proc_ns_get_link`, `proc_pid_readlink`).
#[must_use]
pub fn has_ended(directory: &OwnedFd) -> bool {
    matches!(status(directory), Err(Errno::ESRCH | Errno::ENOENT))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::{is_ending, task};

    #[test]
    fn a_zombie_has_left_its_groups() {
        let this = task(std::process::id().cast_signed()).expect("a directory");
        assert!(!is_ending(&this));
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat");
        let directory = task(child.id().cast_signed()).expect("a directory");
        assert!(!is_ending(&directory));
        // Ended, and not waited for.
        drop(child.stdin.take());
        while !is_ending(&directory) {
            std::thread::yield_now();
        }
        child.wait().expect("wait");
        assert!(is_ending(&directory), "its directory is empty");
    }
}
