//! The group that an option names: by a unit, a process or a container.

use std::{
    fs,
    io::ErrorKind,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use memcg_monitor::{
    cgroup::{
        Hierarchy,
        workload::{Workload, is_unit, unit_name},
    },
    printable,
};
use monitor_common::grammar::control_file::ControlFile;

use crate::cli::GroupSelector;

impl GroupSelector {
    /// The directory of the group that one of the options names; `None` where none of them is given.
    ///
    /// # Errors
    /// There is no such group, or more than one, or no hierarchy.
    pub fn find(&self) -> Result<Option<PathBuf>> {
        if !self.is_given() {
            return Ok(None);
        }
        let hierarchy = Hierarchy::find(None)?;
        let directory = if let Some(unit) = &self.unit {
            of_unit(&hierarchy.root, &unit_name(unit))?
        } else if let Some(id) = &self.container {
            of_container(&hierarchy.root, id)?
        } else {
            of_process(&hierarchy, self.pid)?
        };
        Ok(Some(directory))
    }
}

/// The control file and the arguments that the words after an option stand for: a control file's
/// name and its arguments, or the arguments of a threshold on usage.
///
/// # Errors
/// The words are a path, or too many.
pub fn registration<'a>(
    directory: &Path,
    first: Option<&'a Path>,
    second: Option<&'a str>,
) -> Result<(PathBuf, Option<&'a str>)> {
    let Some(first) = first else { return Ok((directory.join(ControlFile::Usage.name()), second)) };
    if let Some(file) = ControlFile::from_name(first.as_os_str().as_bytes()) {
        return Ok((directory.join(file.name()), second));
    }
    let text = first.to_str().filter(|text| !text.contains('/'));
    let text = text.with_context(|| {
        format!(
            "{} is a path; behind an option that names the group, give a control file's name or a threshold",
            printable(&first.to_string_lossy())
        )
    })?;
    ensure!(second.is_none(), "{} is no control file's name", printable(text));
    Ok((directory.join(ControlFile::Usage.name()), Some(text)))
}

fn of_process(hierarchy: &Hierarchy, pid: Option<u32>) -> Result<PathBuf> {
    let process = pid.map_or("self".to_owned(), |pid| pid.to_string());
    let path = format!("/proc/{process}/cgroup");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("open {path}: ENOENT; there is no process {process} (in this pid namespace)")
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {path}")),
    };
    let directory = hierarchy.directory_of(&text);
    let directory = directory.with_context(|| format!("{path} names no group with the memory controller"))?;
    ensure!(
        directory.components().all(|part| part.as_os_str() != "..") && directory.is_dir(),
        "the group of process {process} lies outside the cgroup hierarchy at {}",
        hierarchy.root.display()
    );
    Ok(directory)
}

fn of_unit(root: &Path, unit: &str) -> Result<PathBuf> {
    let found = outermost(root, &|path| is_unit(path, unit))?;
    // The host's own unit, where a user's service manager has one of that name, too.
    let of_host = found.iter().filter(|path| !is_of_a_user(path)).cloned().collect::<Vec<_>>();
    let found = if of_host.is_empty() { found } else { of_host };
    one(found, || format!("unit {unit} has no group; is it active? (`systemctl status {unit}`)"))
}

/// Whether a user's service manager made the group.
fn is_of_a_user(path: &Path) -> bool {
    let managers = path.iter().filter_map(|name| name.to_str());
    managers.filter(|name| name.starts_with("user@") && name.ends_with(".service")).count() > 0
}

fn of_container(root: &Path, id: &str) -> Result<PathBuf> {
    // Shorter ones are names, or match by chance.
    ensure!(
        id.len() >= 6 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{} is no container's id: at least the first 6 of its hexadecimal digits are needed, not its name",
        printable(id)
    );
    let id = id.to_ascii_lowercase();
    let is_it = |path: &Path| {
        let below = path.strip_prefix(root).unwrap_or(path);
        Workload::of(below).container_id.is_some_and(|found| found.starts_with(&id))
    };
    one(outermost(root, &is_it)?, || format!("no group is named for container {id}; is it running?"))
}

/// The directories that `is_it` holds for, and not for the one above.
fn outermost(root: &Path, is_it: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if directory == root => {
                return Err(error).with_context(|| format!("cannot list {}", root.display()));
            }
            // Removed meanwhile, or closed to this user.
            Err(_) => continue,
        };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let path = entry.path();
            if is_it(&path) { found.push(path) } else { waiting.push(path) }
        }
    }
    found.sort();
    Ok(found)
}

fn one(mut found: Vec<PathBuf>, missing: impl Fn() -> String) -> Result<PathBuf> {
    match found.len() {
        0 => bail!("{}", missing()),
        1 => Ok(found.remove(0)),
        _ => {
            let names: Vec<_> = found.iter().map(|path| path.to_string_lossy()).collect();
            bail!(
                "several groups have that name; give the control file's path instead: {}",
                printable(&names.join(", "))
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{of_container, of_unit, registration};

    fn tree(paths: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for path in paths {
            fs::create_dir_all(root.path().join(path)).expect("a directory");
        }
        root
    }

    #[test]
    fn a_unit_is_the_hosts_before_a_users() {
        let user = "user.slice/user-1000.slice/user@1000.service/app.slice";
        let root = tree(&[
            "system.slice/a.service/inner",
            &format!("{user}/a.service"),
            &format!("{user}/b.service"),
            "x/c.service",
            "y/c.service",
        ]);
        let find = |unit: &str| of_unit(root.path(), unit).map_err(|error| error.to_string());
        assert_eq!(find("a.service"), Ok(root.path().join("system.slice/a.service")));
        assert_eq!(find("b.service"), Ok(root.path().join(user).join("b.service")));
        assert!(find("c.service").expect_err("two").contains("x/c.service, "));
        assert!(find("d.service").expect_err("none").contains("systemctl status d.service"));
    }

    #[test]
    fn a_container_is_found_by_the_beginning_of_its_id() {
        let (one, other) = ("ab".repeat(32), format!("ab{}", "cd".repeat(31)));
        let (first, second) = (format!("system.slice/docker-{one}.scope"), format!("docker/{other}"));
        let root = tree(&[&format!("{first}/init.scope"), &second]);
        let find = |id: &str| of_container(root.path(), id).map_err(|error| error.to_string());
        assert_eq!(find("ababab"), Ok(root.path().join(&first)));
        assert_eq!(find("ABCDCD"), Ok(root.path().join(&second)));
        assert!(find("nginx").expect_err("a name").contains("no container's id"));
        assert!(find("abc").expect_err("too short").contains("at least"));
        assert!(find("ffffff").expect_err("none").contains("is it running?"));
    }

    #[test]
    fn the_words_are_a_control_file_or_a_threshold() {
        let directory = Path::new("/g");
        let of = |first: Option<&'static str>, second| {
            let (path, args) = registration(directory, first.map(Path::new), second).ok()?;
            Some((path.display().to_string(), args))
        };
        let found = |path: &str, args| Some((path.to_owned(), args));
        assert_eq!(of(Some("80%"), None), found("/g/memory.usage_in_bytes", Some("80%")));
        assert_eq!(of(Some("memory.oom_control"), None), found("/g/memory.oom_control", None));
        assert_eq!(
            of(Some("memory.pressure_level"), Some("low")),
            found("/g/memory.pressure_level", Some("low"))
        );
        assert_eq!(of(None, None), found("/g/memory.usage_in_bytes", None));
        assert_eq!(of(Some("80%"), Some("low")), None);
        assert_eq!(of(Some("/sys/x"), None), None);
    }
}
