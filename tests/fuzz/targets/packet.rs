//! Fuzzes packets at the two sockets, with descriptors.
//!
//! Held: no panic; each packet is answered; nothing is taken from the heap that the
//! client sizes; every descriptor is closed; a registration goes with its eventfd.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::packet::run(data));
