//! The definitions of the command line.

mod black_box;
mod device_plugin;
mod listen;
mod pressure;
#[cfg(test)]
mod reference;
mod select;
mod top;
mod watch;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use memcg_monitor::{
    Address, Pattern,
    backend::{BackendChoice, BackendKind},
    in_flight, programs,
};

pub use self::{
    black_box::{BlackBoxArgs, RecordOptions, ReportFormat, ReportOptions},
    device_plugin::DevicePlugin,
    listen::Listen,
    pressure::{DropIn, PressureOptions},
    select::GroupSelector,
    top::{SortKey, Top},
    watch::{Recipients, Watch, signal},
};

/// The last paragraph of `--help`.
const EXIT_CODES: &str = "Exit codes: 0 done (for `listen` and `watch`: the count was reached, or `listen`'s group was removed; for \
    `check`: this host can be watched), 1 failed, 2 wrong usage, 3 `listen`, `watch`, `list`, `status`, `kills` or `record` ran into --timeout.";

/// The command line, whose first line of help is the package's description.
#[derive(Debug, Parser)]
#[command(version, args_override_self = true, about, long_about = None, after_long_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    /// Log more: -v debug, -vv trace (RUST_LOG overrides)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// The command to run
    #[command(subcommand)]
    pub command: Command,
}

/// Commands of the command line.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch this host's memory cgroups and serve registrations
    Agent(Box<Agent>),
    /// Register with an eventfd and print a line for each signal
    Listen(Listen),
    /// Tell what happens in all groups that match patterns, existing and new
    Watch(Watch),
    /// Show groups with usage, peak and the registrations on each
    List(List),
    /// Show the groups on a screen: usage, distance to the limit, growth, and the time left
    Top(Top),
    /// Show the agent's own state, without its groups; meant for probes
    Status(Status),
    /// Show the last processes that the OOM killer killed, and why
    Kills(Status),
    /// Have the agent write a file of what it recorded of a group (`agent --black-box`)
    Record(RecordOptions),
    /// Draw what the black box recorded of a group
    Report(ReportOptions),
    /// Show what this host offers, what the agent would use, and whether it can run
    Check(Check),
    /// Let a kubelet give the registration socket to pods that may mount nothing of the host's
    DevicePlugin(DevicePlugin),
    /// Print a unit's drop-in, by which its programs are woken in systemd's memory-pressure protocol
    DropIn(DropIn),
    /// Print the completion of a shell
    Completions(Completions),
    /// Write the man pages into a directory
    #[command(hide = true)]
    Man(Man),
    /// Wait until the agent ends, then unmount its view; the agent starts this itself
    #[command(hide = true)]
    Unmount(Unmount),
}

/// Options of the command `completions`.
#[derive(Args, Debug)]
pub struct Completions {
    /// The shell that reads it
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Options of the command `man`.
#[derive(Args, Debug)]
pub struct Man {
    /// Directory of the pages; made if it is not there
    pub directory: PathBuf,
}

/// Options of the command `unmount`.
#[derive(Args, Debug)]
pub struct Unmount {
    /// Mount point of the view
    pub point: PathBuf,
    /// The agent's own --sandbox mode
    #[arg(long, value_enum, default_value_t = SandboxMode::On)]
    pub sandbox: SandboxMode,
}

/// The rights that the agent gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SandboxMode {
    /// Gives up no rights
    Off,
    /// Gives up capabilities and files; unexpected system calls are allowed, and named in the
    /// kernel's log
    Warn,
    /// Gives up all rights that it does not need once it is ready
    On,
}

impl From<SandboxMode> for memcg_monitor::sandbox::Sandbox {
    fn from(sandbox: SandboxMode) -> Self {
        match sandbox {
            SandboxMode::Off => Self::Off,
            SandboxMode::Warn => Self::Warn,
            SandboxMode::On => Self::On,
        }
    }
}

/// Names of the backends, for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// The most precise that the host allows
    Auto,
    /// BPF programs at the kernel's functions: every crossing is seen
    Fentry,
    /// Programs by kprobes, for kernels without BPF trampolines: a restart loses what happens
    /// meanwhile
    Kprobe,
    /// The groups' files, read as often as the distance to the nearest threshold demands: for
    /// hosts that refuse BPF programs
    Sampled,
}

