//! A dashboard that reads a replica while the application goes on writing.
//!
//! ```text
//! cargo run --release --example dashboard
//! cargo run --release --example dashboard -- --once    # asks itself, checks the answers, and ends
//! ```
//!
//! `shop` is the application: it writes a database of its own. `board` is the dashboard: it has no file, and reads what the application has uploaded. They
//! are in one program here to be easy to start; all they share is the replica's URI, so they may as well be on two machines. `web` is as much HTTP as that takes.

mod board;
mod once;
mod shop;
mod web;

use std::error::Error;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;

use replvfs::Config;

use board::Board;
use shop::Shop;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dashboard failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let once = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--once") => true,
        Some(other) => return Err(format!("unknown argument {other}; the only one is --once").into()),
    };
    let folder = tempfile::Builder::new().prefix("replvfs-dashboard-").tempdir()?;
    // With an object store: s3://bucket/shop
    let replica = format!("fs://{}", folder.path().join("replica").display());

    // Both VFSs, replvfs and replvfs-remote.
    replvfs::register(Config::default())?;
    let shop = Shop::open(&folder.path().join("shop.db"), &replica)?;
    let board = Arc::new(Board::open(&replica)?);

    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || web::serve(&listener, &board));
    let done = if once {
        once::check(address)
    } else {
        println!("http://{address}/    Enter ends it");
        std::io::stdin()
            .read_line(&mut String::new())
            .map(drop)
            .map_err(Into::into)
    };
    shop.close()?;
    done
}
