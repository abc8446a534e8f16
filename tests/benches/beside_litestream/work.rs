//! The work, the same for each peer: a child process that commits or reads through SQLite, as fast as it can or at a pace, and says what it took. What it is told are
//! words `name=value`; it says `READY`, waits for a line, works, says `DONE` with numbers, and ends when its input does.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant, SystemTime};

use replvfs_tests::{Rng, flush, open, register_as_it_comes, status};
use rusqlite::{Connection, OpenFlags, Statement, ToSql, params};
use serde_json::{Value, json};

use crate::peers::{Peer, Place};
use crate::process::Worker;

/// The first argument of the process.
pub(crate) const ROLE: &str = "--work";
/// `at` is when the row was written, in microseconds since 1970.
pub(crate) const SCHEMA: &str = "CREATE TABLE t(a INTEGER PRIMARY KEY, at INTEGER, b)";

/// What rows are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Text,
    Random,
}

impl Content {
    pub(crate) const ALL: [Content; 2] = [Content::Text, Content::Random];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Content::Text => "text",
            Content::Random => "random",
        }
    }
}

/// A writer's load. It ends with the commits or with the time, whatever comes first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// For a commit.
    pub(crate) rows: u64,
    pub(crate) commits: u64,
    pub(crate) most: Duration,
    /// Commits a second; without it, as fast as it goes.
    pub(crate) pace: Option<u64>,
    pub(crate) content: Content,
    /// For a row.
    pub(crate) bytes: usize,
}

impl Load {
    fn words(&self) -> Vec<String> {
        vec![
            format!("rows={}", self.rows),
            format!("commits={}", self.commits),
            format!("micros={}", self.most.as_micros()),
            format!("pace={}", self.pace.unwrap_or(0)),
            format!("content={}", self.content.name()),
            format!("bytes={}", self.bytes),
        ]
    }

    /// A writer that is ready.
    pub(crate) fn start(&self, place: &Place, more: &[&str]) -> Worker {
        let mut words = self.words();
        words.extend(more.iter().map(ToString::to_string));
        start("write", place, words)
    }
}

/// A reader of random rows below `rows`, for so long, that is ready.
pub(crate) fn start_reader(place: &Place, rows: u64, time: Duration) -> Worker {
    let words = vec![format!("rows={rows}"), format!("micros={}", time.as_micros())];
    start("read", place, words)
}

/// Replicates what is there, and no more.
pub(crate) fn start_waiting(place: &Place) -> Worker {
    start("wait", place, Vec::new())
}

fn start(mode: &str, place: &Place, words: Vec<String>) -> Worker {
    let mut all = vec![ROLE.to_owned(), mode.to_owned(), format!("uri={}", place.uri())];
    all.push(format!("replvfs={}", u8::from(place.peer.is_replvfs())));
    all.push(format!("plain={}", u8::from(place.peer == Peer::Plain)));
    all.extend(words);
    let mut worker = Worker::start(&all);
    worker.expect("READY");
    worker
}

struct Told(HashMap<String, String>);

impl Told {
    fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or(0)
    }
}

