//! What comes along with a message (`cmsg(3)`): read from the kernel's bytes, also where
//! it had no room for all of it. Then, too, what did come is owned, and goes.

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use nix::{errno::Errno, libc, sys::socket::UnixCredentials};

/// `SCM_PIDFD`
const PIDFD: libc::c_int = 4;

/// Bytes of a header: length, level, type.
const HEADER: usize = 16;

/// Room for so many descriptors, the sender's credentials and its pidfd, all zero: an end
/// is told by that.
#[must_use]
pub fn room(descriptors: usize) -> Vec<u8> {
    let entry = |bytes: usize| HEADER + bytes.next_multiple_of(size_of::<usize>());
    vec![
        0;
        entry(descriptors * size_of::<RawFd>()) + entry(size_of::<libc::ucred>()) + entry(size_of::<RawFd>())
    ]
}

/// What came along.
#[derive(Debug, Default)]
pub struct Ancillary {
    /// Descriptors, in order.
    pub descriptors: Vec<OwnedFd>,
    /// The process that sent it, by the kernel's word.
    pub sender: Option<UnixCredentials>,
    /// The same as a descriptor, or why there is none; `None` before Linux 6.5.
    pub process: Option<Result<OwnedFd, Errno>>,
}

impl Ancillary {
    /// Takes what the kernel has written into [`room`]. To be called once for each message.
    #[must_use]
    pub fn take(mut room: &[u8]) -> Self {
        let mut taken = Self::default();
        while let Some((kind, data, rest)) = next(room) {
            match kind {
                libc::SCM_RIGHTS => {
                    let numbers = data.chunks_exact(size_of::<RawFd>()).filter_map(number);
                    // SAFETY: the kernel just installed these for us, and they are taken once.
                    taken.descriptors.extend(numbers.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
                libc::SCM_CREDENTIALS => taken.sender = credentials(data).or(taken.sender),
                PIDFD => taken.process = number(data).map(pidfd).or(taken.process),
                _ => {}
            }
            room = rest;
        }
        taken
    }
}

/// The first message of the socket's own level, and what follows it.
fn next(room: &[u8]) -> Option<(libc::c_int, &[u8], &[u8])> {
    let length = usize::from_ne_bytes(room.get(..8)?.try_into().ok()?);
    let (level, kind) = (number(room.get(8..12)?)?, number(room.get(12..HEADER)?)?);
    let data = room.get(HEADER..length)?;
    let rest = room.get(length.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
    Some((if level == libc::SOL_SOCKET { kind } else { -1 }, data, rest))
}

fn number(bytes: &[u8]) -> Option<libc::c_int> {
    Some(libc::c_int::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

fn credentials(data: &[u8]) -> Option<UnixCredentials> {
    let word = |at: usize| number(data.get(at..)?);
    let (pid, uid, gid) = (word(0)?, word(4)?.cast_unsigned(), word(8)?.cast_unsigned());
    Some(libc::ucred { pid, uid, gid }.into())
}

/// Below 0 it is the kernel's errno: there is none to hold.
fn pidfd(number: RawFd) -> Result<OwnedFd, Errno> {
    if number < 0 {
        return Err(Errno::from_raw(-number));
    }
    // SAFETY: the kernel just installed it for us, close-on-exec, and it is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd as _;

    use super::{Ancillary, HEADER, room};

    fn entry(kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (HEADER + data.len()).to_ne_bytes().to_vec();
        bytes.extend(1_i32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn each_kind_is_read_to_the_end() -> std::io::Result<()> {
        let (one, two) = (std::fs::File::open("/dev/null")?, std::fs::File::open("/dev/null")?);
        let (one, two) = (one.into_raw_fd(), two.into_raw_fd());
        let mut bytes = entry(2, &[7_i32, 1000, 100].map(i32::to_ne_bytes).concat());
        bytes.extend(entry(1, &[one, two].map(i32::to_ne_bytes).concat()));
        bytes.extend(entry(4, &(-24_i32).to_ne_bytes()));
        bytes.extend([0; 32]);
        let taken = Ancillary::take(&bytes);
        let sender = taken.sender.expect("told");
        assert_eq!((sender.pid(), sender.uid(), sender.gid()), (7, 1000, 100));
        let numbers: Vec<_> = taken.descriptors.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
        assert_eq!(numbers, [one, two]);
        assert_eq!(taken.process.and_then(Result::err), Some(nix::errno::Errno::EMFILE));
        Ok(())
    }

    #[test]
    fn an_end_anywhere_is_an_end() {
        let bytes = entry(2, &[7_i32, 1000, 100].map(i32::to_ne_bytes).concat());
        for end in 0..bytes.len() - 4 {
            assert!(Ancillary::take(&bytes[..end]).sender.is_none());
        }
        assert!(Ancillary::take(&room(253)).descriptors.is_empty());
        assert!(Ancillary::take(&[0xff; 64]).sender.is_none());
    }
}
