//! Code that the fuzz targets share: a heap that is counted, a hierarchy, a kernel and an
//! agent of their own, and the two targets that need all of that.

pub mod fuse;
pub mod heap;
pub mod packet;
mod stage;

/// The kernel of the unit tests; it names these as its own crate's.
#[expect(dead_code, reason = "the unit tests need more of it")]
#[path = "../../../monitor/src/watcher/tests/fake.rs"]
mod fake;
use memcg_monitor::{
    Error, cgroup,
    fuzzing::{error, source},
    kernel,
};

/// Takes its input apart from the front; what is missing is 0.
#[derive(Debug)]
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u32 {
        let mut word = [0; 4];
        let bytes = self.bytes(4);
        word[..bytes.len()].copy_from_slice(bytes);
        u32::from_le_bytes(word)
    }

    /// Takes up to `most` bytes, as many as there are.
    fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
