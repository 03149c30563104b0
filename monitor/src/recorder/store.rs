//! The directory of the black box's files: each is written beside and then renamed, so that a file
//! is whole or is not there; there are so many at most, and of the group with the most of them the
//! oldest gives way. A group is its path here: one that is made anew is the same.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{BufReader, BufWriter},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{fcntl::renameat, unistd::getuid};

use crate::{
    black_box::{BlackBoxError, Recording},
    cgroup::workload::Workload,
    error::{Error, Result},
};

/// How each file's name ends.
const SUFFIX: &str = ".jsonl";
/// How the name of a file ends that is being written.
const UNFINISHED: &str = ".new";
/// Characters of a group's name that are in a file's.
const NAME: usize = 64;

/// The directory, and how many files it may hold.
#[derive(Clone, Debug)]
pub struct FileStore {
    directory: PathBuf,
    most: usize,
}

impl FileStore {
    /// Opens the directory, which is made if it is not there.
    ///
    /// # Errors
    /// It cannot be made, or is another user's, or others may write to it.
    pub fn open(directory: &Path, most: usize) -> Result<Self> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|error| Error::file("make the directory", directory, error))?;
        let found = fs::symlink_metadata(directory).map_err(|error| Error::file("stat", directory, error))?;
        let refused = |why: &str| {
            let error = std::io::Error::new(std::io::ErrorKind::PermissionDenied, why.to_owned());
            Err(Error::file("use", directory, error))
        };
        if !found.is_dir() {
            return refused("it is no directory (--black-box-dir)");
        }
        if found.uid() != getuid().as_raw() || found.mode() & 0o022 != 0 {
            return refused(
                "it is another user's, or others may write to it: chown it to the agent's user, chmod 0700",
            );
        }
        let store = Self { directory: directory.into(), most };
        store.remove_unfinished();
        Ok(store)
    }

    /// The path of the directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a recording, and removes the files beyond the number; returns the file's path,
    /// and how many were removed.
    ///
    /// # Errors
    /// It cannot be written; then there is no file.
    pub fn write(&self, recording: &Recording) -> Result<(PathBuf, usize), StoreError> {
        let removed = self.make_room(&recording.header.group);
        let header = &recording.header;
        // The clock may have been set back since the latest file, which is still the one before.
        let latest = self.files().last().and_then(|path| number_of(path));
        let number = latest.map_or(header.unix_ms, |latest| header.unix_ms.max(latest.saturating_add(1)));
        let name = format!("{number:013}-{}-{}", header.cgroup_id, safe_name(&header.group));
        let path = self.directory.join(name.clone() + SUFFIX);
        let beside = self.directory.join(name + UNFINISHED);
        let written = self.write_beside(recording, &beside).and_then(|()| {
            renameat(nix::fcntl::AT_FDCWD, &beside, nix::fcntl::AT_FDCWD, &path)
                .map_err(|errno| StoreError::File { path: path.clone(), error: errno.into() })
        });
        if let Err(error) = written {
            let _ = fs::remove_file(&beside);
            return Err(error);
        }
        Ok((path, removed))
    }

    fn write_beside(&self, recording: &Recording, beside: &Path) -> Result<(), StoreError> {
        let no = |error| StoreError::File { path: beside.into(), error };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside).map_err(no)?;
        recording.write(BufWriter::new(&file)).map_err(|error| match error {
            BlackBoxError::Write(error) => no(error),
            other => other.into(),
        })?;
        // A name that reaches the disk before the text would be that of an empty file, should the host fail.
        file.sync_data().map_err(no)
    }

    /// The files, from the oldest on.
    fn files(&self) -> Vec<PathBuf> {
        let found = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = found
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|end| end == &SUFFIX[1..]))
            .collect();
        files.sort_by_cached_key(|path| (number_of(path), path.clone()));
        files
    }

    /// Removes files, so that there is room for one more of the group at this path: the oldest of the
    /// group with the most, so that one in which processes are killed all the time takes none of the
    /// others', also if it is made anew each time.
    fn make_room(&self, group: &str) -> usize {
        let mut files = self.files();
        if files.len() < self.most.max(1) {
            return 0;
        }
        let mut owners: Vec<String> = files.iter().map(|path| owner_of(path)).collect();
        let mut by_owner = HashMap::from([(owner(group), 1)]);
        for owner in &owners {
            *by_owner.entry(owner.clone()).or_insert(0) += 1;
        }
        let mut removed = 0;
        while files.len() >= self.most.max(1) {
            let most = owners.iter().map(|owner| by_owner[owner]).max();
            let oldest = owners.iter().position(|owner| Some(by_owner[owner]) == most).unwrap_or(0);
            by_owner.entry(owners.remove(oldest)).and_modify(|files| *files -= 1);
            removed += usize::from(fs::remove_file(files.remove(oldest)).is_ok());
        }
        removed
    }

    /// Removes what an agent that was killed has left.
    fn remove_unfinished(&self) {
        let found = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        for path in found.map(|entry| entry.path()) {
            if path.extension().is_some_and(|end| end == &UNFINISHED[1..]) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// The reason why a recording is not in the directory.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file cannot be made or renamed.
    #[error("cannot write {path}: {error}")]
    File { path: PathBuf, error: std::io::Error },
    /// The recording cannot be written.
    #[error("{0}")]
    Recording(#[from] BlackBoxError),
}

/// The number that a file's name begins with, by which the files have their order: when it was written, in
/// milliseconds since 1970, or one more than the file before where that is later.
fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.split_once('-')?.0.parse().ok()
}

/// The owner of a file, by its header; of one that has none, by its name.
fn owner_of(path: &Path) -> String {
    let header = File::open(path).ok().and_then(|file| Recording::read_header(BufReader::new(file)).ok());
    header.map_or_else(|| path.to_string_lossy().into_owned(), |header| owner(&header.group))
}

/// The owner of files of the group at a path, which stays where the group is made anew: the path itself,
/// or that of the pod of a container, which has another id then. What is above a container without a pod is
/// above all others, too.
fn owner(group: &str) -> String {
    match Workload::of(Path::new(group)) {
        Workload { pod_uid: Some(_), container_id: Some(id), .. } => {
            group.split('/').take_while(|name| !name.contains(&id)).collect::<Vec<_>>().join("/")
        }
        _ => group.to_owned(),
    }
}

/// The end of a group's path as a part of a file's name: letters, digits, dots and dashes alone,
/// whatever its makers called it.
fn safe_name(group: &str) -> String {
    let last = group.rsplit('/').find(|name| !name.is_empty()).unwrap_or("root");
    let safe =
        last.chars().map(|one| if one.is_ascii_alphanumeric() || ".-_@".contains(one) { one } else { '_' });
    safe.take(NAME).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::{FileStore, owner, safe_name};
    use crate::black_box::{BlackBoxHeader, RecordReason, Recording};

    fn recording(group: &str, unix_ms: u64) -> Recording {
        Recording::new(BlackBoxHeader {
            unix_ms,
            ..BlackBoxHeader::new(group.to_owned(), 7, RecordReason::Oom)
        })
    }

    #[test]
    fn names_are_safe_whatever_a_group_is_called() {
        assert_eq!(safe_name("/a/b.service"), "b.service");
        assert_eq!(safe_name("/a/..\u{1b}x y\n"), ".._x_y_");
        assert_eq!(safe_name("/"), "root");
        assert_eq!(safe_name(&format!("/{}", "x".repeat(300))).len(), 64);
    }

    #[test]
    fn the_oldest_files_give_way_and_others_stay() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = place.path().join("a/b");
        let store = FileStore::open(&directory, 3).expect("made");
        fs::write(directory.join("0-note.txt"), "kept").expect("a file");
        let mut removed = 0;
        for at in 1..=5 {
            let (path, gone) = store.write(&recording("/x", at)).expect("written");
            removed += gone;
            assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
            let text = fs::read(&path).expect("readable");
            assert!(Recording::read(&text[..]).expect("a recording").is_complete);
        }
        let left: Vec<_> =
            store.files().iter().filter_map(|path| Some(path.file_name()?.to_owned())).collect();
        assert_eq!(left, ["0000000000003-7-x.jsonl", "0000000000004-7-x.jsonl", "0000000000005-7-x.jsonl"]);
        assert_eq!(removed, 2);
        assert!(directory.join("0-note.txt").exists());
    }

    #[test]
    fn the_oldest_file_gives_way_also_after_the_clock_was_set_back() {
        let place = tempfile::tempdir().expect("a directory");
        let store = FileStore::open(&place.path().join("a"), 3).expect("made");
        let times = [9_999_999_999_999, 10_000_000_000_000, 5, 6];
        let written = times.map(|at| store.write(&recording("/x", at)).expect("written").0);
        assert_eq!(store.files(), written[1..]);
        let text = fs::read(&written[3]).expect("readable");
        assert_eq!(Recording::read(&text[..]).expect("a recording").header.unix_ms, 6);
    }

    #[test]
    fn a_group_that_is_killed_all_the_time_takes_no_other_groups_files() {
        let place = tempfile::tempdir().expect("a directory");
        let store = FileStore::open(&place.path().join("a"), 3).expect("made");
        let write = |group: &str, cgroup_id, at| {
            let mut recording = recording(group, at);
            recording.header.cgroup_id = cgroup_id;
            store.write(&recording).expect("written")
        };
        // The third is made anew each time, and so has another id.
        for (group, cgroup_id, at) in
            [("/a/x", 8, 1), ("/b/x", 9, 2), ("/c", 5, 3), ("/c", 6, 4), ("/c", 7, 5)]
        {
            write(group, cgroup_id, at);
        }
        let left = || -> Vec<String> {
            let files = store.files();
            files
                .iter()
                .map(|path| path.file_name().expect("a name").to_string_lossy()[11..15].to_owned())
                .collect()
        };
        assert_eq!(left(), ["01-8", "02-9", "05-7"]);
        write("/d", 6, 6);
        assert_eq!(left(), ["02-9", "05-7", "06-6"], "of groups with as many the oldest");
    }

    #[test]
    fn containers_of_a_pod_share_their_part_of_the_directory() {
        let id = |digit: &str| digit.repeat(64);
        let pod = "/kubepods.slice/kubepods-pod8a1fbc1e_7d41_4b73_b0a8_7c1d7f0e9a55.slice";
        for digit in ["1", "2"] {
            assert_eq!(owner(&format!("{pod}/cri-containerd-{}.scope/sub", id(digit))), pod);
        }
        assert_eq!((owner("/a/b.service"), owner("/")), ("/a/b.service".to_owned(), "/".to_owned()));
    }

    #[test]
    fn a_container_without_a_pod_has_its_part_of_the_directory_alone() {
        let id = "1".repeat(64);
        for path in [
            format!("/system.slice/docker-{id}.scope"),
            format!("/machine.slice/libpod-{id}.scope/container"),
            format!("/docker/{id}"),
        ] {
            assert_eq!(owner(&path), path);
        }
    }

    #[test]
    fn what_was_not_finished_is_removed_at_the_next_start() {
        let place = tempfile::tempdir().expect("a directory");
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o700)).expect("the owner's");
        fs::write(place.path().join("1-7-x.new"), "{").expect("a file");
        FileStore::open(place.path(), 3).expect("opened");
        assert_eq!(fs::read_dir(place.path()).expect("it is there").count(), 0);
    }

    #[test]
    fn what_cannot_be_written_names_the_file_and_the_reason() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = place.path().join("a");
        let store = FileStore::open(&directory, 3).expect("made");
        fs::remove_dir(&directory).expect("empty");
        let error = store.write(&recording("/x", 1)).expect_err("no directory").to_string();
        assert!(error.contains("0000000000001-7-x.new: No such file or directory"), "{error}");
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let place = tempfile::tempdir().expect("a directory");
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).expect("the owner's");
        let refused = FileStore::open(place.path(), 3).expect_err("others may write");
        assert!(refused.to_string().contains("others may write to it"), "{refused}");
    }
}
