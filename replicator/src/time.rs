//! Times as people write and read them: in the URI of a remote database as on the command line.

use std::str::FromStr;

use jiff::civil::DateTime;
use jiff::{Span, Timestamp, tz::TimeZone};
use replvfs_vfs::types::UnixMillis;

/// A time that was given: RFC 3339, a date and time without an offset, or counted back from now. `FromStr` takes the clock of this machine for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// The time, without what is finer than a millisecond.
    pub time: UnixMillis,
    how: How,
}

/// What was left to us to decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Exact,
    /// It came without an offset.
    AssumedUtc,
    /// It was counted back from now.
    Ago,
}

const EXAMPLES: &str =
    "write it as 2026-01-02T03:04:05Z, 2026-01-02T03:04:05.678+01:00, 2026-01-02 03:04:05 (UTC), or as 5 minutes ago";

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<At, String> {
        At::parse(text, Timestamp::now())
    }
}

impl At {
    fn parse(text: &str, now: Timestamp) -> Result<At, String> {
        let at = |timestamp: Timestamp, how| At {
            time: UnixMillis(timestamp.as_millisecond()),
            how,
        };
        if let Ok(timestamp) = text.parse::<Timestamp>() {
            return Ok(at(timestamp, How::Exact));
        }
        if let Ok(span) = text.trim().parse::<Span>() {
            if !span.is_negative() {
                return Err(format!("{text:?} is not in the past: say {text} ago"));
            }
            let then = now.to_zoned(TimeZone::UTC).checked_add(span);
            let then = then.map_err(|error| format!("no calendar reaches that far back: {error}"))?;
            return Ok(at(then.timestamp(), How::Ago));
        }
        let civil = text.parse::<DateTime>().and_then(|civil| civil.to_zoned(TimeZone::UTC));
        Ok(at(civil.map_err(|_| EXAMPLES)?.timestamp(), How::AssumedUtc))
    }

    /// What a user should know of how the text was taken; `None` where it says all.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let shown = show(self.time);
        match self.how {
            How::Exact => None,
            How::AssumedUtc => Some(format!("the time has no offset; it is taken as UTC: {shown}")),
            How::Ago => Some(format!("that was at {shown}")),
        }
    }
}

/// RFC 3339 in UTC, to the millisecond.
#[must_use]
pub fn show(time: UnixMillis) -> String {
    match Timestamp::from_millisecond(time.0) {
        Ok(timestamp) => format!("{timestamp:.3}"),
        Err(_) => format!("{} ms", time.0),
    }
}

/// How long ago something was, in the two largest units that matter.
#[must_use]
pub fn show_age(ms: i64) -> String {
    if ms < 0 {
        return "ahead of this machine's clock".to_owned();
    }
    let seconds = ms / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s ago"),
        (0, 0, _) => format!("{minutes} min {} s ago", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min ago"),
        _ => format!("{days} d {hours} h ago"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn ages_are_shown_in_what_matters() {
        for (ms, shown) in [
            (-1, "ahead of this machine's clock"),
            (999, "0 s ago"),
            (61_000, "1 min 1 s ago"),
            (3_600_000, "1 h 0 min ago"),
            (90_000_000, "1 d 1 h ago"),
        ] {
            assert_eq!(show_age(ms), shown);
        }
    }

    #[test]
    fn times_are_read_and_shown() {
        for (text, shown, how) in [
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000Z", How::Exact),
            ("2026-01-02T03:04:05.6789+01:00", "2026-01-02T02:04:05.678Z", How::Exact),
            ("2026-01-02 03:04:05", "2026-01-02T03:04:05.000Z", How::AssumedUtc),
            ("2026-01-02", "2026-01-02T00:00:00.000Z", How::AssumedUtc),
        ] {
            let at: At = text.parse().unwrap();
            assert_eq!((show(at.time).as_str(), at.how), (shown, how), "{text}");
            assert_eq!(at.note().is_none(), how == How::Exact, "{text}");
        }
        assert!("yesterday".parse::<At>().unwrap_err().contains("2026-01-02T03:04:05Z"));
    }

    #[test]
    fn times_are_counted_back_from_now() {
        let now: Timestamp = "2026-03-01T00:01:00.5Z".parse().unwrap();
        for (text, shown) in [
            ("5 minutes ago", "2026-02-28T23:56:00.500Z"),
            ("90s ago", "2026-02-28T23:59:30.500Z"),
            ("1 hour 30 minutes ago", "2026-02-28T22:31:00.500Z"),
            ("2 days ago", "2026-02-27T00:01:00.500Z"),
            ("1 week ago", "2026-02-22T00:01:00.500Z"),
            ("1 month ago", "2026-02-01T00:01:00.500Z"),
            (" 3h ago ", "2026-02-28T21:01:00.500Z"),
            ("-PT1M", "2026-03-01T00:00:00.500Z"),
        ] {
            let at = At::parse(text, now).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((show(at.time).as_str(), at.how), (shown, How::Ago), "{text}");
            assert!(at.note().unwrap().contains(shown), "{text}");
        }
        for wrong in [
            "5 minutes",
            "0s ago",
            "ago",
            "5 ago",
            "minutes ago",
            "99999 years ago",
            "5 minutes ago Z",
        ] {
            assert!(At::parse(wrong, now).is_err(), "{wrong}");
        }
        assert!(At::parse("5 minutes", now).unwrap_err().contains("5 minutes ago"));
    }
}
