//! The sizes of what the programs and the agent share.

/// Sizes of tables, chosen at start.
#[derive(Clone, Copy, Debug)]
pub struct TableSizes {
    /// Groups that can be watched at once.
    pub groups: u32,
    /// Bytes of the ring buffer: a power of two, at least a page.
    pub ring: u32,
    /// Groups whose usage the black box records; 0: it is off.
    pub boxes: u32,
}

impl TableSizes {
    /// The sizes for a host with so many bytes of memory: a place in the table of groups for each
    /// 64 KiB, rounded up to a power of two between 4,096 and 65,536. All of it is allocated at
    /// the start, about 420 bytes each.
    #[must_use]
    pub const fn for_memory(bytes: u64) -> Self {
        let mut groups = 4096;
        while groups < 65_536 && (groups as u64) < bytes >> 16 {
            groups *= 2;
        }
        Self { groups, ring: 256 * 1024, boxes: 0 }
    }
}

impl TableSizes {
    /// The number of groups and of boxes in one word, by which programs are recognised.
    pub(super) const fn word(self) -> u64 {
        self.groups as u64 | (self.boxes as u64) << 32
    }
}

impl Default for TableSizes {
    /// The sizes for a big host.
    fn default() -> Self {
        Self::for_memory(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::TableSizes;

    #[test]
    fn tables_are_sized_by_the_host() {
        const GIB: u64 = 1 << 30;
        let groups = |bytes| TableSizes::for_memory(bytes).groups;
        assert_eq!((groups(0), groups(GIB / 4), groups(GIB / 2)), (4096, 4096, 8192));
        // The memory that the kernel keeps for itself is missing in the sum.
        assert_eq!((groups(GIB), groups(GIB * 9 / 10)), (16_384, 16_384));
        assert_eq!((groups(4 * GIB * 9 / 10), groups(u64::MAX)), (65_536, 65_536));
    }
}