pub(crate) fn child(words: &[String]) {
    let pairs = words[1..].iter().filter_map(|word| word.split_once('='));
    let told = Told(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect());
    let is_replvfs = told.number("replvfs") == 1;
    let connection = connect(told.text("uri"), is_replvfs);
    if words[0] == "read" {
        // The schema is read, and the WAL is open.
        count(&connection);
    } else if is_replvfs {
        flush(&connection);
        while status(&connection)["image"] != "stored" {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    wait("READY");
    let cpu = cpu();
    let mut done = match words[0].as_str() {
        "write" => write(&connection, &told),
        "read" => read(&connection, &told),
        _ => json!({}),
    };
    let begun = Instant::now();
    if words[0] == "write" && is_replvfs {
        flush(&connection);
    }
    done["catch up"] = json!(begun.elapsed().as_secs_f64());
    // Without what opening took, a first image included.
    done["writer CPU"] = json!(self::cpu() - cpu);
    wait(&format!("DONE {done}"));
}

/// Seconds of CPU of this process, its threads included.
fn cpu() -> f64 {
    // SAFETY: all zeros is a value of it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: for the answer, and ours.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Says it, and returns when there is a line, or nothing more.
fn wait(said: &str) {
    println!("{said}");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).expect("its input");
}

pub(crate) fn connect(uri: &str, is_replvfs: bool) -> Connection {
    let connection = if is_replvfs {
        register_as_it_comes();
        open(uri)
    } else {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Connection::open_with_flags(uri, flags)
    };
    let connection = connection.expect("opens");
    connection.busy_timeout(Duration::from_secs(60)).expect("waits");
    connection.execute_batch("PRAGMA synchronous=NORMAL").expect("a pragma");
    connection
}

pub(crate) fn count(connection: &Connection) -> u64 {
    let count = connection.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
    u64::try_from(count.expect("reads")).expect("a count")
}

pub(crate) fn now() -> u64 {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    time.expect("after 1970")
        .as_micros()
        .try_into()
        .expect("this millennium")
}

fn write(connection: &Connection, told: &Told) -> Value {
    let (rows, commits, most) = (told.number("rows"), told.number("commits"), told.number("micros"));
    let (pace, pause) = (told.number("pace"), told.number("pause"));
    let (reports, bytes) = (told.number("report") == 1, told.number("bytes") as usize);
    let content = if told.text("content") == "random" {
        Content::Random
    } else {
        Content::Text
    };
    let mut output = std::io::stdout().lock();
    let mut rng = Rng::new(1);
    let mut begin = connection.prepare("BEGIN").expect("a statement");
    let mut commit = connection.prepare("COMMIT").expect("a statement");
    let mut insert = connection
        .prepare("INSERT INTO t(at, b) VALUES (?1, ?2)")
        .expect("a statement");
    let mut row = Vec::with_capacity(bytes);
    let mut latencies: Vec<u32> = Vec::with_capacity(usize::try_from(commits).expect("few").min(1 << 20));
    let mut returned = Vec::new();
    let begun = Instant::now();
    while (latencies.len() as u64) < commits {
        let number = latencies.len() as u64;
        if let Some(due) = (number * 1_000_000_000).checked_div(pace) {
            std::thread::sleep(Duration::from_nanos(due).saturating_sub(begun.elapsed()));
        }
        if pause > 0 {
            std::thread::sleep(Duration::from_millis(pause + rng.below(pause)));
        }
        if begun.elapsed().as_micros() >= u128::from(most) {
            break;
        }
        let at = now();
        let start = Instant::now();
        if rows > 1 {
            begin.execute([]).expect("begins");
        }
        for _ in 0..rows {
            fill(&mut row, &mut rng, content, bytes);
            put(&mut insert, at, &row, content);
        }
        if rows > 1 {
            commit.execute([]).expect("commits");
        }
        latencies.push(start.elapsed().as_nanos().try_into().unwrap_or(u32::MAX));
        if pause > 0 {
            returned.push(now());
        }
        if reports {
            let mut record = [0; 16];
            record[..8].copy_from_slice(&((number + 1) * rows).to_le_bytes());
            record[8..].copy_from_slice(&at.to_le_bytes());
            output
                .write_all(&record)
                .and_then(|()| output.flush())
                .expect("somebody reads");
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let commits = latencies.len() as u64;
    latencies.sort_unstable();
    let quantile = |part: f64| {
        let at = (latencies.len() as f64 * part) as usize;
        latencies
            .get(at.min(latencies.len().saturating_sub(1)))
            .map_or(0.0, |nanos| f64::from(*nanos) / 1e3)
    };
    json!({
        "commits": commits,
        "rows": commits * rows,
        "seconds": seconds,
        "p50": quantile(0.5),
        "p99": quantile(0.99),
        "p99.9": quantile(0.999),
        "worst": quantile(1.0),
        "returned": returned,
    })
}

fn put(insert: &mut Statement, at: u64, row: &[u8], content: Content) {
    let text;
    let value: &dyn ToSql = match content {
        Content::Random => &row,
        Content::Text => {
            text = std::str::from_utf8(row).expect("text");
            &text
        }
    };
    insert.execute(params![at as i64, value]).expect("a row");
}

fn read(connection: &Connection, told: &Told) -> Value {
    let (rows, most) = (told.number("rows"), told.number("micros"));
    let mut select = connection.prepare("SELECT b FROM t WHERE a = ?1").expect("a statement");
    let (mut rng, mut reads, mut bytes) = (Rng::new(2), 0_u64, 0_usize);
    let begun = Instant::now();
    // The clock is looked at now and then: it costs what a part of a read does.
    while reads % 64 != 0 || begun.elapsed().as_micros() < u128::from(most) {
        let number = 1 + rng.below(rows);
        let length = select.query_row([number as i64], |row| {
            row.get_ref(0).map(|value| value.as_bytes().map_or(0, <[u8]>::len))
        });
        bytes += length.expect("a row");
        reads += 1;
    }
    json!({ "reads": reads, "seconds": begun.elapsed().as_secs_f64(), "bytes": bytes })
}

/// What people write in orders, tickets and logs. Words that come first come often.
const WORDS: &str = "the order and to of a in for is on was with that by this we it please be not are from at as have sent paid open your has when new will can \
    customer delivery address invoice total item size colour left right door before after noon Monday Tuesday Friday weekend morning evening parcel returned \
    refund card bank transfer missing broken late early wrong number street floor bell neighbour office garden blue green red black white large small medium \
    shirt shoes lamp table chair kettle book paper pencil screen keyboard cable battery charger bottle glass plate fork knife spoon towel blanket pillow carpet \
    confirmed cancelled shipped packed weighed checked signed waiting arrived damaged replaced repaired ordered twice again never always sometimes soon today \
    tomorrow yesterday week month year price discount voucher code tax net gross euro cent pound franc account password login mail phone message answer question \
    Anna Boris Chen Dana Emil Farid Greta Hugo Ines Jonas Karla Liam Mina Noor Olga Pavel Quinn Rosa Sami Tara Uma Viktor Wanda Xenia Yusuf Zoe \
    Berlin Lagos Lima Oslo Porto Quito Riga Sofia Tokyo Turin Utrecht Vienna Warsaw York Zagreb north south east west river bridge station market harbour castle";

/// A row that is like no other. Text is a number, a hexadecimal one, a sum, and words of which some are frequent.
fn fill(row: &mut Vec<u8>, rng: &mut Rng, content: Content, bytes: usize) {
    thread_local! {
        static SPLIT: Vec<&'static str> = WORDS.split_whitespace().collect();
    }
    row.clear();
    if content == Content::Random {
        while row.len() < bytes {
            row.extend_from_slice(&rng.next().to_le_bytes());
        }
        return row.truncate(bytes);
    }
    let (id, key, cents) = (rng.below(1_000_000), rng.next() >> 32, rng.below(100_000));
    write!(row, "#{id} {key:08x} {}.{:02}: ", cents / 100, cents % 100).expect("in memory");
    SPLIT.with(|words| {
        while row.len() < bytes {
            // The product of two falls off as words in a language do, roughly.
            let random = rng.next();
            let (one, other) = (random as u32 as u64, random >> 32);
            let at = (((one * other) >> 32) * words.len() as u64) >> 32;
            row.extend_from_slice(words[at as usize].as_bytes());
            row.push(b' ');
        }
    });
    row.truncate(bytes);
}
