//! The test VM's first process. The kernel's command line says what to do:
//!
//! * `guest.mode=test|demo|prometheus|bench|differential|soak|shell|debian`
//! * `guest.cgroup=v1|v2`
//! * `guest.select=TAG,-TAG`: tests with this tag, and not with that one
//! * `guest.filter=NAME,-NAME`: the same by parts of names
//! * `guest.part=K/N`: of those, each N-th from the K-th on
//! * `guest.repeat=N`: all of those N times
//! * `guest.args=A,B`
//! * `guest.backend=NAME`: the backend of all agents
//!
//! On a host, `guest list` prints the tests, as a line of JSON each; with some of these
//! words, those that such a boot would run. `guest native` and such words runs tests or the
//! demonstration there, in namespaces of their own.

mod bench;
mod demo;
mod harness;
mod scenarios;
mod soak;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::harness::agent::BACKEND;
use crate::harness::child::{self, End};
use crate::harness::init::{self, Hierarchy};
use crate::harness::report::{self, say};
use crate::harness::select::Selection;
use crate::harness::test::{On, Tag, Test};
use crate::harness::{native, runner, shell};
use crate::scenarios::deploy::{debian, prometheus};
use crate::scenarios::{conformance, unprivileged};

/// A boot's orders, by the words on the kernel's command line.
#[derive(Debug, Default)]
struct Request {
    mode: String,
    hierarchy: Hierarchy,
    /// Whether the kernel is locked down, so that no agent can run.
    is_locked: bool,
    selection: Selection,
    args: Vec<String>,
    backend: Option<String>,
}

fn main() {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    // The kernel gives its first process words of its command line.
    if std::process::id() == 1 {
        // Whatever happens, the machine has to go off: the host waits for it.
        if let Err(error) = serve() {
            say!("init failed: {}", report::chain(&error));
        }
        init::power_off();
    }
    match *words.as_slice() {
        ["list", ref boot @ ..] => match list(boot) {
            Ok(tests) => tests.iter().for_each(|test| println!("{}", test.row())),
            Err(error) => {
                eprintln!("{}", report::chain(&error));
                std::process::exit(1);
            }
        },
        ["native", ref words @ ..] => match native(words) {
            Ok(0) => {}
            Ok(_) => std::process::exit(1),
            Err(error) => {
                eprintln!("{}", report::chain(&error));
                std::process::exit(1);
            }
        },
        ["say", line] => unprivileged::say(line),
        // Debian's first process started us, and ends the machine after us.
        _ => {
            report::open();
            let result = Request::read().and_then(|request| debian::run(&request.tests()));
            if let Err(error) = result {
                say!("Debian's tests failed: {}", report::chain(&error));
            }
            report::drain();
        }
    }
}

fn serve() -> Result<()> {
    init::mount_system()?;
    report::open();
    let request = Request::read()?;
    if request.mode == "debian" {
        return debian::switch(On::debian(&request.args)?);
    }
    init::prepare(request.hierarchy)?;
    request.settle();
    match request.mode.as_str() {
        "test" => runner::run(&request.tests(), request.hierarchy),
        "demo" => alone("demo", Duration::from_secs(240), demo::run),
        "prometheus" => alone("prometheus", Duration::from_secs(300), prometheus::run),
        "bench" => bench::run(&request.args, request.hierarchy),
        "soak" => {
            let [seconds, seed, attacks @ ..] = request.args.as_slice() else {
                bail!("guest.args=SECONDS,SEED or SECONDS,SEED,attacks")
            };
            let (time, seed) = (Duration::from_secs(seconds.parse()?), seed.parse()?);
            let attacks = attacks.iter().any(|word| word == "attacks");
            alone("soak", time + Duration::from_secs(180), || soak::run(time, seed, attacks))
        }
        "differential" => differential(&request.args),
        "shell" => shell::run(),
        other => bail!("guest.mode={other} is not known"),
    }
}

/// Runs on a host what a boot with these words would run; the number of failures.
fn native(words: &[&str]) -> Result<usize> {
    let mut request = Request::parse(&words.join(" "))?;
    native::run(move |hierarchy| {
        request.hierarchy = hierarchy;
        request.settle();
        match request.mode.as_str() {
            "test" => runner::run(&request.tests(), request.hierarchy),
            "demo" => {
                let _ = BACKEND.set("auto".to_owned());
                alone("demo", Duration::from_secs(240), demo::run)
            }
            other => bail!("guest.mode={other}: test or demo"),
        }
    })
}

/// Random lines, `COUNT,SEED` of them, through the kernel's parser and ours.
fn differential(args: &[String]) -> Result<()> {
    let [lines, seed] = args else { bail!("guest.args={args:?}: a count and a seed") };
    let lines = lines.parse().context("the count is a number")?;
    let seed = seed.parse().context("the seed is a number")?;
    alone("differential", Duration::from_secs(60 * 60), || conformance::grammar::run(lines, seed))
}

/// Runs one function in a process of its own and gives the verdict on it.
fn alone(name: &str, limit: Duration, run: impl FnOnce() -> Result<()>) -> Result<()> {
    let end = child::run(limit, run)?;
    if end != End::Passed {
        say!("test {name} ... FAILED: {end}");
    }
    let passed = usize::from(end == End::Passed);
    report::verdict(passed, 1 - passed);
    Ok(())
}

/// The tests of a boot with these words; without any, all.
fn list(boot: &[&str]) -> Result<Vec<Test>> {
    let request = Request::parse(&boot.join(" "))?;
    Ok(if boot.is_empty() { scenarios::all() } else { request.tests() })
}

impl Request {
    /// The tests that are for this machine and are selected.
    fn tests(&self) -> Vec<Test> {
        let is_for_here = |test: &Test| match self.mode.as_str() {
            "debian" => On::debian(&self.args).is_ok_and(|debian| debian == test.on),
            // Where no program is loaded, only what holds for sampled files makes sense.
            _ if self.is_locked && !test.tags.contains(&Tag::Sampled) => false,
            // Names choose among the few that such a boot is there for. Kprobes are not pinned, so
            // nothing is seen while there is no agent.
            _ if self.backend.as_deref() == Some("kprobe")
                && (!test.tags.contains(&Tag::Variant) || test.name.starts_with("restart_")) =>
            {
                false
            }
            _ => test.on.includes(self.hierarchy, self.is_locked),
        };
        self.selection.of(scenarios::all().into_iter().filter(is_for_here))
    }

    /// Makes the settings that hold for all tests.
    fn settle(&self) {
        if let Some(backend) = &self.backend {
            let _ = BACKEND.set(backend.clone());
        }
    }

    fn read() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/cmdline").context("cannot read /proc/cmdline")?)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut request = Self::default();
        for word in text.split_whitespace() {
            request.is_locked |= word == "lockdown=confidentiality";
            let Some((name, value)) = word.strip_prefix("guest.").and_then(|word| word.split_once('='))
            else {
                continue;
            };
            match name {
                "mode" => request.mode = value.to_owned(),
                "cgroup" => request.hierarchy = value.parse()?,
                "select" => request.selection.select = value.parse()?,
                "filter" => request.selection.filter = value.parse()?,
                "part" => request.selection.part = value.parse()?,
                "repeat" => request.selection.repeat = value.parse().context("guest.repeat=N")?,
                "backend" => request.backend = Some(value.to_owned()),
                "args" => request.args = value.split(',').map(str::to_owned).collect(),
                other => bail!("guest.{other}= is not known"),
            }
        }
        Ok(request)
    }
}
