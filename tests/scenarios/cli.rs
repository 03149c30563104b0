//! The command line, as a person or a script uses it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use monitor_client::wire::{Answer, EventRow};
use nix::sys::signal::Signal;

use crate::harness::MIB;
use crate::harness::agent::{Agent, BINARY, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::group::Group;
use crate::harness::test::vm_test;
use crate::scenarios::abuse::{fails, says};

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
    until("listen has registered", || Ok(agent.status()?.registrations == count))
}

vm_test!(
    cli_listen_says_what_happened,
    "listen names each signal's cause, to an operator and to a user, and ends with the group",
    Any,
    [Kernel, Standing]
);
fn cli_listen_says_what_happened() -> Result<()> {
    let group = Group::new("lines")?;
    let agent = Agent::standing()?;
    // v1's name works on both hierarchies, whether the file is there or not.
    let path = group.path.join("memory.usage_in_bytes");
    let path = path.to_string_lossy();
    let oom = group.path.join("memory.oom_control");
    let mut told = Listener::start(&[&path, "5M"])?;
    // No admin socket is there: only the eventfd tells. Both are named, as another agent's would be.
    let socket = format!("/run/../{}", monitor_client::SOCKET);
    let sockets = ["--socket", &socket, "--control-socket", "/nonexistent"];
    let mut counted = Listener::start(&[&[&*path, "5M"][..], &sockets].concat())?;
    let mut killed = Listener::start(&[&oom.to_string_lossy()])?;
    registered(&agent, 3)?;
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    let begins = |line: String, words: &str| {
        ensure!(line.starts_with(&format!("{path} 5M: {words}")), "{line}, not {words}");
        Ok(())
    };
    begins(told.line()?, "crossed 5M upwards, usage ")?;
    begins(counted.line()?, "crossed 5M, usage now ")?;
    charger.shrink(Kind::Anonymous)?;
    begins(told.line()?, "crossed 5M downwards, usage ")?;
    begins(counted.line()?, "crossed 5M, usage now ")?;
    group.set_limit(16 * MIB)?;
    charger.grow_to_death(64 * MIB)?;
    let limit = format!("memory.oom_control: out of memory, by the limit of {}", group.path.display());
    let mut line = killed.line()?;
    ensure!(line.ends_with(&limit), "{line}");
    // An OOM that finds memory given back meanwhile kills nothing, and the next one follows.
    while line.ends_with(&limit) {
        line = killed.line()?;
    }
    ensure!(line.starts_with("  killed ") && line.contains("(process "), "{line}");
    agent.settle()?;
    group.remove()?;
    for (mut listener, words) in [(told, "5M"), (counted, "5M"), (killed, "memory.oom_control")] {
        while !listener.line()?.ends_with(&format!("{words}: the group was removed")) {}
        ensure!(listener.end()? == 0, "exit code");
    }
    Ok(())
}

vm_test!(
    cli_listen_unknown_cause,
    "after the agent's end, a signal is named as one of unknown cause",
    Any,
    []
);
fn cli_listen_unknown_cause() -> Result<()> {
    let group = Group::new("unknown")?;
    let agent = Agent::start(&[])?;
    let path = group.path.join("memory.usage_in_bytes");
    let path = path.to_string_lossy();
    let mut listener = Listener::start(&[&path, "5M", "--count", "1"])?;
    registered(&agent, 1)?;
    ensure!(agent.end(Signal::SIGTERM)? == 0, "exit code of the agent");
    let line = listener.line()?;
    ensure!(line == format!("{path} 5M: signalled"), "{line}");
    ensure!(listener.end()? == 0, "exit code");
    Ok(())
}

