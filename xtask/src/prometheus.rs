//! Prometheus, from Debian's package: it scrapes an agent in a VM, and its `promtool`
//! checks the metrics and the alert rules.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::build::Guest;
use crate::clients::Packed;
use crate::process::{self, command};
use crate::setup::{self, Need};
use crate::summary::Outcome;
use crate::vm::{self, Boot, Hierarchy, text_in};
use crate::workspace::{root, short, target, tools};
use crate::{apt, deploy, kernels};

/// The kernel that it runs on; any would do.
const KERNEL: &str = "6.12";

/// The C library that the programs were linked to, which the VM does not have.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu/libc.so.6", "lib64/ld-linux-x86-64.so.2"];

/// The files of `deploy/prometheus` that the VM's Prometheus gets.
const CONFIGURATION: [&str; 2] = ["prometheus.yml", "memcg-monitor.rules.yml"];

fn unpacked() -> PathBuf {
    tools().join("prometheus")
}

fn program(name: &str) -> PathBuf {
    unpacked().join("usr/bin").join(name)
}

/// The programs prometheus and promtool, from Debian's package.
#[derive(Debug)]
pub(crate) struct Prometheus;

impl Need for Prometheus {
    fn name(&self) -> &'static str {
        "prometheus"
    }

    fn find(&self) -> Result<String> {
        for path in [program("prometheus"), program("promtool")] {
            setup::file(&path)?;
        }
        Ok(format!("Prometheus {}", short(&program("prometheus"))))
    }

    fn fetch(&self) -> Result<()> {
        println!("setup: downloading Prometheus, into target/ only");
        fs::create_dir_all(tools()).context("cannot make target/tools")?;
        apt::Source::system()?.unpack(&["prometheus".to_owned(), "libc6".to_owned()], &unpacked())
    }
}

fn promtool() -> Command {
    let mut promtool = command(program("promtool"));
    promtool.current_dir(deployed());
    promtool
}

fn deployed() -> PathBuf {
    root().join("deploy/prometheus")
}

/// Checks the deployed rules and configuration by promtool, and runs the rules' own tests.
pub(crate) fn check_rules() -> Result<Outcome> {
    setup::ensure(&[&Prometheus])?;
    process::run(promtool().args(["check", "config", "--lint-fatal", "prometheus.yml"]))?;
    process::run(promtool().args(["check", "rules", "--lint-fatal", "memcg-monitor.rules.yml"]))?;
    process::run(promtool().args(["test", "rules", "memcg-monitor.test.yml"]))?;
    let queries = target().join("test/dashboard.rules.yml");
    fs::create_dir_all(target().join("test")).context("cannot make target/test")?;
    fs::write(&queries, deploy::recorded()?)
        .with_context(|| format!("cannot write {}", queries.display()))?;
    process::run(promtool().args(["check", "rules", "--lint-fatal"]).arg(&queries))?;
    Ok(Outcome::pass(""))
}

/// Boots a VM in which a real Prometheus scrapes a real agent.
pub(crate) fn scrape(guest: &Guest) -> Result<Outcome> {
    vm::ensure(KERNEL)?;
    setup::ensure(&[&Prometheus])?;
    let kernel = kernels::get(KERNEL)?;
    let guest = Guest { init: guest.init.clone(), monitor: guest.monitor.clone(), more: pack()?, disk: None };
    let boot = Boot {
        memory: "2G",
        limit: Duration::from_secs(10 * 60),
        ..Boot::new(&kernel, Hierarchy::V2, "prometheus")
    };
    let report = boot.run(&guest, &mut |line| println!("{line}"))?;
    let answers: Vec<_> = report.data.iter().filter_map(|line| text_in(line, "dashboard")).collect();
    let [answers] = answers.as_slice() else {
        bail!("the guest printed {} answers to the dashboard instead of one", answers.len())
    };
    fs::write(target().join("test/dashboard.json"), answers).context("cannot write target/test")?;
    deploy::draw(&serde_json::from_str(answers)?)?;
    let texts: Vec<_> = report.data.iter().filter_map(|line| text_in(line, "metrics")).collect();
    let [text] = texts.as_slice() else {
        bail!("the guest printed {} scrapes instead of one; its log is in target/vm", texts.len())
    };
    check_metrics(text)?;
    println!("promtool check metrics: no fault in {} lines", text.lines().count());
    Ok(Outcome::of(report, kernel.release))
}

/// Fails if promtool finds any fault in the metrics.
fn check_metrics(text: &str) -> Result<()> {
    let mut child = promtool()
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start promtool; run `cargo xtask setup`")?;
    child.stdin.take().context("its stdin is a pipe")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    let message = [output.stdout, output.stderr].concat();
    let message = String::from_utf8_lossy(&message);
    ensure!(
        output.status.success() && message.trim().is_empty(),
        "`promtool check metrics` failed; repair the metrics: {message}"
    );
    Ok(())
}

fn pack() -> Result<Vec<Packed>> {
    let file = |path: &str, from: &Path| {
        ensure!(
            from.is_file(),
            "there is no {}; remove target/tools/prometheus and run `cargo xtask setup`",
            short(from)
        );
        Ok(Packed { path: path.to_owned(), from: from.to_path_buf() })
    };
    let mut packed = vec![file("prometheus/prometheus", &program("prometheus"))?];
    for name in CONFIGURATION {
        packed.push(file(&format!("prometheus/{name}"), &deployed().join(name))?);
    }
    let queries = target().join("test/dashboard.txt");
    fs::create_dir_all(target().join("test")).context("cannot make target/test")?;
    fs::write(&queries, deploy::queries()?.join("\n"))
        .with_context(|| format!("cannot write {}", queries.display()))?;
    packed.push(file("prometheus/dashboard.txt", &queries)?);
    for path in LIBRARIES {
        // The loader's own name is an absolute link in the package.
        let real = unpacked().join(path.replace("lib64/", "lib/x86_64-linux-gnu/"));
        packed.push(file(path, &real)?);
    }
    Ok(packed)
}