impl From<BackendName> for BackendChoice {
    fn from(backend: BackendName) -> Self {
        match backend {
            BackendName::Auto => Self::Auto,
            BackendName::Fentry => Self::Only(BackendKind::Fentry),
            BackendName::Kprobe => Self::Only(BackendKind::Kprobe),
            BackendName::Sampled => Self::Only(BackendKind::Sampled),
        }
    }
}

/// The owner of a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum QuotaBy {
    /// Each user id has its own
    User,
    /// Each memory cgroup has its own: the client's cgroup, or where other users than root may
    /// make groups, the highest above it in which they may (a tenant in Kubernetes). Clients
    /// whose cgroup cannot be determined share one quota
    Cgroup,
}

/// Options of the command `agent`.
#[derive(Args, Debug)]
pub struct Agent {
    /// Registration socket: one packet is one line, as v1 clients write it
    #[arg(long, value_name = "PATH", default_value = monitor_client::SOCKET)]
    pub socket: PathBuf,
    /// Admin socket, for `list`, `status`, `top`, `watch`, `kills`, `record` and `listen -o json`
    #[arg(long, value_name = "PATH", default_value = monitor_client::CONTROL_SOCKET)]
    pub control_socket: PathBuf,
    /// The socket of the memory-pressure protocol
    #[command(flatten)]
    pub pressure: PressureOptions,
    /// Permission bits of the registration socket, octal: 0666 lets every user register,
    /// each on what that user may read
    #[arg(long, value_name = "MODE", default_value = "0660", value_parser = mode)]
    pub socket_mode: u32,
    /// Group of the registration socket, by name or number [default: the agent's own]
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// Permission bits of the admin socket, octal, whatever --socket-mode says: a user who may
    /// write to it sees all groups and all registrations. User id 0, and a process that a
    /// capability admits, needs CAP_SYS_ADMIN in the agent's user namespace, or CAP_SYS_PTRACE
    /// there and in its pid namespace, else each request is refused with EPERM
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = mode)]
    pub control_mode: u32,
    /// Group of the admin socket, by name or number; takes effect with --control-mode 0660
    /// [default: the agent's own]
    #[arg(long, value_name = "GROUP")]
    pub control_group: Option<String>,
    /// Mount point of the cgroup hierarchy [default: found in /proc/self/mountinfo]
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,
    /// How the groups are watched
    #[arg(long, value_enum, default_value_t = BackendName::Auto)]
    pub backend: BackendName,
    /// Groups that can be watched at once: about 420 bytes of kernel memory each, taken at
    /// the start, and counted against the agent's own limit (MemoryMax=). A removed group
    /// counts until its registrations are signalled, no longer
    /// [default: one for each 64 KiB of the host's memory, rounded up to a power of two,
    /// 4096 to 65536 (27 MiB)]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    pub max_groups: Option<u32>,
    /// Eventfds that can be registered at once, each a descriptor of the agent (ulimit -n)
    /// [default: twice the default of --max-groups, 8192 to 131072]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..=4_194_304))]
    pub max_eventfds: Option<u32>,
    /// Bytes of the ring buffer, a power of two from 4096 to 268435456. A full ring loses no
    /// crossing, it costs a sweep
    #[arg(long, value_name = "BYTES", default_value_t = 262_144, value_parser = ring)]
    pub ring_bytes: u32,
    /// Milliseconds between two sweeps for lost records and for closed eventfds, while
    /// anything is registered
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub sweep_ms: u64,
    /// Least milliseconds between two readings of quantities that can only be sampled (the
    /// root group's usage, working sets, memory.anon_bytes), while there are registrations on them; up to 2000
    /// for the root while it is far from every threshold
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub sample_ms: u64,
    /// Milliseconds of hold-off for a threshold that usage crossed sixteen times within that
    /// time; after it, the threshold is signalled if usage is on the other side. 0: no hold-off
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub holdoff_ms: u64,
    /// Registrations that each user may have (with --quota-by cgroup each memory cgroup); one
    /// more is refused with EDQUOT. Processes with CAP_SYS_RESOURCE in the agent's user
    /// namespace may have any number: user id 0 of a container without it is a user like others
    #[arg(long, value_name = "N", default_value_t = 65_536)]
    pub max_per_user: u64,
    /// Registrations that there may be in all; one more is refused with ENOMEM. Beyond 1024 no
    /// user may have more than are left to others, and from 32768 on one in 32 is kept for
    /// processes with CAP_SYS_RESOURCE; likewise with --max-eventfds. Each takes up to 200
    /// bytes of the agent [default: as many as fit into a tenth of the host's memory, 65536 to
    /// 1048576]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_registrations: Option<u64>,
    /// Owner of the quota that registrations, connections and sent descriptors count against
    #[arg(long, value_enum, default_value_t = QuotaBy::User)]
    pub quota_by: QuotaBy,
    /// Directory on which to mount the view: the cgroup tree as cgroup v1's memory hierarchy,
    /// with a cgroup.event_control in each directory. Made if it is not there. Without this
    /// option, a host that has no FUSE is served by the socket alone
    /// [default: /run/memcg-monitor/cgroup]
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// Do not mount the view; clients need the socket
    #[arg(long, conflicts_with_all = ["mount", "event_control_mode"])]
    pub no_mount: bool,
    /// Keep registrations in a small parent process, which starts the agent again when
    /// it dies: for hosts without a service manager that keeps descriptors
    #[arg(long, conflicts_with = "fd_store")]
    pub supervised: bool,
    /// Keep registrations in the service manager's descriptor store, although it does
    /// not say that it has one (systemd before 254; FileDescriptorStoreMax=64 or more)
    #[arg(long)]
    pub fd_store: bool,
    /// User id that no other process has: clients' eventfds that are kept for the next agent
    /// are descriptors in flight, which the kernel counts against a user (ETOOMANYREFS). Needs
    /// CAP_SETUID at start; without, they count against the agent's own user
    #[arg(long, value_name = "UID", default_value_t = in_flight::UID, value_parser = apart)]
    pub in_flight_uid: u32,
    /// Directory on a BPF file system in which programs and maps are pinned, so that they
    /// stay attached while the agent is away; used where registrations are kept
    #[arg(long, value_name = "DIR", default_value = programs::PINS_DIRECTORY)]
    pub pins: PathBuf,
    /// Permission bits of each cgroup.event_control, octal: 0200 lets the owner of the group's
    /// directory register, as the newest kernels do, 0222 every user, as older ones did
    #[arg(long, value_name = "MODE", default_value = "0200", value_parser = write_mode)]
    pub event_control_mode: u32,
    /// Rights to give up before READY: capabilities, system calls (seccomp), files
    /// (Landlock). A refused system call is named in the kernel's log
    #[arg(long, value_enum, default_value_t = SandboxMode::On)]
    pub sandbox: SandboxMode,
    /// Serve metrics to Prometheus at unix:/PATH, 127.0.0.1:PORT or [::1]:PORT, as
    /// GET /metrics. There is no password, so no other addresses without --metrics-exposed; a
    /// unix socket has --socket-mode and --socket-group [default: not served]
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<Address>,
    /// Let --metrics be an address that others than this host reach, such as 0.0.0.0:PORT in a
    /// pod's own network. Whoever reaches it reads the names and the usage of all groups: a
    /// NetworkPolicy or a firewall has to decide who does
    #[arg(long, requires = "metrics")]
    pub metrics_exposed: bool,
    /// Metrics only of groups whose path below the hierarchy's root matches: `*` and `?`
    /// stay within one name, `**` is any number of names (`/system.slice/**`, `/kubepods/**`).
    /// May be repeated [default: all]
    #[arg(long, value_name = "GLOB", requires = "metrics")]
    pub metrics_allow: Vec<Pattern>,
    /// No metrics of groups whose path matches, whatever --metrics-allow says. May be repeated
    #[arg(long, value_name = "GLOB", requires = "metrics")]
    pub metrics_deny: Vec<Pattern>,
    /// Metrics of so many groups at most, 0 to 10000, those with the highest usage; the others
    /// are counted in memcg_monitor_groups_left_out
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = top, requires = "metrics")]
    pub metrics_top: usize,
    /// Options of the black box
    #[command(flatten)]
    pub black_box: BlackBoxArgs,
}

