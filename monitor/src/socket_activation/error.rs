//! Errors of the sockets that the service manager hands over.

/// Reasons why a descriptor from the service manager is no socket of the agent's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketActivationError {
    /// The descriptor is something else.
    #[error(
        "the descriptor {name:?} from the service manager is not a listening socket of the right type; one {directive} of a socket unit with FileDescriptorName={name} makes the right one"
    )]
    NotAListener {
        /// Name that the unit gives it.
        name: String,
        /// Directive of the unit that makes a socket of the right type.
        directive: &'static str,
    },
    /// Several descriptors have this name.
    #[error(
        "the descriptor {name:?} from the service manager is there more than once; one {directive} of a socket unit with FileDescriptorName={name} makes the right one"
    )]
    Repeated {
        /// Name that the unit gives them.
        name: String,
        /// Directive of the unit that makes a socket of the right type.
        directive: &'static str,
    },
}
