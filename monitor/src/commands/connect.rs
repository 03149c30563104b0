//! Connections to an agent, and remedies for a socket that nothing listens at.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use monitor_client::{AdminConnection, Error};
use nix::errno::Errno;

/// Connects to the admin socket; with a limit, connecting and the whole answer to a request end within it.
///
/// # Errors
/// Those of the connection.
pub fn admin(socket: &Path, limit: Option<Duration>) -> Result<AdminConnection, Error> {
    let Some(limit) = limit else { return AdminConnection::connect(socket) };
    let start = Instant::now();
    let connection = AdminConnection::connect_within(socket, limit)?;
    connection.set_timeout(Some(limit.saturating_sub(start.elapsed())))?;
    Ok(connection)
}

/// Adds to the error of a socket without an agent how to start one, and the option that names
/// another socket; to the answer of the agent's other socket, which is which; to the end of a connection,
/// what to do next.
pub fn explained(error: Error, option: &str) -> anyhow::Error {
    match (&error, error.errno().map(Errno::from_raw)) {
        (Error::Answer(text), _) if option == "--control-socket" && text.starts_with("-22 ") => anyhow!(
            "the socket of {option} is an agent's registration socket; its admin socket is wanted (by default {})",
            monitor_client::CONTROL_SOCKET
        ),
        (Error::Answer(text), _) if option == "--socket" && text.starts_with("{\"type\":") => anyhow!(
            "the socket of {option} is an agent's admin socket, which --control-socket names; its registration socket is \
             wanted (by default {})",
            monitor_client::SOCKET
        ),
        (Error::Syscall { call, .. }, Some(errno @ (Errno::ENOENT | Errno::ECONNREFUSED))) => anyhow!(
            "{}: {errno:?}; start the agent (systemctl start memcg-monitor), or name its socket by {option}",
            bare(call)
        ),
        (Error::Syscall { call, .. }, Some(errno @ (Errno::EACCES | Errno::EPERM))) => {
            let admits = match option {
                "--socket" => "--socket-group (SocketGroup= of memcg-monitor.socket)",
                _ => "--control-group (SocketGroup= of memcg-monitor-operator.socket)",
            };
            anyhow!("{}: {errno:?}; be root, or in the group of {admits}", bare(call))
        }
        (Error::Syscall { call, .. }, Some(Errno::ENAMETOOLONG)) if call.starts_with("sockaddr_un ") => {
            anyhow!(
                "the path of {option} is too long for a socket, which has at most 107 bytes (ENAMETOOLONG)"
            )
        }
        (Error::Ended(text), _) => {
            anyhow!("{text}; try again, or see the agent's log (journalctl -u memcg-monitor)")
        }
        _ => error.into(),
    }
}

/// The call and its argument, without the remedy that the client library adds for other programs.
fn bare(call: &str) -> &str {
    call.rsplit_once(" (").map_or(call, |(bare, _)| bare)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use clap::Parser as _;
    use monitor_client::Error;

    use super::{admin, bare, explained};
    use crate::{
        cli::{Cli, Command},
        commands::{list, listen, status},
    };

    #[test]
    fn each_command_names_the_socket_that_is_missing_the_errno_and_the_remedy() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name).to_str().expect("text").to_owned();
        let (socket, another, usage) = (path("socket"), path("another"), path("memory.current"));
        fs::write(&usage, "0\n").expect("a file");
        let cases: [(&[&str], &str); 6] = [
            (&["list", "--control-socket", &socket], "--control-socket"),
            (&["status", "--control-socket", &socket], "--control-socket"),
            (&["listen", &usage, "1M", "--socket", &socket], "--socket"),
            (&["listen", &usage, "1M", "--control-socket", &socket], "--control-socket"),
            (&["listen", &usage, "1M", "--control-socket", &another, "--socket", &socket], "--socket"),
            (&["listen", "-o", "json", &usage, "1M", "--control-socket", &socket], "--control-socket"),
        ];
        for (arguments, option) in cases {
            let words = ["memcg-monitor"].iter().chain(arguments);
            let outcome = match Cli::parse_from(words).command {
                Command::List(options) => list::run(&options),
                Command::Status(options) => status::run(&options),
                Command::Listen(options) => listen::run(&options),
                _ => unreachable!("not among the cases"),
            };
            let text = format!("{:#}", outcome.expect_err("no agent"));
            let remedy =
                format!("start the agent (systemctl start memcg-monitor), or name its socket by {option}");
            let whole = format!("connect {socket}: ENOENT; {remedy}");
            assert!(text.ends_with(&whole), "{arguments:?}: {text}");
        }
    }

    /// Columns of two lines, without those of `memcg-monitor: `.
    const TWO_LINES: usize = 145;

    #[test]
    fn each_errno_of_a_connection_has_a_remedy_in_two_lines() {
        let directory = tempfile::tempdir().expect("a directory");
        let long = directory.path().join("x".repeat(120));
        let error = admin(&long, None).expect_err("no such address");
        let text = explained(error, "--control-socket").to_string();
        assert!(text.contains("ENAMETOOLONG") && text.len() <= TWO_LINES, "{text}");
        let missing = admin(Path::new("/run/memcg-monitor/no.sock"), None).expect_err("no such file");
        let text = explained(missing, "--control-socket").to_string();
        assert!(text.contains("ENOENT") && text.len() <= TWO_LINES, "{text}");
        let ended = explained(Error::Ended("the agent ended"), "--control-socket").to_string();
        assert!(ended.contains("; try again"), "{ended}");
        assert_eq!(bare("connect /run/a b (is it running?)"), "connect /run/a b");
        assert_eq!(bare("recvmsg"), "recvmsg");
    }
}
