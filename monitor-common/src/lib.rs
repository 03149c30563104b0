//! What the eBPF programs, the agent and the tests share: the words both sides
//! speak. Nothing here allocates, panics or calls the kernel.
//!
//! In the order of the data's path: [`word`] and [`slot`] (the table), [`band`]
//! (what a charge does), [`life`] (how slots come and go), [`usage`] (what a charge keeps),
//! [`oom`] (which OOMs are one), [`ring`] (how the agent is
//! rung), [`query`] (what it asks), [`crossing`] and [`pressure`] (what it makes of
//! it), [`mod@line`], [`control`] and [`threshold`] (what clients write; in prose in
//! `docs/guide/registration.md`).
#![cfg_attr(not(any(test, loom)), no_std)]

pub mod band;
pub mod control_file;
pub mod crossing;
pub mod epoch;
pub mod life;
pub mod line;
pub mod oom;
pub mod pressure;
pub mod query;
pub mod ring;
pub mod slot;
pub mod threshold;
pub mod usage;
pub mod word;

#[cfg(all(test, not(loom)))]
mod kernel_model;
#[cfg(all(test, loom))]
mod loom_model;
