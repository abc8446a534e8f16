//! Writes the specimens with which fuzzing begins into `corpus/`: what replvfs and SQLite themselves write, and settings as people write them. To be run again when
//! a format has changed: `cargo run --manifest-path fuzz/Cargo.toml --no-default-features --example seeds`.

use std::ffi::CString;
use std::path::Path;
use std::sync::Arc;

use libsqlite3_sys as ffi;
use replvfs::format::{DatabaseId, Generation, Key, LocalState, ObjectHash, Place, STATE_SLOT_BYTES, Unfinished};
use replvfs_fuzz::specimen;
use replvfs_vfs::resume::{Fingerprint, Left, Mark, Next};
use replvfs_vfs::testing::{checksum, write_spill};
use replvfs_vfs::transaction::Transaction;
use replvfs_vfs::types::{PageSize, Pgno, Position, Salts, Txid};

fn main() {
    objects();
    states();
    wals();
    spill();
    texts();
    scripts();
    changes();
}

/// The first byte tells the target what the others are.
fn put(target: &str, name: &str, kind: Option<u8>, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    std::fs::create_dir_all(&folder).expect("a folder");
    let all: Vec<u8> = kind.into_iter().chain(bytes.iter().copied()).collect();
    std::fs::write(folder.join(format!("seed-{name}")), all).expect("it is written");
}

/// A JSON object without its CRC-32.
fn members(object: &[u8]) -> &[u8] {
    let text = std::str::from_utf8(object).expect("text").trim_end_matches('\0');
    let text = text.strip_prefix("{\n").expect("an object");
    text.rsplit_once(",\n  \"crc32\"").expect("a CRC-32").0.as_bytes()
}

fn objects() {
    for (number, (key, bytes)) in specimen::replica().objects.iter().enumerate() {
        let name = number.to_string();
        match key {
            Key::Log(..) if bytes.len() == replvfs::format::Seal::LEN => {
                put("manifest", &format!("seal-{name}"), Some(2), bytes);
                put("manifest", &format!("seal-mended-{name}"), Some(3), bytes);
            }
            Key::Log(..) | Key::Span(..) => {
                put("segment", &format!("object-{name}"), Some(0), bytes);
                put("segment", &format!("mended-{name}"), Some(1), bytes);
            }
            Key::Image(..) => {
                put("manifest", &format!("image-{name}"), Some(0), bytes);
                put("manifest", &format!("image-mended-{name}"), Some(1), bytes);
            }
            Key::Replica | Key::Generation(_) => {
                put("manifest", &format!("json-{name}"), Some(4), bytes);
                put("manifest", &format!("members-{name}"), Some(5), members(bytes));
            }
            Key::Chunk(chunk) => {
                let len = zstd::bulk::decompress(bytes, 1 << 20).expect("a chunk").len() as u32;
                let named = [&chunk.hash.0[..], &len.to_le_bytes(), bytes].concat();
                put("manifest", &format!("chunk-{name}"), Some(7), &named);
            }
        }
        put("manifest", &format!("name-{name}"), Some(6), key.path().as_bytes());
    }
}

fn states() {
    let mark = |txid: u64| Mark {
        txid: Txid(txid),
        position: Position {
            salts: Salts(3, 4),
            frame: txid as u32,
            checksum: [5, 6],
        },
    };
    let plain = LocalState {
        sequence: 4,
        replica: "s3://bucket/app".to_owned(),
        place: Place::of("s3://bucket/app"),
        database_id: DatabaseId([7; 16]),
        generation: Generation(2),
        page_size: PageSize::new(4096).expect("a page size"),
        stored: mark(17),
        slot: Some(Txid(15)),
        previous: ObjectHash([9; 32]),
        left: None,
        if_wal: None,
        fenced: false,
        unfinished: None,
        restored: Some(false),
    };
    let left = |next| Some(Left { mark: mark(17), next });
    let file = Fingerprint {
        device: 1,
        inode: 2,
        size: 8192,
        modified_ns: (3, 4),
        changed_ns: (5, 6),
    };
    let states = [
        plain.clone(),
        LocalState {
            sequence: 5,
            left: left(Next::Wal(Salts(7, 8))),
            if_wal: Some(Salts(1, 2)),
            ..plain.clone()
        },
        LocalState {
            sequence: 6,
            left: left(Next::File(file)),
            fenced: true,
            ..plain.clone()
        },
        LocalState {
            sequence: 7,
            slot: None,
            unfinished: Some(Unfinished {
                slot: Txid(18),
                hash: ObjectHash([1; 32]),
            }),
            restored: Some(true),
            ..plain
        },
    ];
    let mut both = vec![0; 2 * STATE_SLOT_BYTES];
    for (number, state) in states.iter().enumerate() {
        let slot = state.to_slot().expect("a state");
        let at = number % 2 * STATE_SLOT_BYTES;
        both[at..at + STATE_SLOT_BYTES].copy_from_slice(&slot);
        put("state", &format!("file-{number}"), Some(0), &both);
        put("state", &format!("members-{number}"), Some(1), members(&slot));
    }
    for number in 0..4 {
        put("state", &format!("written-{number}"), Some(2), &noise(number, 400));
    }
}

