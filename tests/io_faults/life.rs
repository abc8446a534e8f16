//! One database's life: a script, a fault in it, the healing, and a last commit; through replvfs or without it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use replvfs::Txid;
use replvfs::history::Target;
use replvfs_tests::{compare_pages, fast_folder, pragma_number, restore_txid, status, try_restore};
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use crate::plan::{Call, Fault, Kind, Method, Run};
use crate::script::{Script, Step};
use crate::vfs;

/// What replvfs has beside the database, and SQLite does not know.
const OWN_FILES: [&str; 4] = [
    "app.db-replvfs",
    "app.db-replvfs-lock",
    "app.db-replvfs-spill",
    "app.db-replvfs-spill-new",
];

/// What SQLite answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Rows(Vec<String>),
    Error(i32, String),
    NotOpen,
}

/// What can be seen of a life.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) answers: Vec<(String, Answer)>,
    pub(crate) calls: Vec<Call>,
    pub(crate) called: Vec<(Method, Kind)>,
    pub(crate) own_calls: Vec<(Method, Kind)>,
    pub(crate) struck: Option<(Method, Kind)>,
    /// What stands in the folder when all is closed, but for the files that only replvfs has.
    pub(crate) files: BTreeSet<String>,
    /// The database at the end, as SQLite reads it without any of us.
    pub(crate) image: Vec<u8>,
    /// What `integrity_check` says of it: reading half a page may have made SQLite write nonsense.
    pub(crate) integrity: String,
}

/// How a life is lived.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) script: &'static Script,
    pub(crate) fault: Option<Fault>,
    pub(crate) replicated: bool,
    /// After every step the database is looked at through a further connection, and what is acknowledged is restored.
    pub(crate) observed: bool,
}

pub(crate) fn live(terms: Terms) -> Result<Life, String> {
    let mut world = World::new(terms);
    world.prepare();
    world.run.arm(terms.fault);
    for step in terms.script.steps {
        world.step(step);
        world.observe()?;
    }
    let acked = world.acked();
    if let Some(acked) = acked {
        world.restores(acked)?;
    }
    world.run.heal();
    world.recover()?;
    let (calls, own_calls, struck) = (world.run.calls(), world.run.own_calls(), world.run.struck());
    if terms.replicated {
        world.flush()?;
        if world.acked() < acked {
            return Err(format!("acked went from {acked:?} to {:?}", world.acked()));
        }
    }
    let newest = world.acked();
    world.connections = [None, None];
    let files = world.files();
    let (image, plain) = plain_look(&world.database());
    let integrity = integrity_of(&plain);
    drop(plain);
    if terms.replicated {
        world.is_restored(newest, &image, &integrity)?;
    }
    Ok(Life {
        answers: std::mem::take(&mut world.answers),
        calls,
        called: world.run.called(),
        own_calls,
        struck,
        files,
        image,
        integrity,
    })
}

struct World {
    terms: Terms,
    _folder: TempDir,
    path: PathBuf,
    replica: String,
    run: Arc<Run>,
    connections: [Option<Connection>; 2],
    answers: Vec<(String, Answer)>,
    /// By txid, the first state that was seen with it.
    truth: BTreeMap<u64, Vec<u8>>,
    /// The last acknowledged txid that was restored.
    looked_at: Option<u64>,
}

impl World {
    fn new(terms: Terms) -> World {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        vfs::register();
        let folder = fast_folder();
        let path = folder.path().canonicalize().unwrap();
        std::fs::create_dir(path.join("db")).unwrap();
        let run = Arc::new(Run::default());
        vfs::assign(&path.join("db"), &run);
        World {
            terms,
            _folder: folder,
            path,
            replica: format!("memory://io-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
            run,
            connections: [None, None],
            answers: Vec::new(),
            truth: BTreeMap::new(),
            looked_at: None,
        }
    }

    fn database(&self) -> PathBuf {
        self.path.join("db").join("app.db")
    }

    fn files(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.path.join("db")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !OWN_FILES.contains(&name.as_str()))
            .collect()
    }

    /// What is there before anything fails.
    fn prepare(&mut self) {
        if self.terms.script.before.is_empty() {
            return;
        }
        self.step(&Step::Open(0));
        for sql in self.terms.script.before {
            self.sql(0, sql);
        }
        self.step(&Step::Close(0));
        for (what, answer) in self.answers.drain(..) {
            assert!(matches!(answer, Answer::Rows(_)), "{what}: {answer:?}");
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Open(at) => self.open(at),
            Step::Close(at) => {
                let answer = match self.connections[at].take().map(Connection::close) {
                    None => Answer::NotOpen,
                    Some(Ok(())) => Answer::Rows(Vec::new()),
                    Some(Err((_, error))) => error_of(&error),
                };
                self.answers.push((format!("close {at}"), answer));
            }
            Step::Sql(at, sql) => self.sql(at, sql),
        }
    }

