//! The rate at which one place in the code may log.

use std::{collections::HashMap, time::Duration};

use log::Level;

/// Lines that a place may log at once.
const BURST: u32 = 10;

/// Time for each further line.
const EVERY: Duration = Duration::from_secs(5);

/// Most buckets that are kept. Places are few; users, whose number clients control, are not.
const MOST: usize = 4096;

/// A place in the code, and the user that its line names: lines that one user provokes hide
/// no line about another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Site {
    pub(super) module: &'static str,
    pub(super) line: u32,
    pub(super) level: Level,
    pub(super) user: Option<u64>,
}

/// A token bucket for each place and user. Users beyond the table's bound share one.
#[derive(Debug, Default)]
pub(super) struct Pace {
    sites: HashMap<Site, Bucket>,
    /// Time at which the table was last found full, and cleared of idle buckets.
    cleared: Option<Duration>,
}

#[derive(Debug)]
struct Bucket {
    tokens: u32,
    /// Time at which the last token was added.
    filled: Duration,
    left_out: u64,
}

impl Pace {
    /// Whether `site` may log a line; if so, how many were left out before it.
    pub(super) fn admit(&mut self, mut site: Site, now: Duration) -> Option<u64> {
        if self.sites.len() >= MOST && !self.sites.contains_key(&site) {
            // Not for each line: this visits every bucket.
            if self.cleared.is_none_or(|last| now.saturating_sub(last) >= EVERY) {
                self.cleared = Some(now);
                // A bucket that is full by now, with nothing left to report, is as good as none.
                let full = EVERY.saturating_mul(BURST);
                self.sites.retain(|_, held| held.left_out > 0 || now.saturating_sub(held.filled) < full);
            }
            if self.sites.len() >= MOST {
                site.user = None;
            }
        }
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

    /// The lines left out and not reported yet; they count as reported after this.
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
        Site { module: "m", line, level: Level::Warn, user: None }
    }

    #[test]
    fn one_users_storm_hides_no_other_user() {
        let mut pace = Pace::default();
        let of = |user| Site { user: Some(user), ..site(1) };
        for _ in 0..1000 {
            let _ = pace.admit(of(1000), Duration::ZERO);
        }
        assert_eq!(pace.admit(of(1000), Duration::ZERO), None);
        assert_eq!(pace.admit(of(1001), Duration::ZERO), Some(0));
    }

    #[test]
    fn users_that_are_made_up_fill_no_table() {
        let mut pace = Pace::default();
        let of = |user| Site { user: Some(user), ..site(1) };
        for user in 0..100_000 {
            let _ = pace.admit(of(user), Duration::ZERO);
        }
        assert!(pace.sites.len() <= MOST + 1, "{}", pace.sites.len());
        // Sites that logged long ago make room.
        assert_eq!(pace.admit(of(200_000), Duration::from_secs(3600)), Some(0));
        assert!(pace.sites.len() < MOST, "{}", pace.sites.len());
    }

    #[test]
    fn a_storm_is_logged_by_its_count_and_hides_no_other_place() {
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
