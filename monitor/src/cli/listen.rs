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
    #[arg(allow_hyphen_values = true)]
    pub args: Option<String>,
    /// Text that follows a space in unquoted arguments
    #[arg(hide = true, allow_hyphen_values = true)]
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
