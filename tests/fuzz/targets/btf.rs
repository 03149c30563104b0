//! The kernel's type information, of arbitrary bytes.
//!
//! Held: no panic, no endless walk, no allocation that the input is too short for,
//! whatever is looked up: all that the agent looks up, and names that the corpus has.

#![no_main]

use arbitrary::Arbitrary;
use fuzzing::heap;
use libfuzzer_sys::fuzz_target;
use memcg_monitor::kernel::{Facts, Plan, btf::Btf};

/// Types are refused for less than these bytes each, and noted in 4; a walk through
/// unnamed members keeps as many as there may be, at 12 bytes each in the input.
const PER_BYTE: usize = 16;
/// Errors hold names and paths, the plan all hooks.
const FLAT: usize = 1 << 14;

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    /// Bytes as they are in the input.
    Raw(&'a [u8]),
    /// Under a header that fits, so that the sections are looked at.
    Framed { types: &'a [u8], strings: &'a [u8] },
}

impl Input<'_> {
    fn bytes(&self) -> Vec<u8> {
        const HEADER: u32 = 24;
        match self {
            Self::Raw(bytes) => bytes.to_vec(),
            Self::Framed { types, strings } => {
                let strings = [b"\0", *strings, b"\0"].concat();
                let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let mut bytes = vec![0x9f, 0xeb, 1, 0];
                for word in [HEADER, 0, length(types), length(types), length(&strings)] {
                    bytes.extend(word.to_le_bytes());
                }
                bytes.extend_from_slice(types);
                bytes.extend(strings);
                bytes
            }
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    let bytes = input.bytes();
    let most = FLAT.max(bytes.len() * PER_BYTE);
    let (parsed, taken) = heap::watch(|| Btf::parse(bytes));
    assert!(taken.largest <= most, "{} bytes at once for {most}/{PER_BYTE} of input", taken.largest);
    let Ok(btf) = parsed else { return };
    let ((), taken) = heap::watch(|| query(btf));
    assert!(taken.largest <= most, "{} bytes at once for {most}/{PER_BYTE} of input", taken.largest);
});

fn query(btf: Btf) {
    for path in ["b", "a.b", "a.a.a", "", ".", "b."] {
        if let Err(error) = btf.member_offset("a", path) {
            assert!(!error.to_string().is_empty());
        }
    }
    let _ = (btf.has_struct("a"), btf.has_func("a"), btf.has_typedef("a"), btf.func_arg_count("a"));
    let _ = (btf.enum_value("a", "b"), btf.enum_value("", "b"));
    let facts =
        Facts { release: String::new(), btf, pages: 1 << 20, page_size: 4096, v1: false, absent: Vec::new() };
    if let Err(error) = Plan::decide(&facts, &[]) {
        assert!(!error.to_string().is_empty());
    }
}
