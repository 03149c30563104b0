//! The command `memcg-monitor agent`: runs the agent, supervised or not.

use std::{fs, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{CommandFactory as _, error::ErrorKind};
use memcg_monitor::{
    Access, Address, Error, Limits, MetricsOptions, Selection,
    agent::{self, AgentOptions, Shutdown},
    cgroup::host,
    fd_store::{self, FdStore},
    in_flight, malloc,
    programs::TableSizes,
    supervisor, view,
};
use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::{Gid, geteuid},
};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli;

/// The file in which a group's number is looked up (`group(5)`).
const GROUPS: &str = "/etc/group";

pub fn run(options: &cli::Agent) -> Result<ExitCode> {
    refuse_exposed(options);
    let handed = fd_store::handed();
    if options.supervised {
        let program =
            std::env::current_exe().context("cannot find the path of this program (/proc/self/exe)")?;
        let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--supervised");
        let mut mailbox = options.socket.clone().into_os_string();
        mailbox.push(".notify");
        let code = supervisor::run(program, arguments.collect(), mailbox.into(), handed)
            .context("cannot supervise an agent")?;
        return Ok(ExitCode::from(code));
    }
    malloc::be_small();
    count_apart(options);
    let memory = host::memory()
        .inspect_err(|error| log::warn!("{error}; defaults that depend on it are at their least"))
        .unwrap_or(0);
    let by_host = TableSizes::for_memory(memory);
    let black_box = options.black_box.options();
    let boxes = black_box.as_ref().map_or(0, |wanted| wanted.groups);
    let sizes =
        TableSizes { groups: options.max_groups.unwrap_or(by_host.groups), ring: options.ring_bytes, boxes };
    let room = room_for_descriptors(options.max_eventfds.unwrap_or(2 * by_host.groups));
    let group = options.socket_group.as_deref().map(|name| group_id(name, "--socket-group")).transpose()?;
    let operators =
        options.control_group.as_deref().map(|name| group_id(name, "--control-group")).transpose()?;
    let options = AgentOptions {
        backend: options.backend.into(),
        cgroup_root: options.cgroup_root.clone(),
        socket: options.socket.clone(),
        control_socket: options.control_socket.clone(),
        pressure_socket: options.pressure.pressure_socket.clone(),
        access: Access { mode: options.socket_mode, group },
        operators: Access { mode: options.control_mode, group: operators },
        sizes,
        sweep: Duration::from_millis(options.sweep_ms),
        sample: Duration::from_millis(options.sample_ms),
        limits: Limits {
            quota: options.max_per_user,
            registrations: options.max_registrations.unwrap_or_else(|| registrations(memory)),
            eventfds: room.eventfds.into(),
            holdoff_ms: options.holdoff_ms,
        },
        connections: room.connections,
        to_close: room.to_close,
        by_group: options.quota_by == cli::QuotaBy::Cgroup,
        view: (!options.no_mount).then(|| view::MountOptions {
            point: options.mount.clone(),
            event_control_mode: options.event_control_mode,
        }),
        pins: options.pins.clone(),
        black_box,
        keeps: options.fd_store,
        sandbox: options.sandbox.into(),
        metrics: options.metrics.clone().map(|address| MetricsOptions {
            address,
            selection: Selection {
                allow: options.metrics_allow.clone(),
                deny: options.metrics_deny.clone(),
                top: options.metrics_top,
            },
        }),
        watchdog: sd_notify::watchdog_enabled(),
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        // Caught before anything is made, so that nothing is left behind.
        let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
        let mut hang_up = signal(SignalKind::hangup()).context("cannot catch SIGHUP")?;
        super::unblock_signals()?;
        let shutdown = async {
            let end = tokio::select! {
                _ = terminate.recv() => Shutdown::ForGood,
                _ = interrupt.recv() => Shutdown::ForGood,
                _ = hang_up.recv() => Shutdown::ForNext,
            };
            let _ = sd_notify::notify(&[NotifyState::Stopping]);
            end
        };
        agent::run(&options, handed, ready, shutdown).await.map_err(explained)
    })?;
    log::info!("ended; sockets and view removed");
    Ok(ExitCode::SUCCESS)
}

/// Adds what to do about a missing right to a failure of an agent that is not root's.
fn explained(error: Error) -> anyhow::Error {
    let is_a_right = matches!(error.errno(), Some(Errno::EACCES | Errno::EPERM));
    if is_a_right && !geteuid().is_root() {
        return anyhow!(
            "the agent cannot go on: {error}; run it as root, or give --socket and --control-socket in a \
             directory of yours"
        );
    }
    anyhow!(error).context("the agent cannot go on")
}

/// Ends the program where metrics would be served to others than this host, unasked.
fn refuse_exposed(options: &cli::Agent) {
    if !options.metrics_exposed
        && let Some(Err(why)) = options.metrics.as_ref().map(Address::on_this_host)
    {
        cli::Cli::command().error(ErrorKind::ValueValidation, format!("--metrics: {why}")).exit();
    }
}

fn ready(status: &str) {
    log::info!("ready: {status}");
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]) {
        log::warn!("cannot notify the service manager (NOTIFY_SOCKET): {error}");
    }
}

