//! How often one place in the code may say something.

use std::{collections::HashMap, time::Duration};

use log::Level;

/// Lines that a place may say at once.
const BURST: u32 = 10;

/// Then one for each such time.
const EVERY: Duration = Duration::from_secs(5);

/// A place in the code. There are only so many, so the table needs no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Site {
    pub(super) module: &'static str,
    pub(super) line: u32,
    pub(super) level: Level,
}

/// A token bucket for each place.
#[derive(Debug, Default)]
pub(super) struct Pace {
    sites: HashMap<Site, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: u32,
    /// When the last token was given.
    filled: Duration,
    left_out: u64,
}

impl Pace {
    /// Whether `site` may say a line; then, how many were left out before it.
    pub(super) fn admit(&mut self, site: Site, now: Duration) -> Option<u64> {
        let bucket = self.sites.entry(site).or_insert(Bucket { tokens: BURST, filled: now, left_out: 0 });
        let given = now.saturating_sub(bucket.filled).as_nanos() / EVERY.as_nanos();
        let given = u32::try_from(given).unwrap_or(u32::MAX);
        bucket.filled += EVERY.saturating_mul(given);
        bucket.tokens = bucket.tokens.saturating_add(given).min(BURST);
        if bucket.tokens == 0 {
            bucket.left_out += 1;
            return None;
        }
        bucket.tokens -= 1;
        Some(std::mem::take(&mut bucket.left_out))
    }

    /// What was left out and not told yet; told with this.
    pub(super) fn drain(&mut self) -> Vec<(Site, u64)> {
        let left_out =
            self.sites.iter_mut().map(|(site, bucket)| (*site, std::mem::take(&mut bucket.left_out)));
        left_out.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(line: u32) -> Site {
        Site { module: "m", line, level: Level::Warn }
    }

    #[test]
    fn a_storm_is_told_by_its_count_and_hides_no_other_place() {
        let mut pace = Pace::default();
        let said = |pace: &mut Pace, line, at| pace.admit(site(line), Duration::from_secs(at));
        for _ in 0..BURST {
            assert_eq!(said(&mut pace, 1, 100), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(said(&mut pace, 1, 104), None);
        }
        assert_eq!(said(&mut pace, 2, 104), Some(0), "another place");
        assert_eq!(said(&mut pace, 1, 105), Some(1000));
        assert_eq!(said(&mut pace, 1, 106), None);
        // Long after, a burst again, but no more.
        let later = (0..100).filter(|_| said(&mut pace, 1, 10_000).is_some()).count();
        assert_eq!(later, BURST as usize);
        assert_eq!(pace.drain(), [(site(1), 90)]);
        assert_eq!(pace.drain(), []);
    }
}
