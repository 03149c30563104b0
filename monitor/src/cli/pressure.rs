//! The options for systemd's memory-pressure protocol: the agent's, and those of the command that
//! prints a unit's drop-in.

use std::path::PathBuf;

use clap::Args;

/// Path of the pressure socket that the socket unit makes.
const SOCKET: &str = "/run/memcg-monitor/memory_pressure.sock";

/// The agent's options for the protocol.
#[derive(Args, Debug)]
pub struct PressureOptions {
    /// Socket of systemd's memory-pressure protocol (MEMORY_PRESSURE_WATCH): a program writes
    /// what `memcg-monitor drop-in` prints for it, and is woken by bytes. Has --socket-mode and
    /// --socket-group. The service manager may hand one over
    /// [default: served only where one is handed over]
    #[arg(long, value_name = "PATH")]
    pub pressure_socket: Option<PathBuf>,
}

/// Options of the command `drop-in`.
#[derive(Args, Debug)]
pub struct DropIn {
    /// The events to be woken by, 16 at most, each a control file's name and its arguments, as
    /// for `listen`: 'memory.usage_in_bytes 80%', 'memory.pressure_level critical',
    /// 'memory.oom_control'
    #[arg(required = true, num_args = 1..=16, value_name = "EVENT")]
    pub events: Vec<String>,
    /// The unit, whose drop-in's place is printed in a comment; a name without an ending is a
    /// service's
    #[arg(long, value_name = "NAME")]
    pub unit: Option<String>,
    /// For a unit of a user's service manager (`systemctl --user`)
    #[arg(long)]
    pub user: bool,
    /// Pressure socket of the agent
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,
}
