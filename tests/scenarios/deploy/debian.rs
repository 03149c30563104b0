//! Debian with systemd as the first process: hands the machine over to it, and then, as
//! a service of its, runs the tests of our units and of our container image.

mod bare;
mod bundle;
mod container;
mod package;
mod pressure;
mod service;
mod units;

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot, execv};

use crate::harness::test::{On, Test};
use crate::harness::{modules, report, runner, stopwatch};

/// Mount point of Debian's disk before it is the root.
const DEBIAN: &str = "/debian";

/// Files that the host packed, to be copied over Debian's.
const PAYLOAD: &str = "/payload";

/// Leaves the machine to Debian. Returns only if that fails.
pub(crate) fn switch(debian: On) -> Result<()> {
    modules::load_all(Path::new("/modules"))?;
    fs::create_dir_all(DEBIAN).with_context(|| format!("cannot make {DEBIAN}"))?;
    let plain = MsFlags::empty();
    mount(Some("/dev/vda"), DEBIAN, Some("ext4"), plain, None::<&str>)
        .context("cannot mount Debian's disk")?;
    copy(Path::new(PAYLOAD), Path::new(DEBIAN), 0o644)?;
    let programs = Path::new(DEBIAN).join("usr/local/bin");
    // Elsewhere the package alone brings it.
    if debian == On::Debian {
        copy(Path::new("/bin/memcg-monitor"), &programs.join("memcg-monitor"), 0o755)?;
    }
    copy(Path::new("/init"), &programs.join("guest"), 0o755)?;
    // Any will do, but without one systemd would prompt for it.
    fs::write(Path::new(DEBIAN).join("etc/machine-id"), format!("{:032x}\n", 1))?;
    chdir(DEBIAN).context("cannot enter Debian")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("cannot move Debian to /")?;
    chroot(".").context("chroot failed")?;
    chdir("/").context("chdir failed")?;
    execv(c"/sbin/init", &[c"/sbin/init"]).context("cannot start systemd")?;
    Ok(())
}

/// A file, or a directory with all that is in it.
pub(crate) fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    if !from.is_dir() {
        fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        return fs::set_permissions(to, fs::Permissions::from_mode(mode)).context("chmod failed");
    }
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()), mode)?;
    }
    Ok(())
}

/// Runs the tests, as a service of systemd's.
pub(crate) fn run(tests: &[Test]) -> Result<()> {
    stopwatch::share()?;
    runner::each(tests, |test| Ok(alone(test).err().map(|error| report::chain(&error))))
}

/// One test; each begins and ends with nothing of ours running.
fn alone(test: &Test) -> Result<()> {
    let outcome = panic::catch_unwind(AssertUnwindSafe(test.run)).unwrap_or_else(|_| bail_panicked());
    let journal = journal().unwrap_or_default();
    let ended = Units::stop();
    if let Err(error) = outcome {
        bail!("{error:#}; {journal}");
    }
    ended
}

fn bail_panicked() -> Result<()> {
    bail!("panicked")
}

/// The last of what our service said.
fn journal() -> Result<String> {
    let text = output("journalctl", &["-b", "--no-pager", "-o", "cat", "-n", "12", "-u", SERVICE])?;
    Ok(format!("journal: {}", text.replace('\n', " / ")))
}

/// The agent, where the units start it.
pub(crate) const BINARY: &str = "/usr/local/bin/memcg-monitor";

pub(crate) const SERVICE: &str = "memcg-monitor.service";

/// Our units; removed with the value.
#[derive(Debug)]
pub(crate) struct Units;

impl Units {
    /// Directory of units that are linked, as by `systemctl link`, for this boot only.
    const DIRECTORY: &str = "/run/systemd/system";

    /// Their names, the service's first.
    pub(crate) const ALL: [&str; 4] =
        [SERVICE, "memcg-monitor.socket", "memcg-monitor-operator.socket", "memcg-monitor-pressure.socket"];

    /// Installs them, with drop-ins for the service.
    pub(crate) fn install(drop_ins: &[(&str, &str)]) -> Result<Self> {
        Self::stop()?;
        let from = Path::new("/usr/share/memcg-monitor/systemd");
        for name in Self::ALL {
            copy(&from.join(name), &Path::new(Self::DIRECTORY).join(name), 0o644)?;
        }
        let directory = Path::new(Self::DIRECTORY).join(format!("{SERVICE}.d"));
        fs::create_dir_all(&directory)?;
        for (name, text) in drop_ins {
            fs::write(directory.join(name), text).with_context(|| format!("cannot write {name}"))?;
        }
        systemctl(&["daemon-reload"])?;
        Ok(Self)
    }

    /// The text of one of our drop-ins.
    pub(crate) fn drop_in(name: &str) -> Result<String> {
        let path = PathBuf::from("/usr/share/memcg-monitor/systemd/memcg-monitor.service.d").join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Ends and removes them.
    fn stop() -> Result<()> {
        if !Path::new(Self::DIRECTORY).join(SERVICE).exists() {
            return Ok(());
        }
        systemctl(&[&["stop"], &Self::ALL[..]].concat())?;
        for name in Self::ALL {
            fs::remove_file(Path::new(Self::DIRECTORY).join(name))?;
        }
        let _ = fs::remove_dir_all(Path::new(Self::DIRECTORY).join(format!("{SERVICE}.d")));
        let _ = Command::new("systemctl").arg("reset-failed").output();
        systemctl(&["daemon-reload"]).map(drop)
    }
}

pub(crate) fn systemctl(words: &[&str]) -> Result<String> {
    output("systemctl", words)
}

/// A property of our service, as `systemctl show` says it.
pub(crate) fn property(name: &str) -> Result<String> {
    Ok(systemctl(&["show", "-P", name, SERVICE])?.trim().to_owned())
}

/// Runs a program and returns its output; an error if it fails.
pub(crate) fn output(program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(words)
        .env("SYSTEMD_COLORS", "0")
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {} {errors} {text}", words.join(" "), output.status);
    Ok(text)
}
