//! Credentials in the file reach the store, and nothing else.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use replvfs_tests::{sqlite_log, status, use_wal};
use rusqlite::Connection;
use tracing_subscriber::fmt::MakeWriter;

use super::{Place, place};

const SECRETS: [&str; 4] = [
    "hunter2-secret-hunter2",
    "hunter2-token-hunter2",
    AZURE_KEY,
    SERVICE_ACCOUNT,
];
/// The first of them in base64.
const AZURE_KEY: &str = "aHVudGVyMi1zZWNyZXQtaHVudGVyMg==";
/// In base64, with the first of them for its private key.
const SERVICE_ACCOUNT: &str = "eyJ0eXBlIjogInNlcnZpY2VfYWNjb3VudCIsICJjbGllbnRfZW1haWwiOiAiYUBleGFtcGxlLmNvbSIsICJwcml2YXRlX2tleSI6ICJodW50ZXIyLXNlY3JldC1odW50ZXIyIn0=";
const KEY_ID: &str = "AKIDOFTHEFILE";

type Text = Arc<Mutex<Vec<u8>>>;

#[derive(Clone)]
struct Sink(Text);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Sink;

    fn make_writer(&'a self) -> Sink {
        self.clone()
    }
}

/// A store that lets nobody in, and remembers who came.
fn closed_store() -> (String, Text) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let asked = Text::default();
    let heads = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let heads = Arc::clone(&heads);
            std::thread::spawn(move || refuse(stream, &heads));
        }
    });
    (endpoint, asked)
}

fn refuse(mut stream: TcpStream, heads: &Text) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
        head.extend_from_slice(&byte);
    }
    heads
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .extend_from_slice(&head);
    let body = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>";
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
}

/// What is shown of databases whose stores let nobody in, of each other kind.
fn other_stores(place: &Place, folder: &Path, endpoint: &str) -> String {
    let [secret, token, key, account] = SECRETS;
    let server = endpoint.trim_start_matches("http://");
    let stores = [
        (
            format!("azblob://c/x?endpoint={endpoint}/a"),
            format!("account_name = 'a'\naccount_key = '{key}'"),
        ),
        (
            format!("azblob://c/y?endpoint={endpoint}/a"),
            format!("sas_token = 'sv=2021-08-06&sig={token}'"),
        ),
        (
            format!("gs://b/x?endpoint={endpoint}"),
            format!("token = '{token}'\ndisable_vm_metadata = true"),
        ),
        (
            format!("gs://b/y?endpoint={endpoint}"),
            format!("credential = '{account}'\ndisable_vm_metadata = true"),
        ),
        (format!("webdav+http://me@{server}/x"), format!("password = '{secret}'")),
        (format!("webdav+http://{server}/y"), format!("token = '{token}'")),
        (format!("ftp://me@{server}/x"), format!("password = '{secret}'")),
        (
            format!("gs://b/z?endpoint={endpoint}"),
            format!("credential = '{secret}'"),
        ),
        (
            format!("azblob://c/z?endpoint={endpoint}/a"),
            format!("account_key = '{secret}'\nskip_signature = '{token}'"),
        ),
    ];
    let mut shown = String::new();
    for (at, (replica, keys)) in stores.iter().enumerate() {
        place.configure(&format!(
            "[[database]]\npath = 'plain/secret/{at}.db'\nreplica = '{replica}'\nrestore = 'never'\ntimeout = '500ms'\nclose_timeout = '0s'\n[database.store]\n{keys}\n"
        ));
        let opened = Connection::open(folder.join(format!("{at}.db")));
        shown.push_str(&format!(
            "{:?} {:?}",
            opened.as_ref().map(|_| ()),
            replvfs::last_open_error()
        ));
        let Ok(connection) = opened else { continue };
        use_wal(&connection);
        connection.execute_batch("CREATE TABLE t(x)").unwrap();
        let flushed = connection.query_row("PRAGMA replvfs_flush", [], |_| Ok(()));
        let status = status(&connection).to_string();
        assert!(
            flushed.is_err() && status.contains(replica.split('?').next().unwrap().split("me@").last().unwrap()),
            "{status}"
        );
        shown.push_str(&format!("{flushed:?} {status}"));
    }
    shown
}

