//! The application: it sells fruit, and writes down who looked at what.

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::Result;

const VISITS: [&str; 7] = ["/", "/apples", "/", "/pears", "/apples", "/", "/plums"];
const SOLD: [&str; 3] = ["apples", "pears", "plums"];
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS view (id INTEGER PRIMARY KEY, at INTEGER NOT NULL, page TEXT NOT NULL, agent TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS purchase (id INTEGER PRIMARY KEY, at INTEGER NOT NULL, item TEXT NOT NULL, cents INTEGER NOT NULL);
    -- All that the dashboard asks for is in these two: it fetches them, and leaves the tables where they are.
    CREATE INDEX IF NOT EXISTS view_by_time ON view (at, page);
    CREATE INDEX IF NOT EXISTS purchase_by_time ON purchase (at, cents);";

/// The application at work, in a thread of its own.
pub(super) struct Shop {
    stop: mpsc::Sender<()>,
    worker: JoinHandle<Result<()>>,
}

impl Shop {
    /// Opens the database through replvfs, and begins to sell. Something is in the replica when this returns.
    pub(super) fn open(database: &Path, replica: &str) -> Result<Shop> {
        let uri = format!("file:{}?vfs=replvfs&replica={replica}", database.display());
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI;
        let mut connection = Connection::open_with_flags(uri, flags).map_err(super::board::reason)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.execute_batch(SCHEMA)?;
        serve_customer(&mut connection, 0)?;
        flush(&connection)?;

        let (stop, stopped) = mpsc::channel();
        let worker = std::thread::spawn(move || {
            for customer in 1.. {
                match stopped.recv_timeout(Duration::from_millis(20)) {
                    Err(RecvTimeoutError::Timeout) => serve_customer(&mut connection, customer)?,
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            // Closing uploads what is left, for up to close_timeout. A program that has to know asks for it.
            flush(&connection)
        });
        Ok(Shop { stop, worker })
    }

    /// Stops selling, and returns when all of it is in the replica.
    pub(super) fn close(self) -> Result<()> {
        // It has ended already if that fails, and says why below.
        let _ = self.stop.send(());
        self.worker.join().map_err(|_| "the shop panicked")?
    }
}

/// One transaction: a view, and now and then a purchase. It waits for no store.
fn serve_customer(connection: &mut Connection, customer: usize) -> Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute(
        "INSERT INTO view (at, page, agent) VALUES (unixepoch(), ?1, 'Mozilla/5.0')",
        [VISITS[customer % VISITS.len()]],
    )?;
    if customer.is_multiple_of(4) {
        transaction.execute(
            "INSERT INTO purchase (at, item, cents) VALUES (unixepoch(), ?1, ?2 * 25)",
            (SOLD[customer % SOLD.len()], (6 + customer % 5) as u32),
        )?;
    }
    Ok(transaction.commit()?)
}

fn flush(connection: &Connection) -> Result<()> {
    Ok(connection.query_row("PRAGMA replvfs_flush", [], |_| Ok(()))?)
}
