//! Numbers that look random, and are the same for the same seed.

/// Marsaglia's xorshift: enough to shuffle legs.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The high bits are the better ones, and few enough for any usize.
        (self.0 >> 40) as usize % limit
    }
}
