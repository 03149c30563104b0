//! Swap and a disk, both of compressed memory (zram).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use crate::harness::client::page;

const SWAP: &str = "zram0";
/// A disk of zeros: pages of it are pages of a file, which reclaim drops.
pub(crate) const DISK: &str = "/dev/zram1";
const DISK_BYTES: u64 = 256 << 20;

/// Swap, as long as it is held.
#[derive(Debug)]
pub(crate) struct Swap;

impl Swap {
    pub(crate) fn on(bytes: u64) -> Result<Self> {
        let swap = Self;
        // What a killed test left.
        swap.off();
        set(SWAP, "disksize", &bytes.to_string())?;
        let device = OpenOptions::new().write(true).open(format!("/dev/{SWAP}")).context("no swap device")?;
        // `union swap_header`: version 1, the last page, no bad ones.
        let size = usize::try_from(page())?;
        let mut header = vec![0; size];
        let last = u32::try_from(bytes / page())? - 1;
        header[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
        header[1028..1032].copy_from_slice(&last.to_ne_bytes());
        header[size - 10..].copy_from_slice(b"SWAPSPACE2");
        device.write_all_at(&header, 0).context("cannot write the swap header")?;
        drop(device);
        // SAFETY: a C string that outlives the call.
        let outcome = unsafe { libc::swapon(c"/dev/zram0".as_ptr(), 0) };
        Errno::result(outcome).context("swapon failed")?;
        Ok(swap)
    }

    #[expect(clippy::unused_self, reason = "only who has it turns it off")]
    fn off(&self) {
        // SAFETY: a C string that outlives the call.
        unsafe { libc::swapoff(c"/dev/zram0".as_ptr()) };
        let _ = set(SWAP, "reset", "1");
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        self.off();
    }
}

/// Makes [`DISK`], with nothing of it in memory. What is read of it stays there as
/// long as any process has it open.
pub(crate) fn disk() -> Result<File> {
    if !Path::new("/sys/block/zram1").exists() {
        let path = "/sys/class/zram-control/hot_add";
        let number = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        ensure!(number.trim() == "1", "the new device is number {number}");
        set("zram1", "disksize", &DISK_BYTES.to_string())?;
    }
    fs::write("/proc/sys/vm/drop_caches", "1").context("cannot drop the caches")?;
    File::open(DISK).with_context(|| format!("cannot open {DISK}"))
}

fn set(device: &str, file: &str, text: &str) -> Result<()> {
    let path = format!("/sys/block/{device}/{file}");
    fs::write(&path, text).with_context(|| format!("cannot write {text} to {path}"))
}
