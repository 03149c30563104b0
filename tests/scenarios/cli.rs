//! The command line, as a person or a script uses it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use monitor_client::wire::{Answer, EventRow};

use crate::harness::MIB;
use crate::harness::agent::{Agent, BINARY};
use crate::harness::charger::{Charger, Kind};
use crate::harness::group::Group;
use crate::harness::test::vm_test;

struct Listener {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Listener {
    fn start(arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(BINARY);
        command.arg("listen").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start listen")?;
        let lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        Ok(Self { child, lines })
    }

    fn line(&mut self) -> Result<String> {
        self.lines.next().context("listen ended")?.context("cannot read")
    }

    fn event(&mut self) -> Result<EventRow> {
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("{line:?} is not an event"))
    }

    fn end(mut self) -> Result<i32> {
        self.child.wait()?.code().context("killed")
    }
}

/// Waits until that many are registered.
fn registered(agent: &Agent, count: u64) -> Result<()> {
    crate::harness::agent::until("listen has registered", || Ok(agent.status()?.registrations == count))
}

vm_test!(
    cli_listen_prints_what_the_sample_prints,
    "listen prints the kernel sample's lines, and ends with the group",
    Any,
    [Kernel]
);
fn cli_listen_prints_what_the_sample_prints() -> Result<()> {
    let group = Group::new("lines")?;
    let agent = Agent::start(&[])?;
    // v1's name works on both hierarchies, whether the file is there or not.
    let path = group.path.join("memory.usage_in_bytes");
    let path = path.to_string_lossy();
    let mut listener = Listener::start(&[&path, "5M"])?;
    registered(&agent, 1)?;
    let mut charger = Charger::start(&group)?;
    let crossed = format!("{path} 5M: crossed");
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    ensure!(listener.line()? == crossed, "up");
    charger.shrink(Kind::Anonymous)?;
    ensure!(listener.line()? == crossed, "down");
    charger.end()?;
    group.remove()?;
    ensure!(listener.line()? == "The cgroup seems to have removed.", "removal");
    ensure!(listener.end()? == 0, "exit code");
    Ok(())
}

vm_test!(
    cli_listen_json,
    "listen -o json writes time, group, threshold, direction, usage and removal",
    Any,
    [Kernel, Quick]
);
fn cli_listen_json() -> Result<()> {
    let group = Group::new("json")?;
    let agent = Agent::start(&[])?;
    let path = group.usage_file();
    let mut listener = Listener::start(&["-o", "json", &path.to_string_lossy(), "5M"])?;
    registered(&agent, 1)?;
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    let up = listener.event()?;
    let name = group.path.to_string_lossy().into_owned();
    ensure!(up.cgroup == name && up.event == "crossed" && up.threshold == Some(5 * MIB), "{up:?}");
    ensure!(
        up.direction.as_deref() == Some("up") && up.usage.is_some_and(|usage| usage >= 5 * MIB),
        "{up:?}"
    );
    ensure!(up.time > 1.0e9, "{up:?}");
    charger.shrink(Kind::Anonymous)?;
    let down = listener.event()?;
    ensure!(
        down.direction.as_deref() == Some("down") && down.usage.is_some_and(|usage| usage < 5 * MIB),
        "{down:?}"
    );
    charger.end()?;
    group.remove()?;
    let removed = listener.event()?;
    ensure!(
        removed.event == "removed" && removed.cgroup == name && removed.threshold.is_none(),
        "{removed:?}"
    );
    ensure!(listener.end()? == 0, "exit code");
    Ok(())
}