    fn open(&mut self, at: usize) {
        let database = self.database();
        let (uri, name) = if self.terms.replicated {
            // What a close does not wait for stays in the WAL, which SQLite then finds there, and the next look without replvfs takes away.
            let uri = format!(
                "file:{}?replica={}&timeout=5s&close_timeout=30s&flush_interval=10ms",
                database.display(),
                self.replica
            );
            (uri, vfs::REPLICATED)
        } else {
            (format!("file:{}", database.display()), vfs::PLAIN)
        };
        let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
        let answer = match Connection::open_with_flags_and_vfs(uri, flags, name) {
            Ok(connection) => {
                connection.busy_timeout(std::time::Duration::ZERO).unwrap();
                self.connections[at] = Some(connection);
                Answer::Rows(Vec::new())
            }
            // rusqlite adds the path, which differs.
            Err(error) => match error_of(&error) {
                Answer::Error(code, _) => Answer::Error(code, String::new()),
                other => other,
            },
        };
        self.answers.push((format!("open {at}"), answer));
        if self.connections[at].is_some() {
            self.use_mode(at);
        }
    }

    fn use_mode(&mut self, at: usize) {
        let script = self.terms.script;
        if script.name != "large" {
            self.sql(at, "PRAGMA page_size=512");
        }
        if script.exclusive {
            self.sql(at, "PRAGMA locking_mode=EXCLUSIVE");
        }
        self.sql(at, &format!("PRAGMA journal_mode={}", script.journal_mode));
    }

    fn sql(&mut self, at: usize, sql: &str) {
        let answer = self.connections[at]
            .as_ref()
            .map_or(Answer::NotOpen, |connection| ask(connection, sql));
        self.answers.push((format!("{at}: {sql}"), answer));
    }

    /// After the healing: the application ends what it was in, and commits once more.
    fn recover(&mut self) -> Result<(), String> {
        for at in 0..2 {
            if self.connections[at]
                .as_ref()
                .is_some_and(|connection| !connection.is_autocommit())
            {
                self.sql(at, "ROLLBACK");
            }
        }
        const LAST: [&str; 2] = [
            "CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)",
            "INSERT INTO t(b) VALUES('healed')",
        ];
        for again in [false, true] {
            if again {
                self.step(&Step::Close(1));
                self.step(&Step::Close(0));
            }
            match self.connections[0] {
                None => self.open(0),
                Some(_) => self.use_mode(0),
            }
            LAST.iter().for_each(|sql| self.sql(0, sql));
            if matches!(self.answers.last(), Some((_, Answer::Rows(_)))) && self.is_in_mode() {
                self.observe()?;
                return Ok(());
            }
        }
        // Half a page that SQLite took for a whole one may have cost the database its schema.
        match &self.answers.last().unwrap().1 {
            Answer::Error(code, _) if code & 0xff == rusqlite::ffi::SQLITE_CORRUPT => Ok(()),
            _ => Err(format!("no commit after the healing: {:#?}", self.answers)),
        }
    }

    fn is_in_mode(&self) -> bool {
        let Some(connection) = &self.connections[0] else {
            return false;
        };
        let mode = self.run.aside(|| ask(connection, "PRAGMA journal_mode"));
        mode == Answer::Rows(vec![format!(
            "{:?}",
            rusqlite::types::Value::Text(self.terms.script.journal_mode.into())
        )])
    }

    fn any(&self) -> Option<&Connection> {
        self.connections.iter().flatten().next()
    }

    fn acked(&self) -> Option<u64> {
        let connection = self.any().filter(|_| self.terms.replicated)?;
        self.run.aside(|| pragma_number(connection, "replvfs_acked"))
    }

    fn observe(&mut self) -> Result<(), String> {
        if !self.terms.observed || !self.database().exists() {
            return Ok(());
        }
        // In both lives: another reader leaves traces.
        let image = plain_look(&self.database()).0;
        let Some(connection) = self.any().filter(|_| self.terms.replicated) else {
            return Ok(());
        };
        let Some(txid) = self.run.aside(|| pragma_number(connection, "replvfs_txid")) else {
            return Ok(());
        };
        self.truth.entry(txid).or_insert(image);
        match self.acked() {
            Some(acked) if self.looked_at != Some(acked) => {
                self.looked_at = Some(acked);
                self.restores(acked)
            }
            _ => Ok(()),
        }
    }

