//! The directory of a group, which an event names in text.
//!
//! The kernel lets a name have any bytes but `/`, NUL and newline; what is not UTF-8 is U+FFFD in an event.
//! So the text of a path may fit several groups, or be no path at all: the inode number decides.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Finds the directory with this inode number whose path is `text`, apart from what is not UTF-8; where there
/// is none, returns the text as a path.
pub fn of_group(text: &str, id: u64) -> PathBuf {
    let as_told = PathBuf::from(text);
    let is_group = |path: &Path| fs::metadata(path).is_ok_and(|found| found.ino() == id);
    // Most are text, and cost nothing here.
    if !text.contains(char::REPLACEMENT_CHARACTER) || is_group(&as_told) {
        return as_told;
    }
    let mut fitting = vec![PathBuf::from("/")];
    for name in text.split('/').filter(|name| !name.is_empty()) {
        fitting = if name.contains(char::REPLACEMENT_CHARACTER) {
            fitting.iter().flat_map(|above| entries(above, name)).collect()
        } else {
            fitting.iter().map(|above| above.join(name)).collect()
        };
    }
    fitting.into_iter().find(|path| is_group(path)).unwrap_or(as_told)
}

/// The entries of a directory that have this name in text.
fn entries(above: &Path, name: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(above) else { return Vec::new() };
    let fitting = entries.flatten().filter(|entry| entry.file_name().to_string_lossy() == name);
    fitting.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::OsStr,
        fs,
        os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
        path::Path,
    };

    use super::of_group;

    #[test]
    fn groups_whose_names_are_alike_in_text_are_told_apart() {
        let root = tempfile::tempdir().expect("a directory");
        let names = [b"a\xff".as_slice(), b"a\xfe".as_slice(), "a\u{fffd}".as_bytes()];
        let above: Vec<_> = names.iter().map(|name| root.path().join(OsStr::from_bytes(name))).collect();
        for path in &above {
            fs::create_dir_all(path.join("below")).expect("a directory");
        }
        let below: Vec<_> = above.iter().map(|path| path.join("below")).collect();
        for path in above.iter().chain(&below) {
            let id = fs::metadata(path).expect("a directory").ino();
            assert_eq!(of_group(&path.to_string_lossy(), id), *path);
        }
    }

    #[test]
    fn a_group_that_is_gone_is_named_as_it_was() {
        let root = tempfile::tempdir().expect("a directory");
        let is_kept = |path: &Path| of_group(&path.to_string_lossy(), 0) == *path;
        assert!(is_kept(root.path()), "another is there");
        assert!(is_kept(&root.path().join("a\u{fffd}/below")), "nothing is there");
        assert_eq!(of_group("#7", 7), Path::new("#7"));
    }
}
