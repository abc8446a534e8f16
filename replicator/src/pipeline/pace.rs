//! When what waits in the log is sealed. Pure: owns the rule, knows no clock.

use std::time::Duration;

use tokio::time::Instant;

/// How long a lone commit waits for company.
pub(super) const GATHERING: Duration = Duration::from_millis(10);

/// What is known when the rule is asked. Something waits in the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation {
    /// Since when something waits.
    pub(super) since: Instant,
    /// When the last segment was sealed.
    pub(super) last_sealed: Option<Instant>,
    /// How far sealings of a busy database are apart.
    pub(super) interval: Duration,
    /// A base waits, or a whole segment.
    pub(super) full: bool,
    /// Somebody waits for the upload.
    pub(super) awaited: bool,
}

/// When to seal: at once where nothing is gained by waiting; after a moment of gathering when the last interval saw no upload; else at the
/// end of that interval. An instant in the past means now.
pub(super) fn due(situation: &Situation) -> Instant {
    if situation.full || situation.awaited {
        return situation.since;
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
            full: false,
            awaited: false,
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
    fn a_full_segment_and_whoever_waits_are_served_at_once() {
        let now = Instant::now();
        for (full, awaited) in [(true, false), (false, true)] {
            let situation = Situation {
                full,
                awaited,
                ..situation(now, Some(now))
            };
            assert_eq!(due(&situation), now);
        }
    }
}
