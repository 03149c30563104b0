//! Each of the project's own clients beside a real agent on this machine, which reads the groups'
//! files: crossings with their causes, a refusal, the removal, and the agent's end.

use std::fs;
use std::io::{BufRead as _, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use super::languages::{Languages, PYTHONS, c_program, go};
use super::{CCompiler, Clients};
use crate::arch::Arch;
use crate::build;
use crate::native;
use crate::process::{self, command};
use crate::setup;
use crate::summary::Outcome;
use crate::workspace::{root, target};

/// Runs every client's `live` program.
pub(crate) fn beside_an_agent() -> Result<Outcome> {
    if let Some(reason) = native::missing() {
        return Ok(Outcome::ready(format!("not run: {reason}")));
    }
    setup::ensure(&[&CCompiler, &Clients, &Languages])?;
    let mut outcome = Outcome::default();
    for (name, program, last) in programs()? {
        match run(&program, last) {
            Ok(()) => outcome.passed += 1,
            Err(error) => {
                outcome.failed += 1;
                outcome.failures.push(format!("{name}: {error:#}").replace('\n', " | "));
            }
        }
    }
    Ok(outcome)
}

/// The program of each client, and the argument that comes last.
fn programs() -> Result<Vec<(String, Command, Option<&'static str>)>> {
    let clients = root().join("clients");
    let live = target().join("clients/own/live-go");
    process::run(go()?.args(["build", "-o"]).arg(&live).arg("./live").current_dir(clients.join("go")))?;
    let mut programs = vec![
        ("C".to_owned(), command(c_program("live", &["live.c", "memcg_monitor.c"])?), None),
        ("Go".to_owned(), command(live), None),
    ];
    for python in PYTHONS {
        for last in [None, Some("asyncio")] {
            let mut program = python.command()?;
            program.arg(clients.join("python/tests/live.py"));
            programs.push((format!("{python:?}, {last:?}"), program, last));
        }
    }
    let mut node = command("node");
    node.arg(clients.join("node/live.mjs")).env("MEMCG_MONITOR", build::built_guest(Arch::Amd64).monitor);
    programs.push(("Node".to_owned(), node, None));
    Ok(programs)
}

/// The agent, groups and files of one program; dropped, all of them are gone.
struct Scene {
    directory: PathBuf,
    agent: Option<Child>,
    groups: [PathBuf; 2],
    /// A file whose pages are charged to the first group.
    charged: PathBuf,
}

impl Scene {
    fn set() -> Result<Self> {
        let name = format!("memcg-monitor-clients-{}", std::process::id());
        let directory = std::env::temp_dir().join(&name);
        fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let hierarchy = hierarchy();
        let groups = ["a", "b"].map(|which| hierarchy.join(format!("{name}-{which}")));
        let mut scene = Self { directory, agent: None, groups, charged: Path::new("/dev/shm").join(name) };
        for group in &scene.groups {
            fs::create_dir(group).with_context(|| format!("cannot make {}", group.display()))?;
        }
        let mut agent = command(build::built_guest(Arch::Amd64).monitor);
        agent.args(["agent", "--backend", "sampled", "--no-mount", "--socket"]).arg(scene.socket());
        agent.arg("--control-socket").arg(scene.control_socket()).stderr(Stdio::piped());
        process::end_with_parent(&mut agent);
        let agent = scene.agent.insert(agent.spawn().context("cannot start the agent")?);
        let log = agent.stderr.take().context("its stderr is a pipe")?;
        let mut log = BufReader::new(log).lines();
        let mut said = Vec::new();
        loop {
            let Some(line) = log.next().transpose()? else { bail!("the agent ended: {}", said.join("; ")) };
            if line.contains("ready") {
                break;
            }
            said.push(line);
        }
        // So that it never waits for a reader.
        thread::spawn(move || log.for_each(drop));
        Ok(scene)
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    fn control_socket(&self) -> PathBuf {
        self.directory.join("control")
    }

    /// Charges 16 MiB to the first group, until the file is removed.
    fn charge(&self) -> Result<()> {
        const SCRIPT: &str = r#"echo $$ > "$0/cgroup.procs" && head -c 16M /dev/zero > "$1""#;
        process::run(command("sh").args(["-c", SCRIPT]).arg(&self.groups[0]).arg(&self.charged))
    }

    fn end_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.end_agent();
        let _ = fs::remove_file(&self.charged);
        for group in &self.groups {
            let _ = fs::remove_dir(group);
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The directory in which groups are made.
fn hierarchy() -> PathBuf {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    if v1.join("memory.usage_in_bytes").exists() { v1.into() } else { "/sys/fs/cgroup".into() }
}

/// Runs one program through all that its client does.
fn run(program: &Command, last: Option<&str>) -> Result<()> {
    let mut scene = Scene::set()?;
    // A client that waits for ever fails.
    let mut bounded = command("timeout");
    bounded.arg("120").arg(program.get_program()).args(program.get_args());
    bounded.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    bounded.arg(scene.socket()).arg(scene.control_socket()).args(&scene.groups).args(last);
    let mut child = bounded.stdout(Stdio::piped()).spawn().context("cannot start the client")?;
    let mut lines = BufReader::new(child.stdout.take().context("its stdout is a pipe")?).lines();
    says(&mut lines, "refused 22")?;
    says(&mut lines, "registered")?;
    scene.charge()?;
    says(&mut lines, "signals 1 crossed up")?;
    fs::remove_file(&scene.charged).context("cannot remove what is charged")?;
    says(&mut lines, "signals 1 crossed down")?;
    fs::remove_dir(&scene.groups[0]).context("cannot remove the group")?;
    says(&mut lines, "signals None removed None")?;
    scene.end_agent();
    says(&mut lines, "ended")?;
    let status = child.wait().context("cannot wait for the client")?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

fn says(lines: &mut Lines<BufReader<ChildStdout>>, wanted: &str) -> Result<()> {
    let line = lines.next().transpose()?;
    ensure!(line.as_deref() == Some(wanted), "it printed {line:?}, not {wanted:?}; its messages are above");
    Ok(())
}
