//! Runs the steps side by side, each in a process of its own: a step's output is kept in
//! `target/test/NAME.log`, and its outcome comes back as a file.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, IsTerminal, PipeReader, Write};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{command, end_with_parent};
use crate::steps::{Lane, Step, directory, file_of, outcome_file};
use crate::summary::{Outcome, Summary};
use crate::times::{Times, minutes};
use crate::workspace::short;

/// Returns the time without news after which a line says what is running: shorter on a
/// terminal than in a log.
fn patience() -> Duration {
    Duration::from_secs(if io::stdout().is_terminal() { 10 } else { 30 })
}

/// Lines of a failed step's output that are shown.
const SHOWN: usize = 60;

/// A step that is running.
#[derive(Debug)]
struct Running {
    name: String,
    lane: Lane,
    is_shown: bool,
    child: Child,
    start: Instant,
    log: File,
    /// Tests that have ended, and how many there are, as far as it has printed that.
    tests: (usize, Option<usize>),
    /// Crates that cargo has begun to compile.
    crates: usize,
    last_line: String,
}

/// The messages of the threads that read the steps' output.
#[derive(Debug)]
enum News {
    Line(String, String),
    End(String),
}

/// Runs all steps in their order as far as lanes are free and what they come after has
/// ended. Each is this command line once more, with the step's name added.
pub(crate) fn run(steps: &[Step], times: &Times) -> Result<Summary> {
    fs::create_dir_all(directory()).context("cannot make target/test")?;
    let (sender, news) = mpsc::channel();
    let mut schedule = Schedule {
        steps,
        times,
        state: steps.iter().map(|step| (step.name.clone(), State::Waiting)).collect(),
        running: Vec::new(),
        summary: Summary::default(),
        start: Instant::now(),
        last_said: Instant::now(),
    };
    schedule.start_ready(&sender)?;
    let patience = patience();
    while !schedule.running.is_empty() {
        if schedule.last_said.elapsed() >= patience {
            schedule.say_what_runs();
        }
        match news.recv_timeout(patience.saturating_sub(schedule.last_said.elapsed())) {
            Ok(News::Line(name, line)) => schedule.take_line(&name, line),
            Ok(News::End(name)) => {
                schedule.ended(&name)?;
                schedule.start_ready(&sender)?;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the output of the steps is lost; run the same command again")
            }
        }
    }
    Ok(schedule.summary)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    Ok,
    Failed,
}

struct Schedule<'a> {
    steps: &'a [Step],
    times: &'a Times,
    state: BTreeMap<String, State>,
    running: Vec<Running>,
    summary: Summary,
    start: Instant,
    last_said: Instant,
}

