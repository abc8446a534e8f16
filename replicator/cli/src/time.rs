//! Times as people write and read them.

use std::str::FromStr;

use jiff::civil::DateTime;
use jiff::{Timestamp, tz::TimeZone};
use replvfs_vfs::types::UnixMillis;

/// A time from the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At {
    /// The time, without what is finer than a millisecond.
    pub(crate) time: UnixMillis,
    /// It came without an offset.
    pub(crate) assumed_utc: bool,
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<At, String> {
        let (timestamp, assumed_utc) = match text.parse::<Timestamp>() {
            Ok(timestamp) => (timestamp, false),
            Err(_) => {
                let timestamp = text
                    .parse::<DateTime>()
                    .and_then(|civil| civil.to_zoned(TimeZone::UTC))
                    .map_err(|_| "write it as 2026-01-02T03:04:05Z, 2026-01-02T03:04:05.678+01:00 or 2026-01-02 03:04:05 (UTC)")?
                    .timestamp();
                (timestamp, true)
            }
        };
        Ok(At {
            time: UnixMillis(timestamp.as_millisecond()),
            assumed_utc,
        })
    }
}

/// RFC 3339 in UTC, to the millisecond.
pub(crate) fn show(time: UnixMillis) -> String {
    match Timestamp::from_millisecond(time.0) {
        Ok(timestamp) => format!("{timestamp:.3}"),
        Err(_) => format!("{} ms", time.0),
    }
}

/// How long ago something was, in the two largest units that matter.
pub(crate) fn show_age(ms: i64) -> String {
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
        for (text, shown, assumed_utc) in [
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000Z", false),
            ("2026-01-02T03:04:05.6789+01:00", "2026-01-02T02:04:05.678Z", false),
            ("2026-01-02 03:04:05", "2026-01-02T03:04:05.000Z", true),
            ("2026-01-02", "2026-01-02T00:00:00.000Z", true),
        ] {
            let at: At = text.parse().unwrap();
            assert_eq!((show(at.time).as_str(), at.assumed_utc), (shown, assumed_utc), "{text}");
        }
        assert!("yesterday".parse::<At>().unwrap_err().contains("2026-01-02T03:04:05Z"));
    }
}
