//! The options of what the black box recorded.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use memcg_monitor::{BLACK_BOX_DIRECTORY, BlackBoxOptions, Pattern};

use super::{GroupSelector, some_seconds};

/// Forms of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// A picture that follows the reader's light or dark colours
    Svg,
    /// One page with the picture and tables, without scripts and without parts from elsewhere
    Html,
    /// Lines for a terminal
    Text,
    /// One JSON object with all that the file has, by kind and in the order of time
    Json,
}

/// Options of the agent's black box.
#[derive(Args, Debug)]
pub struct BlackBoxArgs {
    /// Record usage of the groups whose path matches (as for --metrics-allow; without a pattern
    /// all), to write a file when a process there is OOM-killed, and for `record`. May be repeated.
    /// A point is kept each time usage has moved by a hundredth of the limit, and by 64 pages (256
    /// KiB where a page has 4 KiB); the latest 2048 of each group [default: off]
    #[arg(long, value_name = "GLOB", num_args = 0..=1, require_equals = true, default_missing_value = "/**")]
    pub black_box: Vec<Pattern>,
    /// Groups that are recorded at once: 32.1 KiB of kernel memory each, taken at the start
    /// (4.1 MiB). Further groups are not recorded, which the log says
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub black_box_groups: u32,
    /// Directory of the files, which is the agent's alone; made if it is not there
    #[arg(long, value_name = "DIR", default_value = BLACK_BOX_DIRECTORY)]
    pub black_box_dir: PathBuf,
    /// Files in that directory at most, about 150 KiB each; the oldest gives way to a new one
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub black_box_files: u32,
}

impl BlackBoxArgs {
    /// The settings for the agent, if the black box is on.
    pub fn options(&self) -> Option<BlackBoxOptions> {
        (!self.black_box.is_empty()).then(|| BlackBoxOptions {
            patterns: self.black_box.clone(),
            groups: self.black_box_groups,
            directory: self.black_box_dir.clone(),
            files: self.black_box_files as usize,
        })
    }
}

/// Options of the command `record`.
#[derive(Args, Debug)]
pub struct RecordOptions {
    /// Directory of the group, or its path below the cgroup mount; or an option that names it
    #[arg(value_name = "GROUP", required_unless_present = "group", conflicts_with = "group")]
    pub directory: Option<PathBuf>,
    /// The group, by what is in it
    #[command(flatten)]
    pub group: GroupSelector,
    /// End with exit code 3 when the agent has not answered within this time, in seconds
    #[arg(long, value_name = "SECS", default_value = "5", value_parser = super::seconds)]
    pub timeout: Duration,
    /// Admin socket of the agent
    #[arg(long, value_name = "PATH", default_value = monitor_client::CONTROL_SOCKET)]
    pub control_socket: PathBuf,
}

/// Options of the command `report`.
#[derive(Args, Debug)]
pub struct ReportOptions {
    /// File of the black box; `-` is standard input
    pub file: PathBuf,
    /// Form of the report
    #[arg(short, long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
    /// File to write the report to, instead of standard output (`-`)
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Show no more than this time before the end, in seconds (more than 0), in any form
    #[arg(long, value_name = "SECS", value_parser = some_seconds)]
    pub last: Option<Duration>,
}
