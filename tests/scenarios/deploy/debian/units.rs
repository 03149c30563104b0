//! The unit files, by the word of systemd's own checker.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::harness::report::say;
use crate::harness::test::vm_test;
use crate::scenarios::deploy::debian::{BINARY, SERVICE, Units, copy, output};

/// Texts between the fences of one section, but for what needs a clone.
pub(super) fn blocks(text: &str, section: &str) -> Vec<String> {
    let body = text.split("\n## ").find(|part| part.starts_with(section)).unwrap_or_default();
    body.split("```").skip(1).step_by(2).map(|block| block.replace("cargo xtask build\n", "")).collect()
}

/// Puts the agent's program back for the tests that follow.
struct Reinstall<'a>(&'a Path);

impl Drop for Reinstall<'_> {
    fn drop(&mut self) {
        let _ = fs::copy(self.0, BINARY);
    }
}

/// Takes the group back that the commands make, for the tests that follow.
struct Admitted;

impl Drop for Admitted {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all("/etc/systemd/system/memcg-monitor.socket.d");
        let _ = output("groupdel", &["memcg-monitor"]);
        let _ = output("systemctl", &["daemon-reload"]);
    }
}

vm_test!(
    debian_documented,
    "the commands in docs/guide/deploy.md install, show, narrow and remove the service",
    Debian,
    []
);
fn debian_documented() -> Result<()> {
    let share = Path::new("/usr/share/memcg-monitor");
    let text = fs::read_to_string(share.join("deploy.md")).context("cannot read docs/guide/deploy.md")?;
    let blocks = blocks(&text, "Under systemd");
    // Those for a user of its own are debian_own_user's.
    let [install, remove, pages, _, admit, narrow] = blocks.as_slice() else {
        bail!("{} blocks of commands", blocks.len())
    };
    // A clone, as far as the commands see it.
    let clone = Path::new("/var/lib/clone");
    let built = clone.join("target/guest/x86_64-unknown-linux-gnu/release");
    fs::create_dir_all(&built).context("cannot make a directory")?;
    std::os::unix::fs::symlink(share, clone.join("deploy")).context("symlink failed")?;
    let program = built.join("memcg-monitor");
    fs::copy(BINARY, &program).context("cannot copy the agent")?;
    let _reinstall = Reinstall(&program);
    fs::remove_file(BINARY)?;
    let sh = |block: &str| output("sh", &["-exc", &format!("cd {}\n{block}", clone.display())]);

    let said = sh(install)?;
    ensure!(said.contains("active (running)") && said.contains("CGROUP"), "it says {said}");
    sh(pages)?;
    let page = Path::new("/usr/local/share/man/man1/memcg-monitor-watch.1");
    let completion = Path::new("/usr/local/share/bash-completion/completions/memcg-monitor");
    ensure!(
        page.exists() && fs::read_to_string(completion)?.contains("--check-config"),
        "man pages, completion"
    );
    let admitted = Admitted;
    sh(admit)?;
    let socket = output("stat", &["-c", "%G %a", "/run/memcg-monitor/event_control.sock"])?;
    ensure!(socket.trim() == "memcg-monitor 660", "the registration socket is {socket}");
    drop(admitted);
    sh(narrow)?;
    let pid = output("systemctl", &["show", "-P", "MainPID", SERVICE])?;
    let line = fs::read_to_string(format!("/proc/{}/cmdline", pid.trim()))?;
    ensure!(line.contains("\0--no-mount\0"), "the drop-in does not count: {line:?}");
    let pinned = fs::read_dir("/sys/fs/bpf/memcg-monitor").map_or(0, Iterator::count);
    ensure!(pinned == 0, "programs of the agent before stay attached");
    sh(remove)?;
    ensure!(!Path::new(BINARY).exists(), "the program is still there");
    ensure!(!page.exists() && !completion.exists(), "a page or a completion is left");
    ensure!(
        output("systemctl", &["list-units", "--no-legend", "memcg-monitor*"])?.is_empty(),
        "units are left"
    );
    Ok(())
}

vm_test!(
    debian_units,
    "systemd-analyze verify has nothing to say, and the exposure stays where it is",
    Debian,
    []
);
/// Limits without the drop-in and with it.
fn debian_units() -> Result<()> {
    let share = Path::new("/usr/share/memcg-monitor/systemd");
    // In tenths: 0 is sealed, 100 is open.
    for (drop_in, most) in [("", 40.0), ("memcg-monitor.service.d", 20.0)] {
        let directory = Path::new("/var/lib/units").join(if drop_in.is_empty() { "plain" } else { "narrow" });
        fs::create_dir_all(&directory).context("cannot make a directory")?;
        for name in Units::ALL.into_iter().chain([drop_in]) {
            if !name.is_empty() {
                copy(&share.join(name), &directory.join(name), 0o644)?;
            }
        }
        // Of these, one is for the host's network and one has another user, so their scores are
        // another matter; of the last this systemd knows no word.
        for apart in ["metrics.conf", "own-user.conf", "systemd-254.conf"] {
            let _ = fs::remove_file(directory.join(drop_in).join(apart));
        }
        let analyze = |words: &str| {
            output("sh", &["-c", &format!("cd {} && systemd-analyze {words} 2>&1", directory.display())])
        };
        let text = analyze("verify --man=no ./*.service ./*.socket")?;
        ensure!(text.trim().is_empty(), "verify {drop_in}: {text}");
        let text = analyze(&format!("security --offline=true --no-pager ./{SERVICE}"))?;
        let last: String = text.lines().last().unwrap_or_default().chars().filter(char::is_ascii).collect();
        say!("{} {drop_in}", last.trim());
        let score = last.split_whitespace().find_map(|word| word.parse::<f64>().ok());
        let score = score.with_context(|| format!("no score in {last:?}"))?;
        ensure!(score * 10.0 <= most, "{drop_in}: exposure {score}, at most {most} tenths; {text}");
    }
    Ok(())
}
