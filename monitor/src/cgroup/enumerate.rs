//! A walk over all directories of the hierarchy: the enumeration at start, and the groups' paths.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use crate::{
    cgroup::{
        handle::{Directories, Directory, Reached},
        hierarchy::Hierarchy,
    },
    error::Result,
};

/// Longest path that a walk carries, in bytes: the kernel shows none that is longer. It takes names of
/// 255, at any depth.
const LONGEST: usize = libc::PATH_MAX as usize;

impl Hierarchy {
    /// Reads every group's usage file, from the root down. The programs give a slot to each
    /// group whose file is read. Returns the number of files read.
    ///
    /// # Errors
    /// The root cannot be opened, by its name or by its id.
    pub fn enumerate_groups(&self) -> Result<usize> {
        Ok(Directories::new(self)?.read_all_usage())
    }

    /// The id and the path of every group, from the root down, but those whose paths are too long.
    ///
    /// # Errors
    /// The root cannot be opened, by its name or by its id.
    pub fn groups(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        self.walk(|_, id, reached| {
            if let Reached::At(path) = reached {
                found.push((id, path.to_owned()));
            }
        })?;
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
        let walked = self.walk(|directory, _, reached| {
            if found.is_none()
                && let Reached::At(path) = reached
                && has_it(directory)
            {
                found = path.strip_prefix(&self.root).ok().map(Path::to_owned);
            }
        });
        walked.ok().and(found)
    }

    fn walk(&self, visit: impl FnMut(&Directory, u64, Reached<'_>)) -> Result<()> {
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

    /// Visits all directories that there are, by id, with their paths below the root.
    pub fn each(&self, mut visit: impl FnMut(u64, Reached<'_>)) {
        walk(self, "/".into(), |_, id, reached| visit(id, reached));
    }
}

/// Visits all directories, parents before children. Each is opened by its id, so that other mounts
/// on it are skipped: another hierarchy, whose ids may be equal to these groups', or this one once
/// more. The root is shown as `root`. What waits is kept by name, and one path is carried: the paths of
/// a nest of groups would take its depth squared.
fn walk(directories: &Directories, root: PathBuf, mut visit: impl FnMut(&Directory, u64, Reached<'_>)) {
    let mut trail = Trail { path: root, names: 0 };
    let mut waiting = vec![(directories.root_id(), 0, OsString::new())];
    while let Some((id, depth, name)) = waiting.pop() {
        let Ok(directory) = directories.open(id) else { continue };
        visit(&directory, id, trail.go(depth, &name));
        let children = directory.children().unwrap_or_default();
        waiting.extend(children.into_iter().map(|(id, name)| (id, depth + 1, name)));
    }
}

/// The path of the directory that a walk has come to.
#[derive(Debug)]
struct Trail {
    path: PathBuf,
    /// The number of names in it, below the root.
    names: usize,
}

impl Trail {
    /// Goes to the directory of this name, so many names below the root. Since its parent only directories
    /// below that were gone to.
    fn go(&mut self, depth: usize, name: &OsStr) -> Reached<'_> {
        if depth == 0 {
            return Reached::At(&self.path);
        }
        while self.names >= depth {
            self.path.pop();
            self.names -= 1;
        }
        // Else one above it was too long.
        let is_parent = self.names + 1 == depth;
        if !is_parent || self.path.as_os_str().len() + 1 + name.len() > LONGEST {
            return Reached::Below(&self.path);
        }
        self.path.push(name);
        self.names += 1;
        Reached::At(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, path::Path};

    use super::{LONGEST, Reached, Trail};

    #[test]
    fn a_walk_carries_no_path_that_is_too_long() {
        let mut trail = Trail { path: "/".into(), names: 0 };
        let long = "x".repeat(255);
        let name = OsStr::new(&long);
        assert_eq!(trail.go(0, OsStr::new("")), Reached::At(Path::new("/")));
        let deepest = LONGEST / (long.len() + 1);
        for depth in 1..=2000 {
            let is_at = matches!(trail.go(depth, name), Reached::At(_));
            assert_eq!(is_at, depth <= deepest, "{depth}");
            assert!(trail.path.as_os_str().len() <= LONGEST);
        }
        let below = trail.go(deepest + 2, OsStr::new("y"));
        assert!(matches!(below, Reached::Below(_)), "the path of its parent was too long");
        assert_eq!(trail.go(1, OsStr::new("a")), Reached::At(Path::new("/a")));
        assert_eq!(trail.go(2, OsStr::new("b")), Reached::At(Path::new("/a/b")));
        assert_eq!(trail.go(2, OsStr::new("c")), Reached::At(Path::new("/a/c")));
        assert_eq!(trail.go(1, OsStr::new("d")), Reached::At(Path::new("/d")));
    }
}
