//! How much time has passed, told by dates that may be wrong. Pure.
//!
//! Owns the rule that a clock is believed only as far as something was stored meanwhile: where nothing was, a clock that jumped and a database that
//! rested look the same, and both count for little.

use std::time::Duration;

use replvfs_vfs::types::UnixMillis;

/// The dates at which something was stored.
#[derive(Debug, Clone)]
pub(super) struct Passed {
    /// Ascending, each with the milliseconds that count from it to the last one.
    dates: Vec<(i64, u64)>,
    most: u64,
    longest: u64,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Passed {
    /// The time between two dates counts as `most`, where it is longer. What is dated behind `now` has no date.
    pub(super) fn new(dates: impl Iterator<Item = UnixMillis>, now: UnixMillis, most: Duration) -> Passed {
        let most = millis(most);
        let mut found: Vec<i64> = dates.filter(|date| *date <= now).map(|date| date.0).collect();
        found.sort_unstable();
        found.dedup();
        let (mut dates, mut longest) = (Vec::with_capacity(found.len()), 0);
        let mut behind: Option<(i64, u64)> = None;
        for date in found.into_iter().rev() {
            let counts = behind.map_or(0, |(next, counts)| {
                longest = longest.max(next.abs_diff(date));
                counts + next.abs_diff(date).min(most)
            });
            behind = Some((date, counts));
            dates.push((date, counts));
        }
        dates.reverse();
        Passed { dates, most, longest }
    }

    /// From a date to the last one that is known; `None` when it is behind that.
    pub(super) fn since(&self, date: UnixMillis) -> Option<Duration> {
        let behind = self.dates.partition_point(|(known, _)| *known <= date.0);
        let counts = match self.dates.get(behind) {
            Some((next, counts)) => counts + next.abs_diff(date.0).min(self.most),
            None if self.dates.last().is_some_and(|(last, _)| *last == date.0) => 0,
            None => return None,
        };
        Some(Duration::from_millis(counts))
    }

    /// The longest time in which nothing was stored.
    pub(super) fn longest(&self) -> Duration {
        Duration::from_millis(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn since(dates: &[i64], now: i64, date: i64) -> Option<u64> {
        let dates = dates.iter().map(|date| UnixMillis(*date));
        let passed = Passed::new(dates, UnixMillis(now), Duration::from_millis(10));
        passed.since(UnixMillis(date)).map(millis)
    }

    #[test]
    fn time_counts_as_far_as_something_was_stored() {
        assert_eq!(since(&[5, 0, 10, 5], 99, 0), Some(10));
        assert_eq!(since(&[5, 0, 10, 5], 99, 7), Some(3));
        assert_eq!(since(&[5, 0, 10], 99, 10), Some(0));
        assert_eq!(since(&[5, 0, 10], 99, 11), None);
        assert_eq!(since(&[], 99, 0), None);
        // A jump.
        assert_eq!(since(&[0, 5, 1_000, 1_005], 9_999, 0), Some(20));
        assert_eq!(since(&[0, 5, 1_000, 1_005], 9_999, 900), Some(15));
        assert_eq!(since(&[0, 5, 1_000, 1_005], 9_999, -50), Some(30));
        // And back: what was dated meanwhile is not known to be of any time.
        assert_eq!(since(&[0, 5, 1_000, 1_005], 7, 0), Some(5));
        assert_eq!(since(&[0, 5, 1_000], 7, 1_000), None);
        assert_eq!(since(&[i64::MIN, 5, i64::MAX], i64::MAX, i64::MIN), Some(20));
    }
}
