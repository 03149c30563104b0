//! Guesses at the slot of a counter: what `COUNTERS` said last, for a few instructions.

use monitor_common::protocol::{slot::Slot, word::Word as _};

use crate::{maps, memcg, word::BpfWord};

/// Cells of `GUESSES`, as a power of two.
const GUESS_BITS: u32 = 12;

/// The last answers of `COUNTERS`, by a hash of the address: the slot's index. Only a
/// guess, which the slot itself confirms, so two counters may share a cell. Or the address
/// itself: of a counter without a slot.
static GUESSES: [BpfWord; 1 << GUESS_BITS] = [const { BpfWord::zero() }; 1 << GUESS_BITS];

/// The number by which a counter's address, a typed pointer, is hashed. The verifier lets no
/// program multiply a pointer, or turn one into a plain number, but subtract two.
#[inline(always)]
pub fn distance(address: u64) -> u64 {
    // A plain number is hashed as it is, and no pointer may be subtracted from it.
    if cfg!(feature = "kprobe") { address } else { address.wrapping_sub((&raw const GUESSES) as u64) }
}

#[inline(always)]
fn cell(distance: u64) -> &'static BpfWord {
    let hash = distance.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - GUESS_BITS);
    &GUESSES[hash as usize]
}

/// The slot of the counter at `address`, if it was looked up not long ago: as
/// [`maps::slot_of`], for a few instructions. A slot knows its counter's address only as
/// long as that is the counter's, so a guess is right or none.
#[inline(always)]
pub fn slot_of(distance: u64, address: u64) -> Option<(u32, &'static Slot<BpfWord>)> {
    let index = cell(distance).get() as u32;
    let slot = maps::slot(index)?;
    if slot.counter.get() == address { Some((index, slot)) } else { None }
}

/// Stores a counter's slot, which makes the next guess right.
#[inline(always)]
pub fn remember(distance: u64, index: u32) {
    cell(distance).set(u64::from(index));
}

/// The address that [`distance`] counts from, as a plain number: for addresses that are, too.
pub fn base() -> u64 {
    if cfg!(feature = "kprobe") { 0 } else { memcg::scalar((&raw const GUESSES) as u64) }
}

/// Whether the counter at `address` was found to have no slot, not long ago.
#[inline(always)]
pub fn is_slotless(distance: u64, address: u64) -> bool {
    cell(distance).get() == address
}

/// Remembers that the counter at `address` has no slot: unless it has got one meanwhile,
/// which is to be looked up after this (a full barrier). The CPU that gives it one enters that
/// in `COUNTERS`, and then here.
#[inline(always)]
pub fn remember_none(distance: u64, address: u64) {
    cell(distance).xchg(address);
}
