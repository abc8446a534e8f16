//! A replica that is named by itself, without the database that it is of: what the file says of the one, it says of the other.

use super::file::{File, Keys, Said};
use super::placeholder::{fill_in, is_like};
use super::{Config, ConfigError};
use crate::store::{Store, StoreError, StoreKeys, StoreOptions, scheme_of, takes_keys};

/// Why a replica cannot be opened by its name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// A setting is wrong, or none names the replica.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The replica cannot be opened with these settings.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Config {
    /// Opens a replica that is named by its URI, or by the path of a database for which one is set here, in the file, or in the environment. No request
    /// is made.
    ///
    /// A URI gets the keys of the store that are at the top of the file, and those of the `[[database]]` table with that replica. Without a query it has
    /// the one that is written there, too.
    ///
    /// # Errors
    ///
    /// When a setting is wrong, when no replica is set for the database, or when the replica cannot be opened.
    pub fn open_replica(&self, which: &str, options: &StoreOptions) -> Result<Store, NameError> {
        let config = || self.clone().with_environment(|name| std::env::var_os(name));
        if !which.contains("://") {
            let config = config()?;
            let path = std::path::absolute(which).map_err(|error| ConfigError(format!("{which}: {error}")))?;
            return match config.explained(&path)?.store(options)? {
                Some(store) => Ok(store),
                None => Err(no_replica(which).into()),
            };
        }
        // One that takes no keys is opened whatever the state of the file.
        let (uri, keys) = match takes_keys(&scheme_of(which)) {
            true => config()?.completed(which)?,
            false => (which.to_owned(), StoreKeys::default()),
        };
        Ok(Store::open_with(&uri, &keys, options)?)
    }

    /// A replica's URI and the keys of its store, with what the file says of it.
    pub(crate) fn completed(&self, uri: &str) -> Result<(String, StoreKeys), ConfigError> {
        let file = self.read_file()?.unwrap_or_default();
        let (table, set) = file.who_sets(uri);
        let none = Said::default();
        let keys = Keys::of(table.unwrap_or(&none), &file.everywhere).for_replica(uri);
        let uri = match set.and_then(|set| set.split_once('?')) {
            Some((_, query)) if !uri.contains('?') => format!("{uri}?{query}"),
            _ => uri.to_owned(),
        };
        Ok((uri, keys))
    }
}

fn no_replica(which: &str) -> ConfigError {
    ConfigError(format!(
        "{which} is not the URI of a replica, and no replica is set for a database of this path: write a URI such as s3://bucket/app, or name the \
         database in the file of REPLVFS_CONFIG"
    ))
}

impl File {
    /// What is said of the databases that have this replica, by their table, and the URI as it is written there.
    fn who_sets(&self, uri: &str) -> (Option<&Said>, Option<&str>) {
        let wanted = place(uri);
        let everywhere = self.everywhere.given.replica.as_deref();
        let of_table = self.tables.iter().find_map(|table| {
            let set = table.said.given.replica.as_deref().or(everywhere)?;
            let is_it = match table.pattern.path() {
                Some(path) => fill_in(set, path).is_ok_and(|set| place(&set) == wanted),
                None => is_like(&place(set), &wanted),
            };
            is_it.then_some((Some(&table.said), Some(set)))
        });
        of_table.unwrap_or_else(|| (None, everywhere.filter(|set| is_like(&place(set), &wanted))))
    }
}

/// What of a URI says where it is.
fn place(uri: &str) -> String {
    let place = uri.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    match place.split_once("://") {
        Some((scheme, rest)) => format!("{}://{rest}", scheme.to_ascii_lowercase()),
        None => place.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const FILE: &str = r#"
        [store]
        access_key_id = "top"
        region = "top-region"
        [[database]]
        path = "/srv/app.db"
        replica = "s3://backup/app?endpoint=http://here"
        [database.store]
        access_key_id = "app"
        [[database]]
        path = "/srv/one.db"
        replica = "s3://backup/single/{name}"
        [database.store]
        access_key_id = "one"
        [[database]]
        path = "/srv/tenants/*.db"
        replica = "s3://backup/{name}/of/{name}?region=theirs"
        [database.store]
        access_key_id = "tenant"
    "#;

    fn completed(uri: &str) -> (String, Option<String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replvfs.toml");
        std::fs::write(&path, FILE).unwrap();
        let config = Config::default().config_file(path).with_environment(|_| None).unwrap();
        let (uri, keys) = config.completed(uri).unwrap();
        let all = keys.besides(&[]);
        let key = all
            .filter(|(name, _)| name == "access_key_id")
            .map(|(_, value)| value.clone());
        (uri, key.last())
    }

    #[test]
    fn a_replica_gets_what_is_said_where_it_is_set() {
        for (named, whole, key) in [
            ("s3://backup/app", "s3://backup/app?endpoint=http://here", "app"),
            ("S3://backup/app/", "S3://backup/app/?endpoint=http://here", "app"),
            ("s3://backup/app?region=mine", "s3://backup/app?region=mine", "app"),
            ("s3://backup/apple", "s3://backup/apple", "top"),
            ("s3://backup", "s3://backup", "top"),
            ("s3://backup/single/one.db", "s3://backup/single/one.db", "one"),
            ("s3://backup/single/two.db", "s3://backup/single/two.db", "top"),
            (
                "s3://backup/a.db/of/a.db",
                "s3://backup/a.db/of/a.db?region=theirs",
                "tenant",
            ),
            ("s3://backup/a.db/of/b.db", "s3://backup/a.db/of/b.db", "top"),
            ("s3://backup//of/", "s3://backup//of/", "top"),
            ("s3://backup/x/y/of/x/y", "s3://backup/x/y/of/x/y", "top"),
            ("s3://backup/ä/of/öö", "s3://backup/ä/of/öö", "top"),
        ] {
            assert_eq!(completed(named), (whole.to_owned(), Some(key.to_owned())), "{named}");
        }
    }

    #[test]
    fn a_database_stands_for_its_replica() {
        let folder = tempfile::tempdir().unwrap();
        let (file, replica) = (folder.path().join("replvfs.toml"), folder.path().join("replica"));
        let text = format!(
            "[[database]]\npath = \"*.db\"\nreplica = \"fs://{}/{{name}}\"\n",
            replica.display()
        );
        std::fs::write(&file, text).unwrap();
        let config = Config::default().config_file(file);
        let of = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let options = StoreOptions::default();
        let store = config.open_replica(&of("app.db"), &options).unwrap();
        assert_eq!(store.replica(), format!("fs://{}/app.db", replica.display()));
        let error = config
            .open_replica(&of("other.sqlite"), &options)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no replica is set for a database of this path"),
            "{error}"
        );
    }

    #[test]
    fn a_folder_needs_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::default().config_file(folder.path().join("missing.toml"));
        let uri = format!("fs://{}", folder.path().display());
        assert!(config.open_replica(&uri, &StoreOptions::reading()).is_ok());
        #[cfg(feature = "s3")]
        {
            let error = config
                .open_replica("s3://bucket/app", &StoreOptions::reading())
                .unwrap_err();
            assert!(error.to_string().contains("missing.toml"), "{error}");
        }
    }
}
