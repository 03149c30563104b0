//! What the eBPF programs, the agent and the tests share: the words both sides
//! speak. Nothing here allocates, panics or calls the kernel.
//!
//! In the order of the data's path: [`word`] and [`slot`] (the table), [`band`]
//! (what a charge does), [`crossing`] (what the agent makes of it), [`line`] and
//! [`threshold`] (what clients write).
#![cfg_attr(not(any(test, loom)), no_std)]

pub mod band;
pub mod crossing;
pub mod line;
pub mod slot;
pub mod threshold;
pub mod word;

#[cfg(all(test, not(loom)))]
mod kernel_model;
#[cfg(all(test, loom))]
mod loom_model;
