//! The registration that the command line of `listen` names.

use std::{
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use monitor_common::grammar::control_file::{ControlFile, split_directory_args};

use crate::{cli::Listen, commands::group};

/// The registration that the command line names.
pub struct Wanted {
    pub path: PathBuf,
    pub args: String,
}

impl Wanted {
    /// The registration on a control file, or in the group that an option names.
    ///
    /// # Errors
    /// The words are none.
    pub fn of(options: &Listen, selected: Option<&Path>) -> Result<Self> {
        // `DIRECTORY memory.pressure_level low`, not quoted.
        let unquoted = options.args.as_ref().zip(options.rest.as_ref());
        let unquoted = unquoted.map(|(args, rest)| format!("{args} {rest}"));
        let first = options.control_file.as_deref();
        let second = unquoted.as_deref().or(options.args.as_deref());
        let (path, given) = match (selected, first) {
            (Some(selected), _) => group::registration(selected, first, second)?,
            (None, Some(path)) => (path.to_owned(), second),
            (None, None) => bail!("name a control file"),
        };
        let args = options.args(&path, given);
        Ok(Self { path, args })
    }

    /// The control file, by its name in the path, or in the arguments for a directory.
    pub fn file(&self) -> Option<ControlFile> {
        let by_name = self.path.file_name().and_then(|name| ControlFile::from_name(name.as_bytes()));
        by_name.or_else(|| Some(split_directory_args(self.args.as_bytes())?.0))
    }

    /// The directory of the group, the control file, and its own arguments.
    pub fn parts(&self) -> Option<(&Path, ControlFile, &str)> {
        match self.path.file_name().and_then(|name| ControlFile::from_name(name.as_bytes())) {
            Some(file) => Some((self.path.parent()?, file, &self.args)),
            None => {
                let (file, args) = split_directory_args(self.args.as_bytes())?;
                Some((&self.path, file, str::from_utf8(args).ok()?))
            }
        }
    }
}
