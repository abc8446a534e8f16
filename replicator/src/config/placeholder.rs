//! `{name}` and `{path}` in a replica's URI: how several databases get replicas of their own by one setting.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use super::ConfigError;
use crate::store::redacted;

/// The database's file name.
const NAME: &str = "{name}";
/// Its full path, without the `/` that it begins with.
const PATH: &str = "{path}";
/// What no name leads anywhere else with.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Whether databases in one folder get replicas of their own. What stands in the query says nothing of the place.
pub(super) fn tells_apart(replica: &str) -> bool {
    let path = replica.split('?').next().unwrap_or_default();
    path.contains(NAME) || path.contains(PATH)
}

/// Whether databases with the same name in different folders do, too.
pub(super) fn tells_folders_apart(replica: &str) -> bool {
    replica.split('?').next().unwrap_or_default().contains(PATH)
}

/// The replica of a database that has this name, and need not have a file.
pub(crate) fn replica_of(replica: &str, name: &str) -> Result<String, String> {
    fill_in(replica, Path::new(name)).map_err(|error| error.to_string())
}

/// Puts the database's name or path into the replica, encoded so that it leads nowhere else.
pub(super) fn fill_in(replica: &str, database: &Path) -> Result<String, ConfigError> {
    let rest = replica.replace(NAME, "").replace(PATH, "");
    if rest.contains(['{', '}']) {
        return Err(ConfigError(format!(
            "the replica {} contains braces: only {{name}} and {{path}} have a meaning in them",
            redacted(replica)
        )));
    }
    let (placeholder, value) = match (replica.contains(NAME), replica.contains(PATH)) {
        (false, false) => return Ok(replica.to_owned()),
        (true, false) => (NAME, database.file_name().map(encoded)),
        (false, true) => (PATH, encoded_path(database)),
        (true, true) => {
            return Err(ConfigError(format!(
                "the replica {} contains {{name}} and {{path}}: leave {{name}} out, which is the end of {{path}}",
                redacted(replica)
            )));
        }
    };
    match value {
        Some(value) => Ok(replica.replace(placeholder, &value)),
        None => Err(ConfigError(format!(
            "{} has no file name to put into the replica",
            database.display()
        ))),
    }
}

fn encoded(name: &OsStr) -> String {
    percent_encode(name.as_bytes(), UNRESERVED).to_string()
}

fn encoded_path(path: &Path) -> Option<String> {
    path.file_name()?;
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(encoded(name)),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(names.join("/"))
}

/// Whether the replica of some database can be at this place. Both without a query.
pub(super) fn is_like(set: &str, place: &str) -> bool {
    let placeholder = if set.contains(PATH) { PATH } else { NAME };
    let Some(start) = set.find(placeholder) else {
        return set == place;
    };
    let times = set.matches(placeholder).count();
    let length = place.len().saturating_sub(set.len() - times * placeholder.len()) / times;
    match place.get(start..start + length) {
        None | Some("") => false,
        Some(value) => (placeholder == PATH || !value.contains('/')) && set.replace(placeholder, value) == place,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_database_gets_a_place_of_its_own() {
        for (replica, database, filled) in [
            ("s3://b/app", "/srv/app.db", "s3://b/app"),
            ("s3://b/{name}", "/srv/app.db", "s3://b/app.db"),
            ("s3://b/{path}", "/srv/app.db", "s3://b/srv/app.db"),
            (
                "s3://b/x{path}y?z={path}",
                "/srv/app.db",
                "s3://b/xsrv/app.dby?z=srv/app.db",
            ),
            (
                "s3://b/{name}",
                "/a?b#c{name}/d&e%2F ä{path}",
                "s3://b/d%26e%252F%20%C3%A4%7Bpath%7D",
            ),
            ("s3://b/{path}", "/a?b#c/d", "s3://b/a%3Fb%23c/d"),
            ("s3://b/{path}", "/a//b/./c", "s3://b/a/b/c"),
        ] {
            assert_eq!(
                fill_in(replica, Path::new(database)).unwrap(),
                filled,
                "{replica} {database}"
            );
        }
        let odd = Path::new(OsStr::from_bytes(b"/\xff/\xfe"));
        assert_eq!(fill_in("fs:///r/{path}", odd).unwrap(), "fs:///r/%FF/%FE");
    }

    #[test]
    fn what_leads_elsewhere_or_nowhere_is_refused() {
        for (replica, database, says) in [
            ("s3://b/{nam}", "/srv/app.db", "only {name} and {path}"),
            ("s3://b/{", "/srv/app.db", "only {name} and {path}"),
            ("s3://b/{path}/{name}", "/srv/app.db", "leave {name} out"),
            ("s3://b/{name}", "/", "no file name"),
            ("s3://b/{path}", "/", "no file name"),
            ("s3://b/{path}", "/srv/..", "no file name"),
            ("s3://b/{path}", "/srv/../app.db", "no file name"),
        ] {
            let error = fill_in(replica, Path::new(database)).unwrap_err().to_string();
            assert!(error.contains(says), "{replica} {database}: {error}");
        }
    }

    #[test]
    fn what_a_setting_can_mean() {
        for (set, place, can) in [
            ("s3://b/app", "s3://b/app", true),
            ("s3://b/app", "s3://b/app2", false),
            ("s3://b/{name}", "s3://b/app.db", true),
            ("s3://b/{name}", "s3://b/srv/app.db", false),
            ("s3://b/{name}", "s3://b/", false),
            ("s3://b/{name}", "s3://", false),
            ("s3://b/{path}", "s3://b/srv/app.db", true),
            ("s3://b/{path}/x", "s3://b/srv/app.db", false),
            ("s3://b/{name}/of/{name}", "s3://b/ä/of/ä", true),
            ("s3://b/{name}/of/{name}", "s3://b/a/of/b", false),
            ("s3://b/{name}/of/{name}", "s3://b/ä/of/öö", false),
        ] {
            assert_eq!(is_like(set, place), can, "{set} {place}");
        }
    }
}
