//! Errors of the sockets that the service manager hands over.

/// Reasons why a descriptor from the service manager is no socket of the agent's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketActivationError {
    /// The descriptor is something else.
    #[error(
        "the descriptor {name:?} from the service manager is not a listening SOCK_SEQPACKET socket; one ListenSequentialPacket= of a socket unit with FileDescriptorName={name} makes the right one"
    )]
    NotAListener {
        /// Name that the unit gives it.
        name: String,
    },
    /// Several descriptors have this name.
    #[error(
        "the descriptor {name:?} from the service manager is there more than once; one ListenSequentialPacket= of a socket unit with FileDescriptorName={name} makes the right one"
    )]
    Repeated {
        /// Name that the unit gives them.
        name: String,
    },
}
