//! Groups without the memory controller: the reason, and where memory is counted instead.

use std::path::PathBuf;

use crate::cgroup::{
    Version,
    handle::{Directories, Directory},
};

/// A group that has no memory controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uncontrolled {
    /// Path of the group.
    pub group: PathBuf,
    /// The reason why it has none.
    pub cause: UncontrolledCause,
}

/// The reason why a group has no memory controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UncontrolledCause {
    /// A group above has the controller, and does not pass it on.
    Withheld {
        /// Path of the nearest group above that has it.
        above: PathBuf,
        /// Whether that is the group's parent.
        is_parent: bool,
    },
    /// The group is in a threaded subtree, where the kernel allows no memory controller: its memory
    /// is counted in the group that the subtree begins with.
    Threaded {
        /// Path of the group that counts the memory.
        domain: PathBuf,
    },
    /// No group up to the root has it, and the root is a group: it is withheld above the root, as
    /// in a cgroup namespace.
    AboveRoot {
        /// Path of the root.
        root: PathBuf,
    },
    /// The root is a group in a threaded subtree, which begins above it.
    ThreadedAboveRoot {
        /// Path of the root.
        root: PathBuf,
    },
}

impl Directory {
    /// Whether the group is in a threaded subtree, by its `cgroup.type`: `threaded`, or `domain
    /// invalid` below a threaded group. The root of the subtree is `domain threaded`.
    #[must_use]
    pub fn is_in_threaded_subtree(&self) -> bool {
        let text = self.text("cgroup.type");
        text.is_ok_and(|text| matches!(text.trim(), "threaded" | "domain invalid"))
    }
}

impl Directories {
    /// Looks at a group that has no usage file; `None` where it is removed, or has the controller.
    #[must_use]
    pub fn uncontrolled(&self, directory: &Directory) -> Option<Uncontrolled> {
        let has_controller = |directory: &Directory, id| {
            self.host_root() == Some(id) || directory.stat_file(self.version().usage_file()).is_ok()
        };
        let id = directory.stat().ok()?.st_ino;
        // Each group has this file, whatever its controllers.
        let is_there = directory.stat_file("cgroup.procs").is_ok();
        if self.version() == Version::V1 || !is_there || has_controller(directory, id) {
            return None;
        }
        let group = self.path_of(id)?;
        let is_threaded = directory.is_in_threaded_subtree();
        let (mut at, mut above) = (id, None);
        while at != self.root_id() {
            let directory = above.as_ref().unwrap_or(directory).parent().ok()?;
            let found = directory.stat().ok()?.st_ino;
            if is_threaded && !directory.is_in_threaded_subtree() {
                return Some(Uncontrolled {
                    group,
                    cause: UncontrolledCause::Threaded { domain: self.path_of(found)? },
                });
            }
            if !is_threaded && has_controller(&directory, found) {
                let cause = UncontrolledCause::Withheld { above: self.path_of(found)?, is_parent: at == id };
                return Some(Uncontrolled { group, cause });
            }
            (at, above) = (found, Some(directory));
        }
        let root = self.path_of(at)?;
        let cause = if above.as_ref().unwrap_or(directory).is_in_threaded_subtree() {
            UncontrolledCause::ThreadedAboveRoot { root }
        } else {
            UncontrolledCause::AboveRoot { root }
        };
        Some(Uncontrolled { group, cause })
    }
}
