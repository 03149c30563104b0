//! Client of memcg-monitor, which gives the memory notifications of cgroup v1
//! (`cgroup.event_control`) on cgroup v2 kernels.
//!
//! A registration is an eventfd, a control file of a group, and arguments such as a threshold.
//! From then on the agent, `memcg-monitor agent`, adds one to the eventfd for each event: memory
//! crosses the threshold, the group is out of memory, reclaim reaches a level of pressure, the
//! group becomes empty or is removed. The grammar of the arguments is that of cgroup v1, with
//! extensions, and is described in `docs/guide/registration.md` of the project.
//!
//! # Quick start
//!
//! With an agent on the host, this prints a line whenever the memory of group `a` has passed
//! 512 MiB, in either direction, until the group is removed:
//!
//! ```no_run
//! use monitor_client::Builder;
//!
//! fn main() -> Result<(), monitor_client::Error> {
//!     let registration =
//!         Builder::new("/sys/fs/cgroup/a/memory.current").args("512M").register()?;
//!     while let Some(signals) = registration.wait()? {
//!         println!("crossed {signals} times");
//!     }
//!     println!("the group is gone");
//!     Ok(())
//! }
//! ```
//!
//! # The parts
//!
//! | to | use | at the |
//! |---|---|---|
//! | wait for signals | [`Builder::register`], [`Registration`] | registration socket, [`SOCKET`] |
//! | have the cause of each signal, too | [`Builder::follow`], [`Follower`] | admin socket, [`CONTROL_SOCKET`] |
//! | list groups, look at the agent | [`AdminConnection`], [`wire`] | admin socket |
//! | send lines and descriptors of one's own | [`register`], [`RegistrationConnection`], [`Target`], [`RemovalCheck`] | registration socket |
//!
//! A registration ends when its value is dropped, and when its group is removed.
//!
//! # Features
//!
//! * `tokio` (not by default): `Registration::into_async` and `Follower::into_async`, which give
//!   the types to wait on with tokio.
//!
//! # Requirements
//!
//! Linux, and an agent of the same version: before 1.0 the wire format may change between minor
//! versions. The library needs no privilege of its own. The modes of the two sockets, and the
//! permission to read the control file, decide who may register.
#![forbid(unsafe_code)]
#![deny(missing_docs, rustdoc::broken_intra_doc_links)]
#![warn(unreachable_pub)]

mod admin;
mod builder;
mod error;
mod follower;
mod register;
mod registration;
mod seqpacket;
mod target;
#[cfg(test)]
mod vectors;
pub mod wire;

pub use admin::AdminConnection;
pub use builder::Builder;
#[doc(hidden)]
pub use error::{Error, Result, UNANSWERED, named};
#[cfg(feature = "tokio")]
pub use follower::AsyncFollower;
pub use follower::Follower;
pub use register::{RegistrationConnection, register};
#[cfg(feature = "tokio")]
pub use registration::AsyncRegistration;
pub use registration::Registration;
pub use seqpacket::{connect, connect_within};
pub use target::{RemovalCheck, Target};

/// Path of the registration socket, unless the agent was started with another `--socket`.
pub const SOCKET: &str = "/run/memcg-monitor/event_control.sock";
/// Path of the admin socket, unless the agent was started with another `--control-socket`.
pub const CONTROL_SOCKET: &str = "/run/memcg-monitor/control.sock";