/// Precision that a notification must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Requirement {
    /// Every crossing is seen
    Exact,
}

/// Forms of a command's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Lines for people to read
    Text,
    /// One JSON object per line
    Json,
}

/// Options of the command `list`.
#[derive(Args, Debug)]
pub struct List {
    /// The group to show, with those below it, instead of all
    #[command(flatten)]
    pub group: GroupSelector,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// End with exit code 3 when the agent has not answered within this time, in seconds
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    pub timeout: Option<std::time::Duration>,
    /// Admin socket of the agent
    #[arg(long, value_name = "PATH", default_value = monitor_client::CONTROL_SOCKET)]
    pub control_socket: PathBuf,
}

/// Options of the commands `status` and `kills`.
#[derive(Args, Debug)]
pub struct Status {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// End with exit code 3 when the agent has not answered within this time, in seconds
    #[arg(long, value_name = "SECS", default_value = "5", value_parser = seconds)]
    pub timeout: std::time::Duration,
    /// Admin socket of the agent
    #[arg(long, value_name = "PATH", default_value = monitor_client::CONTROL_SOCKET)]
    pub control_socket: PathBuf,
}

/// Options of the command `check`.
#[derive(Args, Debug)]
pub struct Check {
    /// End with 1 unless every crossing can be seen
    #[arg(long, value_enum, value_name = "PRECISION")]
    pub require: Option<Requirement>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Mount point of the cgroup hierarchy [default: found in /proc/self/mountinfo]
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,
}

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("permission bits in octal, 0000 to 0777".into()),
    }
}

