//! The log: the programs' own lines, and journald's fields.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::agent::{Agent, BINARY, PATIENCE, until};
use crate::harness::client::agent_errno;
use crate::harness::group::Group;
use crate::harness::process;
use crate::harness::test::vm_test;

vm_test!(logs_programs, "what a program in the kernel logs is in the agent's log, at debug level", Any, []);
fn logs_programs() -> Result<()> {
    let agent = Agent::start(&["--max-groups", "16"])?;
    let _groups: Vec<_> = (0..24).map(|n| Group::new(&format!("log{n}"))).collect::<Result<Vec<_>>>()?;
    until("the program's line is in the log", || {
        let log = Agent::log();
        let line = log.lines().find(|line| line.contains("no free slot"));
        Ok(line.is_some_and(|line| line.contains("DEBUG memcg_monitor::ebpf")))
    })
    .with_context(Agent::log)?;
    drop(agent);
    Ok(())
}

/// The fields of a record, in journald's own protocol.
fn fields(mut bytes: &[u8]) -> HashMap<String, String> {
    let mut fields = HashMap::new();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        if let Some(at) = line.iter().position(|byte| *byte == b'=') {
            fields.insert(text(&line[..at]), text(&line[at + 1..]));
            bytes = rest;
            continue;
        }
        let Some((length, rest)) = rest.split_first_chunk::<8>() else { break };
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(0).min(rest.len());
        fields.insert(text(line), text(&rest[..length]));
        bytes = rest.get(length + 1..).unwrap_or_default();
    }
    fields
}

vm_test!(
    logs_journal,
    "where journald listens, lines are records with fields, one for each refusal",
    Any,
    []
);
fn logs_journal() -> Result<()> {
    const SOCKET: &str = "/run/systemd/journal/socket";
    fs::create_dir_all("/run/systemd/journal")?;
    let _ = fs::remove_file(SOCKET);
    let socket = UnixDatagram::bind(SOCKET).context("cannot be journald")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut bytes = vec![0; 1 << 16];
    let mut next = || -> Result<HashMap<String, String>> {
        let length = socket.recv(&mut bytes).context("nothing for journald")?;
        Ok(fields(&bytes[..length]))
    };

    let stderr = fs::File::create("/run/stderr")?;
    let about = stderr.metadata()?;
    let mut command = Command::new(BINARY);
    command.args(["-v", "agent", "--no-mount"]).stdin(Stdio::null()).stdout(Stdio::null());
    command.env("JOURNAL_STREAM", format!("{}:{}", about.dev(), about.ino())).stderr(stderr);
    process::kill_with_parent(&mut command);
    let mut child = command.spawn()?;
    let is = |record: &HashMap<String, String>, name: &str, value: &str| {
        ensure!(record.get(name).is_some_and(|found| found == value), "{name} is not {value} in {record:?}");
        Ok(())
    };
    let ready = loop {
        let record = next()?;
        if record.get("MESSAGE").is_some_and(|text| text.starts_with("ready: ")) {
            break record;
        }
    };
    is(&ready, "PRIORITY", "5")?;
    is(&ready, "SYSLOG_IDENTIFIER", "memcg-monitor")?;
    ensure!(agent_errno(b"1 2 nonsense")? != 0, "a bad line is refused");
    let refusal = loop {
        let record = next()?;
        if record.contains_key("MEMCG_ERRNO") {
            break record;
        }
    };
    is(&refusal, "PRIORITY", "5")?;
    is(&refusal, "TARGET", "memcg_monitor::frontend::refusal")?;
    is(&refusal, "MEMCG_UID", "0")?;
    kill(Pid::from_raw(child.id().try_into()?), Signal::SIGTERM)?;
    ensure!(child.wait()?.success(), "the agent ends");
    ensure!(fs::read_to_string("/run/stderr")?.is_empty(), "stderr is journald's, too");
    fs::remove_file(SOCKET)?;
    Ok(())
}