    /// What was acknowledged can be restored, and is what it was.
    fn restores(&self, txid: u64) -> Result<(), String> {
        if !self.terms.replicated {
            return Ok(());
        }
        match self.restored(txid) {
            Ok(bytes) => self.is_true(txid, &bytes),
            Err(error) => Err(format!("txid {txid} was acknowledged: {error}")),
        }
    }

    fn restored(&self, txid: u64) -> Result<Vec<u8>, String> {
        let out = self.path.join("one.db");
        let target = Target::Txid(Txid(txid));
        let restored = try_restore(&self.replica, target, &out).map_err(|error| error.to_string())?;
        let bytes = std::fs::read(&out).unwrap();
        std::fs::remove_file(&out).unwrap();
        if restored.txid.0 == txid {
            Ok(bytes)
        } else {
            Err(format!("{} was restored", restored.txid))
        }
    }

    fn is_true(&self, txid: u64, bytes: &[u8]) -> Result<(), String> {
        match self.truth.get(&txid).map(|truth| compare_pages(truth, bytes)) {
            Some(Err(difference)) => Err(format!("txid {txid} is not what it was: {difference}")),
            _ => Ok(()),
        }
    }

    fn flush(&self) -> Result<(), String> {
        let connection = self.any().ok_or("nothing is open")?;
        let mut answers = Vec::new();
        // What could not be read back needs a new image, and somebody to bring it.
        for _ in 0..4 {
            let answer = self.run.aside(|| ask(connection, "PRAGMA replvfs_flush"));
            if matches!(answer, Answer::Rows(_)) {
                let status = self.run.aside(|| status(connection));
                if status["failed"].is_null() && status["acked"] == status["txid"] && status["acked"].is_u64() {
                    return Ok(());
                }
                return Err(format!("flushed, and yet: {status}"));
            }
            answers.push(answer);
        }
        let status = self.run.aside(|| status(connection));
        Err(format!("no flush came through: {answers:?}; {status}"))
    }

    /// The newest state and, if they are known, all that were acknowledged.
    fn is_restored(&self, newest: Option<u64>, image: &[u8], integrity: &str) -> Result<(), String> {
        let newest = newest.ok_or("nothing was acknowledged")?;
        for txid in self.truth.keys().filter(|txid| **txid <= newest) {
            match self.restored(*txid) {
                Ok(bytes) => self.is_true(*txid, &bytes)?,
                // Frames that replvfs could not read back make a gap, which the history admits.
                Err(error)
                    if self.terms.fault.is_some_and(Fault::is_for_replvfs) && error.contains("not in the history") => {}
                Err(error) => return Err(format!("txid {txid}: {error}")),
            }
        }
        let out = self.path.join("newest.db");
        let restored = restore_txid(&self.replica, &out, None);
        if restored.txid.0 != newest {
            return Err(format!(
                "the newest that is restored is {}, acknowledged was {newest}",
                restored.txid
            ));
        }
        compare_pages(image, &std::fs::read(&out).unwrap())
            .map_err(|difference| format!("the newest state is not the database: {difference}"))?;
        let found = integrity_of(&plain_look(&out).1);
        if found == integrity {
            Ok(())
        } else {
            Err(format!("integrity_check of what was restored: {found}"))
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Before the folder goes.
        self.connections = [None, None];
    }
}

fn error_of(error: &rusqlite::Error) -> Answer {
    match error {
        rusqlite::Error::SqliteFailure(error, message) => {
            Answer::Error(error.extended_code, message.clone().unwrap_or_default())
        }
        other => Answer::Error(0, other.to_string()),
    }
}

fn ask(connection: &Connection, sql: &str) -> Answer {
    let rows = || -> rusqlite::Result<Vec<String>> {
        let mut statement = connection.prepare(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let values = (0..columns).map(|column| row.get::<_, rusqlite::types::Value>(column));
            let values = values.collect::<rusqlite::Result<Vec<_>>>()?;
            found.push(
                values
                    .iter()
                    .map(|value| format!("{value:?}"))
                    .collect::<Vec<_>>()
                    .join(" "),
            );
        }
        Ok(found)
    };
    rows().map_or_else(|error| error_of(&error), Answer::Rows)
}

/// The database as SQLite sees it without any VFS of ours.
fn plain_look(path: &Path) -> (Vec<u8>, Connection) {
    let mut connection = Connection::open_with_flags_and_vfs(path, OpenFlags::SQLITE_OPEN_READ_WRITE, "unix").unwrap();
    let image = connection.serialize("main").map(|data| data.to_vec());
    let image = image.unwrap_or_else(|error| panic!("reading {}: {error}", path.display()));
    (image, connection)
}

fn integrity_of(connection: &Connection) -> String {
    match ask(connection, "PRAGMA integrity_check") {
        Answer::Rows(rows) => rows.join("\n"),
        other => format!("{other:?}"),
    }
}