#[test]
fn no_credential_is_in_anything_that_is_shown_or_left() {
    let (_alone, place) = place();
    let traced = Text::default();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(Sink(Arc::clone(&traced)))
        .init();
    let (endpoint, asked) = closed_store();
    let folder = place.file("plain/secret");
    std::fs::create_dir(&folder).unwrap();
    let others = other_stores(place, &folder, &endpoint);
    let database = folder.join("app.db");
    let [secret, token, ..] = SECRETS;
    place.configure(&format!(
        "[[database]]\npath = 'plain/secret/*.db'\nreplica = 's3://bucket/{{name}}?session_token={token}'\nrestore = 'never'\n\
         timeout = '2s'\nclose_timeout = '0s'\n[database.store]\nregion = 'eu'\nendpoint = '{endpoint}'\n\
         access_key_id = '{KEY_ID}'\nsecret_access_key = '{secret}'\ndisable_config_load = true\n"
    ));
    let connection = Connection::open(&database).unwrap();
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)")
        .unwrap();
    let flushed = connection.query_row("PRAGMA replvfs_flush", [], |_| Ok(()));
    let mut shown = format!("{others} {flushed:?} {}", flushed.as_ref().unwrap_err());
    let status = status(&connection).to_string();
    assert!(status.contains("s3://bucket/app.db"), "{status}");
    shown.push_str(&status);
    let path = database.display();
    for parameters in [
        "replica=s3://bucket/x",
        "timeout=1s",
        "segment_size=x",
        "vfs=replvfs&speed=1",
    ] {
        let refused = Connection::open(format!("file:{path}?{parameters}")).map(|_| ());
        shown.push_str(&format!("{refused:?}"));
    }
    let replication = replvfs::Replication::of(&database).unwrap();
    shown.push_str(&format!(
        "{replication:?} {} {:?}",
        replication.status(),
        replication.flush()
    ));
    shown.push_str(&format!("{:?}", replvfs::last_open_error()));
    drop(connection);
    // A key with the secret where a switch is meant, and the secret where no key is.
    for (from, to) in [
        (
            "disable_config_load = true",
            format!("disable_config_load = '{secret}'"),
        ),
        ("region = 'eu'", format!("region = '{secret}\n")),
    ] {
        let file = place.file("replvfs.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace(from, &to)).unwrap();
        let refused = Connection::open(folder.join("other.db")).map(|_| ());
        assert!(refused.is_err());
        shown.push_str(&format!("{refused:?} {:?}", replvfs::last_open_error()));
        std::fs::write(&file, text).unwrap();
    }
    shown.push_str(&format!("{:?}", sqlite_log()));
    let metrics = format!("{:?}", place.metrics.snapshot().into_vec());
    assert!(
        metrics.contains("s3://bucket/app.db"),
        "requests to it are counted: {metrics}"
    );
    shown.push_str(&metrics);
    for entry in std::fs::read_dir(&folder).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_type().unwrap().is_file() {
            continue;
        }
        let bytes = std::fs::read(entry.path()).unwrap();
        shown.push_str(&String::from_utf8_lossy(&bytes));
    }
    let traced = String::from_utf8_lossy(&traced.lock().unwrap()).into_owned();
    assert!(traced.contains("s3://bucket/app.db"), "the trace has something in it");
    let asked = String::from_utf8_lossy(&asked.lock().unwrap()).into_owned();
    assert!(
        asked.contains(KEY_ID) && asked.contains(token),
        "the file's credentials were used: {asked}"
    );
    for used in [
        "SharedKey a:",
        "sig=hunter2-token",
        "Bearer hunter2-token",
        "Basic bWU6",
    ] {
        assert!(
            asked.to_ascii_lowercase().contains(&used.to_ascii_lowercase()),
            "{used}: {asked}"
        );
    }
    for secret in SECRETS {
        assert!(!shown.contains(secret), "{shown}");
        let line = traced.lines().find(|line| line.contains(secret));
        assert_eq!(line, None);
    }
}
