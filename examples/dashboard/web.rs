//! As much HTTP as a page and its numbers take.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::Result;
use super::board::Board;

const PAGE: &str = include_str!("page.html");
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers until the program ends.
pub(super) fn serve(listener: &TcpListener, board: &Arc<Board>) {
    for stream in listener.incoming() {
        let board = Arc::clone(board);
        std::thread::spawn(move || {
            if let Err(error) = stream.map_err(Into::into).and_then(|stream| answer(&stream, &board)) {
                eprintln!("a request was not answered: {error}");
            }
        });
    }
}

fn answer(stream: &TcpStream, board: &Board) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().ok_or("it was empty")??;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let target = request.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (status, kind, body) = match path {
        "/" => ("200 OK", "text/html; charset=utf-8", PAGE.to_owned()),
        "/data.json" => match data(query, board) {
            Ok(numbers) => ("200 OK", "application/json", numbers),
            Err(error) => {
                let body = serde_json::json!({ "error": error.to_string() });
                ("503 Service Unavailable", "application/json", body.to_string())
            }
        },
        _ => ("404 Not Found", "text/plain", "there is / and /data.json\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    Ok(stream.write_all(body.as_bytes())?)
}

fn data(query: &str, board: &Board) -> Result<String> {
    match query.split('&').find_map(|pair| pair.strip_prefix("at=")) {
        Some(time) => board.at(&percent_encoding::percent_decode_str(time).decode_utf8()?),
        None => board.newest(),
    }
}
