//! Texts that are read in small pieces. A shell's `read` reads one byte at a time; were each
//! answered anew, digits of two numbers would mix.

use std::collections::{HashMap, VecDeque};

/// Texts by the number of the open file. The oldest is dropped when there are too many: then a
/// slow reader gets a mixture, and no user can fill the agent's memory.
#[derive(Debug)]
pub struct Snapshots {
    texts: HashMap<u64, Vec<u8>>,
    order: VecDeque<u64>,
    bytes: usize,
    most: usize,
}

impl Snapshots {
    /// A store with room for `most` bytes.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { texts: HashMap::new(), order: VecDeque::new(), bytes: 0, most }
    }

    /// Keeps `text` for the open file `handle`, in place of what it had.
    pub fn keep(&mut self, handle: u64, text: Vec<u8>) {
        self.forget(handle);
        self.bytes += text.len();
        self.texts.insert(handle, text);
        self.order.push_back(handle);
        while self.bytes > self.most {
            let Some(oldest) = self.order.front().copied() else { return };
            self.forget(oldest);
        }
    }

    /// The text kept for the open file.
    #[must_use]
    pub fn get(&self, handle: u64) -> Option<&[u8]> {
        self.texts.get(&handle).map(Vec::as_slice)
    }

    /// Drops the text of a file that was closed, or read to its end.
    pub fn forget(&mut self, handle: u64) {
        if let Some(text) = self.texts.remove(&handle) {
            self.bytes -= text.len();
            self.order.retain(|kept| *kept != handle);
        }
    }
}

/// The bytes of `text` from `offset` on, at most `size`.
#[must_use]
pub fn part(text: &[u8], offset: u64, size: u32) -> &[u8] {
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    let rest = &text[from..];
    &rest[..rest.len().min(size as usize)]
}

#[cfg(test)]
mod tests {
    use super::{Snapshots, part};

    #[test]
    fn the_oldest_makes_room() {
        let mut kept = Snapshots::new(8);
        kept.keep(1, b"aaaa".to_vec());
        kept.keep(2, b"bbbb".to_vec());
        kept.keep(1, b"cc".to_vec());
        assert_eq!((kept.get(1), kept.get(2)), (Some(&b"cc"[..]), Some(&b"bbbb"[..])));
        kept.keep(3, b"dddd".to_vec());
        assert_eq!((kept.get(1), kept.get(2), kept.get(3)), (Some(&b"cc"[..]), None, Some(&b"dddd"[..])));
        kept.forget(1);
        kept.forget(1);
        kept.keep(4, b"more than there is room for".to_vec());
        assert_eq!((kept.get(3), kept.get(4)), (None, None));
        assert_eq!(kept.bytes, 0);
    }

    #[test]
    fn parts_end_where_the_text_does() {
        assert_eq!(part(b"12345\n", 0, 4096), b"12345\n");
        assert_eq!(part(b"12345\n", 4, 1), b"5");
        assert_eq!(part(b"12345\n", 6, 1), b"");
        assert_eq!(part(b"12345\n", u64::MAX, 1), b"");
    }
}
