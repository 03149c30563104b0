//! Groups that were made and have no name yet: the kernel tells of them before their directories are there.

/// Groups that are looked at once more; others are found with all groups.
const MOST: usize = 1024;
/// Looks at a group, about a tenth of a second apart. One whose path is too long for a link (`ENAMETOOLONG`)
/// never gets a name.
const LOOKS: u32 = 10;

/// The slots of groups without a name, with the looks at each so far.
#[derive(Debug, Default)]
pub(super) struct Unnamed(Vec<(u32, u32)>);

impl Unnamed {
    /// Adds a group that had no name at this look, after so many others. It is left to the next look at all
    /// groups after the last one, or where there are too many.
    pub(super) fn add(&mut self, slot: u32, looks: u32) {
        if looks + 1 < LOOKS && self.0.len() < MOST {
            self.0.push((slot, looks + 1));
        }
    }

    /// Takes all out, to look at them.
    pub(super) fn take(&mut self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::{LOOKS, MOST, Unnamed};

    #[test]
    fn a_group_that_gets_no_name_is_not_looked_at_for_ever() {
        let mut unnamed = Unnamed::default();
        let mut looks = 1;
        unnamed.add(7, 0);
        while !unnamed.is_empty() {
            looks += 1;
            assert!(looks <= LOOKS, "after {looks} looks it is still there");
            for (slot, before) in unnamed.take() {
                assert_eq!(slot, 7);
                unnamed.add(slot, before);
            }
        }
        assert_eq!(looks, LOOKS);
    }

    #[test]
    fn groups_without_a_name_are_bounded() {
        let mut unnamed = Unnamed::default();
        (0..2 * MOST as u32).for_each(|slot| unnamed.add(slot, 0));
        assert_eq!(unnamed.take().len(), MOST);
    }
}
