//! The options that name a group by what is in it, of several commands.

use clap::Args;

/// Options that name a group by what is in it; one of them at most.
#[derive(Args, Debug)]
#[group(id = "group", multiple = false)]
pub struct GroupSelector {
    /// The group of this systemd unit; a name without an ending is a service's
    #[arg(long, value_name = "NAME")]
    pub unit: Option<String>,
    /// The group of this container, by its id or the beginning of that (docker, podman,
    /// containerd, CRI-O, Kubernetes)
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,
    /// The group that this process is in
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// The group that this command itself is in
    #[arg(long = "self")]
    pub own: bool,
}

impl GroupSelector {
    /// Whether one of the options is given.
    pub const fn is_given(&self) -> bool {
        self.unit.is_some() || self.container.is_some() || self.pid.is_some() || self.own
    }
}
