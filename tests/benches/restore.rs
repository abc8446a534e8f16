//! What a restore takes beside a plain copy of the same file, both made durable, in turn, in one run, from a replica in a folder: of an image alone,
//! and of an image with a log that outweighs half of it. Each restore is a process of its own, whose largest memory is reported too.
//!
//! `cargo bench --bench restore [-- MEBIBYTES...]`, by default 256 and 1024.
#![allow(missing_docs)]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use replvfs::format::{
    CHUNK_BYTES, ChunkName, DatabaseId, FORMAT_VERSION, Generation, GenerationMeta, Key, Manifest, ReplicaMeta,
    SegmentHeader, SegmentWriter, TransactionHeader, encode_chunk,
};
use replvfs::restore::{RestoreOptions, restore};
use replvfs::store::{Body, Store, StoreOptions};
use replvfs_tests::{Rng, proc};
use replvfs_vfs::types::{PageSize, Pgno, Position, Salts, Txid, UnixMillis};

const PAGE: usize = 4096;
const ROUNDS: usize = 5;
const SEGMENT_BYTES: usize = 4 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect();
    if let [word, uri, out] = arguments.as_slice()
        && word == "child"
    {
        return child(uri, Path::new(out));
    }
    let mut sizes: Vec<usize> = arguments.iter().filter_map(|word| word.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![256, 1024];
    }
    println!("pages of {PAGE} bytes, half of each is noise; median of {ROUNDS} rounds");
    for mebibytes in sizes {
        for log in [Log::None, Log::Scattered, Log::Hot] {
            measure(mebibytes, log);
        }
    }
}

/// What the log has, of the same length: three quarters of the image's.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Log {
    None,
    /// Any page of the database.
    Scattered,
    /// The same few pages again and again.
    Hot,
}

fn child(uri: &str, out: &Path) {
    let store = Store::open(uri, &StoreOptions::reading()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let start = Instant::now();
    runtime
        .block_on(restore(&store, out, &RestoreOptions::default()))
        .unwrap();
    let time = start.elapsed();
    let kibibytes = proc::status("self", "VmHWM:");
    println!("{} {kibibytes}", time.as_micros());
}

fn measure(mebibytes: usize, log: Log) {
    // Beside the program: the folder for temporary files may be in memory.
    let mut beside: PathBuf = std::env::current_exe().unwrap();
    beside.pop();
    let folder = tempfile::tempdir_in(beside).unwrap();
    let replica = folder.path().join("replica");
    let uri = format!("fs://{}", replica.display());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(fill(&uri, mebibytes, log));
    let (out, copy) = (folder.path().join("out.db"), folder.path().join("copy.db"));
    let (mut restores, mut ratios, mut memory) = (Vec::new(), Vec::new(), 0);
    for round in 0..=ROUNDS {
        let answer = Command::new(std::env::current_exe().unwrap())
            .args(["child", &uri])
            .arg(&out)
            .output()
            .unwrap();
        assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
        let text = String::from_utf8(answer.stdout).unwrap();
        let mut numbers = text.split_whitespace().map(|word| word.parse::<u64>().unwrap());
        let restored = Duration::from_micros(numbers.next().unwrap());
        memory = memory.max(numbers.next().unwrap());
        let start = Instant::now();
        let mut to = File::create_new(&copy).unwrap();
        std::io::copy(&mut File::open(&out).unwrap(), &mut to).unwrap();
        to.flush().unwrap();
        to.sync_all().unwrap();
        let copied = start.elapsed();
        // The first one warms up.
        if round > 0 {
            restores.push(restored);
            ratios.push(restored.as_secs_f64() / copied.as_secs_f64());
        }
        std::fs::remove_file(&out).unwrap();
        std::fs::remove_file(&copy).unwrap();
    }
    restores.sort();
    ratios.sort_by(f64::total_cmp);
    println!(
        "{mebibytes} MiB, log {log:?}: {:.2} s, {:.2} times a copy (from {:.2} to {:.2}), at most {} MiB of memory",
        restores[ROUNDS / 2].as_secs_f64(),
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1],
        memory / 1024,
    );
}

fn fill_page(rng: &mut Rng, page: &mut [u8]) {
    for word in page[PAGE / 2..].chunks_exact_mut(8) {
        word.copy_from_slice(&rng.next().to_le_bytes());
    }
    page[16..18].copy_from_slice(&(PAGE as u16).to_be_bytes());
}

async fn fill(uri: &str, mebibytes: usize, log: Log) {
    let store = Store::open(uri, &StoreOptions::default()).unwrap();
    let page_size = PageSize::new(PAGE as u32).unwrap();
    let put = async |key: Key, bytes: Vec<u8>| {
        store.create(&key, Body::Bytes(Bytes::from(bytes))).await.unwrap();
    };
    let (format, generation, txid) = (FORMAT_VERSION, Generation(1), Txid(0));
    let database_id = DatabaseId([7; 16]);
    put(Key::Replica, ReplicaMeta { format, database_id }.to_bytes().unwrap()).await;
    let meta = GenerationMeta {
        format,
        generation,
        parent: None,
        page_size: page_size.get(),
        writer: "bench".to_owned(),
        created_at: UnixMillis(0),
        first_image: txid,
    };
    let meta = meta.to_bytes().unwrap();
    let mut previous = GenerationMeta::root(&meta);
    put(Key::Generation(generation), meta).await;
    let mut rng = Rng::new(1);
    let page_count = u32::try_from((mebibytes << 20) / PAGE).unwrap();
    let mut chunks = Vec::new();
    for _ in 0..mebibytes {
        let mut raw = vec![b'x'; CHUNK_BYTES];
        raw.chunks_exact_mut(PAGE).for_each(|page| fill_page(&mut rng, page));
        let (hash, stored) = encode_chunk(&raw, 3).unwrap();
        let name = ChunkName { hash, token: 0 };
        put(Key::Chunk(name), stored).await;
        chunks.push(name);
    }
    let position = Position {
        salts: Salts(1, 2),
        frame: 0,
        checksum: [0, 0],
    };
    let manifest = Manifest {
        generation,
        txid,
        page_size,
        page_count,
        taken_at: UnixMillis(0),
        position,
        chunks,
    };
    put(Key::Image(generation, txid), manifest.encode().unwrap()).await;
    if log == Log::None {
        return;
    }
    let range = if log == Log::Hot { 1000 } else { u64::from(page_count) };
    let (transactions, pages) = (8, SEGMENT_BYTES / PAGE / 8);
    let mut page = vec![b'x'; PAGE];
    for segment in 0..mebibytes as u64 * 3 / 4 / (SEGMENT_BYTES as u64 >> 20) {
        let first = Txid(segment * transactions + 1);
        let header = SegmentHeader {
            generation,
            page_size,
            first,
            last: Txid((segment + 1) * transactions),
            start: position,
            end: position,
            previous,
        };
        let mut writer = SegmentWriter::new(Vec::new(), header, 3).unwrap();
        for txid in first.0..=header.last.0 {
            let transaction = TransactionHeader {
                committed_at: UnixMillis(txid as i64),
                page_count,
                end: position,
            };
            writer.begin(transaction).unwrap();
            let mut numbers = std::collections::BTreeSet::new();
            while numbers.len() < pages {
                numbers.insert(rng.below(range) as u32 + 1);
            }
            for number in numbers {
                fill_page(&mut rng, &mut page);
                writer.page(Pgno::new(number).unwrap(), &page).unwrap();
            }
        }
        let (bytes, sealed) = writer.finish().unwrap();
        previous = sealed.hash;
        put(Key::Log(generation, first), bytes).await;
    }
}
