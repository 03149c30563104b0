//! Messages of the kernel's FUSE protocol (`include/uapi/linux/fuse.h`) for a connection that
//! goes on with another process.

use nix::errno::Errno;

/// Number that the notice to send requests again has (`FUSE_NOTIFY_RESEND`, Linux 6.9).
const NOTIFY_RESEND: i32 = 7;
/// Number of the request by which a connection begins (`FUSE_INIT`).
const INIT: u32 = 26;
/// Number of the requests that have no answer (`FUSE_FORGET`, `FUSE_INTERRUPT`,
/// `FUSE_BATCH_FORGET`).
const UNANSWERED: [u32; 3] = [2, 36, 42];
/// Bytes of the header of a request (`struct fuse_in_header`).
const IN_HEADER: usize = 40;
/// Bytes of the first request's body (`struct fuse_init_in`).
const INIT_BODY: usize = 64;
/// Bytes of the header of an answer (`struct fuse_out_header`).
const OUT_HEADER: usize = 16;

/// Difference between the numbers of two requests (`FUSE_REQ_ID_STEP`): they are given out in
/// the order in which a reader of the device gets the requests.
pub const NUMBER_STEP: u64 = 2;

/// The first request of a connection, as a kernel without optional features sends it. The
/// answer to it goes nowhere.
#[must_use]
pub fn greeting() -> Vec<u8> {
    /// Major and minor number of the protocol: the last one before `flags2` was in use.
    const PROTOCOL: [u32; 2] = [7, 31];
    let mut bytes = Vec::with_capacity(IN_HEADER + INIT_BODY);
    for word in [(IN_HEADER + INIT_BODY) as u32, INIT, NUMBER_STEP as u32] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.resize(IN_HEADER, 0);
    for word in PROTOCOL {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.resize(IN_HEADER + INIT_BODY, 0);
    bytes
}

/// The notice on which the kernel sends again what was read and not answered. `EINVAL` answers
/// it before Linux 6.9.
#[must_use]
pub fn resend() -> [u8; OUT_HEADER] {
    out_header(NOTIFY_RESEND, 0)
}

/// An answer with an errno to the request of this number.
#[must_use]
pub fn refusal(number: u64, errno: Errno) -> [u8; OUT_HEADER] {
    out_header(-(errno as i32), number)
}

/// The number of a request that waits for an answer; `None` for one that has none.
#[must_use]
pub fn number_to_answer(request: &[u8]) -> Option<u64> {
    let kind = u32::from_ne_bytes(request.get(4..8)?.try_into().ok()?);
    let number = u64::from_ne_bytes(request.get(8..16)?.try_into().ok()?);
    (!UNANSWERED.contains(&kind)).then_some(number)
}

fn out_header(error: i32, number: u64) -> [u8; OUT_HEADER] {
    let mut bytes = [0; OUT_HEADER];
    bytes[..4].copy_from_slice(&(OUT_HEADER as u32).to_ne_bytes());
    bytes[4..8].copy_from_slice(&error.to_ne_bytes());
    bytes[8..].copy_from_slice(&number.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::{greeting, number_to_answer, refusal, resend};

    #[test]
    fn numbers_are_where_the_kernel_has_them() {
        assert_eq!(number_to_answer(&greeting()), Some(2));
        let mut forget = greeting();
        forget[4..8].copy_from_slice(&2_u32.to_ne_bytes());
        assert_eq!(number_to_answer(&forget), None);
        assert_eq!(number_to_answer(&[0; 15]), None);
        let refusal = refusal(0x0102_0304_0506_0708, Errno::EINTR);
        assert_eq!(refusal[4..8], (-4_i32).to_ne_bytes());
        assert_eq!(refusal[8..], 0x0102_0304_0506_0708_u64.to_ne_bytes());
        assert_eq!(resend()[4..8], 7_i32.to_ne_bytes());
    }
}
