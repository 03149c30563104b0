//! The options of the command `watch`.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, CommandFactory as _, error::ErrorKind};
use memcg_monitor::kernel::HIGHEST_PID;
use nix::sys::signal::Signal;

use super::{Cli, Output, seconds, some_seconds};

/// Options of the command `watch`.
#[derive(Args, Debug)]
pub struct Watch {
    /// Groups to watch, existing and new, and what to tell of each. A word that begins with / is a
    /// pattern of paths below the hierarchy's root, or of whole paths as `list` shows them: * and ? stay
    /// within one name, ** is any number of names; / alone is the root. The others say what to tell: a
    /// threshold on usage as for `listen` (80%, 512M,up, 1G,hysteresis=64M), `oom`, a level of pressure
    /// (critical, low,hierarchy), `empty`, `removed`, or a control file's name with its arguments in one
    /// word ('memory.anon_bytes 1G')
    #[arg(value_name = "PATTERN|SPEC", required_unless_present_any = ["rule", "check_config"])]
    pub words: Vec<String>,
    /// Also watch groups that are a systemd unit of this name (may be repeated): a name without an ending is
    /// a service's; a pattern with *, ? or [] is of whole names, as 'app-*.service'
    #[arg(long = "unit", value_name = "PATTERN")]
    pub units: Vec<String>,
    /// Take all of this from a file, with lines KEY = VALUE: pattern, unit, spec, exec, exec-timeout,
    /// signal, to
    #[arg(long, value_name = "FILE", conflicts_with_all = ["words", "units", "exec", "signal"])]
    pub rule: Option<PathBuf>,
    /// Check the rules (*.conf) in a directory, or one rule, name all that is wrong as FILE:LINE: and what to
    /// write instead, and end: with exit code 1 if anything is wrong, or cannot be read [default:
    /// /etc/memcg-monitor/watch.d]
    #[arg(long, value_name = "DIRECTORY|FILE", conflicts_with_all = ["units", "exec", "signal", "rule"])]
    pub check_config: Option<Option<PathBuf>>,
    /// End after N events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End with exit code 3 after this time, in seconds
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    pub timeout: Option<std::time::Duration>,
    /// End with exit code 1 when the agent ends, instead of waiting for the next one; without an agent at
    /// its start `watch` ends so in any case
    #[arg(long)]
    pub once: bool,
    /// Run this command of the shell for each event, as this user: the event is in environment variables
    /// (MEMCG_EVENT, MEMCG_CGROUP, MEMCG_USAGE, ...) and, as a line of -o json, on its standard input. One
    /// runs at a time for a group; of the events that come meanwhile the latest is next. What it prints is
    /// logged to standard error
    #[arg(long, value_name = "COMMAND", value_parser = command)]
    pub exec: Option<String>,
    /// End the command after this time, in seconds (more than 0), with all that it has started, except for
    /// what is in a session or process group of its own
    #[arg(long, value_name = "SECS", value_parser = some_seconds, default_value = "60", requires = "exec")]
    pub exec_timeout: std::time::Duration,
    /// Send this signal for each event to the processes that --to names
    #[arg(long, value_name = "SIGNAL", value_parser = signal, requires = "to")]
    pub signal: Option<Signal>,
    /// The processes to signal: main (the group's own oldest, or of those below where it has none), all of the
    /// group and below, or one by its number, which has to run. A group made anew under its name gets none
    #[arg(long, value_name = "main|all|PID", requires = "signal")]
    pub to: Option<Recipients>,
    /// Form of the output; text is a line for each event, json an object for each, which has a "type"
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Admin socket of the agent
    #[arg(long, value_name = "PATH", default_value = monitor_client::CONTROL_SOCKET)]
    pub control_socket: PathBuf,
}

/// The directory of the rules that `memcg-monitor-watch@NAME` runs.
const RULES: &str = "/etc/memcg-monitor/watch.d";

