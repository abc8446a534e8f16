//! The paths of `[[database]]` tables: of one database, or a glob for several.
//!
//! SQLite resolves symbolic links before a VFS gets a path, and older releases do not. So the path of a database, and what a pattern says before its first
//! wildcard, are both taken as they are written and as they resolve.

use std::fs;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// As long as a path can be on the systems that there are.
const LONGEST_BYTES: usize = 4096;

pub(super) struct Pattern {
    shown: String,
    kind: Kind,
}

enum Kind {
    Path(PathBuf),
    Glob {
        folder: PathBuf,
        below: GlobSet,
        /// Two databases with the same name can match it.
        over_folders: bool,
    },
}

impl Pattern {
    /// `base` is the folder that a relative path starts from.
    pub(super) fn parse(text: &str, base: &Path) -> Result<Pattern, String> {
        refuse_what_is_no_path(text)?;
        let Some(wildcard) = text.find(['*', '?', '[', ']', '{', '}', '\\']) else {
            let kind = Kind::Path(base.join(text));
            return Ok(Pattern {
                shown: text.to_owned(),
                kind,
            });
        };
        let start = text[..wildcard].rfind('/').map_or(0, |at| at + 1);
        let (folder, below) = text.split_at(start);
        let glob = GlobBuilder::new(below).literal_separator(true).build();
        let glob = glob.map_err(|error| format!("the path is not a glob: {}", error.kind()))?;
        // Not the matcher of a single glob: that one panics where the pattern is too large.
        let set = GlobSetBuilder::new().add(glob).build();
        Ok(Pattern {
            shown: text.to_owned(),
            kind: Kind::Glob {
                folder: base.join(folder),
                below: set.map_err(|error| format!("the path is not a glob: {}", error.kind()))?,
                over_folders: below.contains('/') || below.contains("**"),
            },
        })
    }

    /// As it is written.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Of the one database, if it is no glob.
    pub(super) fn path(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Path(path) => Some(path),
            Kind::Glob { .. } => None,
        }
    }

    pub(super) fn is_glob(&self) -> bool {
        matches!(self.kind, Kind::Glob { .. })
    }

    /// Whether it is for databases in more than one folder.
    pub(super) fn is_over_folders(&self) -> bool {
        matches!(self.kind, Kind::Glob { over_folders: true, .. })
    }

    /// Whether both are for the same one database, as they are written.
    pub(super) fn is_same_path(&self, other: &Pattern) -> bool {
        match (&self.kind, &other.kind) {
            (Kind::Path(one), Kind::Path(other)) => one == other,
            _ => false,
        }
    }

    /// `databases` are the spellings of one path.
    pub(super) fn matches(&self, databases: &[PathBuf]) -> bool {
        match &self.kind {
            Kind::Path(path) => spellings(path).iter().any(|path| databases.contains(path)),
            Kind::Glob { folder, below, .. } => {
                let resolved = fs::canonicalize(folder).ok();
                let folders = || [Some(folder), resolved.as_ref()].into_iter().flatten();
                databases.iter().any(|path| {
                    folders().any(|folder| path.strip_prefix(folder).is_ok_and(|rest| below.is_match(rest)))
                })
            }
        }
    }
}

/// The path as it is, and as it resolves, if that is another one. The file itself need not be there.
pub(super) fn spellings(path: &Path) -> Vec<PathBuf> {
    let resolved = fs::canonicalize(path).ok().or_else(|| {
        let folder = fs::canonicalize(path.parent()?).ok()?;
        Some(folder.join(path.file_name()?))
    });
    let mut all = vec![path.to_owned()];
    all.extend(resolved.filter(|resolved| resolved != path));
    all
}