vm_test!(cli_exit_codes, "--count, --timeout, refusals and a missing agent have their exit codes", Any, []);
fn cli_exit_codes() -> Result<()> {
    let group = Group::new("codes")?;
    let path = group.usage_file();
    let path = path.to_string_lossy();
    let run = |arguments: &[&str]| -> Result<(i32, String)> {
        let output =
            Command::new(BINARY).args(arguments).stdin(Stdio::null()).output().context("cannot start")?;
        Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let (code, text) = run(&["listen", &path, "1M"])?;
    ensure!(
        code == 1 && text.contains("connect") && text.contains("memcg-monitor agent"),
        "no agent: {code} {text}"
    );
    let (code, text) = run(&["status"])?;
    ensure!(code == 1 && text.contains("connect"), "no agent to ask: {code} {text}");

    let agent = Agent::start(&[])?;
    let (code, text) = run(&["status", "--timeout", "60"])?;
    ensure!(code == 0, "an agent that answers: {code} {text}");
    let (code, _) = run(&["listen", &path, "1M", "--timeout", "0.2"])?;
    ensure!(code == 3, "timeout: {code}");
    let (code, _) = run(&["listen", "-o", "json", &path, "1M", "--timeout", "0.2"])?;
    ensure!(code == 3, "timeout with json: {code}");
    let (code, text) = run(&["listen", &path, "1MB"])?;
    ensure!(code == 1 && text.contains("EINVAL"), "bad threshold: {code} {text}");
    let (code, text) = run(&["listen", "/nonexistent/memory.current", "1M"])?;
    ensure!(code == 1 && text.contains("/nonexistent/memory.current"), "no such file: {code} {text}");
    let (code, _) = run(&["listen", &path])?;
    ensure!(code == 2, "usage: {code}");

    let mut listener = Listener::start(&[&path, "5M", "--count", "2"])?;
    registered(&agent, 1)?;
    let mut charger = Charger::start(&group)?;
    charger.spike(Kind::Anonymous, 8 * MIB, 1)?;
    listener.line()?;
    listener.line()?;
    ensure!(listener.end()? == 0, "count");
    Ok(())
}

vm_test!(cli_list, "list shows groups and registrations", Any, []);
fn cli_list() -> Result<()> {
    let group = Group::new("listed")?;
    let agent = Agent::start(&[])?;
    let waiter = crate::harness::client::Waiter::on(&group, "5M")?;
    waiter.register(&group, "5M")?;
    waiter.register(&group, "1G")?;
    let run = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(BINARY).arg("list").args(arguments).output().context("cannot start")?;
        ensure!(output.status.success(), "list failed");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let name = group.path.to_string_lossy().into_owned();
    let text = run(&[])?;
    let line = text.lines().find(|line| line.starts_with(&name)).with_context(|| text.clone())?;
    ensure!(line.contains("5M x2") && line.contains("1G"), "{line}");
    ensure!(text.contains("registrations: 3,"), "{text}");
    let mut rows = 0;
    for line in run(&["-o", "json"])?.lines() {
        match serde_json::from_str(line).with_context(|| line.to_owned())? {
            Answer::Group(row) if row.cgroup == name => {
                let thresholds: Vec<_> =
                    row.registrations.iter().map(|row| (row.threshold, row.count)).collect();
                ensure!(thresholds == vec![(Some(5 * MIB), 2), (Some(1 << 30), 1)], "{row:?}");
                rows += 1;
            }
            Answer::Group(_) | Answer::Status(_) => {}
            other => anyhow::bail!("{other:?}"),
        }
    }
    ensure!(rows == 1, "{rows} rows for the group");
    drop(agent);
    Ok(())
}

vm_test!(cli_shell_hint, "the lines that the VM's shell features for trying work there as they are", Any, []);
fn cli_shell_hint() -> Result<()> {
    let hint = fs::read_to_string("/etc/motd").context("cannot read /etc/motd")?;
    let lines: Vec<_> = hint.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    let [make, listen, charge] = lines.as_slice() else { bail!("{} lines to try", lines.len()) };
    let agent = Agent::start(&[])?;
    let mut shell = Command::new("/bin/busybox")
        .arg("sh")
        .env_clear()
        .env("PATH", "/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start a shell")?;
    let mut input = shell.stdin.take().context("no stdin")?;
    let mut said = BufReader::new(shell.stdout.take().context("no stdout")?).lines();
    writeln!(input, "{make}")?;
    writeln!(input, "{listen}")?;
    registered(&agent, 1)?;
    writeln!(input, "{charge}")?;
    let line = said.next().context("the shell ended")?.context("cannot read")?;
    ensure!(line.ends_with(" 8M: crossed"), "{line}");
    shell.kill().context("cannot end the shell")?;
    shell.wait().context("cannot wait for the shell")?;
    Ok(())
}
