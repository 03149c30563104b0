//! Pinned arrays of another program's, as an agent of another version leaves them.

use std::ffi::CString;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use monitor_sys::table::Table;
use nix::errno::Errno;

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_OBJ_PIN: libc::c_int = 6;
const ARRAY: u32 = 2;
const MMAPABLE: u32 = 1 << 10;

/// Pins an array of `entries` elements of so many words each, in which `words` are set: at
/// which place, to which value.
pub(crate) fn array(path: &Path, element: usize, entries: usize, words: &[(usize, u64)]) -> Result<()> {
    let bytes = u32::try_from(element * size_of::<u64>())?;
    let create = [ARRAY, 4, bytes, u32::try_from(entries)?, MMAPABLE];
    let fd = bpf(BPF_MAP_CREATE, &create).context("cannot make a map")?;
    // SAFETY: the kernel just made it, for us.
    let map = unsafe { OwnedFd::from_raw_fd(fd) };
    let table: Table<AtomicU64> = Table::map(&map, element * entries).context("cannot map it")?;
    for (at, value) in words {
        table.get(*at).context("no such word")?.store(*value, Ordering::SeqCst);
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    let address = name.as_ptr() as u64;
    let pin = [address as u32, (address >> 32) as u32, map.as_raw_fd().cast_unsigned(), 0];
    bpf(BPF_OBJ_PIN, &pin).with_context(|| format!("cannot pin {}", path.display()))?;
    Ok(())
}

fn bpf(command: libc::c_int, attributes: &[u32]) -> Result<libc::c_int, Errno> {
    // SAFETY: as many bytes as it says, which outlive the call, as do those they name.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    Errno::result(done).map(|number| i32::try_from(number).unwrap_or(-1))
}
