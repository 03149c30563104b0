//! Loads the kernel modules that were packed into the VM.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result};

/// Loads all of a directory; the files' names are in loading order.
pub(crate) fn load_all(directory: &Path) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        load(&path).with_context(|| format!("cannot load {}", path.display()))?;
    }
    Ok(())
}

fn load(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let (descriptor, parameters, flags) = (file.as_raw_fd(), c"".as_ptr(), 0);
    // SAFETY: the descriptor is open and the parameters are a C string.
    match unsafe { libc::syscall(libc::SYS_finit_module, descriptor, parameters, flags) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            error => Err(error),
        },
    }
}
