//! Files of unix sockets, which outlive a program that was killed.

use std::{fs, io, os::unix::fs::FileTypeExt as _, path::Path};

use crate::error::{Error, Result};

/// Whether a socket's file is at `path`.
///
/// # Errors
/// `not_a_socket` where the path leads to something else; or it cannot be looked at.
pub fn is_there(path: &Path, not_a_socket: impl FnOnce() -> Error) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(not_a_socket()),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::file("look at", path, error)),
    }
}

/// Removes the socket's file that an earlier program has left at `path`, so that another can be bound
/// there.
///
/// # Errors
/// As for [`is_there`], or it cannot be removed. What is not a socket stays.
pub fn remove_left(path: &Path, not_a_socket: impl FnOnce() -> Error) -> Result<()> {
    if is_there(path, not_a_socket)? {
        fs::remove_file(path).map_err(|error| Error::file("remove", path, error))?;
    }
    Ok(())
}
