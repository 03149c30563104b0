//! How fast a group's usage grows, and what it was lately: from samples that come only when usage
//! has changed.

/// Seconds after which a sample counts for a third.
const MEMORY: f64 = 5.0;

/// Samples that a sparkline shows.
pub const SAMPLES: usize = 16;

/// A smoothed slope in bytes a second: the mean of the slopes between samples, in which each counts
/// by its length and less with its age.
#[derive(Clone, Copy, Debug, Default)]
pub struct Growth {
    slope: f64,
    /// The weight of all slopes so far, up to 1: without it the first would count as a part of 0.
    weight: f64,
    last: Option<(f64, u64)>,
}

impl Growth {
    /// Adds a reading at `at`, in seconds. Until `since` usage was what it was at the reading before,
    /// unless `since` is `at`: then the change may have come at any time between the two.
    pub fn sample(&mut self, usage: u64, since: f64, at: f64) {
        let Some((before, bytes)) = self.last else {
            self.last = Some((at, usage));
            return;
        };
        // No time has passed: what has changed counts from the first reading to the next.
        if at <= before {
            return;
        }
        self.last = Some((at, usage));
        let since = if since < at { since.max(before) } else { before };
        self.age(0.0, since - before);
        let length = at - since;
        self.age((usage as f64 - bytes as f64) / length, length);
    }

    /// Takes a slope of this length into the mean.
    fn age(&mut self, slope: f64, length: f64) {
        if length > 0.0 {
            let kept = (-length / MEMORY).exp();
            self.slope = self.slope * kept + slope * (1.0 - kept);
            self.weight = self.weight * kept + 1.0 - kept;
        }
    }

    /// Bytes a second as of `now`, until when usage has stayed the same since the last reading; `None`
    /// after a single reading.
    pub fn at(&self, now: f64) -> Option<f64> {
        let (last, _) = self.last?;
        // Most groups: to age nothing costs more than all else about them.
        if self.slope == 0.0 {
            return (self.weight > 0.0 || now > last).then_some(0.0);
        }
        let mut growth = *self;
        growth.age(0.0, now - last);
        let slope = growth.slope / growth.weight;
        // Less than a page in a minute is the end of what was once.
        Some(if slope.abs() < 64.0 { 0.0 } else { slope })
    }
}

/// Usage at the last ticks, in units of 4 KiB, without a write at the ticks at which it stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct History {
    samples: [u32; SAMPLES],
    /// Tick of the last sample, and the tick of the first.
    last: u64,
    first: u64,
}

impl History {
    /// Notes usage at a tick, which begin with 1.
    pub fn set(&mut self, usage: u64, tick: u64) {
        let value = u32::try_from(usage >> 12).unwrap_or(u32::MAX);
        if self.first == 0 {
            self.first = tick;
            self.last = tick;
        }
        let before = self.at(self.last);
        let missed = (self.last + 1)..tick;
        for at in missed.skip((tick - self.last).saturating_sub(SAMPLES as u64 + 1) as usize) {
            self.samples[at as usize % SAMPLES] = before;
        }
        self.samples[tick as usize % SAMPLES] = value;
        self.last = tick;
    }

    const fn at(&self, tick: u64) -> u32 {
        self.samples[tick as usize % SAMPLES]
    }

    /// The samples up to `tick`, oldest first, `count` at most; fewer of a group that is new.
    pub fn until(&self, tick: u64, count: usize) -> Vec<u32> {
        if self.first == 0 {
            return Vec::new();
        }
        let from = tick.saturating_sub(count.min(SAMPLES) as u64 - 1).max(self.first);
        let oldest = (self.last + 1).saturating_sub(SAMPLES as u64);
        (from..=tick).map(|at| self.at(at.clamp(oldest.max(self.first), self.last))).collect()
    }
}

