//! The options of the command `listen`, and the arguments that they stand for.

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _, error::ErrorKind};
use monitor_common::grammar::control_file::{ControlFile, split_exact};

use super::{Cli, GroupSelector, Output, Requirement, seconds};

/// Options of the command `listen`.
#[derive(Args, Debug)]
pub struct Listen {
    /// The group that is named by an option instead of a path
    #[command(flatten)]
    pub group: GroupSelector,
    /// Control file of a group: memory.usage_in_bytes (or memory.current),
    /// memory.memsw.usage_in_bytes, memory.working_set_bytes, memory.anon_bytes,
    /// memory.oom_control, memory.pressure_level, or cgroup.procs. The names stand for themselves
    /// where v2 has no such file. With an option that names the group: the file's name alone,
    /// or left out for its usage
    #[arg(required_unless_present = "group")]
    pub control_file: Option<PathBuf>,
    /// The event to wait for. Usage, memory+swap, working set and anon: a threshold in bytes with K,
    /// M, G, T, P or E, rounded down to pages, or N% of the lowest memory.max from the group
    /// up; then ,up or ,down for one direction, ,hysteresis=SIZE. memory.pressure_level: low,
    /// medium or critical, then ,default ,hierarchy or ,local. Other files take none
    #[arg(allow_hyphen_values = true, value_parser = arguments)]
    pub args: Option<String>,
    /// Text that follows a space in unquoted arguments
    #[arg(hide = true, allow_hyphen_values = true, value_parser = arguments)]
    pub rest: Option<String>,
    /// End after N signals
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End with exit code 3 after this time, in seconds
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    pub timeout: Option<std::time::Duration>,
    /// Print a first line once the registration is made: `registered`, and with -o json
    /// {"type":"listening"}. For programs that start this one
    #[arg(long)]
    pub announce: bool,
    /// Refuse to wait where the notification would be less precise: the agent answers
    /// EOPNOTSUPP where it would sample (the same as `,exact` after the arguments)
    #[arg(long, value_enum, value_name = "PRECISION")]
    pub require: Option<Requirement>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Registration socket of the agent
    #[arg(long, value_name = "PATH", default_value = monitor_client::SOCKET)]
    pub socket: PathBuf,
    /// Admin socket of the agent, which reports causes to operators: -o json needs it; text is without
    /// causes where it does not admit this user
    #[arg(long, value_name = "PATH", default_value = monitor_client::CONTROL_SOCKET)]
    pub control_socket: PathBuf,
}

impl Listen {
    /// The arguments of the line on this control file; empty where they are left out and the file takes
    /// none. Ends the program where they are left out and the file takes some.
    pub fn args(&self, control_file: &Path, given: Option<&str>) -> String {
        let args = given.unwrap_or_else(|| without_args(control_file));
        match self.require {
            None => args.to_owned(),
            Some(Requirement::Exact) if split_exact(args.as_bytes()).1 => args.to_owned(),
            Some(Requirement::Exact) if args.is_empty() => "exact".to_owned(),
            Some(Requirement::Exact) => format!("{args},exact"),
        }
    }
}

fn without_args(control_file: &Path) -> &'static str {
    let name = control_file.file_name().unwrap_or_default();
    match ControlFile::from_name(name.as_encoded_bytes()) {
        Some(ControlFile::Oom | ControlFile::Procs) => "",
        _ => Cli::command()
            .error(
                ErrorKind::MissingRequiredArgument,
                "add the event to wait for: a threshold in bytes, or a level of pressure",
            )
            .exit(),
    }
}

/// Arguments of a control file, which may be a number below 0. What else begins with a dash is an option that
/// is written wrong.
fn arguments(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix('-');
    if rest.is_some_and(|rest| !rest.starts_with(|first: char| first.is_ascii_digit())) {
        return Err("no option of listen has this name, and no event begins with it; see --help".into());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::{Cli, Listen};
    use crate::cli::Command;

    fn parsed(words: &[&str]) -> Result<Listen, clap::Error> {
        match Cli::try_parse_from(["memcg-monitor", "listen"].iter().chain(words))?.command {
            Command::Listen(options) => Ok(options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_mistyped_option_is_no_event() {
        for words in [
            &["/g/memory.oom_control", "--cuont", "1"][..],
            &["/g/memory.current", "1M", "--anounce"],
            &["/g/memory.current", "1M", "-c"],
            &["--self", "80%", "--timeot", "1"],
            &["--self", "80%", "--timeot=1"],
        ] {
            let error = parsed(words).expect_err("no such option");
            assert!(error.exit_code() == 2 && error.to_string().contains("no option of listen"), "{error}");
        }
    }

    #[test]
    fn a_number_below_0_is_an_event() {
        for args in ["-1", "-1,up", "-2"] {
            let options = parsed(&["/g/memory.current", args, "--count", "1"]).expect(args);
            assert_eq!((options.args.as_deref(), options.count), (Some(args), Some(1)));
        }
    }
}
