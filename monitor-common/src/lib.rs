//! Code that the eBPF programs, the agent and the tests share. Nothing here allocates, panics
//! or calls the kernel.
//!
//! [`protocol`] is what passes between the programs and the agent, [`grammar`] what clients
//! write (in prose in `docs/guide/registration.md`).
#![cfg_attr(not(any(test, loom)), no_std)]

pub mod grammar;
pub mod protocol;

#[cfg(all(test, not(loom)))]
mod kernel_model;
#[cfg(all(test, loom))]
mod loom_model;