/// Heights of samples, 0 to `top`, between the least and the most of them; small differences stay
/// small.
pub fn heights(samples: &[u32], top: u32) -> Vec<u32> {
    let (Some(&least), Some(&most)) = (samples.iter().min(), samples.iter().max()) else {
        return Vec::new();
    };
    let span = (most - least).max(most / 16).max(1);
    let height = |value: u32| u64::from(value - least) * u64::from(top) / u64::from(span);
    samples.iter().map(|value| height(*value) as u32).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Growth, History, SAMPLES, heights};

    const MIB: u64 = 1 << 20;

    #[test]
    fn steady_growth_is_exact_from_the_second_reading_on() {
        let mut growth = Growth::default();
        growth.sample(5 * MIB, 0.0, 0.0);
        assert_eq!(growth.at(0.0), None);
        for at in 1..20 {
            growth.sample((5 + 2 * at) * MIB, at as f64 - 1.0, at as f64);
            let slope = growth.at(at as f64).expect("two readings");
            assert!((slope - 2.0 * MIB as f64).abs() < 1.0, "{at}: {slope}");
        }
    }

    #[test]
    fn a_second_reading_at_the_same_time_loses_no_change() {
        let mut growth = Growth::default();
        growth.sample(5 * MIB, 0.0, 0.0);
        growth.sample(6 * MIB, 0.0, 0.0);
        growth.sample(15 * MIB, 0.0, 5.0);
        growth.sample(16 * MIB, 5.0, 5.0);
        growth.sample(25 * MIB, 5.0, 10.0);
        let slope = growth.at(10.0).expect("three readings");
        assert!((slope - 2.0 * MIB as f64).abs() < 1.0, "{slope}");
        // Nothing says when the change came.
        growth.sample(35 * MIB, 15.0, 15.0);
        let slope = growth.at(15.0).expect("four readings");
        assert!((slope - 2.0 * MIB as f64).abs() < 1.0, "{slope}");
    }

    #[test]
    fn growth_that_ends_is_forgotten_without_further_readings() {
        let mut growth = Growth::default();
        growth.sample(0, 0.0, 0.0);
        growth.sample(10 * MIB, 0.0, 10.0);
        let later: Vec<_> = [10.0, 15.0, 30.0, 600.0].iter().filter_map(|at| growth.at(*at)).collect();
        assert!(later.windows(2).all(|pair| pair[1] < pair[0]), "{later:?}");
        assert_eq!(later[3], 0.0);
    }

    proptest! {
        #[test]
        fn samples_left_out_are_as_if_they_were_the_same(values in prop::collection::vec(0..4u64, 2..40)) {
            let (mut all, mut changed) = (Growth::default(), Growth::default());
            let (mut every, mut some) = (History::default(), History::default());
            let mut last = None;
            for (at, value) in values.iter().enumerate() {
                let (usage, at) = (value * MIB, at as f64);
                all.sample(usage, at - 1.0, at);
                every.set(usage, at as u64 + 1);
                if last.replace(value) != Some(value) {
                    changed.sample(usage, at - 1.0, at);
                    some.set(usage, at as u64 + 1);
                }
            }
            let (now, tick) = (values.len() as f64 - 1.0, values.len() as u64);
            let slopes = [all.at(now), changed.at(now)].map(|slope| slope.unwrap_or(0.0));
            prop_assert!((slopes[0] - slopes[1]).abs() < 100.0, "{:?}", slopes);
            prop_assert_eq!(every.until(tick, SAMPLES), some.until(tick, SAMPLES));
            let shown = &values[values.len().saturating_sub(SAMPLES)..];
            let shown: Vec<u32> = shown.iter().map(|value| ((value * MIB) >> 12) as u32).collect();
            prop_assert_eq!(every.until(tick, SAMPLES), shown);
        }
    }

    #[test]
    fn a_sparkline_shows_differences_and_no_noise() {
        assert_eq!(heights(&[0, 50, 100], 8), [0, 4, 8]);
        assert!(heights(&[1000, 1001, 1000], 8).iter().all(|height| *height == 0));
        assert!(heights(&[], 8).is_empty());
    }
}
