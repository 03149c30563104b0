//! Links of kprobes, and the kernel's counts of calls that a kprobe has missed.

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::{
    bpf::{bpf, object_info},
    new_descriptor,
};

const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;

const BPF_LINK_TYPE_PERF_EVENT: u32 = 7;
/// Kinds of `enum bpf_perf_event_type`.
const KPROBES: std::ops::RangeInclusive<u32> = 3..=4;

/// `struct bpf_link_info` of a kprobe, up to the count.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    event: u32,
    event_padding: u32,
    name: u64,
    name_length: u32,
    offset: u32,
    address: u64,
    missed: u64,
}

/// The part of `union bpf_attr` for `BPF_LINK_GET_FD_BY_ID`.
#[repr(C)]
struct IdAttributes {
    id: u32,
    next: u32,
    flags: u32,
}

/// Opens the link with this id. Needs Linux 5.8.
///
/// # Errors
/// As `bpf`: `EPERM` without `CAP_SYS_ADMIN`, `ENOENT` where there is none.
pub fn open(id: u32) -> Result<OwnedFd, Errno> {
    let mut attributes = IdAttributes { id, next: 0, flags: 0 };
    // SAFETY: the kernel reads the attributes, which live until it returns, and writes nothing.
    let returned = unsafe { bpf(BPF_LINK_GET_FD_BY_ID, &mut attributes) };
    // SAFETY: it is a new descriptor, with close-on-exec set, or -1.
    unsafe { new_descriptor(returned) }
}

/// Calls for which a kprobe was not run, or for whose return no kretprobe instance was free; `None`
/// where the kernel does not report it (before Linux 6.7), or `link` is another kind of link.
///
/// # Errors
/// As `bpf`: `EINVAL` where `link` is nothing of BPF's.
pub fn missed(link: BorrowedFd<'_>) -> Result<Option<u64>, Errno> {
    let mut info = Info::default();
    // SAFETY: it is the beginning of `struct bpf_link_info`; the name's pointer in there is null.
    let known = unsafe { object_info(link.as_raw_fd(), &mut info) }?;
    let is_counted =
        info.kind == BPF_LINK_TYPE_PERF_EVENT && KPROBES.contains(&info.event) && known >= size_of::<Info>();
    Ok(is_counted.then_some(info.missed))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::{missed, open};

    #[test]
    fn what_is_no_link_has_no_count() {
        let file = std::fs::File::open("/dev/null").expect("open");
        assert!(missed(file.as_fd()).is_err());
        assert!(open(u32::MAX).is_err());
    }
}
