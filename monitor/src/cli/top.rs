//! The options of the command `top`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::Output;

/// Exit codes, below `top --help`.
const EXIT_CODES: &str = "Exit codes: 0 ended by a key, or all lines written; 1 failed, also where standard output is no terminal \
    and neither --once nor --batch nor -o is given; 2 wrong usage. A signal ends it as any other program, after the terminal is \
    given back.";

/// Options of the command `top`.
#[derive(Args, Debug)]
#[command(after_long_help = EXIT_CODES)]
pub struct Top {
    /// Seconds between two ticks, 0.2 to 3600
    #[arg(short, long, value_name = "SECS", default_value = "1", value_parser = delay)]
    pub delay: Duration,
    /// Column to sort by
    #[arg(short, long, value_enum, default_value_t = SortKey::Usage)]
    pub sort: SortKey,
    /// Sort the other way round
    #[arg(short, long)]
    pub invert: bool,
    /// Show a list of all groups instead of their tree
    #[arg(short, long)]
    pub list: bool,
    /// Show only groups whose path contains this text; in the tree, with the groups above them
    #[arg(short = 'F', long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Write one table, and end; growth needs two readings (--batch -n 2)
    #[arg(long, conflicts_with_all = ["batch", "iterations"])]
    pub once: bool,
    /// Write tables one after the other, instead of a screen
    #[arg(short, long)]
    pub batch: bool,
    /// End after so many ticks
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub iterations: Option<u64>,
    /// Form of the lines; with this option no screen is shown, as with --batch
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
    /// Mount point of the cgroup hierarchy [default: found in /proc/self/mountinfo]
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,
    /// Admin socket of the agent. Where there is none, or it does not admit this user, the groups'
    /// files are read, and the screen says so
    #[arg(long, value_name = "PATH", default_value = monitor_client::CONTROL_SOCKET)]
    pub control_socket: PathBuf,
}

/// Columns that groups are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SortKey {
    /// Memory that is charged now
    Usage,
    /// Bytes left to the nearest limit, least first
    Room,
    /// Growth in bytes a second
    Growth,
    /// Time left to a limit at this growth, least first
    Left,
    /// Time that tasks waited for memory
    Pressure,
    /// Number of the registrations
    Registrations,
    /// Time of the last event
    Event,
    /// Path, from A to Z
    Group,
}

impl SortKey {
    pub const ALL: [Self; 8] = [
        Self::Usage,
        Self::Room,
        Self::Growth,
        Self::Left,
        Self::Pressure,
        Self::Registrations,
        Self::Event,
        Self::Group,
    ];

    /// The heading of the column.
    pub const fn heading(self) -> &'static str {
        match self {
            Self::Usage => "USAGE",
            Self::Room => "ROOM",
            Self::Growth => "GROWTH/s",
            Self::Left => "LEFT",
            Self::Pressure => "PSI%",
            Self::Registrations => "REG",
            Self::Event => "EVENT",
            Self::Group => "GROUP",
        }
    }
}

fn delay(text: &str) -> Result<Duration, String> {
    match super::seconds(text) {
        Ok(delay) if (0.2..=3600.0).contains(&delay.as_secs_f64()) => Ok(delay),
        _ => Err("a number of seconds from 0.2 to 3600".into()),
    }
}
