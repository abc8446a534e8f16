//! When another image is due. Pure: owns the rule, knows no clock.

use std::time::Duration;

use replvfs_vfs::types::UnixMillis;

use crate::history::{GRACE, SURVEYED};

/// Of a segment a restore fetches what is stored, and decompresses and writes what was logged. That is faster by about so much than fetching.
const FASTER: u64 = 16;

/// The bounds of the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    /// No image is due as long as a restore has less to do ([`Situation::work`]), and the last one is not older than `age`.
    pub(crate) least: u64,
    /// Nor as long as that is less than the database divided by this.
    pub(crate) part: u64,
    /// What is logged is restored commit by commit from an image that is no older than this.
    pub(crate) age: Duration,
    /// After an image was given up the next one is not begun before this is over.
    pub(crate) pause: Duration,
    /// Of a making that took longer, what it sent may be old enough to be deleted before an image names it: it is looked for.
    pub(crate) slow: Duration,
    /// It is looked for when this has passed since the image was stored: then nobody deletes who has not seen it.
    pub(crate) settle: Duration,
    /// Reads what is believed to be unchanged all the same, and stops replication where it is not. For tests.
    pub(crate) check: bool,
    /// How long chunks stay that nothing names.
    pub(crate) grace: Duration,
    /// Bytes of the temporary file of an image that is made out of the replica; that of a large database may have more.
    pub(crate) room: u64,
}

impl Default for Rule {
    fn default() -> Rule {
        Rule {
            least: 128 << 20,
            part: 2,
            age: Duration::from_secs(24 * 60 * 60),
            pause: Duration::from_secs(60),
            slow: GRACE / 2,
            settle: SURVEYED * 2,
            check: false,
            grace: crate::history::GRACE,
            room: 256 << 20,
        }
    }
}

/// What is known when a segment was stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation {
    /// Raw page bytes that were logged since the last image.
    pub(super) logged: u64,
    /// Bytes of the segments that they are in.
    pub(super) stored: u64,
    /// Bytes of the database.
    pub(super) database: u64,
    /// When the last image was taken.
    pub(super) taken_at: UnixMillis,
    pub(super) now: UnixMillis,
}

impl Situation {
    /// What a restore has to do behind the last image, as bytes that it fetches. By what was logged alone a small database whose pages are written again and again
    /// would get an image every few seconds of what compresses to next to nothing: they would be most of what is sent.
    fn work(&self) -> u64 {
        self.stored.saturating_add(self.logged / FASTER)
    }
}

/// An image is due when what a restore has to do behind the last one outweighs half of the database, or when that image is old. A clock that was set
/// back makes none due.
pub(super) fn is_due(rule: &Rule, situation: &Situation) -> bool {
    let age = u64::try_from(situation.now.0.saturating_sub(situation.taken_at.0)).unwrap_or(0);
    situation.work() > rule.least.max(situation.database / rule.part.max(1)) || u128::from(age) > rule.age.as_millis()
}

/// It has been due for as long again, or as much: whoever was asked for a state of the database had no moment to give one.
pub(super) fn is_overdue(rule: &Rule, situation: &Situation) -> bool {
    let twice = Rule {
        age: rule.age.saturating_mul(2),
        ..*rule
    };
    let half = Situation {
        logged: situation.logged / 2,
        stored: situation.stored / 2,
        ..*situation
    };
    is_due(&twice, &half)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 60 * 60 * 1000;

    fn due(stored: u64, database: u64, age: i64) -> bool {
        let situation = Situation {
            logged: 0,
            stored,
            database,
            taken_at: UnixMillis(5 * DAY),
            now: UnixMillis(5 * DAY + age),
        };
        is_due(&Rule::default(), &situation)
    }

    #[test]
    fn what_was_logged_outweighs_half_of_the_database_and_128_mib() {
        assert!(!due(128 << 20, 1 << 20, 0));
        assert!(due((128 << 20) + 1, 1 << 20, 0));
        assert!(!due(500 << 20, 1000 << 20, 0));
        assert!(due((500 << 20) + 1, 1000 << 20, 0));
    }

    #[test]
    fn pages_that_compress_to_little_still_have_to_be_written() {
        let due = |logged, stored| {
            let situation = Situation {
                logged,
                stored,
                database: 1 << 20,
                taken_at: UnixMillis(0),
                now: UnixMillis(0),
            };
            is_due(&Rule::default(), &situation)
        };
        assert!(!due(2 << 30, 0));
        assert!(due((2 << 30) + 16, 0));
        assert!(!due(1 << 30, 64 << 20));
        assert!(due(1 << 30, (64 << 20) + 1));
    }

    #[test]
    fn an_image_is_overdue_after_twice_of_that() {
        let overdue = |stored, age| {
            let situation = Situation {
                logged: 0,
                stored,
                database: 1 << 20,
                taken_at: UnixMillis(5 * DAY),
                now: UnixMillis(5 * DAY + age),
            };
            is_overdue(&Rule::default(), &situation)
        };
        assert!(!overdue(256 << 20, 2 * DAY));
        assert!(overdue((256 << 20) + 2, 0));
        assert!(overdue(4096, 2 * DAY + 1));
    }

    #[test]
    fn the_last_image_is_more_than_a_day_old() {
        assert!(!due(4096, 1 << 40, DAY));
        assert!(due(4096, 1 << 40, DAY + 1));
        assert!(!due(4096, 1 << 40, -10 * DAY));
        let far = Situation {
            logged: 1,
            stored: 1,
            database: 1,
            taken_at: UnixMillis(i64::MIN),
            now: UnixMillis(i64::MAX),
        };
        assert!(is_due(&Rule::default(), &far));
    }
}
