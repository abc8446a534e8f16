//! `--once`: asks the dashboard as a browser does, and fails when the answers are not what they have to be.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Result;

const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn check(address: SocketAddr) -> Result<()> {
    let page = get(address, "/")?;
    if !page.contains("/data.json") {
        return Err(format!("this is not the page: {page}").into());
    }

    // What the application does becomes visible while it goes on: more than was there when the dashboard opened the replica.
    let earlier = newest_past(address, 1)?;
    let later = newest_past(address, views(&earlier)?)?;
    for (when, data) in [("earlier", &earlier), ("later", &later)] {
        let (txid, at, views) = (&data["txid"], &data["at"], views(data)?);
        println!("{when}: transaction {txid} of {at}, {views} views");
        // All of an answer is of one state: so many views were in the last minutes as there are in all.
        let counted = |list: &str| sum(&data["numbers"][list]);
        if counted("minutes") != views || counted("pages") != views {
            return Err(format!("its parts do not fit together: {data}").into());
        }
    }
    if later["numbers"]["newest"]["id"].as_i64() <= earlier["numbers"]["newest"]["id"].as_i64() {
        return Err(format!("nothing was sold between {earlier} and {later}").into());
    }

    let at = earlier["at"].as_str().ok_or("it has no time")?;
    let again = data(address, &format!("?at={at}"))?;
    if again != earlier {
        return Err(format!("as of {at} it was {earlier}, and is now {again}").into());
    }
    println!("and as of {at} again what it was then");

    let answer = data(address, "?at=tomorrow-ish");
    match answer {
        Err(error) if error.to_string().contains("2026-01-02T03:04:05Z") => Ok(()),
        other => Err(format!("a wrong time is not refused with a reason: {other:?}").into()),
    }
}

/// The newest state, as soon as there are more views in it than that.
fn newest_past(address: SocketAddr, seen: i64) -> Result<Value> {
    let since = Instant::now();
    loop {
        let data = data(address, "")?;
        if views(&data)? > seen {
            return Ok(data);
        }
        if since.elapsed() > PATIENCE {
            return Err(format!("nothing new in {PATIENCE:?}: {data}").into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn views(data: &Value) -> Result<i64> {
    let views = data["numbers"]["views"].as_i64();
    views.ok_or_else(|| format!("it has no views: {data}").into())
}

fn sum(list: &Value) -> i64 {
    let rows = list.as_array().into_iter().flatten();
    rows.filter_map(|row| row["views"].as_i64()).sum()
}

fn data(address: SocketAddr, query: &str) -> Result<Value> {
    let data: Value = serde_json::from_str(&get(address, &format!("/data.json{query}"))?)?;
    match data["error"].as_str() {
        Some(error) => Err(error.into()),
        None => Ok(data),
    }
}

fn get(address: SocketAddr, target: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("half an answer")?;
    Ok(body.to_owned())
}