impl Watch {
    /// The directory of rules, or the rule, that is to be checked. Ends the program where there are words
    /// beside it.
    pub fn to_check(&self) -> Option<PathBuf> {
        match (self.check_config.clone()?, self.words.as_slice()) {
            (Some(path), []) => Some(path),
            (None, []) => Some(RULES.into()),
            // As in `--check-config -o json DIRECTORY`.
            (None, [path]) => Some(path.into()),
            _ => Cli::command()
                .error(
                    ErrorKind::ArgumentConflict,
                    "--check-config takes one directory, or one rule, and no other words",
                )
                .exit(),
        }
    }
}

/// The processes that are signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipients {
    /// The oldest process of the group, or of the groups below where it has none.
    Main,
    /// All processes of the group and of those below it.
    All,
    /// This process, whichever group it is in.
    Process(i32),
}

impl FromStr for Recipients {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "main" => Ok(Self::Main),
            "all" => Ok(Self::All),
            _ => match text.parse() {
                Ok(pid @ 1..=HIGHEST_PID) => Ok(Self::Process(pid)),
                _ => Err(format!("main, all, or the number of a process, from 1 to {HIGHEST_PID}")),
            },
        }
    }
}

/// A command of the shell; an empty one does nothing, so it is a mistake.
fn command(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("an empty command does nothing; name one, or leave --exec out".into());
    }
    Ok(text.to_owned())
}

/// A signal by its name, with or without SIG, or its number.
///
/// # Errors
/// There is no such signal.
pub fn signal(text: &str) -> Result<Signal, String> {
    let by_number = text.parse::<i32>().ok().and_then(|number| Signal::try_from(number).ok());
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    by_number.or_else(|| name.parse().ok()).ok_or_else(|| "a signal, such as SIGUSR1, HUP or 10".into())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use nix::sys::signal::Signal;

    use super::{RULES, Recipients, Watch, signal};
    use crate::cli::{Cli, Command};

    fn parsed(words: &[&str]) -> Result<Watch, clap::Error> {
        match Cli::try_parse_from(["memcg-monitor", "watch"].iter().chain(words))?.command {
            Command::Watch(options) => Ok(options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_path_to_check_stands_behind_any_option() {
        let path = |words: &[&str]| parsed(words).expect("options").to_check();
        let json = ["-o", "json"];
        for words in [
            [&["--check-config", "rules"][..], &json].concat(),
            [&["--check-config"][..], &json, &["rules"]].concat(),
            [&json[..], &["rules", "--check-config"]].concat(),
        ] {
            assert_eq!(path(&words), Some("rules".into()), "{words:?}");
        }
        assert_eq!(path(&[&["--check-config"][..], &json].concat()), Some(RULES.into()));
        assert_eq!(path(&["/a", "oom"]), None);
        assert!(parsed(&["--check-config", "--rule", "a.conf"]).is_err());
    }

    #[test]
    fn a_command_is_not_empty() {
        assert!(parsed(&["/a", "oom", "--exec", ":"]).is_ok());
        for command in ["", " ", "\n"] {
            let error = parsed(&["/a", "oom", "--exec", command]).expect_err("an empty command");
            assert!(error.exit_code() == 2 && error.to_string().contains("does nothing"), "{error}");
        }
    }

    #[test]
    fn a_command_has_some_time() {
        let with = |time| parsed(&["/a", "oom", "--exec", "x", "--exec-timeout", time]);
        assert!(with("0.5").is_ok());
        for time in ["0", "0.0", "1e-10", "-1"] {
            assert_eq!(with(time).expect_err(time).exit_code(), 2, "{time}");
        }
    }

    #[test]
    fn a_signal_has_a_name_and_a_number() {
        for text in ["SIGUSR1", "usr1", "10"] {
            assert_eq!(signal(text), Ok(Signal::SIGUSR1), "{text}");
        }
        assert!(signal("SIGNOTHING").is_err() && signal("0").is_err());
    }

    #[test]
    fn recipients_are_a_word_or_a_process() {
        assert_eq!("main".parse(), Ok(Recipients::Main));
        assert_eq!("all".parse(), Ok(Recipients::All));
        assert_eq!("12".parse(), Ok(Recipients::Process(12)));
        assert_eq!("4194303".parse(), Ok(Recipients::Process(4_194_303)));
        for text in ["0", "-1", "4194304", "99999999", "99999999999", "most", ""] {
            assert!(text.parse::<Recipients>().is_err(), "{text}");
        }
    }
}
