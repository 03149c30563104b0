//! The command `memcg-monitor record`: has the agent write a file of its black box.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Result, bail};
use memcg_monitor::{cgroup::Hierarchy, printable};
use monitor_client::named;

use crate::{
    cli::RecordOptions,
    commands::{
        connect::{admin, explained},
        timed_out,
    },
};

pub fn run(options: &RecordOptions) -> Result<ExitCode> {
    let directory = match (options.group.find()?, &options.directory) {
        (Some(directory), _) => directory,
        (None, Some(given)) => below_mount(given)?,
        (None, None) => Hierarchy::find(None)?.root,
    };
    let id = match fs::metadata(&directory) {
        Ok(found) => found.ino(),
        Err(error) => bail!(
            "stat {}: {}; name a group by its directory, or its path below the root (`memcg-monitor list`)",
            directory.display(),
            named(&error)
        ),
    };
    let recorded =
        admin(&options.control_socket, Some(options.timeout)).and_then(|control| control.record(id));
    let path = match recorded {
        Ok(path) => path,
        Err(error) if error.is_timeout() => return Ok(timed_out(Some(options.timeout))),
        Err(error) => {
            let refused = explained(error, "--control-socket");
            return Err(refused.context(format!("cannot record {}", directory.display())));
        }
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{}", printable(&path))?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// A group's directory: as given, or where that is no group's, below the cgroup mount, as lists of metrics
/// and logs name it.
fn below_mount(given: &Path) -> Result<PathBuf> {
    let root = Hierarchy::find(None)?.root;
    let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    // An inode of another file system would be the number of some other group. The view has v1's file.
    let is_group =
        given.is_dir() && (device(given) == device(&root) || given.join("cgroup.event_control").exists());
    Ok(if is_group { given.to_owned() } else { root.join(given.strip_prefix("/").unwrap_or(given)) })
}