/// What SQLite itself writes.
fn wals() {
    for (page_size, name) in [(512, "small"), (4096, "usual")] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("app.db");
        let mut db = std::ptr::null_mut();
        let file = CString::new(path.to_str().expect("a name")).expect("a name");
        // SAFETY: the name ends with a zero, and `db` is where it goes.
        assert_eq!(unsafe { ffi::sqlite3_open(file.as_ptr(), &mut db) }, ffi::SQLITE_OK);
        let sql = format!(
            "PRAGMA page_size={page_size}; PRAGMA journal_mode=WAL; CREATE TABLE note (text); INSERT INTO note VALUES ('hello');
             BEGIN; INSERT INTO note SELECT hex(zeroblob({page_size})); DELETE FROM note WHERE rowid = 1; COMMIT; VACUUM;"
        );
        let sql = CString::new(sql).expect("SQL");
        let none = std::ptr::null_mut();
        // SAFETY: the database is open, and the text ends with a zero.
        assert_eq!(
            unsafe { ffi::sqlite3_exec(db, sql.as_ptr(), None, none, none.cast()) },
            ffi::SQLITE_OK
        );
        let wal = std::fs::read(folder.path().join("app.db-wal")).expect("a WAL");
        put("wal_scan", name, Some(0), &wal);
        put("wal_scan", &format!("mended-{name}"), Some(1), &wal);
        let index = std::fs::read(folder.path().join("app.db-shm")).expect("a wal-index");
        assert_eq!(checksum(false, &index[..40], [0, 0])[0].to_ne_bytes(), index[40..44]);
        put("wal_scan", &format!("index-{name}"), Some(2), &index[..48]);
        put("wal_scan", &format!("index-mended-{name}"), Some(3), &index[..48]);
        // SAFETY: nobody uses it any more.
        unsafe { ffi::sqlite3_close(db) };
    }
}

/// What a process leaves behind that has carried transactions over.
fn spill() {
    let folder = tempfile::tempdir().expect("a folder");
    let database = folder.path().join("app.db");
    std::fs::write(&database, "").expect("a database");
    let size = PageSize::new(512).expect("a page size");
    let mut start = Position::default();
    let transactions: Vec<_> = (1..=3u8)
        .map(|txid| {
            let pages = [
                (Pgno::new(1).expect("a page"), vec![txid; 512]),
                (Pgno::new(2).expect("a page"), vec![txid; 512]),
            ];
            let transaction = Transaction::for_test(Txid(txid.into()), size, 2, &pages[usize::from(txid) % 2..], start);
            start = transaction.end;
            Arc::new(transaction)
        })
        .collect();
    write_spill(&database, &transactions).expect("it is written");
    let file = std::fs::read(folder.path().join("app.db-replvfs-spill")).expect("a spill file");
    // The target takes 4 and more for such a file, and the number modulo what is in it for how many are wanted.
    put("wal_scan", "spill-all", Some(7), &file);
    put("wal_scan", "spill-some", Some(6), &file);
}