/// Makes the eventfds kept for the next agent count against a user id of their own.
fn count_apart(options: &cli::Agent) {
    let Err(errno) = in_flight::count_against(options.in_flight_uid) else { return };
    // A dedicated user of the agent is as good; and where nothing is kept, nothing counts.
    let level = match FdStore::found(options.fd_store) {
        Some(_) if nix::unistd::getuid().is_root() => log::Level::Warn,
        _ => log::Level::Debug,
    };
    log::log!(
        level,
        "setresuid (--in-flight-uid {}): {errno}; without CAP_SETUID the eventfds that are kept count as the agent's own user's descriptors in flight: that user's other processes may get ETOOMANYREFS, and so may the agent",
        options.in_flight_uid
    );
}

/// Descriptors that are needed beside eventfds and connections.
const BESIDE: u64 = 1024;

/// Descriptors of a connection, with its eventfd and what its process is known by.
const OF_A_CONNECTION: u64 = 4;

/// Most descriptors for connections and for what waits to be closed; with the most eventfds by default
/// they are the unit's `LimitNOFILE`.
const MOST: u64 = 130_048;

/// The division of the descriptors that the agent may have.
#[derive(Debug, PartialEq, Eq)]
struct DescriptorRoom {
    eventfds: u32,
    connections: u64,
    to_close: u64,
}

impl DescriptorRoom {
    /// Divides `limit` descriptors: eventfds come first, and each of the others has a few.
    fn divide(limit: u64, eventfds: u32) -> Self {
        let most = limit.saturating_sub(BESIDE).max(limit / 2);
        let eventfds = u32::try_from(most).map_or(eventfds, |most| most.min(eventfds));
        let half = limit.saturating_sub(u64::from(eventfds) + BESIDE).min(MOST) / 2;
        Self { eventfds, connections: (half / OF_A_CONNECTION).max(BESIDE / 4), to_close: half.max(BESIDE) }
    }
}

/// Raises `RLIMIT_NOFILE` for `eventfds`, and divides what it allows. Each registered eventfd is a
/// descriptor; one eventfd more than the limit is refused with ENOMEM.
fn room_for_descriptors(eventfds: u32) -> DescriptorRoom {
    let least = u64::from(eventfds) + BESIDE;
    let wanted = least + MOST;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return DescriptorRoom::divide(least, eventfds);
    };
    if soft < wanted
        && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).is_err()
        && let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, hard.min(wanted), hard)
    {
        log::warn!("setrlimit RLIMIT_NOFILE: {errno}; the limit of {soft} descriptors stays (LimitNOFILE=)");
    }
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(soft, |(soft, _)| soft);
    let room = DescriptorRoom::divide(limit, eventfds);
    if room.eventfds < eventfds {
        log::warn!(
            "{limit} descriptors are allowed (ulimit -n, LimitNOFILE=): fewer than {least}, for --max-eventfds {eventfds}; {} eventfds can be registered",
            room.eventfds
        );
    }
    room
}

/// The number of registrations that fit into a tenth of the host's memory, within bounds
/// that suit hosts of every size.
fn registrations(memory: u64) -> u64 {
    /// Bytes of the agent for each registration, at most (SPECIFICATION.md, P5).
    const EACH: u64 = 200;
    (memory / 10 / EACH).clamp(65_536, 1_048_576)
}

fn group_id(name: &str, option: &str) -> Result<Gid> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    // Not by getgrnam: a static program lacks the name service's modules, and crashes in them.
    let groups =
        fs::read(GROUPS).with_context(|| format!("cannot look up the group {name:?} in {GROUPS}"))?;
    match gid_in(&groups, name) {
        Some(gid) => Ok(Gid::from_raw(gid)),
        None => bail!(
            "there is no group {name:?} in {GROUPS}; {option} also takes a number (getent group {name})"
        ),
    }
}

/// The number of a group in the text of `/etc/group` (group(5)).
fn gid_in(groups: &[u8], name: &str) -> Option<u32> {
    groups.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let is_it = fields.next()? == name.as_bytes();
        let gid = fields.nth(1).filter(|_| is_it)?;
        str::from_utf8(gid).ok()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::{DescriptorRoom, gid_in};

    #[test]
    fn eventfds_have_their_descriptors_first() {
        let divide = |limit, eventfds| {
            let room = DescriptorRoom::divide(limit, eventfds);
            (room.eventfds, room.connections, room.to_close)
        };
        assert_eq!(divide(262_144, 131_072), (131_072, 16_256, 65_024), "the unit, on a large host");
        assert_eq!(divide(u64::MAX, 8192), (8192, 16_256, 65_024));
        assert_eq!(divide(10_240, 8192), (8192, 256, 1024));
        assert_eq!(divide(4096, 8192), (3072, 256, 1024));
        assert_eq!(divide(1024, 8192), (512, 256, 1024));
    }

    #[test]
    fn a_group_is_known_by_its_name_alone() {
        let groups = b"root:x:0:\nadm:x:4:syslog,me\nbroken\nodd:x:many:\nmemcg:x:977:\n";
        let names = ["adm", "memcg", "root", "ad", "me", "x", "odd", "broken", "", "nosuch"];
        let found = names.map(|name| gid_in(groups, name));
        assert_eq!(found, [Some(4), Some(977), Some(0), None, None, None, None, None, None, None]);
    }
}
