//! The dashboard: a connection that follows the replica, and others that look back.

use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags};

use super::Result;

/// Of the last quarter of an hour, as JSON.
const NUMBERS: &str = "
    WITH since(at) AS (SELECT coalesce(max(at), 0) / 60 * 60 - 14 * 60 FROM view),
    minutes AS (
        SELECT at / 60 * 60 AS minute, sum(views) AS views, sum(purchases) AS purchases, sum(cents) AS cents FROM (
            SELECT at, 1 AS views, 0 AS purchases, 0 AS cents FROM view WHERE at >= (SELECT at FROM since)
            UNION ALL
            SELECT at, 0, 1, cents FROM purchase WHERE at >= (SELECT at FROM since)
        ) GROUP BY minute ORDER BY minute DESC
    ),
    pages AS (
        SELECT page, count(*) AS views FROM view WHERE at >= (SELECT at FROM since)
        GROUP BY page ORDER BY views DESC, page LIMIT 5
    )
    SELECT json_object(
        -- Rows are only added, so the last number is how many there are, and costs a page instead of a scan.
        'views', (SELECT max(id) FROM view),
        'minutes', json((SELECT json_group_array(json_object('minute', strftime('%H:%M', minute, 'unixepoch'),
            'views', views, 'purchases', purchases, 'cents', cents)) FROM minutes)),
        'pages', json((SELECT json_group_array(json_object('page', page, 'views', views)) FROM pages)),
        'newest', json((SELECT json_object('id', id, 'item', item, 'cents', cents, 'time', datetime(at, 'unixepoch'))
            FROM purchase ORDER BY id DESC LIMIT 1)))";

/// Answers from a replica.
pub(super) struct Board {
    replica: String,
    newest: Mutex<Connection>,
}

impl Board {
    pub(super) fn open(replica: &str) -> Result<Board> {
        Ok(Board {
            replica: replica.to_owned(),
            newest: Mutex::new(connect(replica, "&follow=1s")?),
        })
    }

    /// The newest state that is here. The connection looks for a newer one by itself, once a second.
    pub(super) fn newest(&self) -> Result<String> {
        numbers(&mut self.newest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The state as of a time: RFC 3339, or `5 minutes ago`. What has been fetched is shared by all connections, so this one costs little.
    pub(super) fn at(&self, time: &str) -> Result<String> {
        let mut connection = connect(&self.replica, "")?;
        connection.pragma_update(None, "replvfs_at", time)?;
        numbers(&mut connection)
    }
}

fn connect(replica: &str, parameters: &str) -> Result<Connection> {
    // No such file is made or looked for.
    let uri = format!("file:shop.db?vfs=replvfs-remote&replica={replica}{parameters}");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    Ok(Connection::open_with_flags(uri, flags).map_err(reason)?)
}

/// SQLite says of an open that it failed; replvfs, why.
pub(super) fn reason(error: rusqlite::Error) -> String {
    match replvfs::last_open_error() {
        Some(reason) => format!("{error}: {reason}"),
        None => error.to_string(),
    }
}

fn numbers(connection: &mut Connection) -> Result<String> {
    read(connection).map_err(|error| {
        // The store may be away for a while. The next answer tries again.
        let status = connection.query_row("PRAGMA replvfs_status", [], |row| row.get::<_, String>(0));
        format!("{error}; {}", status.unwrap_or_default()).into()
    })
}

fn read(connection: &mut Connection) -> rusqlite::Result<String> {
    // Within a transaction all is as of one moment, however far the application gets meanwhile.
    let transaction = connection.transaction()?;
    let numbers: String = transaction.query_row(NUMBERS, [], |row| row.get(0))?;
    let txid: String = transaction.query_row("PRAGMA replvfs_txid", [], |row| row.get(0))?;
    let at: String = transaction.query_row("PRAGMA replvfs_at", [], |row| row.get(0))?;
    Ok(format!(r#"{{"txid":{txid},"at":"{at}","numbers":{numbers}}}"#))
}
