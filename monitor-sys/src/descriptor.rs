//! Replaces the file behind a descriptor whose number another piece of code keeps.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use nix::errno::Errno;

/// Makes the descriptor of `owner` another one of the file `by` is open on (`dup3`), close-on-exec.
/// Its number stays, and is open all the time; what it was open on is closed.
///
/// # Errors
/// `EINVAL` where both are the same descriptor; `EBUSY` where a thread opens that number.
pub fn replace(owner: &mut impl AsFd, by: BorrowedFd<'_>) -> Result<(), Errno> {
    let number = owner.as_fd().as_raw_fd();
    // SAFETY: takes three numbers. `owner` shows that the second is open and in use by it alone,
    // and it is open afterwards, so that nobody's descriptor is closed or reused.
    let replaced = unsafe { libc::dup3(by.as_raw_fd(), number, libc::O_CLOEXEC) };
    Errno::result(replaced).map(drop)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Write as _},
        os::{
            fd::{AsFd as _, AsRawFd as _},
            unix::net::UnixStream,
        },
    };

    use super::*;

    #[test]
    fn the_number_stays_and_the_file_is_another() -> Result<(), Box<dyn std::error::Error>> {
        let mut owner = File::open("/dev/null")?;
        let number = owner.as_raw_fd();
        let (mut ours, theirs) = UnixStream::pair()?;
        ours.write_all(b"x")?;
        replace(&mut owner, theirs.as_fd())?;
        let mut byte = [0];
        owner.read_exact(&mut byte)?;
        assert_eq!((owner.as_raw_fd(), byte), (number, *b"x"));
        let itself = owner.try_clone()?;
        assert_eq!(replace(&mut owner, itself.as_fd()), Ok(()));
        Ok(())
    }
}
