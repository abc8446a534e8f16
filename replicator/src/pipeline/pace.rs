//! When what waits in the log is sealed. Pure: owns the rule, knows no clock.

use std::time::Duration;

use tokio::time::Instant;

/// How long a lone commit waits for company.
pub(super) const GATHERING: Duration = Duration::from_millis(10);

/// Whole segments follow each other no faster, until a large one waits: each costs the same requests, whatever is in it.
const APART: Duration = Duration::from_millis(250);
/// A large segment has so many times the bytes of a whole one, but no more than this.
const LARGE: (u64, u64) = (2, 8 << 20);
/// The same of what waits after an upload that took long, and goes into one segment: a store that is far away keeps up by that.
const MOST: (u64, u64) = (4, 16 << 20);
/// An upload that takes so long is not to be made larger: all requests have their time.
const SLOW: Duration = Duration::from_secs(10);

/// WAL bytes that are sealed at once, where `segment_size` is that of a whole segment.
pub(super) fn large(segment_size: u64) -> u64 {
    some(LARGE, segment_size)
}

/// WAL bytes after which no further transaction gets into a segment, where the last upload took so long.
pub(super) fn most(segment_size: u64, took: Duration) -> u64 {
    match took < SLOW {
        true => some(MOST, segment_size),
        false => segment_size,
    }
}

fn some((times, bytes): (u64, u64), segment_size: u64) -> u64 {
    segment_size.saturating_mul(times).min(bytes).max(segment_size)
}

/// Those that wait for their commits are kept waiting for others for this part of an upload at most, and no longer than that.
const COMPANY_PART: u32 = 8;
const COMPANY: Duration = Duration::from_millis(5);
/// Timers are no finer.
const FINEST: Duration = Duration::from_millis(1);

/// The last upload. Whom it served comes back with the next commit at about the same time: without a moment of patience the first of them would
/// have an upload to itself, and all others would wait for two.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Company {
    /// So many waited when it began.
    pub(super) waiting: usize,
    /// So long it took.
    pub(super) took: Duration,
}

impl Company {
    fn patience(self, waiting: usize) -> Duration {
        let patience = (self.took / COMPANY_PART).min(COMPANY);
        match waiting < self.waiting && patience >= FINEST {
            true => patience,
            false => Duration::ZERO,
        }
    }
}

/// What is known when the rule is asked. Something waits in the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation {
    /// Since when something waits.
    pub(super) since: Instant,
    /// When the last segment was sealed.
    pub(super) last_sealed: Option<Instant>,
    /// How far sealings of a busy database are apart.
    pub(super) interval: Duration,
    /// A whole segment waits.
    pub(super) whole: bool,
    /// A base waits, or a large segment, or it was asked for.
    pub(super) full: bool,
    /// So many wait for the upload.
    pub(super) waiting: usize,
    pub(super) company: Company,
}

/// When to seal: at once where nothing is gained by waiting; after a moment of gathering when the last interval saw no upload; else at the
/// end of that interval, or of a shorter one where a whole segment waits. An instant in the past means now.
pub(super) fn due(situation: &Situation) -> Instant {
    if situation.full {
        return situation.since;
    }
    if situation.waiting > 0 {
        return situation.since + situation.company.patience(situation.waiting);
    }
    if situation.whole {
        let apart = situation.interval.min(APART);
        return situation
            .last_sealed
            .map_or(situation.since, |last| situation.since.max(last + apart));
    }
    let gathered = situation.since + GATHERING;
    match situation.last_sealed {
        Some(last) => gathered.max(last + situation.interval),
        None => gathered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(1);

    fn situation(since: Instant, last_sealed: Option<Instant>) -> Situation {
        Situation {
            since,
            last_sealed,
            interval: INTERVAL,
            whole: false,
            full: false,
            waiting: 0,
            company: Company::default(),
        }
    }

    #[test]
    fn a_lone_commit_gathers_for_a_moment() {
        let now = Instant::now();
        assert_eq!(due(&situation(now, None)), now + GATHERING);
        assert_eq!(
            due(&situation(now + 5 * INTERVAL, Some(now))),
            now + 5 * INTERVAL + GATHERING
        );
    }

    #[test]
    fn a_busy_database_seals_once_an_interval() {
        let now = Instant::now();
        assert_eq!(due(&situation(now + INTERVAL / 2, Some(now))), now + INTERVAL);
        assert_eq!(due(&situation(now + INTERVAL, Some(now))), now + INTERVAL + GATHERING);
    }

    #[test]
    fn whole_segments_are_a_moment_apart() {
        let now = Instant::now();
        let whole = |since, last, interval| {
            let situation = Situation {
                whole: true,
                interval,
                ..situation(since, last)
            };
            due(&situation)
        };
        assert_eq!(whole(now, None, INTERVAL), now);
        assert_eq!(whole(now + APART / 2, Some(now), INTERVAL), now + APART);
        assert_eq!(whole(now + INTERVAL, Some(now), INTERVAL), now + INTERVAL);
        assert_eq!(whole(now, Some(now), APART / 10), now + APART / 10);
    }

    #[test]
    fn a_large_segment_is_some_whole_ones() {
        assert_eq!(large(64 << 10), 128 << 10);
        assert_eq!(large(4 << 20), 8 << 20);
        assert_eq!(large(5 << 20), 8 << 20);
        assert_eq!(large(256 << 20), 256 << 20);
        assert_eq!(most(64 << 10, GATHERING), 256 << 10);
        assert_eq!(most(4 << 20, GATHERING), 16 << 20);
        assert_eq!(most(8 << 20, GATHERING), 16 << 20);
        assert_eq!(most(256 << 20, GATHERING), 256 << 20);
        assert_eq!(most(4 << 20, SLOW), 4 << 20);
    }

    #[test]
    fn a_full_segment_and_whoever_waits_are_served_at_once() {
        let now = Instant::now();
        for (full, waiting) in [(true, 0), (false, 1), (true, 3)] {
            let situation = Situation {
                full,
                waiting,
                ..situation(now, Some(now))
            };
            assert_eq!(due(&situation), now);
        }
    }

    #[test]
    fn who_was_served_together_is_waited_for() {
        let now = Instant::now();
        let due_for = |waiting: usize, company: (usize, u64)| {
            let company = Company {
                waiting: company.0,
                took: Duration::from_millis(company.1),
            };
            let situation = Situation {
                waiting,
                company,
                ..situation(now, Some(now))
            };
            due(&situation) - now
        };
        assert_eq!(due_for(1, (8, 16)), Duration::from_millis(2));
        assert_eq!(due_for(1, (8, 4000)), COMPANY);
        assert_eq!(due_for(8, (8, 4000)), Duration::ZERO, "all are there");
        assert_eq!(due_for(1, (1, 4000)), Duration::ZERO, "there are no others");
        assert_eq!(due_for(1, (8, 7)), Duration::ZERO, "it is not worth a timer");
    }
}