fn write_mode(text: &str) -> Result<u32, String> {
    match mode(text) {
        Ok(mode) if mode & !0o222 == 0 => Ok(mode),
        _ => Err("write permission bits in octal: 0200, 0220 or 0222".into()),
    }
}

fn ring(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(bytes) if bytes.is_power_of_two() && (4096..=1 << 28).contains(&bytes) => Ok(bytes),
        _ => Err("a power of two from 4096 to 268435456".into()),
    }
}

fn top(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(groups @ 0..=10_000) => Ok(groups),
        _ => Err("a number from 0 to 10000".into()),
    }
}

fn apart(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(uid) if in_flight::is_apart(uid) => Ok(uid),
        _ => Err("a user id that no other process has: not 0, 65534 or 4294967295".into()),
    }
}

/// Longest time of an option or a rule, in seconds: the clock has room for its end.
const TEN_YEARS: u32 = 10 * 365 * 86_400;

/// A number of seconds, as options and rules have it.
///
/// # Errors
/// What to write instead.
pub fn seconds(text: &str) -> Result<std::time::Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=f64::from(TEN_YEARS)).contains(&seconds) => {
            Ok(std::time::Duration::from_secs_f64(seconds))
        }
        _ => Err(format!("a number of seconds from 0 to {TEN_YEARS} (ten years)")),
    }
}

/// A number of seconds above 0, as [`seconds`] otherwise.
///
/// # Errors
/// What to write instead.
pub fn some_seconds(text: &str) -> Result<std::time::Duration, String> {
    match seconds(text) {
        Ok(time) if time > std::time::Duration::ZERO => Ok(time),
        _ => Err(format!("a number of seconds above 0, up to {TEN_YEARS} (ten years)")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn a_time_that_no_clock_can_tell_is_refused() {
        use std::time::{Duration, Instant};
        let longest = super::seconds("315360000").expect("ten years");
        assert!(Instant::now().checked_add(longest).is_some());
        assert_eq!(super::seconds("2.5"), Ok(Duration::from_millis(2500)));
        for text in ["1e19", "inf", "315360001", "-1", "NaN", "soon", ""] {
            let error = super::seconds(text).expect_err(text);
            assert!(error.ends_with("(ten years)"), "{text}: {error}");
        }
    }

    #[test]
    fn short_and_long_help_begin_alike() {
        let short = super::Cli::command().render_help().to_string();
        let long = super::Cli::command().render_long_help().to_string();
        assert_eq!(short.lines().next(), long.lines().next());
        assert!(short.starts_with(env!("CARGO_PKG_DESCRIPTION")) && long.contains("Exit codes: 0 done"));
    }

    #[test]
    fn definitions_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