fn refuse_what_is_no_path(text: &str) -> Result<(), String> {
    let why = if text.is_empty() || text == ":memory:" {
        "the path is of no file: write the path of a database, or a glob such as /srv/data/*.db".to_owned()
    } else if text.contains('\0') {
        "the path contains a NUL: write the path of a database".to_owned()
    } else if text.len() > LONGEST_BYTES {
        format!("the path is longer than {LONGEST_BYTES} bytes")
    } else if text.starts_with('~') {
        "the path begins with ~, which only a shell knows: write the whole path".to_owned()
    } else if text.starts_with("file:") || text.contains("://") {
        "the path is a URI: write the path of the database's file, without file: and parameters".to_owned()
    } else if text.ends_with('/') {
        format!("the path is a folder: write {text}*.db for all databases in it")
    } else {
        return Ok(());
    };
    Err(why)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        let pattern = Pattern::parse(pattern, Path::new("/etc/replvfs")).unwrap();
        pattern.matches(&spellings(Path::new(path)))
    }

    #[test]
    fn paths_and_globs() {
        for (pattern, path, wanted) in [
            ("/srv/app.db", "/srv/app.db", true),
            ("/srv/./app.db", "/srv/app.db", true),
            ("/srv/app.db", "/srv/app.db2", false),
            ("app.db", "/etc/replvfs/app.db", true),
            ("./data/app.db", "/etc/replvfs/data/app.db", true),
            ("*.db", "/etc/replvfs/app.db", true),
            ("*.db", "/srv/app.db", false),
            ("/srv/*.db", "/srv/app.db", true),
            ("/srv/*.db", "/srv/deep/app.db", false),
            ("/srv/*/app.db", "/srv/one/app.db", true),
            ("/srv/*/app.db", "/srv/one/two/app.db", false),
            ("/srv/**/*.db", "/srv/one/two/app.db", true),
            ("/srv/**/*.db", "/srv/app.db", true),
            ("/srv/app-?.db", "/srv/app-1.db", true),
            ("/srv/app-[0-9].db", "/srv/app-x.db", false),
            ("/srv/{a,b}.db", "/srv/b.db", true),
            ("/srv/a\\*.db", "/srv/a*.db", true),
            ("/srv/a\\*.db", "/srv/ab.db", false),
            ("/*", "/app.db", true),
        ] {
            assert_eq!(matches(pattern, path), wanted, "{pattern} {path}");
        }
    }

    #[test]
    fn links_are_no_way_around_a_pattern() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap().join("real");
        fs::create_dir(&real).unwrap();
        let link = real.with_file_name("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        for (pattern, path) in [
            (link.join("app.db"), real.join("app.db")),
            (real.join("app.db"), link.join("app.db")),
            (link.join("*.db"), real.join("app.db")),
            (real.join("*.db"), link.join("app.db")),
            (link.join("../real/*.db"), real.join("app.db")),
        ] {
            assert!(
                matches(pattern.to_str().unwrap(), path.to_str().unwrap()),
                "{pattern:?} {path:?}"
            );
        }
        fs::write(real.join("target.db"), "").unwrap();
        std::os::unix::fs::symlink("target.db", real.join("alias.db")).unwrap();
        assert!(matches(
            real.join("alias.db").to_str().unwrap(),
            real.join("target.db").to_str().unwrap()
        ));
        assert!(!matches(
            real.join("app.db").to_str().unwrap(),
            real.join("target.db").to_str().unwrap()
        ));
    }

    #[test]
    fn what_is_no_path_is_refused() {
        let long = format!("/{}", "x".repeat(LONGEST_BYTES));
        let large = format!("/{}", "{a,b,c,d}{e,f}*".repeat(250));
        for (text, says) in [
            ("", "of no file"),
            (":memory:", "of no file"),
            ("~/app.db", "whole path"),
            ("file:app.db?mode=ro", "is a URI"),
            ("/srv/data/", "write /srv/data/*.db"),
            ("/srv/[a.db", "not a glob"),
            ("/srv/{a.db", "not a glob"),
            ("/srv/a}.db", "not a glob"),
            ("/srv/a\0.db", "NUL"),
            (long.as_str(), "longer than"),
        ] {
            let error = Pattern::parse(text, Path::new("/")).map(|_| ()).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        // Not too large, or an error: no panic.
        let _ = Pattern::parse(&large, Path::new("/")).map(|_| ());
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[-a\\*?\\[\\]{},!\\\\/.]{0,60}", path in "[-a*?/.]{0,20}") {
            if let Ok(pattern) = Pattern::parse(&text, Path::new("/x")) {
                pattern.matches(&[PathBuf::from(path)]);
            }
        }
    }
}
