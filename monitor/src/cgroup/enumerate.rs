//! A walk over all directories of the hierarchy: the enumeration at start, and the groups' paths.

use std::{
    collections::VecDeque,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use crate::{
    cgroup::{
        handle::{Directories, Directory},
        hierarchy::Hierarchy,
    },
    error::Result,
};

impl Hierarchy {
    /// Reads every group's usage file, from the root down. The programs give a slot to each
    /// group whose file is read. Returns the number of files read.
    ///
    /// # Errors
    /// The root cannot be opened, by its name or by its id.
    pub fn enumerate_groups(&self) -> Result<usize> {
        Ok(Directories::new(self)?.read_all_usage())
    }

    /// The id and the path of every group, from the root down.
    ///
    /// # Errors
    /// The root cannot be opened, by its name or by its id.
    pub fn groups(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        self.walk(|_, id, path| found.push((id, path.to_owned())))?;
        Ok(found)
    }

    /// The path, below the root, of the group that a process is in: most likely `likely`, else any.
    #[must_use]
    pub fn group_with(&self, process: u32, likely: &Path) -> Option<PathBuf> {
        let process = process.to_string();
        let has_it = |directory: &Directory| {
            directory.text("cgroup.procs").is_ok_and(|text| text.lines().any(|line| line == process))
        };
        if Directories::new(self).ok()?.below(likely).is_ok_and(|directory| has_it(&directory)) {
            return Some(likely.to_owned());
        }
        let mut found = None;
        let walked = self.walk(|directory, _, path| {
            if found.is_none() && has_it(directory) {
                found = path.strip_prefix(&self.root).ok().map(Path::to_owned);
            }
        });
        walked.ok().and(found)
    }

    fn walk(&self, visit: impl FnMut(&Directory, u64, &Path)) -> Result<()> {
        walk(&Directories::new(self)?, self.root.clone(), visit);
        Ok(())
    }
}

impl Directories {
    /// Reads every group's usage file, as [`Hierarchy::enumerate_groups`] does.
    #[must_use]
    pub fn read_all_usage(&self) -> usize {
        let mut read = 0;
        walk(self, "/".into(), |directory, _, _| {
            // Groups without the controller have no such file; groups removed meanwhile
            // were read before, or never had a slot.
            if let Ok(file) = directory.file(self.version().usage_file()) {
                read += usize::from(File::from(file).read(&mut [0; 32]).is_ok());
            }
        });
        read
    }

    /// All directories that there are, by id, with their paths below the root.
    #[must_use]
    pub fn all(&self) -> Vec<(u64, PathBuf)> {
        let mut found = Vec::new();
        walk(self, "/".into(), |_, id, path| found.push((id, path.to_owned())));
        found
    }
}

/// Visits all directories, parents before children. Each is opened by its id, so that other mounts
/// on it are skipped: another hierarchy, whose ids may be equal to these groups', or this one once
/// more. The root is shown as `root`.
fn walk(directories: &Directories, root: PathBuf, mut visit: impl FnMut(&Directory, u64, &Path)) {
    let mut waiting = VecDeque::from([(directories.root_id(), root)]);
    while let Some((id, path)) = waiting.pop_front() {
        let Ok(directory) = directories.open(id) else { continue };
        visit(&directory, id, &path);
        let children = directory.children().unwrap_or_default();
        waiting.extend(children.into_iter().map(|(id, name)| (id, path.join(name))));
    }
}
