//! Fuzzes the requests from the FUSE device.
//!
//! Held: no panic; each request is answered once, as the protocol has it; nothing is
//! taken from the heap that the request sizes; every descriptor is closed.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::fuse::run(data));
