//! `watch --exec`: runs a command of the shell for an event.
//!
//! The command is not reaped before its process group is killed; until then the group's number cannot become
//! another's.

use std::{
    ffi::OsString,
    io,
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    process::{Child, Command},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use monitor_client::wire::{Answer, EventRow};
use monitor_sys::pidfd;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::commands::watch::{directory, ending::Ending, running::RunningCommand};

/// Commands that run at once.
pub const AT_ONCE: usize = 8;
/// Time from the request to end until a command is killed, from there until it is given up, and from its
/// end until its output is.
const GRACE: Duration = Duration::from_secs(5);
/// Commands that could not be ended and still run; beyond it none is started.
const LEFT: usize = 64;
const HELD: &str =
    "; what it left running (in a session of its own) holds its output, which is not read any more";

/// How soon the OOM killer chooses a process, from -1000 to 1000; inherited. Whoever may not lower it may
/// raise it.
const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";

fn own_oom_score_adj() -> Option<i32> {
    std::fs::read_to_string(OOM_SCORE_ADJ).ok()?.trim().parse().ok()
}

/// Runs a command line of the shell.
pub struct ShellCommand {
    text: String,
    limit: Duration,
    grace: Duration,
    /// The commands' `oom_score_adj`, where it is not to be this process's.
    oom_score_adj: Option<i32>,
    /// Those that were given up, to be reaped once they have ended.
    left: Mutex<Vec<Child>>,
    ending: Arc<Ending>,
}

impl ShellCommand {
    /// Makes one for a command line; each run takes `limit` at most, and three times the grace. What runs is
    /// ended when `ending` begins.
    pub fn new(text: String, limit: Duration, ending: Arc<Ending>) -> Self {
        // The unit protects watch from the OOM killer: what it runs is no better than others.
        let oom_score_adj = own_oom_score_adj().filter(|own| *own < 0).map(|_| 0);
        Self { text, limit, grace: GRACE, oom_score_adj, left: Mutex::new(Vec::new()), ending }
    }

    /// Runs it for an event, before which so many were dropped.
    ///
    /// # Errors
    /// It could not be run, failed, took too long or could not be ended.
    pub fn run(&self, event: &EventRow, dropped: u64) -> Result<()> {
        // With its type, as `-o json` has it: one filter serves both.
        let mut text = serde_json::to_vec(&Answer::Event(event.clone()))?;
        text.push(b'\n');
        self.run_with(event, dropped, text)
    }

    fn run_with(&self, event: &EventRow, dropped: u64, text: Vec<u8>) -> Result<()> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        ensure!(left.len() < LEFT, "not started: {LEFT} commands run that could not be ended");
        drop(left);
        ensure!(!self.ending.is_begun(), "not started, as the watch ends");
        let (mut running, child) = self.start(event, dropped, text)?;
        let outcome = running.until_end();
        // An error of the kernel's must not leave it running.
        let ended = outcome.as_ref().is_ok_and(|ended| *ended);
        let killed = running.kill(Signal::SIGKILL);
        if ended {
            Self::reaped(child, &mut running, killed, &event.cgroup)
        } else {
            running.log_output(&event.cgroup);
            self.left.lock().unwrap_or_else(PoisonError::into_inner).push(child);
            outcome?;
            killed?;
            bail!("{}; it cannot be ended", running.cut_short().unwrap_or_default())
        }
    }

    /// Reaps a command that has ended, and whose process group was killed.
    fn reaped(mut child: Child, running: &mut RunningCommand, killed: Result<()>, group: &str) -> Result<()> {
        let status = child.wait().context("waitid")?;
        let is_read = running.read_rest()?;
        running.log_output(group);
        killed?;
        let rest = if is_read { "" } else { HELD };
        if let Some(why) = running.cut_short() {
            bail!("{why}{rest}");
        }
        ensure!(status.success(), "the command ended with {status}{rest}");
        ensure!(is_read, "the command ended{rest}");
        Ok(())
    }

    fn start(&self, event: &EventRow, dropped: u64, text: Vec<u8>) -> Result<(RunningCommand, Child)> {
        let mut command = Command::new("/bin/sh");
        command.arg("-c");
        if let Some(value) = self.oom_score_adj {
            // By a shell of its own, before the command can start anything.
            command.arg(format!("echo {value} 2>/dev/null >{OOM_SCORE_ADJ}; exec /bin/sh -c \"$0\""));
        }
        command.arg(&self.text);
        // Ours alone: those of a watch above this one are about another event.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"MEMCG_"))
        {
            command.env_remove(name);
        }
        command.envs(variables(event, dropped));
        // A group of its own, so that all that it starts ends with it.
        command.process_group(0);
        let (of_child, input) = io::pipe().context("pipe2")?;
        command.stdin(of_child);
        let (output, of_child) = io::pipe().context("pipe2")?;
        command.stdout(of_child.try_clone().context("fcntl F_DUPFD_CLOEXEC")?).stderr(of_child);
        for ours in [input.as_fd(), output.as_fd()] {
            fcntl(ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("fcntl F_SETFL")?;
        }
        let mut child = command.spawn().context("cannot start /bin/sh")?;
        // Else the output would not end.
        drop(command);
        let group = Pid::from_raw(child.id().try_into().context("the command's number")?);
        let process = match pidfd::open(group.as_raw(), 0) {
            Ok(process) => process,
            Err(errno) => {
                let _ = killpg(group, Signal::SIGKILL);
                let _ = child.wait();
                bail!("pidfd_open: {errno}");
            }
        };
        let running = RunningCommand {
            group,
            process,
            input: Some((input, text)),
            output: Some(output),
            printed: Vec::new(),
            more: 0,
            limit: self.limit,
            grace: self.grace,
            ending: Arc::clone(&self.ending),
            cut: None,
        };
        Ok((running, child))
    }
}

/// The event as environment variables; those without a value are left out.
fn variables(event: &EventRow, dropped: u64) -> Vec<(&'static str, OsString)> {
    // A path that the command can open, whatever bytes it has.
    let group = directory::of_group(&event.cgroup, event.id).into_os_string();
    let number = |value: Option<u64>| value.map(|value| value.to_string());
    let victim = event.victim.as_ref();
    let texts = [
        ("MEMCG_EVENT", Some(event.event.clone())),
        ("MEMCG_ID", Some(event.id.to_string())),
        ("MEMCG_SPEC", event.spec.clone()),
        ("MEMCG_TIME", Some(event.time.to_string())),
        ("MEMCG_ON", event.on.clone()),
        ("MEMCG_THRESHOLD", number(event.threshold)),
        ("MEMCG_DIRECTION", event.direction.clone()),
        ("MEMCG_USAGE", number(event.usage)),
        ("MEMCG_LIMIT", number(event.limit)),
        ("MEMCG_GROWTH", event.growth.map(|growth| growth.to_string())),
        ("MEMCG_PEAK", number(event.peak)),
        ("MEMCG_LATE", event.late.then(|| "1".to_owned())),
        ("MEMCG_ORIGIN", event.origin.clone()),
        ("MEMCG_LEVEL", event.level.clone()),
        ("MEMCG_VICTIM_CGROUP", victim.map(|victim| victim.cgroup.clone())),
        ("MEMCG_VICTIM_PID", number(victim.and_then(|victim| victim.pid))),
        ("MEMCG_VICTIM_COMM", victim.and_then(|victim| victim.comm.clone())),
        ("MEMCG_DROPPED", (dropped > 0).then(|| dropped.to_string())),
    ];
    let texts = texts.into_iter().filter_map(|(name, value)| Some((name, OsString::from(value?))));
    let all = [("MEMCG_CGROUP", group)].into_iter().chain(texts);
    all.filter(|(_, value)| !value.as_encoded_bytes().contains(&0)).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::OsStr,
        fs,
        os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
        process::Command,
        sync::Arc,
        thread,
        time::Duration,
    };

    use monitor_client::wire::{Answer, EventRow};
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    use super::{LEFT, ShellCommand, own_oom_score_adj, variables};
    use crate::commands::watch::{ending::Ending, running::LOGGED};

    /// Longer than any run.
    const LONG: Duration = Duration::from_secs(600);
    const SHORT: Duration = Duration::from_millis(1);

    fn event(id: u64, usage: u64) -> EventRow {
        EventRow {
            id,
            usage: Some(usage),
            cgroup: format!("/g{id}"),
            event: "crossed".into(),
            ..EventRow::default()
        }
    }

    fn shell(text: impl Into<String>, limit: Duration) -> ShellCommand {
        ShellCommand::new(text.into(), limit, Arc::new(Ending::new().expect("an eventfd")))
    }

    fn error_of(command: &ShellCommand) -> String {
        format!("{:#}", command.run(&event(1, 1), 0).expect_err("an error"))
    }

    #[test]
    fn a_command_has_the_event_in_its_environment_and_on_its_input() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("out");
        let command = format!("(echo $MEMCG_EVENT $MEMCG_USAGE $MEMCG_CGROUP; cat) > {}", file.display());
        shell(command, LONG).run(&event(7, 4096), 0).expect("a run");
        let text = fs::read_to_string(file).expect("what it wrote");
        let (first, second) = text.split_once('\n').expect("two lines");
        assert_eq!(first, "crossed 4096 /g7");
        let answer = serde_json::from_str::<Answer>(second).expect("an event with its type");
        assert_eq!(answer, Answer::Event(event(7, 4096)));
        assert_eq!(serde_json::from_str::<EventRow>(second).expect("an event"), event(7, 4096));
    }

    #[test]
    fn a_command_has_the_path_of_a_group_whose_name_is_no_text() {
        let above = tempfile::tempdir().expect("a directory");
        let path = above.path().join(OsStr::from_bytes(b"a\xff"));
        fs::create_dir(&path).expect("a directory");
        let id = fs::metadata(&path).expect("a directory").ino();
        let event = EventRow { cgroup: path.to_string_lossy().into_owned(), ..event(id, 1) };
        shell("test -d \"$MEMCG_CGROUP\"", LONG).run(&event, 0).expect("it is there");
    }

    #[test]
    fn a_command_is_not_protected_from_the_oom_killer_as_watch_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("out");
        let text = format!("echo $0 $(cat /proc/self/oom_score_adj) > {}; exit 3", file.display());
        let own = own_oom_score_adj().expect("a number");
        // Anybody may raise it, but not everybody may lower it.
        for value in [None, Some((own + 1).min(1000))] {
            let command = ShellCommand { oom_score_adj: value, ..shell(text.clone(), LONG) };
            assert!(error_of(&command).contains("exit status: 3"));
            let written = fs::read_to_string(&file).expect("what it wrote");
            assert_eq!(written.trim(), format!("/bin/sh {}", value.unwrap_or(own)));
        }
    }

    #[test]
    fn a_command_that_takes_too_long_ends_with_all_that_it_started() {
        let text = "sleep 600 & sleep 600";
        let error = error_of(&ShellCommand { grace: LONG, ..shell(text, SHORT) });
        // All that it started holds the output, so that has ended.
        assert_eq!(error, "the command took longer than 0.001 s (--exec-timeout)");
    }

    #[test]
    fn a_command_that_ignores_the_request_to_end_is_killed() {
        let text = "trap '' TERM; while :; do sleep 600; done";
        let error = error_of(&ShellCommand { grace: SHORT, ..shell(text, SHORT) });
        assert!(error.contains("took longer"), "{error}");
    }

    #[test]
    fn output_that_a_new_session_holds_is_given_up() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("pid");
        let file_name = file.display();
        let text = format!(
            "setsid sh -c 'echo $$ > {file_name}; exec sleep 600' & until test -s {file_name}; do :; done"
        );
        let error = error_of(&ShellCommand { grace: SHORT, ..shell(text, LONG) });
        let pid = fs::read_to_string(file).expect("its number").trim().parse().expect("a number");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it is left running");
        assert!(error.contains("in a session of its own"), "{error}");
    }

    #[test]
    fn an_input_that_is_not_read_does_not_hold_up_the_time_out() {
        let more_than_a_pipe = || vec![b'x'; 1 << 20];
        let of = |text: &str, limit| {
            let command = ShellCommand { grace: LONG, ..shell(text, limit) };
            command.run_with(&event(1, 1), 0, more_than_a_pipe())
        };
        assert!(of("sleep 600", SHORT).expect_err("late").to_string().contains("took longer"));
        of("exit 0", LONG).expect("a run");
        of("test $(wc -c) = 1048576", LONG).expect("all of it");
    }

    #[test]
    fn a_command_ends_with_the_watch_and_none_is_started() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("begun");
        let text = format!("> {}; sleep 600 & sleep 600", file.display());
        let command = ShellCommand { grace: LONG, ..shell(text, LONG) };
        let ending = Arc::clone(&command.ending);
        let running = thread::spawn(move || (error_of(&command), error_of(&command)));
        while !file.exists() {
            thread::sleep(SHORT);
        }
        ending.begin();
        let (ended, next) = running.join().expect("the thread");
        assert_eq!(ended, "the command was asked to end, as the watch ends");
        assert_eq!(next, "not started, as the watch ends");
    }

    #[test]
    fn a_failure_is_told() {
        let error = error_of(&shell("exit 3", LONG));
        assert!(error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn output_beyond_a_bound_is_read_and_counted() {
        let text = "head -c 300000 /dev/zero";
        let command = ShellCommand { grace: LONG, ..shell(text, LONG) };
        let (mut running, mut child) = command.start(&event(1, 1), 0, Vec::new()).expect("a command");
        assert!(running.until_end().expect("its end") && running.read_rest().expect("its output"));
        assert_eq!((running.printed.len(), running.more), (LOGGED, 300_000 - LOGGED as u64));
        child.wait().expect("its status");
    }

    #[test]
    fn commands_that_cannot_be_ended_are_bounded_and_reaped() {
        let command = shell("exit 0", LONG);
        let sleeper = || Command::new("sleep").arg("600").spawn().expect("sleep");
        let left = || command.left.lock().expect("those that were given up");
        left().extend((0..LEFT).map(|_| sleeper()));
        let error = error_of(&command);
        for child in &mut *left() {
            child.kill().expect("a signal");
            child.wait().expect("its end");
        }
        assert!(error.contains("not started: 64 commands"), "{error}");
        command.run(&event(1, 1), 0).expect("there is room again");
        assert!(left().is_empty(), "they are reaped");
    }

    #[test]
    fn what_has_no_value_is_no_variable() {
        let names: Vec<_> = variables(&event(1, 2), 0).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["MEMCG_CGROUP", "MEMCG_EVENT", "MEMCG_ID", "MEMCG_TIME", "MEMCG_USAGE"]);
        assert!(variables(&event(1, 2), 3).contains(&("MEMCG_DROPPED", "3".into())));
    }
}
