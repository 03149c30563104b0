//! The registration of `listen`: at the admin socket, which reports causes, or at the registration socket.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use monitor_client::{
    AdminConnection, Error, RegistrationConnection, UNANSWERED,
    wire::{AdminRequest, Answer},
};
use nix::errno::Errno;

use crate::{cli::Listen, commands::connect};

/// The connection to the agent that has made the registration.
pub enum Registrar {
    /// Reports the cause of each signal.
    Followed(AdminConnection),
    /// Reports nothing but its end.
    Registered(RegistrationConnection),
    Ended,
}

impl Registrar {
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Followed(connection) => Some(connection.as_fd()),
            Self::Registered(connection) => Some(connection.as_fd()),
            Self::Ended => None,
        }
    }
}

/// A failure, and the option that names the socket at which it happened.
pub type FailedAt = (Error, &'static str);

/// Registers at the admin socket where this user is an operator, for the causes; else at the
/// registration socket, if that is the same agent's.
pub fn register(
    options: &Listen,
    line: &str,
    descriptors: [BorrowedFd<'_>; 2],
) -> Result<Registrar, FailedAt> {
    let has_usual_socket = options.socket == Path::new(monitor_client::SOCKET);
    let has_usual_control_socket = options.control_socket == Path::new(monitor_client::CONTROL_SOCKET);
    // A socket that is named and one by default may be two agents'.
    let are_one_agents = has_usual_socket == has_usual_control_socket;
    if are_one_agents || !has_usual_control_socket {
        match follow(options, line, descriptors) {
            Err((error, _)) if are_one_agents && is_not_admitted(&error) => {}
            outcome => return outcome,
        }
    }
    let connection = match options.timeout {
        Some(limit) => RegistrationConnection::connect_within(&options.socket, limit),
        None => RegistrationConnection::connect(&options.socket),
    };
    let registered = connection.and_then(|agent| {
        agent.register(line.as_bytes(), Some(descriptors))?;
        Ok(Registrar::Registered(agent))
    });
    registered.map_err(|error| (error, "--socket"))
}

/// Whether the admin socket is none, or not for this user; the registration socket may be.
fn is_not_admitted(error: &Error) -> bool {
    match error {
        Error::Syscall { .. } => !error.is_timeout(),
        Error::Refused { errno, .. } => *errno == Errno::EPERM as i32,
        // A registration socket, or an agent that ended.
        _ => true,
    }
}

/// Registers at the admin socket, which reports causes.
pub fn follow(options: &Listen, line: &str, descriptors: [BorrowedFd<'_>; 2]) -> Result<Registrar, FailedAt> {
    let made = connect::admin(&options.control_socket, options.timeout).and_then(|connection| {
        connection.send(&AdminRequest::Listen(line.to_owned()), &descriptors)?;
        Ok((connection.next()?, connection))
    });
    match made {
        Ok((Some(Answer::Listening), connection)) => Ok(Registrar::Followed(connection)),
        Ok((Some(other), _)) => Err((Error::Answer(format!("{other:?}")), "--control-socket")),
        Ok((None, _)) => Err((Error::Ended(UNANSWERED), "--control-socket")),
        Err(error) => Err((error, "--control-socket")),
    }
}