vm_test!(
    cli_out_of_reach,
    "a threshold that cannot be crossed is noted by listen and marked by list, with its options",
    Any,
    [Standing]
);
fn cli_out_of_reach() -> Result<()> {
    let group = Group::new("reach")?;
    let _agent = Agent::standing()?;
    let path = group.path.join("memory.usage_in_bytes");
    let path = path.to_string_lossy();
    let stderr = |args: &[&str]| -> Result<String> {
        let output = Command::new(BINARY).args(["listen", &path, "--timeout", "0.1"]).args(args).output()?;
        ensure!(output.status.code() == Some(3), "{output:?}");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let note = stderr(&["80%"])?;
    ensure!(note.contains("note: neither") && note.contains("give a number of bytes"), "{note}");
    let _percent = crate::harness::client::Waiter::on(&group, "80%,up,hysteresis=1M")?;
    let listed = || -> Result<(String, String)> {
        let run =
            |args: &[&str]| Command::new(BINARY).arg("list").args(["--timeout", "60"]).args(args).output();
        let (text, json) = (run(&[])?, run(&["-o", "json"])?);
        let name = group.path.to_string_lossy().into_owned();
        let line = |bytes: Vec<u8>| {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            text.lines().find(|line| line.contains(&name)).unwrap_or_default().to_owned()
        };
        Ok((line(text.stdout), line(json.stdout)))
    };
    let (text, json) = listed()?;
    ensure!(text.ends_with("80% of no limit! up hysteresis 1M"), "{text}");
    let parts = ["\"percent\":\"80%\"", "\"unreachable\":\"no_limit\"", "\"direction\":\"up\""];
    ensure!(parts.iter().all(|part| json.contains(part)) && !json.contains("\"threshold\""), "{json}");
    group.set_limit(64 * MIB)?;
    let note = stderr(&["512M"])?;
    ensure!(note.contains("usage cannot reach 512M now") && note.contains("is 64M"), "{note}");
    let note = stderr(&["1T"])?;
    ensure!(note.contains("usage cannot reach 1T: this host has "), "{note}");
    ensure!(stderr(&["32M"])?.is_empty(), "a note of a threshold in reach");
    let _above = crate::harness::client::Waiter::on(&group, "1G")?;
    until("the percentage is of the limit", || Ok(listed()?.0.contains("80% = ")))?;
    let (text, json) = listed()?;
    ensure!(text.contains("80% = 51.2M up hysteresis 1M") && text.contains("1G!"), "{text}");
    let parts = ["\"limit\":67108864", "\"unreachable\":\"above_limit\"", "\"precision\":\"exact\""];
    ensure!(parts.iter().all(|part| json.contains(part)), "{json}");
    Ok(())
}

vm_test!(
    cli_wrong_input,
    "sockets that are swapped or the same, sizes with a B and a view in a hierarchy are named, with what to do",
    Any,
    []
);
fn cli_wrong_input() -> Result<()> {
    let group = Group::new("wrong")?;
    let usage = group.usage_file();
    let usage = usage.to_string_lossy();
    let same = ["agent", "--no-mount", "--socket", "/tmp/one", "--control-socket", "/tmp/../tmp/one"];
    says(fails(&same, |_| {})?, &["--socket and --control-socket are the same path"])?;
    let inside = group.path.join("view");
    let inside = inside.to_string_lossy();
    says(fails(&["agent", "--mount", &inside], |_| {})?, &["is in a cgroup hierarchy", "--no-mount"])?;
    ensure!(!group.path.join("view").exists(), "a group was made for the view");
    let _agent = Agent::start(&[])?;
    let (register, operate) = (monitor_client::SOCKET, monitor_client::CONTROL_SOCKET);
    says(fails(&["list", "--control-socket", register], |_| {})?, &["registration socket", operate])?;
    let swapped = ["listen", &usage, "1M", "--socket", operate];
    let swapped = [&swapped[..], &["--control-socket", register]].concat();
    says(fails(&swapped, |_| {})?, &["is an agent's admin socket", register])?;
    says(fails(&["listen", &usage, "16MB"], |_| {})?, &["EINVAL", "; write 16M"])?;
    says(fails(&["listen", &usage, "16", "M"], |_| {})?, &["EINVAL", "; write 16M"])?;
    let exact = ["listen", &usage, "1M,exact", "--require", "exact", "--timeout", "0.1"];
    let (code, text) = fails(&exact, |_| {})?;
    ensure!(code == 3 && text.is_empty(), "{code}: {text}");
    let nowhere = ["listen", "/sys/fs/cgroup/nowhere/memory.current", "1M"];
    says(fails(&nowhere, |_| {})?, &["there is no /sys/fs/cgroup/nowhere, only /sys/fs/cgroup"])
}

vm_test!(
    cli_listen_json,
    "listen -o json writes time, group, threshold, direction, usage and removal",
    Any,
    [Kernel, Quick, Standing]
);
fn cli_listen_json() -> Result<()> {
    let group = Group::new("json")?;
    let agent = Agent::standing()?;
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
    // A kernel that steps back from a threshold crosses it more than once.
    let next = |listener: &mut Listener, is_next: &dyn Fn(&EventRow) -> bool| loop {
        let event = listener.event()?;
        if is_next(&event) {
            return anyhow::Ok(event);
        }
        ensure!(event.event == "crossed" && event.threshold == Some(5 * MIB), "{event:?}");
    };
    let down = next(&mut listener, &|event| event.direction.as_deref() == Some("down"))?;
    ensure!(down.usage.is_some_and(|usage| usage < 5 * MIB), "{down:?}");
    charger.end()?;
    group.remove()?;
    let removed = next(&mut listener, &|event| event.event == "removed")?;
    ensure!(removed.cgroup == name && removed.threshold.is_none(), "{removed:?}");
    ensure!(listener.end()? == 0, "exit code");
    Ok(())
}

vm_test!(
    cli_listen_ends_with_its_reader,
    "listen says once that it is registered, and ends when nobody can read it any more, with its registration",
    Any,
    [Standing]
);
fn cli_listen_ends_with_its_reader() -> Result<()> {
    let group = Group::new("read")?;
    let path = group.usage_file();
    let agent = Agent::standing()?;
    let Listener { mut child, mut lines } = Listener::start(&["--announce", &path.to_string_lossy(), "64M"])?;
    let line = lines.next().context("listen ended")??;
    ensure!(line == "registered", "{line:?}");
    registered(&agent, 1)?;
    drop(lines);
    until("listen has ended", || Ok(child.try_wait()?.is_some()))?;
    registered(&agent, 0)
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
        code == 1 && text.contains("connect") && text.contains("systemctl start memcg-monitor"),
        "no agent: {code} {text}"
    );
    let (code, text) = run(&["status"])?;
    ensure!(
        code == 1 && text.contains("connect") && text.contains("--control-socket"),
        "no agent answers: {code} {text}"
    );

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
    for wrong in [
        &["listen", &*path][..],
        &["listen", &path, "--cuont", "1"],
        &["listen", "--self", "80%", "extra", "words"],
        &["drop-in", "80%"],
        &["watch", "/a", "16MB"],
    ] {
        let (code, text) = run(wrong)?;
        ensure!(code == 2, "usage: {wrong:?}: {code} {text}");
    }

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

vm_test!(
    cli_shell_hint,
    "the lines that the VM's shell features for trying work there as they are",
    Any,
    [Standing]
);
fn cli_shell_hint() -> Result<()> {
    let hint = fs::read_to_string("/etc/motd").context("cannot read /etc/motd")?;
    let lines: Vec<_> = hint.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    let [make, listen, charge] = lines.as_slice() else { bail!("{} lines to try", lines.len()) };
    let agent = Agent::standing()?;
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
    ensure!(line.contains(" 8M: crossed 8M upwards, usage "), "{line}");
    shell.kill().context("cannot end the shell")?;
    shell.wait().context("cannot wait for the shell")?;
    Ok(())
}
