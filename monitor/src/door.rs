//! The front doors, and the one way in that they share: [`request`] takes the
//! line and the descriptors through the kernel's checks, in its order.

pub mod accounting;
pub mod closer;
pub mod control;
pub mod control_fd;
mod credentials;
pub mod event_row;
pub mod fair;
mod gatherer;
pub mod inode;
mod known;
pub mod listing;
pub mod metrics;
mod operator;
pub mod peer;
mod process;
mod refused;
pub mod request;
mod rows;
pub mod sender;
pub mod sent;
pub mod seqpacket;
pub mod socket;
mod turns;
pub mod view;