impl Schedule<'_> {
    /// Prints a line on the progress.
    fn say(&mut self, line: &str) {
        println!("{line}");
        self.last_said = Instant::now();
    }

    fn start_ready(&mut self, sender: &Sender<News>) -> Result<()> {
        let steps = self.steps;
        loop {
            let failed = |name: &String| self.state.get(name) == Some(&State::Failed);
            let waiting = || steps.iter().filter(|step| self.state[&step.name] == State::Waiting);
            // A step that needs a failed one cannot be run; that is a failure of its own.
            if let Some((step, missing)) =
                waiting().find_map(|step| Some((step, step.after.iter().find(|name| failed(name))?)))
            {
                self.finish(&step.name, Outcome::failure(&format!("not run: {missing} failed")), 0.0);
                continue;
            }
            let is_ready = |step: &&Step| {
                step.after.iter().all(|name| self.state.get(name).is_none_or(|&state| state == State::Ok))
                    && self.running.iter().filter(|other| other.lane == step.lane).count() < step.lane.width()
            };
            let Some(step) = waiting().find(is_ready) else { return Ok(()) };
            self.begin(step, sender)?;
        }
    }

    fn begin(&mut self, step: &Step, sender: &Sender<News>) -> Result<()> {
        let (reader, writer) = io::pipe().context("cannot make a pipe")?;
        let _ = fs::remove_file(outcome_file(&step.name));
        let mut command = command("/proc/self/exe");
        command.args(env::args_os().skip(1)).args(["--step", &step.name]);
        command.stdout(writer.try_clone().context("cannot duplicate a pipe")?).stderr(writer);
        command.stdin(Stdio::null());
        end_with_parent(&mut command);
        let child = command.spawn().with_context(|| format!("cannot start the step {}", step.name))?;
        drop(command);
        read_lines(&step.name, reader, sender.clone());
        let path = file_of(&step.name, "log");
        let log = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        self.running.push(Running {
            name: step.name.clone(),
            lane: step.lane,
            is_shown: step.is_shown,
            child,
            start: Instant::now(),
            log,
            tests: (0, None),
            crates: 0,
            last_line: String::new(),
        });
        self.state.insert(step.name.clone(), State::Running);
        let last = self
            .times
            .step(&step.name)
            .map_or(String::new(), |time| format!(" (last time {})", minutes(time)));
        self.say(&format!("==> {}{last}", step.name));
        Ok(())
    }

    fn take_line(&mut self, name: &str, line: String) {
        let Some(step) = self.running.iter_mut().find(|step| step.name == name) else { return };
        // A full disk must not stop the run; the log is for people.
        let _ = writeln!(step.log, "{line}");
        if let Some(count) = line.strip_prefix("running ").and_then(|rest| rest.strip_suffix(" tests")) {
            step.tests.1 = step.tests.1.or(count.parse().ok());
        }
        let is_test = line.starts_with("test ") && line.contains(" ... ");
        step.tests.0 += usize::from(is_test);
        step.crates += usize::from(line.trim_start().starts_with("Compiling "));
        if step.is_shown || line.starts_with("setup: ") || (is_test && line.contains("FAILED")) {
            let place = match step.tests {
                (done, Some(all)) if is_test => format!("{done} of {all}: "),
                _ => String::new(),
            };
            let shown = format!("[{name}] {place}{line}");
            step.last_line = line;
            self.say(&shown);
        } else {
            step.last_line = line;
        }
    }

    fn ended(&mut self, name: &str) -> Result<()> {
        let Some(at) = self.running.iter().position(|step| step.name == name) else { return Ok(()) };
        let mut step = self.running.swap_remove(at);
        let status = step.child.wait().with_context(|| format!("cannot wait for the step {name}"))?;
        let mut outcome = read_outcome(name, status, &step.last_line);
        let seconds = step.start.elapsed().as_secs_f64();
        if outcome.failed > 0 {
            show_end_of_log(name);
            outcome.failures.push(format!("its log is {}", short(&file_of(name, "log"))));
        }
        self.finish(name, outcome, seconds);
        Ok(())
    }

    fn finish(&mut self, name: &str, outcome: Outcome, seconds: f64) {
        let is_ok = outcome.failed == 0;
        self.state.insert(name.to_owned(), if is_ok { State::Ok } else { State::Failed });
        self.summary.add(name, outcome, seconds);
        let last = self
            .times
            .total(self.steps)
            .map_or(String::new(), |time| format!(", last time {} in all", minutes(time)));
        self.say(&format!(
            "<== {name}: {} in {} ({} of {} steps after {}{last})",
            if is_ok { "ok" } else { "FAILED" },
            minutes(seconds),
            self.summary.rows().len(),
            self.steps.len(),
            minutes(self.start.elapsed().as_secs_f64()),
        ));
    }

    fn say_what_runs(&mut self) {
        let each = self.running.iter().map(|step| {
            let so_far = minutes(step.start.elapsed().as_secs_f64());
            let of = self
                .times
                .step(&step.name)
                .map_or(String::new(), |time| format!(" of about {}", minutes(time)));
            let done = match (step.tests, step.crates) {
                ((done, Some(all)), _) => format!(", {done} of {all} tests"),
                (_, 0) => String::new(),
                (_, crates) => format!(", {crates} crates compiled"),
            };
            format!("{} ({so_far}{of}{done})", step.name)
        });
        let each = each.collect::<Vec<_>>().join(", ");
        self.say(&format!("    {}: running {each}", minutes(self.start.elapsed().as_secs_f64())));
    }
}

fn read_outcome(name: &str, status: ExitStatus, last_line: &str) -> Outcome {
    let read = || -> Result<Outcome> {
        let path = outcome_file(name);
        let text = fs::read_to_string(&path).with_context(|| format!("it left no {}", path.display()))?;
        Ok(serde_json::from_str(&text)?)
    };
    read().unwrap_or_else(|error| {
        Outcome::failure(&format!("its process ended with {status}: {error:#}; its last line: {last_line}"))
    })
}

fn show_end_of_log(name: &str) {
    let path = file_of(name, "log");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    println!("--- {name} failed; the end of {}:", short(&path));
    for line in &lines[lines.len().saturating_sub(SHOWN)..] {
        println!("    {line}");
    }
}

/// Sends a step's lines until its output ends.
fn read_lines(name: &str, reader: PipeReader, sender: Sender<News>) {
    let name = name.to_owned();
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut bytes = Vec::new();
        while matches!(reader.read_until(b'\n', &mut bytes), Ok(count) if count > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            if sender.send(News::Line(name.clone(), line)).is_err() {
                return;
            }
        }
        // Without a receiver, the end of a step matters to none.
        let _ = sender.send(News::End(name));
    });
}
