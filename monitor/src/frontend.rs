//! The frontends, and the part that they share: [`register`] takes the line and the
//! descriptors through the kernel's checks, in its order.

pub mod accounting;
pub mod admin_socket;
mod cache;
mod changes;
mod collector;
pub mod connection_share;
pub mod control_file;
mod credentials;
pub mod deferred_close;
pub mod error;
pub mod event_control_write;
pub mod event_row;
pub mod fair;
mod group_stats;
pub mod inode;
pub mod kept_connections;
pub mod listing;
pub mod metrics_http;
mod metrics_scraper;
mod operator;
pub mod peer;
pub mod pressure_socket;
pub mod pressure_text;
mod process;
pub mod refusal;
mod refused;
pub mod register;
mod registered;
pub mod registration_socket;
pub mod requester;
mod scrape;
pub mod sender;
pub mod sent_descriptors;
pub mod seqpacket;
mod watch;

pub use event_row::victim as victim_row;
pub use registered::registrations_of;