fn texts() {
    let texts: [(&str, u8, &str); 32] = [
        (
            "s3",
            0,
            "s3://bucket/prefix?region=eu-central-1&endpoint=http://127.0.0.1:9000",
        ),
        ("secret", 0, "s3://key:secret@bucket/app?access_key_id=key"),
        ("azblob", 0, "azblob://container/app?account_name=a"),
        ("sftp", 0, "sftp://me@host:22/srv/backup?key=/etc/key"),
        ("escaped", 0, "s3://bucket/%7Bname%7D/a%20b?a%26b=c"),
        ("file", 0, "fs:///var/backup/{name}"),
        (
            "forgotten",
            0,
            "bucket/app?secret_access_key=secret&endpoint=http://127.0.0.1:9000",
        ),
        (
            "database",
            1,
            "vfs=replvfs&replica=s3://bucket/{path}&durability=remote&timeout=5s&on_timeout=continue",
        ),
        (
            "sizes",
            1,
            "replica=memory://x&segment_size=64KiB&wal_limit=1GiB&flush_interval=10ms&retention=forever",
        ),
        (
            "refused",
            1,
            "replica=fs:///a&nolock=1&durability=strict&restore=if-behind&on_fenced=stop",
        ),
        (
            "remote",
            1,
            "vfs=replvfs-remote&replica=s3://bucket/app&at=5 minutes ago&page_cache=64MiB",
        ),
        ("follow", 1, "replica=s3://bucket/app&follow=1s&timeout=30s&mode=ro"),
        ("number", 1, "replica=s3://bucket/app&txid=42"),
        (
            "environment",
            2,
            "REPLVFS_REPLICA=fs:///var/{name}&REPLVFS_RETENTION=30d&REPLVFS_DEFAULT=1",
        ),
        (
            "log",
            2,
            "REPLVFS_LOG=warn,replvfs::pipeline=debug&REPLVFS_METRICS=127.0.0.1:9464",
        ),
        (
            "memory",
            2,
            "REPLVFS_MEMORY_LIMIT=64MiB&REPLVFS_DURABILITY=strict&REPLVFS_CLOSE_TIMEOUT=0s",
        ),
        ("exact", 3, "2026-01-02T03:04:05.678+01:00"),
        ("utc", 3, "2026-01-02 03:04:05"),
        ("ago", 3, "1 hour 30 minutes ago"),
        ("period", 3, "-P1Y2M3DT4H5M6.789S"),
        ("duration", 4, "250ms"),
        ("days", 4, "36500d"),
        ("size", 4, "256MiB"),
        ("bytes", 4, "1048576"),
        ("flush", 5, "replvfs 1 flush 30000\n"),
        ("wait", 5, "replvfs 1 wait 17 30000\n"),
        ("over", 5, "replvfs 1 over 123 456\n"),
        ("acked", 5, "replvfs 1 acked 17"),
        ("gone", 5, "replvfs 1 gone it does not replicate the database any more"),
        (
            "get",
            6,
            "GET /metrics HTTP/1.1\r\nHost: localhost:9464\r\nAccept: */*\r\n\r\n",
        ),
        ("head", 6, "HEAD http://localhost/metrics?x=1 HTTP/1.0\r\n\r\n"),
        ("post", 6, "POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"),
    ];
    for (name, kind, text) in texts {
        put("uri", name, Some(kind), text.as_bytes());
    }
    let files = [
        (
            "usual",
            "flush_interval = \"2s\"\n\n[[database]]\npath = \"/srv/app/app.db\"\nreplica = \"s3://backup/app\"\ndurability = \"remote\"\n\n[database.store]\nregion = \"eu-central-1\"\n",
        ),
        (
            "globs",
            "memory_limit = '64MiB'\n[[database]]\npath = '/srv/{a,b}/**/[a-z]?*.db'\nreplica = 's3://backup/{path}?region=x'\nretention = 'forever'\n",
        ),
        (
            "store",
            "store.region = 'x'\nmetrics = \"127.0.0.1:9464\"\n[store]\naccess_key_id = 'key'\nnumber = 4\nyes = true\n",
        ),
        (
            "wrong",
            "[[database]]\npath = 4\nreplica = ''\n[database.store]\nroot = '/'\n[[database]]\npath='/srv/app.db'\nunknown = 1\n",
        ),
    ];
    for (name, text) in files {
        put("config", name, None, text.as_bytes());
    }
}

/// Bytes that are taken for whatever the target makes of them.
fn scripts() {
    for number in 0..8 {
        put(
            "history",
            &number.to_string(),
            None,
            &noise(number, 40 + 60 * number as usize),
        );
        put(
            "replica",
            &number.to_string(),
            None,
            &noise(number, 10 + 20 * number as usize),
        );
        put(
            "remote",
            &number.to_string(),
            None,
            &noise(number, 10 + 20 * number as usize),
        );
        put(
            "segment",
            &format!("written-{number}"),
            Some(2 + number as u8 % 2),
            &noise(number, 200),
        );
        put("manifest", &format!("written-{number}"), Some(8), &noise(number, 60));
    }
}

/// Three versions of a page: as it is, with two places changed, as it was.
fn changes() {
    let control = [0, 1, 0x80, 1, 3, 0xfb, 2, 2, 2, 0x80, 4, 0];
    let mut content = (control.len() as u32).to_le_bytes().to_vec();
    content.extend_from_slice(&control);
    content.extend_from_slice(&noise(7, 512 + 5));
    put("segment", "changes", Some(4), &[&[2], content.as_slice()].concat());
}

/// SplitMix64.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as u8
    };
    (0..len).map(|_| next()).collect()
}
