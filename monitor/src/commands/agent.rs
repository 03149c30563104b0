//! The command `memcg-monitor agent`: runs the agent, supervised or not.

use std::{fs, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use memcg_monitor::{
    agent::{self, AgentOptions, Shutdown},
    cgroup::host,
    fd_store::{self, FdStore},
    frontend::{metrics_http, seqpacket::Access},
    in_flight, malloc,
    metrics::Selection,
    programs::TableSizes,
    supervisor, view,
    watcher::Limits,
};
use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Gid,
};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli;

/// The file in which a group's number is looked up (`group(5)`).
const GROUPS: &str = "/etc/group";

pub fn run(options: &cli::Agent) -> Result<ExitCode> {
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
    let sizes = TableSizes { groups: options.max_groups.unwrap_or(by_host.groups), ring: options.ring_bytes };
    let eventfds = room_for_descriptors(options.max_eventfds.unwrap_or(2 * by_host.groups));
    let group = options.socket_group.as_deref().map(|name| group_id(name, "--socket-group")).transpose()?;
    let operators =
        options.control_group.as_deref().map(|name| group_id(name, "--control-group")).transpose()?;
    let options = AgentOptions {
        cgroup_root: options.cgroup_root.clone(),
        socket: options.socket.clone(),
        control_socket: options.control_socket.clone(),
        access: Access { mode: options.socket_mode, group },
        operators: Access { mode: options.control_mode, group: operators },
        sizes,
        sweep: Duration::from_millis(options.sweep_ms),
        sample: Duration::from_millis(options.sample_ms),
        limits: Limits {
            quota: options.max_per_user,
            registrations: options.max_registrations.unwrap_or_else(|| registrations(memory)),
            eventfds: eventfds.into(),
            rest: options.holdoff_ms,
        },
        by_group: options.quota_by == cli::QuotaBy::Cgroup,
        view: (!options.no_mount).then(|| view::MountOptions {
            point: options.mount.clone(),
            event_control_mode: options.event_control_mode,
        }),
        pins: options.pins.clone(),
        keeps: options.fd_store,
        sandbox: options.sandbox.into(),
        metrics: options.metrics.clone().map(|address| metrics_http::MetricsOptions {
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
        let shutdown = async {
            let end = tokio::select! {
                _ = terminate.recv() => Shutdown::ForGood,
                _ = interrupt.recv() => Shutdown::ForGood,
                _ = hang_up.recv() => Shutdown::ForNext,
            };
            let _ = sd_notify::notify(&[NotifyState::Stopping]);
            end
        };
        agent::run(&options, handed, ready, shutdown).await.context("the agent cannot go on")
    })?;
    log::info!("ended; sockets and view removed");
    Ok(ExitCode::SUCCESS)
}

fn ready(status: &str) {
    log::info!("ready: {status}");
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]) {
        log::warn!("cannot notify the service manager (NOTIFY_SOCKET): {error}");
    }
}

/// Has the eventfds kept for the next agent count against a user id of their own.
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

/// Raises `RLIMIT_NOFILE` for `eventfds`, and returns how many of them it allows. Each
/// registered eventfd is a descriptor, and a few are needed beside them; one eventfd more
/// than the limit is refused with ENOMEM.
fn room_for_descriptors(eventfds: u32) -> u32 {
    const BESIDE: u64 = 1024;
    let wanted = u64::from(eventfds) + BESIDE;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return eventfds };
    if soft >= wanted || setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).is_ok() {
        return eventfds;
    }
    if let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, hard.min(wanted), hard) {
        log::warn!("setrlimit RLIMIT_NOFILE: {errno}; the limit of {soft} descriptors stays (LimitNOFILE=)");
    }
    if hard >= wanted {
        return eventfds;
    }
    let fewer =
        u32::try_from(hard.saturating_sub(BESIDE).max(hard / 2)).map_or(eventfds, |few| few.min(eventfds));
    log::warn!(
        "{hard} descriptors are allowed (ulimit -n, LimitNOFILE=): fewer than {wanted}, for --max-eventfds {eventfds}; {fewer} eventfds can be registered"
    );
    fewer
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
    use super::gid_in;

    #[test]
    fn a_group_is_known_by_its_name_alone() {
        let groups = b"root:x:0:\nadm:x:4:syslog,me\nbroken\nodd:x:many:\nmemcg:x:977:\n";
        let names = ["adm", "memcg", "root", "ad", "me", "x", "odd", "broken", "", "nosuch"];
        let found = names.map(|name| gid_in(groups, name));
        assert_eq!(found, [Some(4), Some(977), Some(0), None, None, None, None, None, None, None]);
    }
}
