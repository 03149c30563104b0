//! The protocol between the programs in the kernel and the agent, through the table of
//! slots and the ring.
//!
//! In the order of the data's path: [`word`] and [`slot`] (the table), [`band`]
//! (what a charge does), [`life`] (how slots are used and freed), [`usage`] (what is kept),
//! [`epoch`] (which charges need not look up), [`black_box`] (what is recorded), [`oom`] (which OOMs are one), [`ring`] (how
//! the agent is rung), [`query`] (what it queries), [`crossing`] and [`pressure`] (what it makes
//! of it).

pub mod band;
pub mod black_box;
pub mod crossing;
pub mod epoch;
pub mod life;
pub mod oom;
pub mod pressure;
pub mod query;
pub mod ring;
pub mod slot;
pub mod usage;
pub mod word;
